"""Tables of aiconfigurator-core: our reading of them beside its files, read by themselves, and beside its own step."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.calibrate import calibrate, write_calibration
from harness.simulate import simulate_scenario
from harness.validate import validate
from profiles.catalog import BUNDLED, find_device, find_model
from profiles.profile import Profile, read_profile, write_profile
from tests.measured import measured_run
from traces.errors import EngineError, InputError

pytest.importorskip("aiconfigurator_core")

from profiles.aiconfigurator import aiconfigurator_profile, system_of
from profiles.aiconfigurator_tables import Tables, systems
from tests.benchmarks.closed_loops import measured_runs, scored

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "aiconfigurator.yaml"
LLAMA, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-32B"


@pytest.fixture(scope="module")
def h100() -> Profile:
    return profile_of(LLAMA, "h100_sxm", (1, 2))


def profile_of(
    model: str, system: str, degrees: tuple[int, ...] = (1,), dtype: str = "bfloat16", **options: str
) -> Profile:
    spec = find_model(model, [BUNDLED])
    return aiconfigurator_profile(system, spec, dtype, "auto", degrees, device=system, **options)


def rows(system: str, table: str, **only: object) -> list[dict[str, float]]:
    """Rows of one of its files, by another reader than ours."""
    import pyarrow.parquet as pq

    found = pq.read_table(Tables(system).file(table), filters=[(k, "==", v) for k, v in only.items()])
    return found.to_pylist()  # type: ignore[no-any-return]


def test_products_of_collected_sizes_are_the_collected_times(h100: Profile) -> None:
    """QKV of Llama-3.1-8B is 4,096 by 6,144, and the output projection 4,096 by 4,096: both were collected."""
    for name, n in (("qkv_gemm", 6144), ("proj_gemm", 4096)):
        curve = h100.tables[1].dense[name]
        read = dict(zip(curve.x, curve.time_s, strict=True))
        there = rows("h100_sxm", "gemm_perf", gemm_dtype="bfloat16", n=n, k=4096)
        assert len(there) == len(read)
        for row in there:
            assert read[row["m"]] == pytest.approx(row["latency"] / 1e3, rel=0.15 if row["m"] > 4096 else 1e-9)


def test_decodes_are_the_collected_times_but_for_its_smoothing(h100: Profile) -> None:
    """32 query heads, 8 KV heads of 128: its `step` is the tokens computed before; it smooths over neighbours."""
    attention = h100.tables[1].attention
    decodes = attention.n_decode > 0
    at = zip(attention.n_decode[decodes], attention.decode_kv_tokens[decodes], strict=True)
    read = dict(zip(at, attention.time_s[decodes], strict=True))
    heads = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "window_size": 0}
    there = rows("h100_sxm", "generation_attention_perf", kv_cache_dtype="bfloat16", **heads)
    assert len(there) > 100
    ratios = {(row["batch_size"], row["step"]): row["latency"] / 1e3 for row in there}
    off = {point: read[point] / time_s - 1 for point, time_s in ratios.items()}
    assert all(abs(one) < 0.04 for (_, step), one in off.items() if step >= 15)
    assert np.median(np.abs(list(off.values()))) < 0.005


def test_all_reduces_are_the_collected_times_of_two_byte_elements(h100: Profile) -> None:
    assert h100.collectives is not None
    curve = h100.collectives["all_reduce"][2]
    assert set(h100.collectives) == {"all_reduce", "all_gather"}
    by_size: dict[int, list[float]] = {}
    for row in rows("h100_sxm", "custom_allreduce_perf", num_gpus=2):
        by_size.setdefault(2 * int(row["message_size"]), []).append(row["latency"] / 1e3)
    assert list(curve.x) == sorted(by_size)
    for size, time_s in zip(curve.x, curve.time_s, strict=True):
        assert any(time_s == pytest.approx(one) for one in by_size[int(size)])


@pytest.mark.parametrize(("model", "tp"), [(LLAMA, 1), (QWEN, 2)])
def test_a_step_of_ours_is_a_step_of_its_own(model: str, tp: int) -> None:
    """Its engine, compiled with its own model of that name, prices a decode step of 64 at 2,048 keys."""
    from aiconfigurator_core.sdk.engine import EngineHandle

    own = EngineHandle.compile(
        model.replace("Llama-3.1", "Meta-Llama-3.1"), "h200_sxm", "vllm", backend_version="0.24.0", tp_size=tp
    )
    theirs: Counter[str] = Counter()
    _, generation = own.run_static_per_op(batch_size=64, isl=2047, osl=2, mode="static_gen")
    for name, latency_ms, _, _ in generation:
        theirs[name.removeprefix("generation_")] += latency_ms / 1e3
    profile, layers = profile_of(model, "h200_sxm", (tp,)), find_model(model, [BUNDLED]).num_layers
    tables = profile.tables[tp]
    runs = Counter(profile.meta.composition.once) + Counter(dict.fromkeys(profile.meta.composition.per_layer, layers))
    for name, count in runs.items():
        if name != "attention":
            curve = tables.dense[name]
            assert count * np.interp(64, curve.x, curve.time_s) == pytest.approx(theirs[name], rel=1e-9)
    row = (tables.attention.n_decode == 64) & (tables.attention.decode_kv_tokens == 2047)
    assert layers * tables.attention.time_s[row][0] == pytest.approx(theirs["attention"], rel=1e-9)
    head = tables.per_request["logits_gemm"]
    assert np.interp(64, head.x, head.time_s) == pytest.approx(theirs["logits_gemm"], rel=1e-9)
    of_devices = {"embedding_ar", "ar_1", "ar_2", "p2p"}
    assert theirs.keys() - of_devices == runs.keys() | {"logits_gemm"}


def test_its_coverage_is_told(h100: Profile) -> None:
    notes = "\n".join(h100.meta.notes)
    assert "h100_sxm, vllm 0.24.0, matrix products in bfloat16" in notes
    assert "silicon" in notes
    assert "empirical" in notes
    assert "outside of the tables, extrapolated by aiconfigurator: logits_gemm of 128256 by 4096" in notes
    assert "interpolated by aiconfigurator: ffn2_gemm of 4096 by 14336" in notes
    assert "all_reduce from aiconfigurator's vllm/0.24.0" in notes
    assert "time of operators by source, tp 1: of 64 decodes at 1,024 tokens 96% silicon, 4% empirical" in notes


def test_collectives_of_an_earlier_version_are_said_to_be(tmp_path: Path) -> None:
    notes = profile_of(LLAMA, "l40s", (2,)).meta.notes
    assert "all_reduce from aiconfigurator's vllm/0.22.0" in notes


def test_it_is_a_profile_like_any_other(h100: Profile, tmp_path: Path) -> None:
    write_profile(h100, tmp_path / "p")
    again = read_profile(tmp_path / "p")
    assert again.meta == h100.meta
    assert again.tables.keys() == {1, 2}
    assert again.tables[1].dense["qkv_gemm"].time_s == pytest.approx(h100.tables[1].dense["qkv_gemm"].time_s, rel=1e-6)


def test_fp8_is_faster_and_its_blocks_are_another_table() -> None:
    by_kind = {kind: profile_of(LLAMA, "h100_sxm", dtype="fp8", gemm=kind) for kind in ("fp8", "fp8_block")}
    times = {kind: profile.tables[1].dense["gate_ffn1_gemm"].time_s for kind, profile in by_kind.items()}
    whole = profile_of(LLAMA, "h100_sxm").tables[1].dense["gate_ffn1_gemm"].time_s
    assert np.median(times["fp8"] / whole) < 0.7
    assert not np.array_equal(times["fp8"], times["fp8_block"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "h100"}, "field 'system': aiconfigurator-core has no such system: found 'h100'"),
        ({"version": "0.19.0"}, r"field 'version': was not collected on h100_sxm: found '0.19.0': accepted: 0.24.0"),
        ({"dtype": "float16"}, "field 'dtype': found 'float16': accepted: collected by aiconfigurator: bfloat16, fp8"),
        ({"gemm": "fp8_block"}, "field 'gemm': was not collected on h100_sxm: found 'fp8_block': accepted: bfloat16"),
        (
            {"system": "a100_sxm", "dtype": "fp8"},
            "was not collected on a100_sxm: found 'fp8': accepted: none for dtype",
        ),
        (
            {"degrees": (16,), "model": "meta-llama/Llama-3.1-70B"},
            "all_reduce was not collected.*found 16: accepted: 2, 4, 8",
        ),
        ({"degrees": (3,)}, "a divisor of meta-llama/Llama-3.1-8B's num_attention_heads"),
        ({"model": "mistralai/Mixtral-8x7B-v0.1"}, "has experts, whose tables are not read yet"),
    ],
)
def test_what_was_not_collected_is_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile_of(**{"model": LLAMA, "system": "h100_sxm", **options})  # type: ignore[arg-type]


def test_a_device_without_tables_is_not_replaced_by_another() -> None:
    assert system_of(find_device("H100", [BUNDLED])) == "h100_sxm"
    with pytest.raises(InputError, match="no tables of MI300X: accepted: a device with one of a100_sxm, b200_sxm"):
        system_of(find_device("MI300X", [BUNDLED]))
    assert {"h100_sxm", "h200_sxm", "b200_sxm", "gb300", "l40s", "a100_sxm", "rtx_pro_6000_server"} <= set(systems())


@pytest.mark.parametrize("system", systems())
def test_the_catalogue_agrees_with_its_description_of_a_device(system: str) -> None:
    """Two readings of the same datasheets; of the RTX PRO 6000 it has the workstation's memory clock."""
    from aiconfigurator_core.sdk.perf_database import load_system_spec

    try:
        device = find_device(system, [BUNDLED])
    except InputError:
        assert system == "b60"
        return
    theirs = load_system_spec(system)["gpu"]
    bandwidth = device.memory_bandwidth_bytes_per_s
    assert bandwidth == pytest.approx(theirs["mem_bw"], rel=0.15 if system.startswith("rtx") else 0.01)
    assert device.peak_flops_per_s["bfloat16"] == pytest.approx(theirs["bfloat16_tc_flops"], rel=0.01)
    assert device.tdp_w == theirs["power"]
    assert device.memory_bytes == pytest.approx(theirs["mem_capacity"], rel=0.03)


