"""How far a figure may be off: `10%`, `1ms`; with a sign, in that direction only.

10%     simulated at most 10 % above and at most 10 % below
+10%    at most 10 % above; below as much as it likes
-1ms    at most 1 ms below
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.gate.figures import OF_CHANGE, checked_figure, is_time
from traces.errors import InputError

_PATTERN = re.compile(r"(?P<sign>[+-]?)(?P<number>(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?) ?(?P<unit>%|s|ms|us|µs)")
_UNITS = {"%": 0.01, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
ACCEPTED = "10%, 1ms, 200us or 0.5s; +10% or -10% for one direction alone"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a figure may differ by.

    Attributes:
        limit: a share of the value it is compared with, or seconds.
        relative: which of the two.
        above: whether more than that above fails.
        below: whether more than that below fails.
        text: as the user wrote it.
    """

    limit: float
    relative: bool
    above: bool
    below: bool
    text: str

    def exceeded(self, low: float, high: float) -> bool:
        """Whether all of an interval of the difference lies beyond the limit."""
        return (self.above and low > self.limit) or (self.below and high < -self.limit)

    def held(self, low: float, high: float) -> bool:
        """Whether all of an interval of the difference lies within the limit."""
        return not (self.above and high > self.limit) and not (self.below and low < -self.limit)


def parse_tolerance(text: str, name: str, field: str) -> Tolerance:
    """Read the tolerance of a figure. Raises InputError, also when seconds are given for what is none.

    Args:
        text: what the user wrote.
        name: of the figure.
        field: where it stands.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InputError(field=field, found=text, accepted=ACCEPTED)
    relative = match["unit"] == "%"
    if not relative and not is_time(name):
        raise InputError(field=field, found=text, accepted=f"a percentage: {name} is no time")
    limit = float(match["number"]) * _UNITS[match["unit"]]
    return Tolerance(limit, relative, match["sign"] != "-", match["sign"] != "+", text)


def parse_of_change(text: str, name: str, field: str) -> Tolerance:
    """Read the tolerance of a figure's change, a share of its ratio. Raises InputError."""
    match = _PATTERN.fullmatch(text)
    if match is None or match["unit"] != "%":
        accepted = "a share of the change's ratio, such as 10%; +10% or -10% for one direction alone"
        raise InputError(field=field, found=text, accepted=accepted)
    return parse_tolerance(text, name, field)


def parse_fail_on(options: Sequence[str]) -> dict[str, Tolerance]:
    """`ttft.p99:10%` options to tolerances by figure. Raises InputError for what cannot be read or stands twice."""
    tolerances: dict[str, Tolerance] = {}
    for option in options:
        name, colon, text = option.partition(":")
        if not colon:
            raise InputError(field="--fail-on", found=option, accepted="FIGURE:TOLERANCE, such as ttft.p99:10%")
        if checked_figure(name, "--fail-on") in tolerances:
            raise InputError(f"says {name} twice", field="--fail-on")
        parse = parse_of_change if name.startswith(OF_CHANGE) else parse_tolerance
        tolerances[name] = parse(text, name, f"--fail-on {name}")
    return tolerances
