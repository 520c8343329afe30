"""Durations as people write them on the command line: 30s, 10m, 1h30m."""

from __future__ import annotations

import math
import re

from traces.errors import InputError

UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}

_PART = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(rf"(?:{_PART}h)?(?:{_PART}m)?(?:{_PART}s)?(?:{_PART}ms)?")


def parse_duration_s(text: str, option: str) -> float:
    """Seconds of a duration: numbers with the units h, m, s and ms, in this order, each at most once.

    Args:
        text: as 10m, 30s, 1h30m, 0.5s. A number without a unit is refused, as it could be of any.
        option: names the duration in the error, as --for.

    Raises:
        InputError: it is no duration, or not above 0.
    """
    match = _DURATION.fullmatch(text.strip())
    parts = () if match is None else match.groups(default="0")
    seconds = math.fsum(float(part) * unit_s for part, unit_s in zip(parts, UNITS_S.values(), strict=False))
    if not 0 < seconds < math.inf:
        raise InputError(field=option, found=text, accepted="a duration above 0, as 30s, 10m or 1h30m")
    return seconds
