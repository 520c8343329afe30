"""What a study must not lose of its points' notes: that vLLM would not start, and what kinds of times they are of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from harness.terminal.caveats import BEYOND, UNFITTED, note_lines
from traces.capture import CaptureMeta

REFUSED = "vLLM would not start: "
"""Part of the note that says so (simulator/memory.py)."""

SOURCES = (
    "a roofline from the datasheet, ",
    "operators of aiconfigurator-core ",
    "operators priced by the external simulator ",
)
"""Parts of the notes that say of what kind times are; a profile that was measured has none of them."""
COLLECTIVES = "collectives of "
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
    (line,) = note_lines(meta, Path())
    return line.removeprefix("note: ")
