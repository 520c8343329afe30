"""The composed step-time model against sums made by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import theilslopes

from profiles.attention import Chunk
from profiles.llmservingsim import import_profiles
from profiles.profile import Profile, StepRows
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.steps.operator_model import OperatorModel
from simulator.steps.partition import Partition
from simulator.steps.profile_overhead import profile_overhead, theil_sen_slope
from simulator.steps.step_time import Overhead
from tests.profiles.bundles import write_bundle
from traces.errors import ProfileError

US = 1e-6
NUM_LAYERS = 3


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    """Token-wise operators take 2 µs at 1 token and 10 at 64; see `write_bundle` for the others."""
    return import_profiles(write_bundle(tmp_path / "bundle"))[0]


def model(profile: Profile, overhead: Overhead | None = None, **options: object) -> OperatorModel:
    chosen = EngineOptions(**{"enforce_eager": True, "max_num_seqs": 8, "max_num_batched_tokens": 128, **options})  # type: ignore[arg-type]
    return OperatorModel(profile, chosen, num_layers=NUM_LAYERS, overhead=overhead)


def plan(*, chunks: list[Chunk] | None = None, n_decode: int = 0, kv: int = 0, repeat: int = 1) -> StepPlan:
    empty = np.zeros(0, dtype=np.int64)
    return StepPlan(
        first_step=0,
        repeat=repeat,
        requests=[],
        new_tokens=empty,
        computed_tokens=empty,
        n_requests=n_decode + len(chunks or []),
        chunks=chunks or [],
        n_prefill_tokens=sum(chunk.new_tokens for chunk in chunks or []),
        n_decode=n_decode,
        decode_kv_sum=n_decode * kv,
        decode_kv_max=kv,
        n_preempted=0,
        n_running=n_decode,
        n_waiting=0,
        kv_blocks=0,
    )


def dense_us(tokens: float) -> float:
    """All token-wise operators: 2 once and 8 per layer, each the same here."""
    return (2 + 8 * NUM_LAYERS) * (2 + (tokens - 1) * 8 / 63)


def requests_us(n: int) -> float:
    return 2 * (20 + (n - 1) * 1)


def test_a_decode_step_is_the_sum_of_its_operators(profile: Profile) -> None:
    cost = model(profile).price(plan(n_decode=8, kv=16))
    expected = dense_us(8) + requests_us(8) + NUM_LAYERS * (5 + 8 * 16)
    assert cost.device_s.tolist() == pytest.approx([expected * US])
    assert cost.host_s.tolist() == [0.0]


def test_a_prefill_step_is_the_sum_of_its_operators(profile: Profile) -> None:
    cost = model(profile).price(plan(chunks=[Chunk(64, 0)]))
    assert cost.device_s.tolist() == pytest.approx([(dense_us(64) + requests_us(1) + NUM_LAYERS * (5 + 64 * 64)) * US])


def test_repeats_grow_by_a_token_each(profile: Profile) -> None:
    cost = model(profile).price(plan(n_decode=8, kv=16, repeat=5))
    steps = [dense_us(8) + requests_us(8) + NUM_LAYERS * (5 + 8 * (16 + i)) for i in range(5)]
    assert cost.device_s.tolist() == pytest.approx([step * US for step in steps])


def test_tokens_are_padded_to_the_next_cuda_graph(profile: Profile) -> None:
    padded = model(profile, enforce_eager=False, cudagraph_capture_sizes=(1, 4, 8)).price(plan(n_decode=5, kv=16))
    expected = dense_us(8) + requests_us(5) + NUM_LAYERS * (5 + 5 * 16)
    assert padded.device_s.tolist() == pytest.approx([expected * US])


def test_the_default_cuda_graphs_are_vllms() -> None:
    sizes = EngineOptions(max_num_seqs=128).capture_sizes()
    assert sizes[:5] == (1, 2, 4, 8, 16)
    assert sizes[-2:] == (248, 256)
    assert EngineOptions(max_num_seqs=512, max_num_batched_tokens=8192).capture_sizes()[-2:] == (496, 512)
    assert EngineOptions(enforce_eager=True).capture_sizes() == ()


def test_overhead_is_added(profile: Profile) -> None:
    overhead = Overhead(device_step_s=1e-3, host_step_s=2e-3, host_request_s=1e-4)
    bare = model(profile).price(plan(n_decode=4, kv=16))
    cost = model(profile, overhead).price(plan(n_decode=4, kv=16))
    assert cost.device_s - bare.device_s == pytest.approx(1e-3)
    assert cost.host_s.tolist() == pytest.approx([2e-3 + 4e-4])


def test_steps_beyond_the_measured_range_are_counted(profile: Profile) -> None:
    priced = model(profile)
    priced.count(plan(n_decode=8, kv=16), 7)
    priced.count(plan(n_decode=8, kv=100), 2)
    priced.count(plan(chunks=[Chunk(100, 0)]), 1)
    assert priced.notes() == (
        "2 of 10 steps priced beyond the profile's measured range: attention: decode history",
        "1 of 10 steps priced beyond the profile's measured range: attention: prefill tokens",
        "1 of 10 steps priced beyond the profile's measured range: tokens per step",
    )


def test_an_unmeasured_parallel_degree_is_refused(profile: Profile) -> None:
    with pytest.raises(ProfileError, match="field 'tp': found 2: accepted: a measured degree: 1"):
        OperatorModel(profile, EngineOptions(), num_layers=1, partition=Partition(tensor_parallel_size=2))


def test_experts_without_their_time_are_refused(profile: Profile) -> None:
    composition = type(profile.meta.composition)((), ("attention", "moe"), ())
    meta = type(profile.meta)(device="d", model="m", dtype="bfloat16", source="s", method="m", composition=composition)
    with pytest.raises(ProfileError, match="needs the time of experts"):
        model(dataclasses.replace(profile, meta=meta))


def test_what_whole_steps_take_beside_their_operators_is_found(profile: Profile) -> None:
    """Whole steps of 700 µs and 30 per request beside their operators; one of five was disturbed."""
    n = np.array([1.0, 2.0, 4.0, 6.0, 8.0])
    zeros = np.zeros(5)
    bare_s = [model(profile).price(plan(n_decode=int(i), kv=32)).device_s[0] for i in n]
    step_s = np.array(bare_s) + 700 * US + 30 * US * n + np.array([0, 0, 5e-3, 0, 0])
    steps = StepRows(zeros, zeros, n, zeros + 32, n, step_s, step_s, zeros + 5)
    tables = {1: dataclasses.replace(profile.tables[1], steps=steps)}
    found = profile_overhead(dataclasses.replace(profile, tables=tables), NUM_LAYERS)
    assert found.device_step_s == pytest.approx(700 * US, rel=1e-6)
    assert found.host_request_s == pytest.approx(30 * US, rel=1e-6)
    said = "0.7 ms on the device, 30 us a request (5 whole steps measured with the profile)"
    assert found.note() == f"time of a step beside its operators: {said}"
    assert profile_overhead(profile, NUM_LAYERS) == Overhead()
    assert Overhead().note() == "time of a step beside its operators: none: operators only"


def test_operators_that_take_longer_than_their_whole_steps_are_told(profile: Profile) -> None:
    n, zeros = np.arange(1.0, 5.0), np.zeros(4)
    bare_s = np.array([model(profile).price(plan(n_decode=int(i), kv=32)).device_s[0] for i in n])
    step_s = bare_s - 300 * US
    steps = StepRows(zeros, zeros, n, zeros + 32, n, step_s, step_s, zeros + 4)
    tables = {1: dataclasses.replace(profile.tables[1], steps=steps)}
    found = profile_overhead(dataclasses.replace(profile, tables=tables), NUM_LAYERS)
    assert found.device_step_s == pytest.approx(-300 * US)
    assert "-0.3 ms on the device" in found.note()
    assert "it is below zero: the operators take longer than the whole steps" in found.note()


@pytest.mark.parametrize("n", [2, 3, 40, 41])
def test_the_slope_is_scipys_to_the_bit(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = np.arange(n) // 2 * 1.5 + (np.arange(n) == 0), rng.normal(size=n)
    assert theil_sen_slope(x, y) == theilslopes(y, x).slope
    assert theil_sen_slope(np.ones(n), y) == 0.0
