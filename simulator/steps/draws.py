"""Draws of something at growing sizes, which take long to make: made once, in order, as far as anybody asks, and kept.

Sizes are half an octave apart. No answer depends on the question before it, so that all who ask for draws of the same
key can have the same: a process keeps a few, and files keep them beyond it (`profiles.kept`). One that holds too few
sizes is of no use to who needs more, and is replaced by one that holds them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from profiles.kept import COUNTS, keep, kept
from traces.steps import Floats

LAYOUT = "servetwin.draws/1"
"""What a file begins with; a new one for every change of what stands behind it."""
MOST_KEPT = 32
"""Keys of which a process keeps draws; the one that was asked for longest ago goes first."""

_KEPT: dict[str, Draws] = {}


def half_octaves() -> Iterator[int]:
    """The sizes: 1, 2, 3, 4, 6, 8, 12, and so on."""
    yield 1
    size = 2
    while True:
        yield size
        yield size + size // 2
        size *= 2


class Draws:
    """Draws at every size: those that were made, linear between sizes, each in its place, and zeros at size 0."""

    def __init__(self, key: str, n_draws: int, make: Callable[[], Iterator[Floats]]) -> None:
        """None is made or read yet.

        Args:
            key: digest of all that draws depend on.
            n_draws: of each size.
            make: makes those of each size of `half_octaves`, in order, [n_draws] each.
        """
        self._key = key
        self._make = make
        self._sizes = [0]
        self._draws = [np.zeros(n_draws)]
        self._more: Iterator[tuple[int, Floats]] | None = None

    def at(self, size: int) -> Floats:
        """Draws at a size of 1 or more, [n_draws]."""
        if self._sizes[-1] < size:
            self._reach(size)
        high = int(np.searchsorted(self._sizes, size))
        low = high - 1
        share = (size - self._sizes[low]) / (self._sizes[high] - self._sizes[low])
        draws: Floats = (1 - share) * self._draws[low] + share * self._draws[high]
        return draws

    def _reach(self, size: int) -> None:
        """Have draws up to a size: from the file, and where that has too few, made and put there."""
        if self._more is None:
            content = kept(self._key, LAYOUT) or b""
            read = np.frombuffer(content, dtype="<f8").reshape(-1, len(self._draws[0]))
            self._draws += list(read)
            self._sizes += islice(half_octaves(), len(read))
            COUNTS["draws read"] += len(read)
            # To go on behind those that were read they are made once more.
            self._more = islice(zip(half_octaves(), self._make(), strict=True), len(read), None)
        n_before = len(self._sizes)
        while self._sizes[-1] < size:
            made, draws = next(self._more)
            self._sizes.append(made)
            self._draws.append(draws)
        if (n_made := len(self._sizes) - n_before) > 0:
            COUNTS["draws made"] += n_made
            keep(self._key, LAYOUT, np.array(self._draws[1:], dtype="<f8").tobytes())


def kept_draws(key: str, n_draws: int, make: Callable[[], Iterator[Floats]]) -> Draws:
    """`Draws` of these, or what an earlier call has of the same key."""
    draws = _KEPT.pop(key, None) or Draws(key, n_draws, make)
    _KEPT[key] = draws  # the last to go
    if len(_KEPT) > MOST_KEPT:
        del _KEPT[next(iter(_KEPT))]
    return draws


def forget() -> None:
    """Keep none of what this process has. Files stay."""
    _KEPT.clear()
