"""How a study's figures, limits and misses are written for a reader; files have all digits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.descriptions.written import text_of
from harness.sweeps.study import Limits
from harness.terminal.words import seconds


def figure(name: str, value: float) -> str:
    """A figure; durations with their unit."""
    is_duration = any(part.endswith("_s") and not part.endswith("per_s") for part in name.split("."))
    return seconds(value) if is_duration else f"{value:.4g}"


def within(name: str, limits: Limits) -> str:
    """What a figure may be, as `≤ 150 ms`."""
    least = None if limits.min is None else figure(name, limits.min)
    most = None if limits.max is None else figure(name, limits.max)
    if least is not None and most is not None:
        return f"{least} to {most}"
    return f"≤ {most}" if least is None else f"≥ {least}"


def missed(figures: Mapping[str, Any], constraints: Mapping[str, Limits]) -> dict[str, str]:
    """The constraints that figures are outside of, or have no value for, each with its figure."""
    said = {}
    for name, limits in constraints.items():
        if (value := figures.get(name)) is None:
            said[name] = f"{name} has no value"
        elif limits.excess(value):
            said[name] = f"{name} {figure(name, value)}"
    return said


def set_to(value: Any) -> str:
    """What a point sets a key to."""
    return f"{value:.4g}" if isinstance(value, float) else text_of(value)


BROKEN_AT = 16
"""Characters of a line of a broken header, where its parts are no longer."""


def broken(header: str) -> str:
    """A column's header in several lines, broken behind dots and underscores, a limit in a line of its own."""
    name, _, limit = header.partition(" ")
    lines = [""]
    for part in re.findall(r"[^._]*[._]?", name):
        if lines[-1] and len(lines[-1] + part) > BROKEN_AT:
            lines.append("")
        lines[-1] += part
    return "\n".join([*lines, *([limit] if limit else [])])
