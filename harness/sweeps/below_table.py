"""What is said below a study's table: what kinds of times its points are of, and why points failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from harness.sweeps.wording import set_to

MOST_VALUES = 4
"""Values of a key that tell points apart; of more, their numbers do."""
MOST_RUNS = 8
"""Runs of points that are named by number; study.json has all."""


def times_record(times: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What is said of points' times, each once with the numbers of its points; `times` by point."""
    by_text: dict[str, list[int]] = {}
    for i, said in enumerate(times):
        for text in said:
            by_text.setdefault(text, []).append(i)
    return [{"times": text, "points": points} for text, points in by_text.items()]


def time_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each kind of times in a study, which says of which points it is."""
    known = [i for i, point in enumerate(record["points"]) if point.get("reason") is None]
    for one in record.get("times", ()):
        yield f"times of {_which(record['points'], one['points'], known)}: {one['times']}"


def _which(points: Sequence[Mapping[str, Any]], these: Sequence[int], known: Sequence[int]) -> str:
    """Points in words: all, by the values of one key where these tell them apart, else by number."""
    if len(these) == len(known):
        return "all points"
    for key in points[these[0]]["overrides"]:
        values = {i: set_to(points[i]["overrides"].get(key)) for i in known}
        here = dict.fromkeys(values[i] for i in these)
        if len(here) <= MOST_VALUES and [i for i in known if values[i] in here] == list(these):
            return f"{key} {', '.join(here)}"
    return _numbered(these)


def failure_lines(record: Mapping[str, Any]) -> list[str]:
    """Why points failed, a line for each reason, those of most points first."""
    by_reason: dict[str, list[int]] = {}
    for i, point in enumerate(record["points"]):
        if point.get("reason") is not None:
            by_reason.setdefault(point["reason"], []).append(i)
    most_first = sorted(by_reason.items(), key=lambda one: -len(one[1]))
    return [f"{_numbered(points)} failed: {reason}" for reason, points in most_first]


def _numbered(points: Sequence[int]) -> str:
    """Points by their rising numbers, runs of them as `3 to 7`; of many runs the first, and how many are left."""
    starts = [points[0], *(b for a, b in pairwise(points) if b > a + 1)]
    ends = [*(a for a, b in pairwise(points) if b > a + 1), points[-1]]
    runs = [str(a) if a == b else f"{a}{' to ' if b > a + 1 else ', '}{b}" for a, b in zip(starts, ends, strict=True)]
    if len(runs) > MOST_RUNS:
        left = sum(point > ends[MOST_RUNS - 1] for point in points)
        runs = [*runs[:MOST_RUNS], f"{left} more"]
    return f"point{'s' * (len(points) > 1)} {', '.join(runs)}"
