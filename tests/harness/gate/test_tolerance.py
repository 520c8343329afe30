"""The grammar of tolerances, and what they hold."""

from __future__ import annotations

import pytest

from harness.gate.tolerance import parse_fail_on, parse_tolerance
from traces.errors import InputError


@pytest.mark.parametrize(
    ("text", "limit", "relative"),
    [
        ("10%", 0.1, True),
        ("0.01%", 1e-4, True),
        ("1e-2%", 1e-4, True),
        ("1ms", 1e-3, False),
        ("200us", 2e-4, False),
        ("200µs", 2e-4, False),
        (".5 s", 0.5, False),
    ],
)
def test_a_tolerance_is_a_share_or_a_time(text: str, limit: float, relative: bool) -> None:
    tolerance = parse_tolerance(text, "ttft.p99", "here")
    assert tolerance.limit == pytest.approx(limit)
    assert tolerance.relative is relative
    assert (tolerance.above, tolerance.below) == (True, True)


def test_a_sign_guards_one_direction() -> None:
    above, below = (parse_tolerance(text, "tpot.mean", "here") for text in ("+10%", "-10%"))
    assert above.exceeded(0.11, 0.2)
    assert not above.exceeded(-0.2, -0.11)
    assert below.exceeded(-0.2, -0.11)
    assert not below.exceeded(0.11, 0.2)
    assert below.held(-0.05, 3.0)


def test_an_interval_over_the_edge_is_neither_held_nor_exceeded() -> None:
    tolerance = parse_tolerance("10%", "tpot.mean", "here")
    assert not tolerance.held(0.05, 0.15)
    assert not tolerance.exceeded(0.05, 0.15)


@pytest.mark.parametrize("text", ["", "10", "ten%", "10 percent", "--1%", "1ms2", "inf%", "1h"])
def test_what_is_no_tolerance_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"field 'here': found .*: accepted: 10%, 1ms"):
        parse_tolerance(text, "ttft.p99", "here")


@pytest.mark.parametrize("name", ["output_tokens_per_s", "e2el.mape", "kv_usage.mape"])
def test_seconds_are_for_times_alone(name: str) -> None:
    with pytest.raises(InputError, match=f"accepted: a percentage: {name} is no time"):
        parse_tolerance("1ms", name, "here")


def test_fail_on_names_a_figure() -> None:
    found = parse_fail_on(["ttft.p99:10%", "tpot.mean:1ms"])
    assert {name: tolerance.text for name, tolerance in found.items()} == {"ttft.p99": "10%", "tpot.mean": "1ms"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ttft.p99"], "accepted: FIGURE:TOLERANCE"),
        (["ttft.p98:1%"], "field '--fail-on': is unknown: found 'ttft.p98': accepted: 'ttft.p9"),
        (["ttft.p99:1"], "field '--fail-on ttft.p99': found '1': accepted: 10%"),
        (["ttft.p99:1%", "ttft.p99:2%"], "says ttft.p99 twice"),
    ],
)
def test_what_fail_on_does_not_accept(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_fail_on(options)
