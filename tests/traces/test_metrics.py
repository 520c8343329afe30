"""The definitions, against cases that can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.capture import Capture
from traces.metrics import (
    Slo,
    defined,
    goodput_per_s,
    itl_s,
    prefix_hit_rate,
    requests,
    summary,
    throughput,
    total,
)
from traces.outcome import Outcome, Status

Served = Callable[..., Outcome]


def test_every_duration_is_anchored_at_the_true_arrival(served: Served) -> None:
    metrics = requests([served(arrival_s=0.5, queued_s=0.9)])
    found = {column.name: getattr(metrics, column.name)[0] for column in fields(metrics)}
    assert found == {
        "finished": True,
        "ttft_s": 2.5,
        "tpot_s": 1.0,
        "e2el_s": 6.5,
        "queue_s": 0.5,
        "prefill_s": 2.0,
        "decode_s": 4.0,
    }


def test_one_token_has_no_tpot(served: Served) -> None:
    metrics = requests([served(output_tokens=1, finish_s=3.0), served()])
    assert math.isnan(metrics.tpot_s[0])
    assert defined(metrics.tpot_s).tolist() == [1.0]
    assert metrics.decode_s.tolist() == [0.0, 4.0]


@pytest.mark.parametrize("status", [Status.ABORTED, Status.FAILED, Status.REJECTED])
def test_only_finished_requests_count(served: Served, captured: Callable[..., Capture], status: Status) -> None:
    outcomes = [served("0"), served("1", status=status, finish_s=100.0)]
    found = summary(captured(outcomes))
    assert math.isnan(requests(outcomes).ttft_s[1])
    assert found["metrics"]["e2el_s"]["mean"] == 7.0
    assert found["metrics"]["duration_s"] == 7.0
    assert (found["n_requests"], found["n_finished"], found["n_left_out"]) == (2, 1, 1)
    assert found["requests"][status.value] == 1


def test_what_was_not_measured_is_none_and_never_nan(served: Served, captured: Callable[..., Capture]) -> None:
    bare = served(scheduled_s=None, first_token_s=None, finish_s=None)
    found = summary(captured([bare]))
    assert all(value is None for value in found["metrics"]["ttft_s"].values())
    assert all(value is None for value in found["metrics"]["itl_s"].values())
    assert found["metrics"]["output_tokens_per_s"] is None
    assert found["cached_tokens"] is None
    assert found["prefix_hit_rate"] is None
    assert b"NaN" not in msgspec.json.encode(found)


def test_percentiles_of_too_few_requests_are_none(served: Served, captured: Callable[..., Capture]) -> None:
    found = summary(captured([served(str(i), finish_s=7.0 + i) for i in range(30)]))["metrics"]["e2el_s"]
    assert found["p50"] == pytest.approx(21.5)
    assert found["p90"] == pytest.approx(7 + 0.9 * 29)
    assert found["p95"] == pytest.approx(7 + 0.95 * 29)
    assert found["p99"] is None


def test_itl_is_pooled_over_tokens_and_never_spans_two_requests(served: Served) -> None:
    outcomes = [
        served("0", output_tokens=3, token_times_s=(1.0, 2.0, 4.0)),
        served("1", output_tokens=0, token_times_s=()),
        served("2", output_tokens=1, token_times_s=(100.0,)),
        served("3", output_tokens=2, token_times_s=(0.0, 0.5)),
    ]
    pooled = itl_s(outcomes)
    assert pooled is not None
    assert pooled.tolist() == [1.0, 2.0, 0.5]


def test_itl_of_some_requests_only_is_refused(served: Served) -> None:
    assert itl_s([served("0", token_times_s=(3.0, 4.0, 5.0, 6.0, 7.0)), served("1")]) is None
    assert itl_s([]) is None


def test_throughput_counts_finished_work_from_first_arrival_to_last_finish(served: Served) -> None:
    run = throughput([served("0", arrival_s=2.0), served("1", arrival_s=3.0, finish_s=12.0)])
    assert run is not None
    assert (run.duration_s, run.requests_per_s, run.output_tokens_per_s, run.total_tokens_per_s) == (10, 0.2, 1, 3)


def test_throughput_needs_every_finish(served: Served) -> None:
    assert throughput([served("0"), served("1", finish_s=None)]) is None
    assert throughput([]) is None


def test_goodput_needs_all_limits_met(served: Served) -> None:
    outcomes = [
        served("0"),
        served("1", first_token_s=3.5),  # TTFT too long
        served("2", output_tokens=2),  # TPOT too long
        served("3", output_tokens=1, first_token_s=3.0, finish_s=3.0),  # no TPOT to miss
        served("4", status=Status.ABORTED),
    ]
    assert goodput_per_s(outcomes, Slo(ttft_s=3.0, tpot_s=1.0)) == pytest.approx(2 / 7)
    assert goodput_per_s(outcomes, Slo()) == pytest.approx(4 / 7)
    assert goodput_per_s(outcomes, Slo(e2el_s=3.0)) == pytest.approx(1 / 7)


def test_goodput_of_an_unmeasured_duration_is_none(served: Served) -> None:
    outcomes = [served("0"), served("1", first_token_s=None)]
    assert goodput_per_s(outcomes, Slo(ttft_s=3.0)) is None
    assert goodput_per_s(outcomes, Slo(e2el_s=9.0)) == pytest.approx(2 / 7)


def test_prefix_hits_and_preemptions_count_when_all_recorded_them(served: Served) -> None:
    outcomes = [served("0", cached_tokens=8, num_preemptions=1), served("1", cached_tokens=0, num_preemptions=2)]
    assert prefix_hit_rate(outcomes) == 0.4
    assert total(outcomes, "num_preemptions") == 3
    assert total([*outcomes, served("2")], "num_preemptions") is None


@given(
    st.lists(
        st.tuples(*[st.floats(0, 1e4) for _ in range(4)], st.integers(1, 1000)),
        min_size=1,
        max_size=30,
    )
)
def test_stages_add_up_and_tpot_spreads_decode_time(served: Served, spans: list[tuple[float, ...]]) -> None:
    outcomes = []
    for i, (arrival_s, queue_s, prefill_s, decode_s, tokens) in enumerate(spans):
        scheduled_s = arrival_s + queue_s
        first_s = scheduled_s + prefill_s
        times = {"arrival_s": arrival_s, "scheduled_s": scheduled_s, "first_token_s": first_s}
        outcomes.append(served(str(i), **times, finish_s=first_s + decode_s, output_tokens=int(tokens)))
    m = requests(outcomes)
    np.testing.assert_allclose(m.queue_s + m.prefill_s + m.decode_s, m.e2el_s, atol=1e-9)
    np.testing.assert_allclose(m.queue_s + m.prefill_s, m.ttft_s, atol=1e-9)
    several = np.array([o.output_tokens > 1 for o in outcomes])
    gaps = np.array([o.output_tokens - 1 for o in outcomes])
    np.testing.assert_allclose((m.tpot_s * gaps)[several], (m.e2el_s - m.ttft_s)[several], atol=1e-9)
    assert np.isnan(m.tpot_s).tolist() == (~several).tolist()
