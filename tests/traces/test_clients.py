"""Workloads of many clients: each keeps its rate, its burstiness and its lengths, and the seed alone decides."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from traces.clients import Client, ClientPool, Law, Lengths, Windows, clients_trace, renewals
from traces.errors import InputError
from traces.trace import Trace

SHORT = Lengths(Law(np.array([10, 30]), np.array([0.25, 1.0])), (), Law(np.array([5]), np.array([1.0])))
LONG = Lengths(Law(np.array([1000]), np.array([1.0])), (), Law(np.array([7, 9]), np.array([0.5, 1.0])))


def client(number: int, rates: tuple[float, ...], law: str, shape: float, lengths: Lengths | None = SHORT) -> Client:
    starts = np.arange(len(rates)) * 600
    windows = Windows(
        starts,
        600,
        np.array(rates),
        tuple(law if rate else "" for rate in rates),
        np.full(len(rates), shape),
    )
    return Client(number, windows, dict.fromkeys(starts.tolist(), lengths))


def pool(*clients: Client) -> ClientPool:
    return ClientPool("tests", clients, "sha256:0", ())


def arrivals_of(trace: Trace, number: int) -> list[float]:
    return [row.arrival_s for row in trace.rows if row.session_id == f"client {number}"]


@pytest.mark.parametrize(
    ("law", "shape", "cv"),
    [
        ("Gamma", 4.0, 0.5),
        ("Gamma", 0.0625, 4.0),
        ("Weibull", 2.0, math.sqrt(4 / math.pi - 1)),
        ("Weibull", 0.5, math.sqrt(5.0)),
    ],
)
def test_gaps_have_their_law_and_counts_their_mean(law: str, shape: float, cv: float) -> None:
    """Of a stationary renewal process the mean count is exactly the span, and its variance tends to cv^2 times it."""
    rng = np.random.default_rng(1)
    gaps = np.diff(renewals(40_000, law, shape, rng))
    assert gaps.mean() == pytest.approx(1.0, abs=4 * cv / math.sqrt(40_000))
    assert gaps.std() == pytest.approx(cv, rel=0.06)
    counts = np.array([len(renewals(20.0, law, shape, rng)) for _ in range(4000)])
    assert counts.mean() == pytest.approx(20.0, abs=4 * counts.std() / math.sqrt(4000))
    assert counts.var() == pytest.approx(20 * cv**2, rel=0.35)


def test_a_process_that_began_with_a_whole_gap_would_not_have_that_mean() -> None:
    """Of very uneven gaps an ordinary renewal process counts (cv^2 - 1) / 2 more (Cox, Renewal Theory, 4.2)."""
    rng = np.random.default_rng(2)
    ordinary = [int((np.cumsum(rng.gamma(0.0625, 16.0, 400)) < 100).sum()) for _ in range(4000)]
    stationary = [len(renewals(100.0, "Gamma", 0.0625, rng)) for _ in range(4000)]
    spread = np.std(ordinary) / math.sqrt(4000)
    assert np.mean(ordinary) == pytest.approx(100 + (4.0**2 - 1) / 2, abs=5 * spread)
    assert np.mean(stationary) == pytest.approx(100, abs=5 * spread)


def test_every_client_keeps_its_rate_its_course_and_its_lengths() -> None:
    steady, bursty = client(1, (2.0, 6.0), "Gamma", 1.0), client(2, (0.0, 3.0), "Weibull", 0.5, LONG)
    trace = clients_trace(pool(steady, bursty), 0, 1200, 4)
    times = np.array(arrivals_of(trace, 1))
    for low, expected in ((0, 1200), (600, 3600)):
        count = int(((times >= low) & (times < low + 600)).sum())
        assert count == pytest.approx(expected, abs=4 * math.sqrt(expected))
    late = arrivals_of(trace, 2)
    assert min(late) >= 600
    assert len(late) == pytest.approx(1800, abs=4 * math.sqrt(5 * 1800))
    prompts = np.array([row.prompt_tokens for row in trace.rows if row.session_id == "client 1"])
    assert set(prompts.tolist()) == {10, 30}
    assert (prompts == 10).mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / len(prompts)))
    assert {row.prompt_tokens for row in trace.rows if row.session_id == "client 2"} == {1000}
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(trace.rows))


def test_the_rate_is_of_all_together_and_shares_stay() -> None:
    clients = pool(client(1, (1.0, 3.0), "Gamma", 1.0), client(2, (2.0, 2.0), "Gamma", 1.0))
    trace = clients_trace(clients, 0, 1200, 4, rate_per_s=20.0)
    assert len(trace) == pytest.approx(24_000, abs=4 * math.sqrt(24_000))
    assert len(arrivals_of(trace, 1)) / len(trace) == pytest.approx(0.5, abs=0.02)
    assert any("each is multiplied by 5" in note for note in trace.notes)


def test_a_longer_span_begins_as_a_shorter_one() -> None:
    clients = pool(client(1, (1.0, 3.0), "Gamma", 0.5), client(2, (2.0, 2.0), "Weibull", 0.7))
    whole, part, later, other = (
        clients_trace(clients, *span) for span in ((0, 1200, 4), (0, 700, 4), (300, 1200, 4), (0, 1200, 5))
    )
    assert whole.rows[: len(part)] == part.rows
    assert [row.arrival_s + 300 for row in later.rows] == pytest.approx(
        [r.arrival_s for r in whole.rows[-len(later) :]]
    )
    assert whole.rows != other.rows


def test_pictures_are_tokens_of_the_prompt() -> None:
    two, hundred = Law(np.array([0, 2]), np.array([0.5, 1.0])), Law(np.array([100]), np.array([1.0]))
    lengths = Lengths(Law(np.array([50]), np.array([1.0])), ((two, hundred),), SHORT.output)
    trace = clients_trace(pool(client(1, (2.0,), "Gamma", 1.0, lengths)), 0, 600, 1)
    prompts = np.array([row.prompt_tokens for row in trace.rows])
    assert set(prompts.tolist()) == {50, 250}
    assert (prompts == 250).mean() == pytest.approx(0.5, abs=0.08)


def test_what_cannot_be_served_or_is_not_stated_is_counted() -> None:
    nothing = Lengths(Law(np.array([0, 9]), np.array([0.5, 1.0])), (), SHORT.output)
    trace = clients_trace(
        pool(client(1, (2.0,), "Gamma", 1.0, nothing), client(2, (5.0,), "Gamma", 1.0, None)), 0, 600, 1
    )
    assert {row.session_id for row in trace.rows} == {"client 1"}
    assert len(trace) == pytest.approx(600, abs=4 * math.sqrt(600))
    notes = "\n".join(trace.notes)
    assert "1 windows of clients were left out: requests, but no lengths are stated" in notes
    assert "requests of 0 prompt or 0 output tokens were left out" in notes


@pytest.mark.parametrize(
    ("span", "rate", "message"),
    [
        ((0, 1300), None, "'--end': found 1300: accepted: a second from 0 to 1200"),
        ((-5, 600), None, "'--start': found -5"),
        ((600, 600), None, "'--end': found 600: accepted: more than --start, 600"),
        ((0, float("nan")), None, "'--end': found nan"),
        ((0, 1200), 0.0, "'--rate': found 0.0"),
        ((0, 1200), float("inf"), "'--rate': found inf"),
        ((0, 1200), 1e9, "'--end': about 1200000000000 requests: accepted: a span or a --rate"),
        ((0, 600), None, "no client sends anything"),
    ],
)
def test_what_cannot_be_had_is_refused(span: tuple[float, float], rate: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        clients_trace(pool(client(1, (0.0, 3.0), "Gamma", 1.0)), *span, 1, rate)
