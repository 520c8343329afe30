"""A streamed trace: the outcomes of the whole one, to the bit, from memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.fleet import Failure
from simulator.simulate import simulate
from simulator.stream import Stream
from tests.engines import LinearStepTime, engine, trace
from tests.simulator.test_simulate import scenarios
from traces.errors import InputError
from traces.outcome import Outcome
from traces.trace import Trace


def streamed(made: Trace, cluster: Cluster) -> tuple[Stream, list[Outcome]]:
    stream = Stream(replace(made, rows=()), cluster)
    return stream, [outcome for piece in stream.serve(made.rows) for outcome in piece]


def cluster_of(options: dict[str, object], n: int, **rest: object) -> Cluster:
    left = dict(options)
    step_time = LinearStepTime(step_s=0.01, token_s=0.0003, kv_token_s=0.00001, host_s=float(str(left.pop("host_s"))))
    return Cluster((engine(step_time, **left),) * n, **rest)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    scenarios(),
    st.integers(1, 3),
    st.sampled_from(["round_robin", "random", "least_loaded", "prefix_aware"]),
    st.sampled_from([None, 0.2]),
    st.sampled_from([1, 3, 4096]),
)
def test_outcomes_are_those_of_the_whole_trace(
    scenario: tuple[Trace, dict[str, object]], n: int, routing: str, deadline_s: float | None, piece: int
) -> None:
    made, options = scenario
    cluster = cluster_of(options, n, routing=routing, deadline_s=deadline_s)
    whole = simulate(made, cluster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.stream.PIECE", piece)
        stream, outcomes = streamed(made, cluster)
    assert tuple(outcomes) == whole.capture.outcomes
    assert stream.n_steps == whole.n_steps
    assert stream.meta(replace(made, rows=())) == whole.capture.meta


def test_only_requests_in_flight_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.stream.PIECE", 10)
    made = trace(*((0.1 * i, 50, 20) for i in range(2000)))
    stream, outcomes = streamed(made, Cluster((engine(),) * 2))
    assert len(outcomes) == stream.n_served == 2000
    assert stream.most_in_flight == 12
    ranks = stream._service.ranks
    assert [(len(rank.requests), len(rank.record)) for rank in ranks] == [(0, 0), (0, 0)]


def refused(change: Callable[[Cluster], Cluster]) -> str:
    with pytest.raises(InputError) as error:
        Stream(trace((0.0, 5, 5)), change(Cluster((engine(),) * 2)))
    return str(error.value)


def test_what_needs_the_whole_trace_is_refused() -> None:
    assert "failures" in refused(lambda cluster: replace(cluster, failures=(Failure(instance=0, at_s=1.0, for_s=1.0),)))
    assert "concurrency" in refused(lambda cluster: replace(cluster, concurrency=2))
    waiting = [msgspec.structs.replace(row, session_id="talk", delay_s=1.0) for row in trace((0.0, 5, 5)).rows]
    with pytest.raises(InputError, match="waits for another's end"):
        list(Stream(trace(), Cluster((engine(),))).serve(waiting))