def test_closed_loops_that_others_measured_are_too_fast_by_their_host() -> None:
    """Nine of the 90 runs of tests/benchmarks/closed_loops.py; docs/validity.md has the median of all."""
    runs = measured_runs()
    assert len(runs) == 90
    errors = [found.tpot for _, found in scored(runs[4::10])]
    assert len(errors) == 9
    assert np.median(np.abs(errors)) < 0.23
    assert all(-0.4 < error < 0 for error in errors)


@pytest.fixture(scope="module")
def gpu_run(ground_truth: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run of docs/validity.md on an RTX PRO 6000: scenario and capture."""
    return measured_run("RTXPRO6000 Llama-3.1-8B", tmp_path_factory.mktemp("gpu"))


def asked_of(source: str) -> str:
    return f"cluster={{instances: [{{model: {LLAMA}, device: RTXPRO6000, source: {source}}}]}}"


@pytest.mark.ground_truth
@pytest.mark.parametrize(
    ("source", "ceilings"), [("aiconfigurator", (0.24, 0.115, 0.15)), ("roofline", (0.53, 0.255, 0.335))]
)
def test_a_measured_run_with_times_that_were_not_measured_for_it(
    gpu_run: tuple[Path, Path], source: str, ceilings: tuple[float, ...]
) -> None:
    """Its own profile is 8, 1.3 and 1.7 % off."""
    result = validate(*gpu_run, [asked_of(source)]).result
    assert result["valid"]
    for metric, ceiling in zip(("ttft_s", "tpot_s", "e2el_s"), ceilings, strict=True):
        assert 0.75 * ceiling < result["paired"][metric]["mape"] <= ceiling


@pytest.mark.ground_truth
def test_calibrated_on_a_third_of_its_requests_they_are_as_good_as_its_own(
    gpu_run: tuple[Path, Path], tmp_path: Path
) -> None:
    scenario, capture = gpu_run
    asked = [asked_of("aiconfigurator")]
    write_calibration(calibrate(scenario, [capture], "first:0.33", overrides=asked), tmp_path / "fitted.json")
    result = validate(scenario, capture, asked, calibration=tmp_path / "fitted.json").result
    assert result["n_scored"] == 201
    for metric, ceiling in (("ttft_s", 0.025), ("tpot_s", 0.007), ("e2el_s", 0.005)):
        assert result["paired"][metric]["mape"] <= ceiling


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk.perf_database", None)
    with pytest.raises(EngineError, match=r"pip install 'servetwin\[aiconfigurator\]'"):
        systems()


@pytest.mark.parametrize("device", ["H100", "H200", "B200", "L40S", "A100-80GB"])
@pytest.mark.parametrize(("model", "tp"), [(LLAMA, 1), ("meta-llama/Llama-3.1-70B", 4), (QWEN, 2)])
def test_one_line_simulates_a_closed_loop(device: str, model: str, tp: int) -> None:
    """`servetwin simulate docs/examples/aiconfigurator.yaml --set cluster...`, with where its times are from."""
    if device == "L40S":
        tp *= 2
    instance = f"{{model: {model}, device: {device}, source: aiconfigurator, tensor_parallel_size: {tp}}}"
    simulation, figures = simulate_scenario(EXAMPLE, [f"cluster={{instances: [{instance}]}}"])
    assert figures["n_finished"] == 90
    notes = "\n".join(simulation.capture.meta.notes)
    assert "operators of aiconfigurator-core" in notes
    assert "points of the tables by source: silicon" in notes
    assert f"time of operators by source, tp {tp}: of 64 decodes" in notes
    bandwidth = find_device(device, [BUNDLED]).memory_bandwidth_bytes_per_s
    assert bandwidth is not None
    weights_s = find_model(model, [BUNDLED]).weight_bytes("bfloat16", tp) / bandwidth
    assert figures["metrics"]["tpot_s"]["p50"] > weights_s
    if device != "L40S" or tp == 1:  # whose all-reduces over PCIe are most of the step
        assert figures["metrics"]["tpot_s"]["p50"] < 5 * weights_s
