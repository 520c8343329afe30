"""Which part of a capture is fitted, so that another can be scored.

all               everything
first:0.33        the first third of the requests, by arrival
time:0:60         requests that arrive from second 0 to before second 60
load:0:8          requests that find between 0 and 8 others in the engine when they arrive
capture:monday    all of the captures of this name, nothing of the others
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.capture import Capture
from traces.errors import InputError
from traces.steps import Floats, Mask

FORMS = "all, first:SHARE, time:FROM:TO, load:LEAST:MOST or capture:NAME"


@dataclass(frozen=True, slots=True)
class Split:
    """A part of captures.

    Attributes:
        text: as the user wrote it.
        kind: what it goes by.
        low: the bound, or the lower of two; not used by all and capture.
        high: the upper bound.
        name: of the captures that are fitted, for kind capture.
    """

    text: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    name: str = ""

    def requests(self, capture: Capture, name: str) -> Mask:
        """Which of the capture's outcomes are in the part, [n_requests]. `name` is the capture's."""
        arrival_s = np.array([outcome.arrival_s for outcome in capture.outcomes])
        match self.kind:
            case "first":
                rank = np.argsort(np.argsort(arrival_s, kind="stable"), kind="stable")
                return np.asarray(rank < round(self.low * len(arrival_s)))
            case "time":
                return np.asarray((arrival_s >= self.low) & (arrival_s < self.high))
            case "load":
                load = _found_in_engine(capture, arrival_s)
                return np.asarray((load >= self.low) & (load <= self.high))
            case "capture":
                return np.full(len(arrival_s), name == self.name)
            case _:
                return np.ones(len(arrival_s), dtype=bool)

    def steps(self, capture: Capture, name: str) -> Mask:
        """Which of the capture's steps tell of the part and not of the rest, [n_steps].

        By first: those that ended before a request that is not in the part arrived. By time: those within it. By load:
        those with as many requests in the engine.
        """
        steps = capture.steps
        assert steps is not None
        match self.kind:
            case "first":
                inside = self.requests(capture, name)
                others_s = [o.arrival_s for o, own in zip(capture.outcomes, inside, strict=True) if not own]
                return np.asarray(steps.end_s < min(others_s, default=np.inf))
            case "time":
                return np.asarray((steps.scheduled_s >= self.low) & (steps.end_s <= self.high))
            case "load":
                load = steps.n_running + steps.n_waiting
                return np.asarray((load >= self.low) & (load <= self.high))
            case _:
                return np.full(len(steps), self.kind == "all" or name == self.name)


def parse_split(text: str) -> Split:
    """Read a part as the command line has it. Raises InputError."""
    kind, _, rest = text.partition(":")
    parts = rest.split(":") if rest else []
    if kind == "all" and not parts:
        return Split(text, kind)
    if kind == "capture" and rest:
        return Split(text, kind, name=rest)
    numbers = [number for part in parts if (number := _number(part)) is not None]
    if len(numbers) == len(parts):
        if kind == "first" and len(numbers) == 1 and 0 < numbers[0] <= 1:
            return Split(text, kind, numbers[0])
        if kind in ("time", "load") and len(numbers) == 2 and 0 <= numbers[0] <= numbers[1]:
            return Split(text, kind, numbers[0], numbers[1])
    raise InputError(field="--fit-on", found=text, accepted=FORMS)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _found_in_engine(capture: Capture, arrival_s: Floats) -> Floats:
    """How many other requests had arrived and were not over when each arrived, [n_requests]."""
    finishes = [outcome.finish_s for outcome in capture.outcomes]
    finish_s = np.array([np.inf if finish is None else finish for finish in finishes])
    arrived = np.searchsorted(np.sort(arrival_s), arrival_s, side="left")
    over = np.searchsorted(np.sort(finish_s), arrival_s, side="right")
    return np.asarray(arrived - over, dtype=np.float64)
