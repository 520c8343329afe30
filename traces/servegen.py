"""ServeGen's clients (Alibaba, github.com/alibaba/ServeGen, NSDI 2026): two files for each, in one folder.

chunk-<client>-trace.csv      no header: start of a window (s), requests per second, cv of the gaps, Gamma or Weibull,
                              shape, scale (s); all clients have the same windows, of 600 s in the published data. A
                              window without requests has `0,0,,0,0` after its start
chunk-<client>-dataset.json   by start of a window (s; of 21,600 s in the published data) one probability of each
                              length, as text: {"0": {"input_tokens": "{90: 0.25, 100: 0.75}", "output_tokens": ...}}

A request's lengths are those of the last such window at or before its own. Multimodal clients have `text_tokens`, and
tokens and counts of images, audio and video, in place of `input_tokens`; a prompt is all of these together.
`reason_ratio`, which part of the answer is reasoning, is not read.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.clients import Client, ClientPool, Law, Lengths, Windows
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError
from traces.readers.source import Source

TRACE, DATASET = re.compile(r"chunk-(\d{1,9})-trace\.csv"), "chunk-{}-dataset.json"
COLUMNS = ("start_s", "rate_per_s", "cv", "law", "shape", "scale")
SHAPES = {"Gamma": (1e-4, 1e4), "Weibull": (0.2, 200.0)}
"""Of each law the shapes that are taken: a cv from 0.01 to 100, or from 0.006 to 16."""

MODALITIES = ("image", "audio", "video")
MOST_PER_S = 1e4
MOST_TOKENS = 2**31

_NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"0|[1-9][0-9]{0,9}")


def read_clients(folder: Path, start_s: float, end_s: float) -> ClientPool:
    """Every client of a folder, with the lengths of those windows that lie in the span.

    What the files say of lengths outside of the span is not looked at. Raises InputError with file, line and field.
    """
    numbers = _numbers(folder)
    digest = hashlib.sha256()
    clients: list[Client] = []
    replaced = 0
    kinds: set[str] = set()
    for number in numbers:
        windows = _read_windows(folder / f"chunk-{number}-trace.csv", clients[0] if clients else None, digest)
        laws = _Lengths(folder / DATASET.format(number), digest)
        of_window = {
            int(windows.start_s[i]): laws.at(int(windows.start_s[i]))
            for i in windows.within(start_s, end_s)
            if windows.rate_per_s[i]
        }
        clients.append(Client(number, windows, of_window))
        replaced += laws.replaced
        kinds |= laws.kinds
    return ClientPool(str(folder), tuple(clients), "sha256:" + digest.hexdigest(), _notes(kinds, replaced))


def _notes(kinds: set[str], replaced: int) -> tuple[str, ...]:
    notes = []
    if "text_tokens" in kinds:
        notes.append("a prompt is text, images, audio and video together; what encodes these takes no time")
    if "reason_ratio" in kinds:
        notes.append("reason_ratio is not read: reasoning and answer are one output")
    if replaced:
        notes.append(f"{replaced} windows of lengths are empty; the last before them goes on, as in ServeGen")
    return tuple(notes)


def _numbers(folder: Path) -> list[int]:
    """The clients' numbers. Raises InputError when there are none, or one lacks a file."""
    if not folder.is_dir():
        raise InputError("is no folder", file=folder, accepted="a folder of ServeGen's clients")
    names = {path.name for path in folder.iterdir()}
    numbers = sorted(int(match[1]) for name in names if (match := TRACE.fullmatch(name)))
    if not numbers:
        accepted = "files chunk-<client>-trace.csv, each with its chunk-<client>-dataset.json"
        raise InputError("holds no client of ServeGen", file=folder, accepted=accepted)
    if (lone := next((n for n in numbers if DATASET.format(n) not in names), None)) is not None:
        raise InputError("no such file", file=folder / DATASET.format(lone), accepted="a dataset beside each trace")
    return numbers


def _read_windows(path: Path, first: Client | None, digest: hashlib._Hash) -> Windows:
    """A client's windows, which are those of the first client. Raises InputError."""
    starts, rates, laws, shapes, lines = [], [], [], [], []
    with Source(path) as source:
        for line, text in enumerate(source.text_lines(), start=1):
            if not text.strip():
                continue
            row = _Row(path, line, text.strip().split(","))
            starts.append(int(row.number("start_s", 0, 1e9, whole=True)))
            lines.append(line)
            rate_per_s = row.number("rate_per_s", 0, MOST_PER_S)
            row.number("cv", 0, math.inf)
            law = row.law(idle=rate_per_s == 0)
            low, high = SHAPES[law] if rate_per_s else (0.0, math.inf)
            shapes.append(row.number("shape", low, high))
            row.number("scale", 0, math.inf)
            rates.append(rate_per_s)
            laws.append(law)
    digest.update(source.sha256().encode())
    _check_starts(path, starts, lines, first)
    return Windows(np.array(starts), starts[1] - starts[0], np.array(rates), tuple(laws), np.array(shapes))


