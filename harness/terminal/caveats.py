"""Which of a simulation's notes decide whether its figures may be used, in a terminal and on pages of runs.

meta.json has all of them.

Notes are sentences, put together where what they say is known. Here are the parts of them that never change, the
heaviest first, and how much of the sentence is printed. A test makes each of them where it is made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.terminal.catalogue import validated
from traces.capture import CaptureMeta
from traces.decoding import decode_json, read_bytes

MOST_LINES = 6
"""More of the notes than these are in meta.json."""

REJECTED = " requests rejected; their outcomes carry the reason"
"""The summary counts them above the notes."""

REFUSED = "vLLM would not start: "
ROOFLINE = "a roofline from the datasheet, "
AICONFIGURATOR = "operators of aiconfigurator-core "
EXTERNAL = "operators priced by the external simulator "
COLLECTIVES = "collectives of "
BEYOND = " steps priced beyond the profile's measured range: "
UNFITTED = " steps lie outside the range that the calibration was fitted on: "


def print_caveats(out: Path) -> None:
    """Print the notes that matter of the simulation that was written to `out`."""
    file = out / "meta.json"
    for line in note_lines(decode_json(read_bytes(file), CaptureMeta, file=file), out):
        sys.stdout.write(f"{line}\n")


def note_lines(meta: CaptureMeta, out: Path) -> list[str]:
    """The notes that matter, at most `MOST_LINES` lines, and how many more there are in `out`."""
    weighty, left = weighty_notes(meta)
    lines = [f"note: {line}" for line in weighty]
    if left:
        what = "note" if left == 1 else "notes"
        lines.append(f"{left} {'more ' if lines else ''}{what} in {out / 'meta.json'}")
    return lines


def weighty_notes(meta: CaptureMeta) -> tuple[list[str], int]:
    """The notes that matter, at most `MOST_LINES`, the heaviest first; and how many others there are."""
    lines, told = [], {note for note in meta.notes if note.endswith(REJECTED)}
    for line, notes in _weighed(meta)[:MOST_LINES]:
        lines.append(line)
        told.update(notes)
    return lines, sum(note not in told for note in meta.notes)


def _weighed(meta: CaptureMeta) -> list[tuple[str, list[str]]]:
    """Lines, the heaviest first, and the notes that each tells."""

    def with_finding(kind: str, text: str) -> str:
        """With what docs/validity.md has found of such times, where all engines are alike."""
        device, model = meta.device or "", meta.model or ""
        found = None if ", " in device + model else validated(kind, device, model)
        return text if found is None else f"{text}; validated: {found}"

    def roofline(note: str) -> str:
        return with_finding("roofline", note.partition(": ")[0])

    def aiconfigurator(note: str) -> str:
        return with_finding("aiconfigurator", f"{note.partition(', ')[0]};{note.rpartition(';')[2]}")

    return [
        *_each(meta.notes, REFUSED),
        *_each(meta.notes, " requests ended at max_model_len "),
        *_outside(meta.notes, BEYOND),
        *_outside(meta.notes, UNFITTED),
        *_each(meta.notes, ROOFLINE, roofline),
        *_each(meta.notes, AICONFIGURATOR, aiconfigurator),
        *_each(meta.notes, EXTERNAL),
        *_each(meta.notes, COLLECTIVES),
        *_each(meta.notes, "; it is below zero: the operators take longer"),
        *_each(meta.notes, " KV blocks predicted: "),
        *_each([note for note in meta.notes if " max_num_" in note], "defaults of vllm serve on "),
    ]


def _each(notes: Sequence[str], part: str, text: Callable[[str], str] = str) -> list[tuple[str, list[str]]]:
    """A line for each note with that part; its text is what `text` makes of the note."""
    return [(text(note), [note]) for note in notes if part in note]


def _outside(notes: Sequence[str], part: str) -> list[tuple[str, list[str]]]:
    """A line of all notes with that part: how many steps by which axis, the largest share first."""
    found = []
    for note in notes:
        steps, is_there, axis = note.partition(part)
        if is_there:
            *whose, count, _, total = steps.split(" ")  # "drafter: 3 of 5" of a drafter's steps
            found.append((int(count) / int(total), steps, " ".join([*whose, axis]), note))
    if not found:
        return []
    found.sort(key=lambda one: -one[0])
    (share, steps, _, note), *others = found
    first = f"{steps} steps ({share:.1%}){part.removeprefix(' steps')}{note.partition(part)[2]}"
    line = "; ".join([first, *(f"{axis} ({share:.1%})" for share, _, axis, _ in others)])
    return [(line, [note for *_, note in found])]
