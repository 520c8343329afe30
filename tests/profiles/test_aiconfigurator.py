"""Tables of aiconfigurator-core: our reading of them beside its files, read by themselves, and beside its own step."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.calibrate import calibrate, write_calibration
from harness.deploy.partitioning import talk_of
from harness.running.simulate import simulate_scenario
from harness.scoring.validate import validate
from profiles.catalog import BUNDLED, find_device, find_model
from profiles.profile import Profile
from profiles.profile_folder import read_profile, write_profile
from simulator.network.collectives import MeasuredCollectives
from simulator.scheduling.options import EngineOptions
from simulator.steps.partition import Partition
from tests.conftest import ROOT
from tests.measured import measured_run
from tests.pages import shown_and_printed
from traces.errors import EngineError, InputError

pytest.importorskip("aiconfigurator_core")

from profiles.aiconfigurator import aiconfigurator_collectives, aiconfigurator_profile, system_of
from profiles.aiconfigurator_tables import Tables, systems
from tests.benchmarks import quantized_loops
from tests.benchmarks.closed_loops import measured_runs, scored

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "aiconfigurator.yaml"
FABRIC = "{kind: switch, bandwidth_bytes_per_s: 200.0e+9, latency_s: 2.0e-6}"
LLAMA, QWEN, MOE = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B-Instruct-2507"


@pytest.fixture(scope="module")
def h100() -> Profile:
    return profile_of(LLAMA, "h100_sxm", (1, 2))


def profile_of(
    model: str, system: str, degrees: tuple[int, ...] = (1,), dtype: str = "bfloat16", **options: str | bool | None
) -> Profile:
    spec = find_model(model, [BUNDLED])
    return aiconfigurator_profile(system, spec, dtype, "auto", degrees, device=system, **options)


def rows(system: str, table: str, **only: object) -> list[dict[str, float]]:
    """Rows of one of its files, by another reader than ours."""
    import pyarrow.parquet as pq

    found = pq.read_table(Tables(system).file(table), filters=[(k, "==", v) for k, v in only.items()])
    return found.to_pylist()  # type: ignore[no-any-return]


def test_sums_over_many_l40s_are_of_a_slow_host() -> None:
    """What docs/validity.md says of them, beside the same package's sums of another host."""
    import pyarrow.parquet as pq

    slow = Tables("l40s").file("custom_allreduce_perf")
    other = slow.parents[2] / "sglang" / "0.5.12" / slow.name
    assert other.exists()
    bytes_, carried, slower = 2**27, {}, {}
    for ranks in (2, 4, 8):
        size = [("num_gpus", "==", ranks), ("message_size", "==", bytes_ // 2)]
        times_s = [
            next(row["latency"] for row in pq.read_table(file, filters=size).to_pylist() if "graph" in row["backend"])
            / 1e3
            for file in (slow, other)
        ]
        carried[ranks] = [round(2 * (ranks - 1) / ranks * bytes_ / time_s / 1e9) for time_s in times_s]
        slower[ranks] = times_s[0] / times_s[1]
    assert carried == {2: [19, 17], 4: [4, 21], 8: [2, 21]}
    assert [round(slower[ranks]) for ranks in (4, 8)] == [6, 11]


def test_the_host_of_the_l40s_decides_what_eight_of_them_serve() -> None:
    """What docs/validity.md says of Llama-3.1-70B: its tables' sums, and those that the links' kind makes."""
    fabric = "{kind: switch, link: pcie, bandwidth_bytes_per_s: 32.0e+9, latency_s: 2.0e-6}"
    instance = "model: meta-llama/Llama-3.1-70B, device: L40S, source: aiconfigurator, tensor_parallel_size: 8"
    found = []
    for collectives in ("", ", collectives: {source: links}"):
        cluster = f"cluster={{fabric: {fabric}, instances: [{{{instance}{collectives}}}]}}"
        _, figures = simulate_scenario(EXAMPLE, [cluster])
        found.append(figures["metrics"]["tpot_s"]["mean"])
    assert found == [pytest.approx(0.4634, rel=0.001), pytest.approx(0.0879, rel=0.001)]


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


@pytest.mark.parametrize(
    ("model", "theirs", "system", "tp", "ep", "dtype", "gemm"),
    [
        (LLAMA, "meta-llama/Meta-Llama-3.1-8B", "h200_sxm", 1, 1, "bfloat16", "bfloat16"),
        (QWEN, QWEN, "h200_sxm", 2, 1, "bfloat16", "bfloat16"),
        (QWEN, QWEN, "b200_sxm", 2, 1, "nvfp4", "nvfp4"),
        (MOE, "Qwen/Qwen3-30B-A3B", "h200_sxm", 1, 1, "bfloat16", "bfloat16"),
        (MOE, "Qwen/Qwen3-30B-A3B", "h100_sxm", 2, 1, "fp8", "fp8"),
        (MOE, "Qwen/Qwen3-30B-A3B-FP8", "h100_sxm", 1, 1, "fp8", "fp8_block"),
        (MOE, "Qwen/Qwen3-30B-A3B", "b200_sxm", 4, 1, "nvfp4", "nvfp4"),
        (MOE, "Qwen/Qwen3-30B-A3B", "h100_sxm", 4, 4, "bfloat16", "bfloat16"),
    ],
)
def test_a_step_of_ours_is_a_step_of_its_own(
    model: str, theirs: str, system: str, tp: int, ep: int, dtype: str, gemm: str
) -> None:
    """Its engine, compiled with its own model of that name, prices a decode step of 64 at 2,048 keys, and a prompt."""
    profile = profile_of(model, system, (tp,), dtype, gemm=gemm, expert_parallel=ep > 1)
    spec = find_model(model, [BUNDLED])
    tables, layers = profile.tables[tp], spec.num_layers
    decode, prefill = own_steps(theirs, system, tp, gemm, (tp // ep, ep) if spec.num_experts else None)
    runs = Counter(profile.meta.composition.once) + Counter(dict.fromkeys(profile.meta.composition.per_layer, layers))
    for own, tokens in ((decode, 64), (prefill, 2048)):
        for name, count in runs.items():
            if name != "attention":
                curve = tables.dense[name]
                assert count * np.interp(tokens, curve.x, curve.time_s) == pytest.approx(own[name], rel=1e-9), name
    row = (tables.attention.n_decode == 64) & (tables.attention.decode_kv_tokens == 2047)
    assert layers * tables.attention.time_s[row][0] == pytest.approx(decode["attention"], rel=1e-9)
    head = tables.per_request["logits_gemm"]
    assert np.interp(64, head.x, head.time_s) == pytest.approx(decode["logits_gemm"], rel=1e-9)
    of_devices = {"embedding_ar", "ar_1", "ar_2", "p2p", "moe_pre_dispatch", "moe_post_dispatch"}
    assert decode.keys() - of_devices == runs.keys() | {"logits_gemm"}


def own_steps(
    model: str, system: str, tp: int, gemm: str, experts: tuple[int, int] | None
) -> tuple[Counter[str], Counter[str]]:
    """Seconds of each operator by the package's own engine: of a step of 64 decodes, and of a prompt of 2,048."""
    from aiconfigurator_core.sdk.engine import EngineHandle

    types: dict[str, str | int] = {"gemm_quant_mode": gemm, "kvcache_quant_mode": "bfloat16"}
    types |= {"fmha_quant_mode": "bfloat16"}
    if experts is not None:
        types |= {"moe_quant_mode": gemm, "moe_tp_size": experts[0], "moe_ep_size": experts[1]}
    own = EngineHandle.compile(model, system, "vllm", backend_version="0.24.0", tp_size=tp, **types)
    _, generation = own.run_static_per_op(batch_size=64, isl=2047, osl=2, mode="static_gen")
    context, _ = own.run_static_per_op(batch_size=1, isl=2048, osl=1, mode="static_ctx")
    steps = []
    for operators in (generation, context):
        seconds: Counter[str] = Counter()
        for name, latency_ms, _, _ in operators:
            plain = name.removeprefix("generation_").removeprefix("context_")
            seconds["experts" if plain == "moe" else plain] += latency_ms / 1e3
        steps.append(seconds)
    return steps[0], steps[1]


@pytest.mark.parametrize("distribution", [None, "balanced"])
def test_experts_are_the_collected_times(distribution: str | None) -> None:
    """128 experts of 768, 8 for a token, split over two devices."""
    profile = profile_of(MOE, "h100_sxm", (2,), distribution=distribution)
    curve = profile.tables[2].dense["experts"]
    read = dict(zip(curve.x, curve.time_s, strict=True))
    experts = {"hidden_size": 2048, "inter_size": 768, "num_experts": 128, "topk": 8, "moe_tp_size": 2}
    chosen = {"distribution": distribution or "power_law_1.2", "moe_dtype": "bfloat16", "moe_ep_size": 1}
    there = rows("h100_sxm", "moe_perf", **experts, **chosen)
    assert len(there) == len(read) == 27
    for row in there:
        assert read[row["num_tokens"]] == pytest.approx(row["latency"] / 1e3, rel=1e-6)
    notes = "\n".join(profile.meta.notes)
    assert f"experts: 128, 8 for each token, chosen as {chosen['distribution']} when they were measured" in notes
    assert "composed as its sdk/models/moe.py does" in notes
    assert "silicon 530 (all_gather, all_reduce, attention of decodes, experts, logits_gemm, proj_gemm" in notes


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
        (
            {"dtype": "float16"},
            "field 'dtype': found 'float16': accepted: collected by aiconfigurator: bfloat16, fp8, nvfp4",
        ),
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
        (
            {"model": "microsoft/Phi-mini-MoE-instruct"},
            "were not collected.*found 'bfloat16 each over 1 devices as power_",
        ),
        (
            {"model": MOE, "degrees": (2,), "distribution": "even"},
            "field 'experts'.*found 'bfloat16 each over 2 devices as even'.*accepted: bfloat16 each over 1 devices as",
        ),
        ({"distribution": "balanced"}, "field 'distribution': has no effect: found 'balanced': accepted: nothing"),
        ({"dtype": "nvfp4"}, "field 'gemm': was not collected on h100_sxm: found 'nvfp4'"),
        (
            {"system": "b200_sxm", "model": MOE, "dtype": "nvfp4", "degrees": (8,)},
            "nvfp4 each over 8 devices as power_law_1.2",
        ),
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


def test_closed_loops_of_quantized_models_and_of_experts(tmp_path: Path) -> None:
    """Eleven of the 176 runs of tests/benchmarks/quantized_loops.py, of each model, device and type."""
    runs = quantized_loops.measured_runs()
    assert len(runs) == 176
    quantized_loops.write_config(tmp_path)
    dense = [run for run in runs if run.model != quantized_loops.QWEN][5::17]
    experts = [run for run in runs if run.model == quantized_loops.QWEN][4::13]
    assert {(run.device, run.dtype) for run in dense} == {
        *(("H100", "fp8"), ("H200", "fp8"), ("B200", "fp8"), ("B200", "nvfp4"))
    }
    dense_errors = [quantized_loops.error_of(run, tmp_path) for run in dense]
    expert_errors = [quantized_loops.error_of(run, tmp_path) for run in experts]
    assert np.median(np.abs(dense_errors)) < 0.10
    assert max(np.abs(dense_errors)) < 0.25
    assert all(-0.37 < error < 0.19 for error in expert_errors)


@pytest.fixture(scope="module")
def gpu_run(ground_truth: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run of docs/validity.md on an RTX PRO 6000: scenario and capture."""
    return measured_run("RTXPRO6000 Llama-3.1-8B", tmp_path_factory.mktemp("gpu"))


def asked_of(source: str) -> str:
    return f"cluster={{instances: [{{model: {LLAMA}, device: RTXPRO6000, source: {source}}}]}}"


@pytest.mark.ground_truth
@pytest.mark.parametrize(
    ("source", "ceilings"), [("aiconfigurator", (0.175, 0.072, 0.098)), ("roofline", (0.46, 0.21, 0.285))]
)
def test_a_measured_run_with_times_that_were_not_measured_for_it(
    gpu_run: tuple[Path, Path], source: str, ceilings: tuple[float, ...]
) -> None:
    """Its own profile is 8, 1.2 and 1.6 % off."""
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
    for metric, ceiling in (("ttft_s", 0.02), ("tpot_s", 0.0072), ("e2el_s", 0.005)):
        assert result["paired"][metric]["mape"] <= ceiling


def test_what_is_read_first_in_a_process_is_what_is_read_later() -> None:
    """The package warns once in a process; the notes of every profile, and with them its digest, say it each time."""
    read = (
        "from profiles.aiconfigurator import aiconfigurator_profile\n"
        "from profiles.catalog import BUNDLED, find_model\n"
        f"spec = find_model('{LLAMA}', [BUNDLED])\n"
        "system = 'rtx_pro_6000_server'\n"
        "for version in (None, None, '0.24.0'):\n"
        "    read = aiconfigurator_profile(system, spec, 'bfloat16', 'auto', (1,), device='D', version=version)\n"
        "    print(read.sha256, any('no entry for sm_version' in note for note in read.meta.notes))\n"
    )
    ran = subprocess.run([sys.executable, "-c", read], cwd=ROOT, capture_output=True, text=True, check=True)
    first, *later = ran.stdout.splitlines()
    assert first.endswith(" True")
    assert later == [first, first]


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk.perf_database", None)
    with pytest.raises(EngineError, match=r"pip install '\.\[aiconfigurator\]'"):
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


@pytest.mark.parametrize(
    ("device", "dtype"),
    [(device, "bfloat16") for device in ("H100", "H200", "B200", "L40S", "A100-80GB", "RTXPRO6000")]
    + [("H200", "fp8"), ("B200", "fp8"), ("B200", "nvfp4"), ("GB300", "nvfp4")],
)
def test_one_line_simulates_a_mixture_of_experts(device: str, dtype: str) -> None:
    """As dense models, in each type that was collected."""
    instance = f"{{model: {MOE}, device: {device}, source: aiconfigurator, tensor_parallel_size: 2}}"
    overrides = [f"cluster={{instances: [{instance}]}}", f"engine.dtype={dtype}"]
    simulation, figures = simulate_scenario(EXAMPLE, overrides)
    assert figures["n_finished"] == 90
    notes = "\n".join(simulation.capture.meta.notes)
    assert "experts: 128, 8 for each token, chosen as power_law_1.2" in notes
    assert "experts, logits_gemm" in notes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("data_parallel_size: 2", "data_parallel_size': has no effect: the experts of aiconfigurator-core"),
        (
            "experts: {gate: uniform, mode: sampled}",
            "experts': has no effect: the experts of aiconf.*were measured tog",
        ),
    ],
)
def test_what_times_by_tokens_cannot_tell_apart_is_refused(more: str, message: str) -> None:
    instance = f"{{model: {MOE}, device: H100, source: aiconfigurator, tensor_parallel_size: 2, {more}}}"
    with pytest.raises(InputError, match=message):
        simulate_scenario(EXAMPLE, [f"cluster={{fabric: {FABRIC}, instances: [{instance}]}}"])


def test_whole_experts_on_each_device_are_other_times(tmp_path: Path) -> None:
    """As asked for; a profile that was written knows which it is, and refuses the other."""
    tpot_s = {}
    for parallel in ("true", "false"):
        instance = f"{{model: {MOE}, device: H100, source: aiconfigurator, tensor_parallel_size: 4"
        more = f", enable_expert_parallel: {parallel}}}"
        simulation, figures = simulate_scenario(EXAMPLE, [f"cluster={{instances: [{instance}{more}]}}"])
        tpot_s[parallel] = figures["metrics"]["tpot_s"]["mean"]
        said = "whole ones on each device" if parallel == "true" else "each is split over the devices"
        assert any(said in note for note in simulation.capture.meta.notes)
    assert tpot_s["true"] != tpot_s["false"]
    write_profile(profile_of(MOE, "h100_sxm", (4,), expert_parallel=True), tmp_path / "p" / "moe")
    instance = f"{{model: {MOE}, device: h100_sxm, tensor_parallel_size: 4}}"
    with pytest.raises(InputError, match=r"enable_expert_parallel': has no effect.*accepted: true, as they were"):
        simulate_scenario(EXAMPLE, [f"profiles=[{tmp_path}/p]", f"cluster={{instances: [{instance}]}}"])


def test_weights_of_four_bits_leave_room_for_keys_and_values() -> None:
    """Embedding, head and norms stay as they are, and so do keys and values where nothing else is asked for."""
    spec = find_model(QWEN, [BUNDLED])
    parts = spec.parameters(2)
    whole = sum(parts.values())
    layers = parts["attention"] + parts["mlp"]
    for dtype, width in (("bfloat16", 2.0), ("fp8", 1.0), ("nvfp4", 9 / 16)):
        assert spec.weight_bytes(dtype, 2) == int(layers * width + (whole - layers) * 2)
    instance = f"{{model: {QWEN}, device: B200, source: aiconfigurator, tensor_parallel_size: 2}}"
    blocks = {}
    for dtype in ("bfloat16", "fp8", "nvfp4"):
        simulation, _ = simulate_scenario(EXAMPLE, [f"cluster={{instances: [{instance}]}}", f"engine.dtype={dtype}"])
        blocks[dtype] = simulation.capture.meta.num_gpu_blocks or 0
    block_bytes = 16 * spec.kv_bytes_per_token("bfloat16", 2)
    freed = spec.weight_bytes("bfloat16", 2) - spec.weight_bytes("nvfp4", 2)
    assert blocks["nvfp4"] - blocks["bfloat16"] == pytest.approx(freed / block_bytes, rel=0.02)
    assert blocks["bfloat16"] < blocks["fp8"] < blocks["nvfp4"]


def test_devices_exchange_activations_and_not_weights(h100: Profile) -> None:
    """Quantized weights leave what is summed and gathered at two bytes."""
    assert h100.collectives is not None
    times = MeasuredCollectives(h100.collectives, 2, source="test")
    partition, spec = Partition(2, 1, 1, False, times, None, None), find_model(LLAMA, [BUNDLED])
    talk = {}
    for dtype in ("bfloat16", "fp8", "nvfp4"):
        options = EngineOptions(dtype=dtype, max_num_batched_tokens=64, max_num_seqs=8)  # type: ignore[arg-type]
        talk[dtype] = talk_of(partition, spec, options)
    for dtype in ("fp8", "nvfp4"):
        one, other = talk[dtype], talk["bfloat16"]
        assert one is not None
        assert other is not None
        assert np.array_equal(one.layer_s, other.layer_s)
        assert np.array_equal(one.request_s, other.request_s)


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("profiles.md", tmp_path)
    assert printed == shown


def test_collectives_alone_are_those_that_were_collected() -> None:
    curves, note = aiconfigurator_collectives("a100_sxm", 4)
    assert sorted(curves) == ["all_gather", "all_reduce", "all_to_all", "reduce_scatter"]
    for name, spelled in (
        ("reduce_scatter", "reduce_scatter"),
        ("all_to_all", "alltoall"),
        ("all_gather", "all_gather"),
    ):
        there = rows("a100_sxm", "nccl_perf", num_gpus=4, op_name=spelled, nccl_dtype="half")
        assert {row["message_size"] * 2: row["latency"] / 1e3 for row in there} == pytest.approx(
            dict(zip(curves[name][4].x, curves[name][4].time_s, strict=True))
        )
    assert note.startswith("collectives of 4 ranks as measured on a100_sxm: all_reduce from aiconfigurator's vllm/")
    with pytest.raises(InputError, match="was not collected on a100_sxm: found 3: accepted: 2, 4, 8"):
        aiconfigurator_collectives("a100_sxm", 3)


def test_the_links_kind_says_about_what_was_measured() -> None:
    """Four H100s: of the time per token 2 % more, of the first token 2 % less; NCCL alone takes longer."""
    path, key = EXAMPLE.with_name("nvlink.yaml"), "cluster.instances.0.collectives"

    def means(*overrides: str) -> tuple[float, float]:
        outcomes = simulate_scenario(path, list(overrides))[0].capture.outcomes
        ttft = np.mean([(o.first_token_s or 0) - (o.arrival_s or 0) for o in outcomes])
        rest = sum((o.finish_s or 0) - (o.first_token_s or 0) for o in outcomes)
        return float(ttft), rest / sum(o.output_tokens - 1 for o in outcomes)

    measured, by_kind = means(f"{key}.source=aiconfigurator"), means()
    assert means(f"{key}={{}}") == measured, "of a profile with collectives of its own, these"
    assert by_kind == pytest.approx(measured, rel=0.025)
    ttft_s, tpot_s = means("cluster.fabric.link=null")
    assert ttft_s < 0.94 * measured[0]
    assert means(f"{key}.disable_custom_all_reduce=true")[1] > by_kind[1] > tpot_s


def test_a_kernel_is_not_switched_off_where_it_does_not_count() -> None:
    path, off = EXAMPLE.with_name("nvlink.yaml"), "cluster.instances.0.collectives.disable_custom_all_reduce=true"
    for override in ("cluster.instances.0.collectives.source=aiconfigurator", "cluster.fabric.link=null"):
        with pytest.raises(
            InputError, match=r"nvlink.yaml:7: field 'collectives.disable_custom_all_reduce': has no effect"
        ):
            simulate_scenario(path, [override, off])
    unknown = "device: RTX4090, source: roofline, tensor_parallel_size: 4, collectives: {source: aiconfigurator}"
    with pytest.raises(InputError, match="aiconfigurator-core has no tables of RTX4090"):
        simulate_scenario(path, [f"cluster.instances.0={{model: Qwen/Qwen3-32B, {unknown}}}"])