def _check_starts(path: Path, starts: list[int], lines: list[int], first: Client | None) -> None:
    if len(starts) < 2:
        raise InputError(f"holds {len(starts)} windows", file=path, accepted="two at least: a window lasts to the next")
    step = starts[1] - starts[0]
    for i, (start, line) in enumerate(zip(starts, lines, strict=True)):
        if step <= 0 or start != starts[0] + i * step:
            wanted = starts[0] + i * step if step > 0 else f"more than {starts[0]}"
            raise InputError(file=path, line=line, field="start_s", found=start, accepted=f"{wanted}: windows are even")
    if first is None:
        return
    theirs = first.windows.start_s.tolist()
    if starts != theirs:
        at = next((i for i, (a, b) in enumerate(zip(starts, theirs, strict=False)) if a != b), len(starts) - 1)
        accepted = f"the windows of client {first.number}: {len(theirs)} of {first.windows.length_s} s from {theirs[0]}"
        raise InputError(file=path, line=lines[at], field="start_s", found=starts[at], accepted=accepted)


@dataclass(frozen=True, slots=True)
class _Row:
    """A window's line."""

    file: Path
    line: int
    cells: list[str]

    def __post_init__(self) -> None:
        if len(self.cells) != len(COLUMNS):
            message, accepted = f"has {len(self.cells)} cells", ", ".join(COLUMNS)
            raise InputError(message, file=self.file, line=self.line, accepted=accepted)

    def number(self, name: str, least: float, most: float, *, whole: bool = False) -> float:
        """A cell's number. Raises InputError."""
        text = self.cells[COLUMNS.index(name)]
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not (math.isfinite(value) and least <= value <= most) or (whole and value % 1):
            kind = "whole number" if whole else "number"
            limits = f"from {least:g}" + ("" if math.isinf(most) else f" to {most:g}")
            raise InputError(file=self.file, line=self.line, field=name, found=text, accepted=f"a {kind} {limits}")
        return value

    def law(self, *, idle: bool) -> str:
        """Which law the gaps follow; none is named where no request comes. Raises InputError."""
        text = self.cells[COLUMNS.index("law")]
        if text not in SHAPES and not (idle and not text):
            accepted = ", ".join(SHAPES) + ("" if not text else "; nothing where the rate is 0")
            raise InputError(file=self.file, line=self.line, field="law", found=text, accepted=accepted)
        return text


class _Lengths:
    """A client's laws of lengths, by window; each is made of its text when it is first asked for."""

    def __init__(self, path: Path, digest: hashlib._Hash) -> None:
        self._path = path
        self._data = read_bytes(path)
        if self._data.startswith(b"version https://git-lfs"):
            raise InputError("is a pointer of Git LFS and not the file", file=path, accepted="what `git lfs pull` gets")
        digest.update(hashlib.sha256(self._data).digest())
        self._texts = decode_json(self._data, dict[str, dict[str, str]], file=path)
        self._read: dict[str, Lengths] = {}
        self.kinds = {name for fields in self._texts.values() for name in fields}
        usable = []
        self.replaced = 0
        for name, fields in self._texts.items():
            if not _WHOLE.fullmatch(name):
                raise self._error(name, None, found=name, accepted="the start of a window in seconds")
            empty = any(text.replace(" ", "") == "{}" for text in fields.values())
            self.replaced += empty
            if not empty:
                usable.append(int(name))
        self._starts = sorted(usable)

    def at(self, window_s: int) -> Lengths | None:
        """The laws of the last window at or before this one; None: there is none. Raises InputError."""
        name = next((str(start) for start in reversed(self._starts) if start <= window_s), None)
        if name is None:
            return None
        if name not in self._read:
            self._read[name] = self._lengths(name)
        return self._read[name]

    def _lengths(self, window: str) -> Lengths:
        multimodal = "text_tokens" in self._texts[window]
        prompt = self._law(window, "text_tokens" if multimodal else "input_tokens")
        parts: tuple[tuple[Law, Law], ...] = ()
        if multimodal:
            pairs = ((f"{kind}_count", f"{kind}_tokens") for kind in MODALITIES)
            parts = tuple((self._law(window, count), self._law(window, tokens)) for count, tokens in pairs)
        return Lengths(prompt, parts, self._law(window, "output_tokens"))

    def _law(self, window: str, field: str) -> Law:
        """One field's probabilities. Raises InputError."""
        text = self._texts[window].get(field)
        if text is None:
            raise self._error(window, field, "is missing")
        found: dict[int, float] = {}
        for pair in text.strip().removeprefix("{").removesuffix("}").split(","):
            length, _, share = (part.strip() for part in pair.partition(":"))
            if not (_WHOLE.fullmatch(length) and _NUMBER.fullmatch(share)) or int(length) > MOST_TOKENS:
                raise self._error(window, field, found=pair, accepted="{length: probability, ...}")
            if int(length) in found:
                raise self._error(window, field, f"the length {length} stands twice")
            found[int(length)] = float(share)
        total = sum(found.values())
        if text.strip()[:1] + text.strip()[-1:] != "{}" or abs(total - 1) > 1e-6:
            accepted = "{length: probability, ...} that add up to 1"
            raise self._error(window, field, found=round(total, 9), accepted=accepted)
        values = np.array(sorted(found), dtype=np.int64)
        return Law(values, np.cumsum([found[length] for length in values.tolist()]) / total)

    def _error(
        self, window: str, field: str | None, message: str = "", *, found: object = None, accepted: str | None = None
    ) -> InputError:
        """An InputError about a window, or one of its fields, with the line on which it stands."""
        at = self._data.find(f'"{window}"'.encode())
        if field is not None:
            at = max(at, self._data.find(f'"{field}"'.encode(), at))
        line = self._data.count(b"\n", 0, max(at, 0)) + 1
        name = window if field is None else f"{window}.{field}"
        return InputError(message, file=self._path, line=line, field=name, found=found, accepted=accepted)
