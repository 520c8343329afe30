"""A study: a scenario, which of its keys to vary, and what makes one point better than another. One YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from harness.descriptions.scenario import Text
from harness.sweeps.space import Range, Ranges, Values
from traces.decoding import Document, read_document

Direction = Literal["max", "min"]
Method = Literal["tpe", "successive_halving"]
Count = Annotated[int, msgspec.Meta(ge=1)]
Number = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)] | float
"""Whole ones as far as a float tells each from the next."""
Seed = Annotated[int, msgspec.Meta(ge=0)]

DEFAULT_OBJECTIVES: dict[str, Direction] = {"output_tokens_per_s": "max", "ttft_s.p99": "min"}


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The least and the most that a figure may be; None sets no limit."""

    min: float | None = None
    max: float | None = None

    def excess(self, value: float) -> float:
        """By how much a value is outside, in the figure's unit; 0 within."""
        below = 0.0 if self.min is None else self.min - value
        above = 0.0 if self.max is None else value - self.max
        return max(below, above, 0.0)


class SampleFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Points drawn at random: how many, from which seed and ranges."""

    n: Count
    seed: Seed = 0
    ranges: Annotated[Ranges, msgspec.Meta(min_length=1)]


class SearchFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Points chosen by what became of those before.

    Attributes:
        method: `tpe`, a tree-structured Parzen estimator; or `successive_halving`.
        n_trials: points that are tried; with successive_halving, to begin with.
        seed: of everything drawn.
        ranges: values by key.
        at_once: tpe: points that are chosen together, before any of them is known. It decides what is found, so that it
            is no matter of how many workers there are.
        min_requests: successive_halving: requests of the trace that the first round serves; the last serves all.
        eta: successive_halving: one of so many goes on to the next round, which serves so many times the requests.
    """

    method: Method
    n_trials: Count
    seed: Seed = 0
    ranges: Annotated[Ranges, msgspec.Meta(min_length=1)]
    at_once: Count | None = None
    min_requests: Count | None = None
    eta: Annotated[int, msgspec.Meta(ge=2)] | None = None


class CapacityFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The highest value of a key at which a variant serves all requests within the constraints.

    Attributes:
        key: of the scenario; a number of which more is harder to serve.
        low: the least that is tried.
        high: the most that is tried, above `low`.
        tolerance: the next value that is tried above the highest that held is at most so much more, relative to it;
            None: whole numbers, exact to one, where `low` and `high` are both, else `capacity.TOLERANCE`.
        at_once: values of a variant that are tried together, before any of them is known.
    """

    key: Text
    low: Number
    high: Number
    tolerance: Annotated[float, msgspec.Meta(ge=0.001, le=1)] | None = None
    at_once: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return self.tolerance is None and isinstance(self.low, int) and isinstance(self.high, int)


class StudyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A study as the user writes it. Paths are relative to the file.

    Exactly one of `grid`, `sample` and `search`; with `capacity`, `grid`, `sample` or none.

    Attributes:
        scenario: what is varied.
        grid: every combination of these values by key.
        sample: points drawn at random.
        search: points chosen by what became of those before.
        capacity: of each point of the grid or the sample, or of the scenario as it is, the highest load that it serves.
        objectives: figures, as summary.json names them, and which way each is better.
        constraints: what figures must be for a point to be of use.
    """

    scenario: Text
    grid: Annotated[dict[str, Values], msgspec.Meta(min_length=1)] | None = None
    sample: SampleFile | None = None
    search: SearchFile | None = None
    capacity: CapacityFile | None = None
    objectives: Annotated[dict[Text, Direction], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=DEFAULT_OBJECTIVES.copy
    )
    constraints: dict[Text, Limits] = {}


@dataclass(frozen=True, slots=True)
class Study:
    """A study as it is run.

    Attributes:
        requested: what the user asks for, verbatim.
        file: the same, typed.
        document: the file as it was read, with its lines.
    """

    requested: dict[str, Any]
    file: StudyFile
    document: Document

    @property
    def scenario_path(self) -> Path:
        """The scenario that is varied."""
        return self.document.path.parent / self.file.scenario

    @property
    def way(self) -> str:
        """How points are chosen: grid, sample, search, or capacity alone."""
        return next(_ways(self.file), "capacity")


