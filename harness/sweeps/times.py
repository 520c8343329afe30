"""What a study must not lose of its points' notes: that vLLM would not start, and what kinds of times they are of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from harness.terminal.caveats import (
    AICONFIGURATOR,
    BEYOND,
    COLLECTIVES,
    EXTERNAL,
    REFUSED,
    ROOFLINE,
    UNFITTED,
    weighty_notes,
)
from traces.capture import CaptureMeta

SOURCES = (ROOFLINE, AICONFIGURATOR, EXTERNAL)
"""Parts of the notes that say of what kind times are; a profile that was measured has none of them."""
OUTSIDE = {BEYOND: "steps beyond the profile's measured range: ", UNFITTED: "steps unlike those that were fitted: "}
"""Of notes that count steps: how they begin, and what is said of points whatever the count."""


def refusal(notes: Sequence[str]) -> str | None:
    """Why vLLM would not start the engine; None: it would, as far as is known."""
    return next((note for note in notes if REFUSED in note), None)


def times_of(meta: CaptureMeta) -> tuple[str, ...]:
    """What kinds of times a simulation is of, and how far off such were found to be, as `simulate` prints it."""
    parts = (*SOURCES, COLLECTIVES)
    told = [note for note in meta.notes if any(part in note for part in parts)]
    said = [_as_printed(note, meta.model, meta.device) for note in told]
    if not any(part in note for note in meta.notes for part in SOURCES):
        said.insert(0, f"a profile of {meta.device}; servetwin profile list says how far off such were found to be")
    said += [text + note.partition(part)[2] for part, text in OUTSIDE.items() for note in meta.notes if part in note]
    return tuple(dict.fromkeys(said))


@cache
def _as_printed(note: str, model: str, device: str | None) -> str:
    """A note as `simulate` prints it; once for all points, for the findings are read from their file each time."""
    meta = CaptureMeta(kind="simulated", engine=None, model=model, device=device, clock="", notes=(note,))
    (line,), _ = weighty_notes(meta)
    return line
