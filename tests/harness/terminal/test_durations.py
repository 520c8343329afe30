"""Durations of the command line."""

from __future__ import annotations

import pytest

from harness.terminal.durations import parse_duration_s
from traces.errors import InputError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("10m", 600.0),
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        ("1h1s", 3601.0),
        ("0.5s", 0.5),
        ("1.5h", 5400.0),
        ("200ms", 0.2),
        ("1m200ms", 60.2),
        (" 2s ", 2.0),
    ],
)
def test_numbers_with_units_add_up(text: str, seconds: float) -> None:
    assert parse_duration_s(text, "--for") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "m", "10 m", "-5s", "0s", "30s10m", "1m1m", "1d", "ten", "1e3s", "9" * 400 + "s"]
)
def test_anything_else_is_refused_by_the_name_of_the_option(text: str) -> None:
    with pytest.raises(InputError, match=r"field '--for'.*accepted: a duration above 0"):
        parse_duration_s(text, "--for")
