"""Send a trace to a live server that records its steps, and bring home one capture."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from collectors.client import ClientRecord, Target, replay
from collectors.join import Subject, join, read_recording
from traces.capture import Capture
from traces.errors import CollectorError
from traces.trace import Trace

FLUSHED_WITHIN_S = 1.5
"""By when the recorder has written what it knows: it flushes at least every second."""


def replay_and_join(trace: Trace, target: Target, steps: Path, subject: Subject) -> tuple[Capture, list[ClientRecord]]:
    """Send the trace, wait for the recorder, and join the two.

    Args:
        trace: what to send.
        target: the server.
        steps: the file that the server's recorder writes, on this host.
        subject: what the capture is of.

    Returns:
        The capture, and the client's own records.

    Raises:
        CollectorError: the recorder's file is not there, or is none.
    """
    if not steps.is_file():
        raise CollectorError(f"{steps}: no such file; is the server running with the recorder and SERVETWIN_STEPS?")
    records = asyncio.run(replay(trace, target))
    time.sleep(FLUSHED_WITHIN_S)
    return join(trace, records, read_recording(steps), subject), records
