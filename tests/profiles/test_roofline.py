"""A roofline: the closed form, what it refuses, and how far measured steps are from it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from harness.running.simulate import simulate_scenario
from profiles.catalog import BUNDLED, find_device, find_model
from profiles.interpolation import interpolate
from profiles.operators import Elementwise, Gemm, Operators
from profiles.roofline import operator_s, roofline_profile
from tests.benchmarks.roofline import PROFILES, REGIMES, factors
from tests.harness.scenarios import write_scenario
from traces.errors import InputError, ProfileError

H100 = find_device("H100", [BUNDLED])
LLAMA = find_model("meta-llama/Llama-3.1-8B", [BUNDLED])


def test_a_large_product_takes_its_arithmetic_and_a_small_one_its_weights() -> None:
    assert operator_s(H100, Gemm(8192, 4096, 4096, "bfloat16")) == 2 * 8192 * 4096 * 4096 / 989.4e12
    few = Gemm(1, 4096, 4096, "bfloat16")
    assert operator_s(H100, few) == 2 * (4096 + 4096 * 4096 + 4096) / 3.35e12
    assert operator_s(H100, msgspec.structs.replace(few, dtype="fp8")) < 0.51 * operator_s(H100, few)
    assert operator_s(H100, Elementwise("act_fn", 1, 3350, 3350)) == 2e-9


def test_a_decode_reads_all_weights_once() -> None:
    """One decode without history takes the model's bytes by the bandwidth, within what activations add."""
    tables = roofline_profile(H100, LLAMA, "bfloat16").tables[1]
    per_layer = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    step_s = sum(32 * tables.dense[name].time_s[0] for name in per_layer) + tables.per_request["lm_head"].time_s[0]
    weights = LLAMA.weight_bytes("bfloat16") - 2 * LLAMA.parameters()["embedding"]
    assert step_s == pytest.approx(weights / 3.35e12, rel=2e-3)


def test_between_the_points_of_the_grid_it_is_the_roofline_but_for_its_corner() -> None:
    operators = Operators(LLAMA, 1, "bfloat16")
    tables = roofline_profile(H100, LLAMA, "bfloat16").tables[1]
    at = np.arange(1, 8193, 7)
    for name in ("qkv_proj", "gate_up_proj", "layernorm"):
        exact_s = np.array([operator_s(H100, operators.token_wise(name, int(n))) for n in at])
        found_s = interpolate(tables.dense[name].x, tables.dense[name].time_s, at.astype(np.float64))
        error = found_s / exact_s - 1
        assert error.max() < 0.05
        assert error.min() > -1e-9
        assert np.median(error) < 1e-3


def test_experts_and_stages_are_simulated_from_it(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, n_requests=6)
    fabric = "fabric: {kind: switch, bandwidth_bytes_per_s: 4.0e+11, latency_s: 2.0e-6}"
    for model, degrees in (
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "data_parallel_size: 2, enable_expert_parallel: true"),
        ("meta-llama/Llama-3.1-70B", "tensor_parallel_size: 2, pipeline_parallel_size: 2"),
    ):
        instance = f"{{model: {model}, device: H100, source: roofline, {degrees}}}"
        _, figures = simulate_scenario(scenario, [f"cluster={{{fabric}, instances: [{instance}]}}"])
        assert figures["n_finished"] == 6


def test_tensor_parallelism_divides_what_it_splits() -> None:
    tables = roofline_profile(H100, LLAMA, "bfloat16", degrees=(1, 2)).tables
    whole, half = (tables[tp].dense["gate_up_proj"].time_s for tp in (1, 2))
    assert half == pytest.approx(whole / 2, rel=0.15)
    assert tables[1].dense["layernorm"].time_s == pytest.approx(tables[2].dense["layernorm"].time_s)


def test_it_says_that_it_is_no_measurement() -> None:
    profile = roofline_profile(H100, LLAMA, "fp8")
    assert profile.meta.method.startswith("not measured")
    (note,) = profile.meta.notes
    assert "a bound and not a measurement" in note
    assert "1978.9 Tflop/s fp8" in note
    assert profile.sha256 != roofline_profile(H100, LLAMA, "bfloat16").sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak_flops_per_s": {}}, "has no peak for bfloat16.*none is described"),
        ({"memory_bandwidth_bytes_per_s": None}, "has no memory bandwidth"),
        ({"peak_flops_per_s": {"bfloat16": 1e12}}, None),
    ],
)
def test_a_peak_that_is_not_described_is_not_guessed(changes: dict[str, object], message: str | None) -> None:
    device = msgspec.structs.replace(H100, **changes)
    if message is None:
        roofline_profile(device, LLAMA, "bfloat16")
        message = "has no peak for fp8, which a roofline needs: accepted: bfloat16"
        with pytest.raises(InputError, match=message):
            roofline_profile(device, LLAMA, "fp8")
    else:
        with pytest.raises(InputError, match=message):
            roofline_profile(device, LLAMA, "bfloat16")


def test_nothing_falls_back_to_a_roofline_or_to_another_device(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, n_requests=4)
    device = "cluster={instances: [{model: test/tiny, device: H100}]}"
    with pytest.raises(ProfileError, match=r"no profile of H100 / test/tiny"):
        simulate_scenario(scenario, [device])
    unknown = "cluster={instances: [{model: test/tiny, device: H1000, source: roofline}]}"
    with pytest.raises(InputError, match=r"scenario.yaml:\d+: field 'device': found 'H1000'.*'H100' is the nearest"):
        simulate_scenario(scenario, [unknown])
    model = "cluster={instances: [{model: test/small, device: H100, source: roofline}]}"
    with pytest.raises(InputError, match=r"found 'test/small': accepted: .*test/tiny"):
        simulate_scenario(scenario, [model])
    asked = "cluster={instances: [{model: test/tiny, device: H100, source: roofline}]}"
    simulation, _ = simulate_scenario(scenario, [asked])
    assert any("a roofline from the datasheet" in note for note in simulation.capture.meta.notes)


@pytest.mark.ground_truth
@pytest.mark.parametrize("name", PROFILES)
def test_measured_steps_take_up_to_so_many_times_the_roofline(ground_truth: Path, name: str) -> None:
    """The factor that docs/validity.md states: 1.1 to 1.7, but where a profile's own times are predictions."""
    found = factors(name, ground_truth)
    assert found.keys() == {regime.name for regime in REGIMES}
    predicted = {"128 decodes at 1,024", "8 decodes at 16,384"} if name.startswith("A6000") else set()
    assert all(1.05 < factor < 1.7 for regime, factor in found.items() if regime not in predicted)
