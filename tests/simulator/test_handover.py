"""KV between engines: every transfer is in the capture, and what a calibration found of them changes no bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.cluster import Cluster
from simulator.front_end import FrontEnd, simulate_behind
from simulator.handover import KVResidual, KVTransfer
from simulator.simulate import Simulation, simulate
from tests.engines import trace
from tests.simulator.test_cluster import disaggregated
from traces.trace import Trace
from traces.transfers import KVTransfers

LATENCY_S, BYTES_PER_S, BYTES_PER_TOKEN = 1e-3, 1e6, 100
"""The link of `disaggregated`, and its model's KV."""


def prompts() -> Trace:
    """Prompts of several lengths, far enough apart that no two are on the link at once."""
    return trace(*((0.5 * i, 100 * (1 + 7 * i % 5), 3) for i in range(6)))


def apart(**settings: object) -> Cluster:
    cluster = disaggregated(1, 1)
    engines = tuple(replace(engine, num_layers=4) for engine in cluster.engines)
    return replace(cluster, engines=engines, kv_transfer=KVTransfer(**settings))  # type: ignore[arg-type]


def run(residual: KVResidual | None = None, **settings: object) -> Simulation:
    cluster = apart(**settings)
    return simulate(prompts(), cluster if residual is None else replace(cluster, kv_residual=residual))


def sent_in(found: Simulation) -> KVTransfers:
    assert found.capture.transfers is not None
    return found.capture.transfers


def bytes_of(sent: KVTransfers) -> list[int]:
    return [prompts().rows[i].prompt_tokens * BYTES_PER_TOKEN for i in sent.request.tolist()]


def test_every_transfer_is_in_the_capture() -> None:
    sent = sent_in(run())
    assert sorted(sent.request.tolist()) == list(range(len(prompts())))
    assert set(sent.source.tolist()) == {0}
    assert set(sent.target.tolist()) == {1}
    np.testing.assert_array_equal(sent.under_way_s, sent.end_s)
    np.testing.assert_allclose(sent.n_bytes, bytes_of(sent))


def test_a_lone_transfer_takes_latency_and_bytes() -> None:
    sent = sent_in(run())
    expected_s = LATENCY_S + sent.n_bytes / BYTES_PER_S
    np.testing.assert_allclose(sent.end_s - sent.start_s, expected_s, rtol=1e-9)


def test_a_residual_adds_its_time_and_scales_that_of_the_bytes_and_no_byte() -> None:
    found = run(KVResidual(2e-3, 3.0))
    sent = sent_in(found)
    expected_s = LATENCY_S + 2e-3 + 3 * sent.n_bytes / BYTES_PER_S
    np.testing.assert_allclose(sent.end_s - sent.start_s, expected_s, rtol=1e-9)
    said = [note for note in run().capture.meta.notes if "of KV of" in note]
    assert said == [note for note in found.capture.meta.notes if "of KV of" in note]


def test_requests_wait_for_their_kv() -> None:
    bare, later = run().capture, run(KVResidual(5e-3, 1.0)).capture
    for before, after in zip(bare.outcomes, later.outcomes, strict=True):
        assert before.first_token_s is not None
        assert after.first_token_s == pytest.approx(before.first_token_s + 5e-3)


def test_requests_take_their_way_before_any_kv_is_asked_for() -> None:
    bare, later = run(), run(KVResidual(handover_s=5e-3))
    np.testing.assert_allclose(sent_in(later).start_s, sent_in(bare).start_s + 5e-3)
    np.testing.assert_allclose(sent_in(later).end_s, sent_in(bare).end_s + 5e-3)


def test_layer_by_layer_a_transfer_begins_before_the_prompt_is_computed() -> None:
    found = run(when="layer_by_layer")
    sent, computed_s = sent_in(found), found.computed_s
    assert computed_s is not None
    assert (sent.start_s < computed_s[sent.request]).all()


def test_prompts_are_told_when_they_were_computed() -> None:
    found = run()
    sent = sent_in(found)
    assert found.computed_s is not None
    np.testing.assert_allclose(sent.start_s, found.computed_s[sent.request])


def test_behind_a_front_end_transfers_belong_to_the_same_requests() -> None:
    """Their arrivals at the engine are in another order than the requests' own: long prompts take longer."""
    found = simulate_behind(FrontEnd(0.0, 5e-3), prompts(), apart())
    sent = sent_in(found)
    np.testing.assert_allclose(sent.n_bytes, bytes_of(sent))
    assert found.computed_s is not None
    for i, outcome in enumerate(found.capture.outcomes):
        assert outcome.first_token_s is not None
        assert outcome.arrival_s < found.computed_s[i] < outcome.first_token_s


def test_one_engine_alone_sends_nothing() -> None:
    cluster = apart()
    found = simulate(prompts(), replace(cluster, engines=(replace(cluster.engines[0], role="both"),)))
    assert found.capture.transfers is None
    assert found.computed_s is None
