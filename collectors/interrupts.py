"""An interrupt that ends a recording in order, and not in the middle of a write."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def until_interrupted() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set, twice; the third of them ends the program as it would without this."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    times = itertools.count(1)

    def interrupted() -> None:
        stop.set()
        if next(times) == 2:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
