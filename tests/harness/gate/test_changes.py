"""What a change does, measured and predicted, by hand counts: ratios, their intervals, and what cannot be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from harness.scoring.change import FROM_ZERO, NOT_MEASURED, Change, Changes, changes
from harness.scoring.compare import Validation
from simulator.simulate import simulate
from tests.engines import engine, trace
from traces.capture import Capture
from traces.statistics import relative_error_ci

N = 60
TTFT_S = [0.05 + 0.001 * ((37 * i) % N) for i in range(N)]
RUN = simulate(trace(*[(0.5 * i, 20, 11) for i in range(N)]), engine()).capture


def served(ttft_s: Sequence[float], *, decode_s: float = 1.0, prefix: str = "", **fields: Any) -> Capture:
    """A run in which each request has this TTFT, and ten tokens after it, evenly spaced."""
    outcomes = []
    for outcome, wait_s in zip(RUN.outcomes, ttft_s, strict=True):
        first_s = outcome.arrival_s + wait_s
        times = {
            "scheduled_s": outcome.arrival_s,
            "first_token_s": first_s,
            "finish_s": first_s + decode_s,
            "token_times_s": tuple(first_s + decode_s * k / 10 for k in range(11)),
        }
        outcomes.append(
            msgspec.structs.replace(outcome, **{**times, **fields, "request_id": prefix + outcome.request_id})
        )
    rows = tuple(msgspec.structs.replace(row, request_id=prefix + row.request_id) for row in RUN.trace.rows)
    return dataclasses.replace(RUN, outcomes=tuple(outcomes), trace=dataclasses.replace(RUN.trace, rows=rows))


def side(measured: Capture, simulated: Capture, scored: Sequence[str] | None = None) -> Validation:
    ids = tuple(outcome.request_id for outcome in measured.outcomes) if scored is None else tuple(scored)
    return Validation({}, measured, simulated, cast(Any, None), scored=ids)


def times(factor: float) -> list[float]:
    return [factor * value for value in TTFT_S]


def change(found: Changes, name: str) -> Change:
    figure = found.figures[name]
    assert isinstance(figure, Change), figure
    return figure


def test_twice_as_much_predicted_as_one_and_a_half_times() -> None:
    found = changes(side(served(TTFT_S), served(TTFT_S)), side(served(times(2)), served(times(1.5))))
    assert (found.paired, found.n_requests) == (True, (N, N))
    for name in ("ttft_s.mean", "ttft_s.p50", "ttft_s.p90"):
        one = change(found, name)
        assert one.measured_change == pytest.approx(1.0)
        assert one.predicted_change == pytest.approx(0.5)
        assert one.points == pytest.approx(-0.5)
        assert one.error == pytest.approx(1.5 / 2 - 1)
        assert one.measured_ci95 == pytest.approx((1.0, 1.0)), "the same requests before and after: the factor is sure"
        assert one.ci95 == pytest.approx((-0.25, -0.25))
        assert one.direction == "right"
    assert change(found, "tpot_s.mean").direction is None, "nothing changed"


def test_an_error_on_both_sides_cancels_and_an_error_on_one_does_not() -> None:
    high = changes(side(served(TTFT_S), served(times(1.3))), side(served(times(5)), served(times(6.5))))
    assert change(high, "ttft_s.mean").error == pytest.approx(0.0)
    assert change(high, "ttft_s.mean").points == pytest.approx(0.0)
    one = changes(side(served(TTFT_S), served(TTFT_S)), side(served(times(5)), served(times(6.5))))
    assert change(one, "ttft_s.mean").error == pytest.approx(0.3)
    assert change(one, "ttft_s.mean").points == pytest.approx(1.5)
    back = changes(side(served(times(5)), served(times(6.5))), side(served(TTFT_S), served(TTFT_S)))
    assert change(back, "ttft_s.mean").error == pytest.approx(1 / 1.3 - 1), "undone, it is as far off as a factor"


def test_the_direction_is_told_only_where_something_surely_changed() -> None:
    up = side(served(times(1.2)), served(times(1.2)))
    wrong = changes(side(served(TTFT_S), served(times(1.25))), up)
    assert change(wrong, "ttft_s.mean").direction == "wrong"
    still = changes(side(served(TTFT_S), served(times(1.2))), up)
    assert change(still, "ttft_s.mean").direction == "wrong", "none is not the measured way either"
    noisy = [value * (1.5 if i % 2 else 0.5) for i, value in enumerate(TTFT_S)]
    unsure = changes(side(served(TTFT_S), served(TTFT_S)), side(served(noisy), served(times(1.2))))
    low, high = change(unsure, "ttft_s.mean").measured_ci95 or (1.0, 1.0)
    assert low < 0 < high
    assert change(unsure, "ttft_s.mean").direction is None


def test_the_interval_of_a_paired_change_is_that_of_a_paired_error() -> None:
    rng = np.random.default_rng(5)
    after = np.array(TTFT_S) * rng.lognormal(0.3, 0.4, N)
    found = changes(side(served(TTFT_S), served(TTFT_S)), side(served(list(after)), served(list(after))))
    names = ("mean", "p50", "p90")
    expected = relative_error_ci(np.array(TTFT_S), after, names, np.random.default_rng(1), n_resamples=4000)
    for name in names:
        assert change(found, f"ttft_s.{name}").measured_ci95 == pytest.approx(expected[name], abs=0.05)


def test_other_requests_are_drawn_by_themselves() -> None:
    paired = changes(side(served(TTFT_S), served(TTFT_S)), side(served(times(2)), served(times(2))))
    others = side(served(times(2), prefix="x"), served(times(2), prefix="x"))
    apart = changes(side(served(TTFT_S), served(TTFT_S)), others)
    assert (apart.paired, apart.n_requests) == (False, (N, N))
    assert change(paired, "ttft_s.mean").measured_ci95 == pytest.approx((1.0, 1.0))
    low, high = change(apart, "ttft_s.mean").measured_ci95 or (0.0, 0.0)
    spread = np.std(TTFT_S) / np.mean(TTFT_S) / np.sqrt(N)  # of each mean; of their ratio, to first order, both
    assert high - low == pytest.approx(2 * 1.96 * 2 * spread * np.sqrt(2), rel=0.15)
    assert change(apart, "ttft_s.mean").ci95 == pytest.approx((0.0, 0.0)), "engine and twin stay together"


def test_requests_that_are_scored_on_one_side_alone_are_left_out_where_both_served_them() -> None:
    ids = [outcome.request_id for outcome in RUN.outcomes]
    before = side(served(TTFT_S), served(TTFT_S), ids[10:])
    found = changes(before, side(served(times(2)), served(times(2))))
    assert found.n_requests == (N - 10, N - 10)
    assert change(found, "ttft_s.mean").measured[0] == pytest.approx(np.mean(TTFT_S[10:]))
    assert change(found, "ttft_s.mean").measured[1] == pytest.approx(2 * np.mean(TTFT_S[10:]))


def test_gaps_are_pooled_over_tokens_and_drawn_with_their_request() -> None:
    after = served(TTFT_S, decode_s=3.0)
    found = changes(side(served(TTFT_S), served(TTFT_S)), side(after, after))
    for name in ("itl_s.mean", "itl_s.p99", "tpot_s.mean"):
        assert change(found, name).measured == pytest.approx((0.1, 0.3))
    assert change(found, "itl_s.p99").measured_ci95 == pytest.approx((2.0, 2.0)), "600 gaps are enough for a p99"
    assert found.figures["tpot_s.p99"] == NOT_MEASURED, "60 requests are not"


def test_one_number_of_a_run_has_a_change_and_no_interval() -> None:
    after = served(TTFT_S, decode_s=11.0)
    found = changes(side(served(TTFT_S), served(TTFT_S)), side(after, served(TTFT_S, decode_s=1.0)))
    rate = change(found, "output_tokens_per_s")
    before_s, after_s = change(found, "duration_s").measured
    assert after_s - before_s == pytest.approx(10.0)
    assert rate.measured == pytest.approx((11 * N / before_s, 11 * N / after_s))
    assert rate.predicted_change == pytest.approx(0.0)
    assert (rate.measured_ci95, rate.ci95, rate.direction) == (None, None, None)


def test_what_was_not_measured_or_was_0_has_no_ratio() -> None:
    bare = side(served(TTFT_S, token_times_s=None), served(TTFT_S))
    found = changes(bare, side(served(times(2)), served(times(2))))
    assert found.figures["itl_s.mean"] == NOT_MEASURED
    assert found.figures["queue_s.mean"] == FROM_ZERO
    assert change(found, "ttft_s.mean").measured_change == pytest.approx(1.0)
    none = changes(side(served(TTFT_S), served(TTFT_S), []), side(served(TTFT_S), served(TTFT_S)))
    assert set(none.figures.values()) == {NOT_MEASURED}


def test_a_twin_that_says_0_after_a_change_is_wholly_off() -> None:
    waits = served(times(2), scheduled_s=None)
    queued = [msgspec.structs.replace(o, scheduled_s=o.arrival_s + 0.01) for o in waits.outcomes]
    measured = dataclasses.replace(waits, outcomes=tuple(queued))
    found = changes(side(measured, measured), side(measured, served(times(2))))
    assert change(found, "queue_s.mean").error == -1.0


def test_the_same_seed_gives_the_same_intervals() -> None:
    noisy = [value * (1.2 if i % 3 else 0.9) for i, value in enumerate(TTFT_S)]
    sides = side(served(TTFT_S), served(times(1.1))), side(served(noisy), served(TTFT_S))
    assert changes(*sides, seed=1) == changes(*sides, seed=1)
    assert changes(*sides, seed=1) != changes(*sides, seed=2)
