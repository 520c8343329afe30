"""Synthetic traces: what was asked for, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from traces.errors import InputError
from traces.synthesis import Lengths, poisson_trace


def test_rate_and_lengths_are_those_asked_for() -> None:
    trace = poisson_trace(5000, 4.0, Lengths(10, 20), Lengths(7, 7), seed=3)
    gaps_s = np.diff([row.arrival_s for row in trace.rows])
    assert gaps_s.mean() == pytest.approx(0.25, abs=4 * 0.25 / np.sqrt(5000))
    assert gaps_s.std() == pytest.approx(0.25, rel=0.1)
    assert {row.prompt_tokens for row in trace.rows} == set(range(10, 21))
    assert {row.output_tokens for row in trace.rows} == {7}


def test_a_seed_fixes_the_trace() -> None:
    made = [poisson_trace(50, 4.0, Lengths(1, 99), Lengths(1, 99), seed).rows for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0] != made[2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-5",
        "9:3",
        "1:2:3",
        "many",
        "1.5",
        "٣",
        "9" * 30,
        "lognormal:5:1",
        "lognormal:0:1:9",
        "lognormal:5:nan:9",
    ],
)
def test_wrong_lengths_are_named(text: str) -> None:
    with pytest.raises(InputError, match="--prompt-tokens"):
        Lengths.parse(text, "--prompt-tokens")


@pytest.mark.parametrize(("n", "rate"), [(0, 1.0), (5, 0.0), (5, float("nan")), (5, float("inf"))])
def test_wrong_counts_and_rates_are_named(n: int, rate: float) -> None:
    with pytest.raises(InputError, match="--r"):
        poisson_trace(n, rate, Lengths(1, 1), Lengths(1, 1), 0)


def test_lognormal_lengths_have_their_median_and_spread_within_their_bounds() -> None:
    lengths = Lengths.parse("lognormal:400:0.5:100000", "--prompt-tokens")
    counts = lengths.draw(20_000, np.random.default_rng(1))
    assert np.median(counts) == pytest.approx(400, rel=0.03)
    assert np.log(counts).std() == pytest.approx(0.5, rel=0.03)
    short = Lengths.parse("lognormal:400:2:500", "--prompt-tokens").draw(5000, np.random.default_rng(1))
    assert short.min() >= 1
    assert short.max() <= 500


def test_a_length_is_written_as_it_is_parsed() -> None:
    for text in ("512", "64:1024", "lognormal:400:0.5:1000"):
        assert str(Lengths.parse(text, "")) == text
