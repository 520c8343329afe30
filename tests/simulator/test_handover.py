"""KV between engines: every transfer is in the capture, and what a calibration found of them changes no bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.front_end import FrontEnd, simulate_behind
from simulator.kv_transfer import KVResidual, KVTransfer, sent_blocks
from simulator.service import Service
from simulator.simulate import Simulation, simulate
from tests.engines import trace
from tests.simulator.test_cluster import disaggregated
from traces.errors import InputError
from traces.trace import Trace
from traces.transfers import KVTransfers

LATENCY_S, BYTES_PER_S, BYTES_PER_TOKEN, BLOCK_SIZE = 1e-3, 1e6, 100, 16
"""The link of `disaggregated`, its model's KV and its blocks."""


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
    blocks = [-(-prompts().rows[i].prompt_tokens // BLOCK_SIZE) for i in sent.request.tolist()]
    return [count * BLOCK_SIZE * BYTES_PER_TOKEN for count in blocks]


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


def apart_with(prefill: int, decode: int, budget: int = 2048, **settings: object) -> Cluster:
    """Engines of these block sizes."""
    of_prefill = {"block_size": prefill, "max_num_batched_tokens": budget, "max_num_seqs": 16}
    cluster = disaggregated(prefill=of_prefill, decode={"block_size": decode})
    engines = tuple(replace(engine, num_layers=4) for engine in cluster.engines)
    return replace(cluster, engines=engines, kv_transfer=KVTransfer(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "cached", "source_size", "target_size", "blocks"),
    [
        (1, 0, 16, 16, 1),
        (16, 0, 16, 16, 1),
        (17, 0, 16, 16, 2),
        (40, 32, 16, 16, 1),
        (48, 32, 16, 16, 1),
        # vLLM's own example: ten blocks of 4 into three of 16.
        (40, 0, 4, 16, 10),
        (48, 0, 4, 16, 12),
        # With a prefix cached, as many as fill the target's blocks.
        (40, 16, 4, 16, 8),
        (40, 32, 4, 16, 4),
    ],
)
def test_blocks_that_are_read(prompt: int, cached: int, source_size: int, target_size: int, blocks: int) -> None:
    assert sent_blocks(prompt, cached, source_size, target_size) == blocks


def test_blocks_of_the_prefill_engine_are_sent_into_larger_ones() -> None:
    """40 tokens: three blocks of 16, of which the target takes two of 32."""
    run = simulate(trace((0.0, 40, 2)), apart_with(16, 32))
    assert sent_in(run).n_bytes.tolist() == [3 * 16 * BYTES_PER_TOKEN]


@pytest.mark.parametrize(
    ("prefill", "decode", "when", "accepted"),
    [
        (32, 16, "at_end", "a multiple of 32"),
        (16, 24, "at_end", "a multiple of 16"),
        (16, 32, "layer_by_layer", "16, as the prefill engines have"),
    ],
)
def test_blocks_that_vllm_cannot_send_are_refused(prefill: int, decode: int, when: str, accepted: str) -> None:
    with pytest.raises(InputError, match=f"block_size'.*block sizes.*found {decode}.*{accepted}"):
        simulate(prompts(), apart_with(prefill, decode, when=when))


def test_layer_by_layer_all_of_a_prompt_leaves_with_its_last_chunk() -> None:
    """100 tokens in chunks of 40: the third step of 10 ms begins at 20 ms, its first layer of 4 is there at 22.5 ms."""
    sent = sent_in(simulate(trace((0.0, 100, 2)), apart_with(16, 16, 40, when="layer_by_layer")))
    assert sent.n_bytes.tolist() == [7 * 16 * BYTES_PER_TOKEN]
    assert sent.start_s.tolist() == pytest.approx([0.0225])
    assert sent.end_s.tolist() == pytest.approx([0.0225 + LATENCY_S + 7 * 16 * BYTES_PER_TOKEN / BYTES_PER_S])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 2)), min_size=1, max_size=12),
    st.sampled_from([(16, 16), (8, 32), (16, 48)]),
    st.sampled_from(["at_end", "layer_by_layer"]),
)
def test_bytes_are_those_of_blocks_and_none_is_sent_twice(
    made: list[tuple[int, int]], sizes: tuple[int, int], when: str
) -> None:
    """Prompts of three families, which share their first blocks as far as both have them."""
    source, target = sizes if when == "at_end" else (16, 16)
    rows = trace(
        *((0.05 * i, prompt, 2) for i, (prompt, _) in enumerate(made)),
        hashes=[tuple(1000 * family + j for j in range(prompt // target)) for prompt, family in made],
        size=target,
    )
    service = Service(rows, apart_with(source, target, 64, when=when), fast_forward=True)
    service.run()
    assert service.handover is not None
    sent = service.handover.transfers()
    cached = {request.index: request.cached_tokens or 0 for request in service.ranks[1].requests}
    expected = [
        sent_blocks(made[i][0], cached[i] if when == "at_end" else 0, source, target) * source * BYTES_PER_TOKEN
        for i in sent.request.tolist()
    ]
    assert sorted(sent.request.tolist()) == list(range(len(made)))
    np.testing.assert_array_equal(sent.n_bytes, expected)
    network = service.handover.network
    carried = sum(float(network.carried_bytes(link, network.now_s)) for link in network.links)
    assert carried == pytest.approx(float(sent.n_bytes.sum()))


def test_each_device_of_the_target_reads_what_it_keeps() -> None:
    """Two of them keep the same keys and values: these are sent twice, whatever the source keeps."""
    cluster = apart()
    prefill, decode = cluster.engines
    for engines, copies in (((prefill, replace(decode, kv_copies=2)), 2), ((replace(prefill, kv_copies=2), decode), 1)):
        sent = sent_in(simulate(prompts(), replace(cluster, engines=engines)))
        assert sent.n_bytes.tolist() == [copies * n_bytes for n_bytes in bytes_of(sent)]


def test_one_engine_alone_sends_nothing() -> None:
    cluster = apart()
    found = simulate(prompts(), replace(cluster, engines=(replace(cluster.engines[0], role="both"),)))
    assert found.capture.transfers is None
    assert found.computed_s is None