def read_study(path: Path) -> Study:
    """Read a study. Raises InputError with file, line and field."""
    document = read_document(path)
    for at, kind, accepted in _MAPPINGS:
        _check_mapping(document, at, kind, accepted)
    file = document.convert(StudyFile)
    ways = list(_ways(file))
    if len(ways) > 1 or not (ways or file.capacity):
        accepted = "one of " + ", ".join(_WAYS)
        raise document.error(
            ways[1:2], "says " + (" and ".join(ways) or "no points"), accepted=f"{accepted}, or capacity"
        )
    for name, limits in file.constraints.items():
        if limits.min is limits.max is None:
            raise document.error(["constraints", name], "sets no limit", accepted="min, max or both")
        if limits.min is not None and limits.max is not None and limits.min > limits.max:
            raise document.error(["constraints", name, "max"], accepted=f"at least min, {limits.min:g}")
    if file.grid is not None:
        _check_ranges(document, ["grid"], file.grid)
    for part in (file.sample, file.search):
        if part is not None:
            _check_ranges(document, [ways[0], "ranges"], part.ranges)
    if file.search is not None:
        _check_search(document, file.search)
    if file.capacity is not None:
        _check_capacity(document, file, file.capacity)
        if "objectives" not in document.value:
            file = msgspec.structs.replace(file, objectives={file.capacity.key: "max"})
    return Study(document.value, file, document)


_WAYS = ("grid", "sample", "search")

_MAPPINGS: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("grid",), Values, "a list of values"),
    (("sample", "ranges"), Values | Range, "a list of values, or {low, high} with log: true or without"),
    (("search", "ranges"), Values | Range, "a list of values, or {low, high} with log: true or without"),
    (("objectives",), Direction, "max or min"),
    (("constraints",), Limits, "{min, max}, or one of them"),
)
"""Mappings whose keys are the user's: an error is about one of them."""


def _ways(file: StudyFile) -> Iterator[str]:
    return (name for name in _WAYS if getattr(file, name) is not None)


def _check_mapping(document: Document, at: Sequence[str], kind: Any, accepted: str) -> None:
    """Raise InputError for an item that is not of its kind; what is no mapping is for the document to say."""
    items: Any = document.value
    for name in at:
        items = items.get(name) if isinstance(items, dict) else None
    for key, item in items.items() if isinstance(items, dict) else ():
        try:
            msgspec.convert(item, kind)
        except msgspec.ValidationError:
            raise document.error([*at, key], accepted=accepted) from None


def _check_ranges(document: Document, at: Sequence[str], ranges: Mapping[str, list[Any] | Range]) -> None:
    """Raise InputError for a range without numbers, or a list with a value twice."""
    for key, values in ranges.items():
        if isinstance(values, Range):
            if (fault := values.fault()) is not None:
                raise document.error([*at, key, fault[0]], accepted=fault[1])
        elif len({msgspec.json.encode(value) for value in values}) < len(values):
            raise document.error([*at, key], "holds a value twice")


def _check_search(document: Document, search: SearchFile) -> None:
    """Raise InputError for an option of the other method, which would have no effect, or one that is missing."""
    others = {"tpe": ("min_requests", "eta"), "successive_halving": ("at_once",)}[search.method]
    for name in others:
        if getattr(search, name) is not None:
            raise document.error(["search", name], f"has no effect with method {search.method}")
    if search.method == "successive_halving" and search.min_requests is None:
        raise document.error(["search", "min_requests"], "is missing: the requests that the first round serves")


def _check_capacity(document: Document, file: StudyFile, asked: CapacityFile) -> None:
    """Raise InputError for ends between which there is nothing to search, or a capacity within nothing."""
    if file.search is not None:
        raise document.error(["capacity"], "has no effect with search", accepted="grid or sample beside it, or none")
    if asked.key in (file.grid or (file.sample.ranges if file.sample else {})):
        raise document.error(["capacity", "key"], f"is varied by {next(_ways(file))} too")
    if not asked.low < asked.high:
        raise document.error(["capacity", "high"], accepted=f"a number above low, {asked.low}")
    if not asked.is_whole and asked.low <= 0:
        raise document.error(["capacity", "low"], accepted="above 0: values grow by factors")
    if not file.constraints:
        raise document.error([], "has no constraints: a capacity is within some", accepted="constraints")
