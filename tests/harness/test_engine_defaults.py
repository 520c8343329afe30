"""Engine options that nobody states: what `vllm serve` would take on that device, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.deploy.asked import EngineAsked, engine_asked
from harness.descriptions.scenario import read_scenario
from simulator.engine import check_options
from simulator.scheduling.options import EngineOptions
from tests.harness.scenarios import example
from traces.errors import InputError

DEVICE = """\
name: {name}
memory_bytes: {gib}e9
sources: {{memory_bytes: a test, compute_capability: a test}}
"""


def asked(
    folder: Path, device: str, engine: str = "", *, version: str = "0.32", own: str | None = None, **instance: object
) -> EngineAsked:
    """What is asked for of one Llama on a device; `own` describes one of one's own."""
    (folder / "my" / "devices").mkdir(parents=True, exist_ok=True)
    if own is not None:
        (folder / "my" / "devices" / "own.yaml").write_text(own)
    more = "".join(f", {name}: {value}" for name, value in instance.items())
    (folder / "scenario.yaml").write_text(
        f"trace: none.jsonl\nprofiles: [my]\nengine_version: '{version}'\nengine: {{{engine}}}\n"
        f"cluster: {{instances: [{{model: meta-llama/Llama-3.1-8B, device: {device}, source: roofline{more}}}]}}\n"
    )
    return engine_asked(read_scenario(folder / "scenario.yaml"))


def limits(one: EngineAsked) -> tuple[int, int]:
    return one.options.max_num_seqs, one.options.max_num_batched_tokens


@pytest.mark.parametrize(
    ("device", "version", "expected"),
    [
        ("H100", "0.32", (1024, 8192)),
        ("NVIDIA H100 80GB HBM3", "0.32", (1024, 8192)),
        ("H200", "0.19", (1024, 8192)),
        ("RTXPRO6000", "0.32", (1024, 8192)),
        ("A100-80GB", "0.32", (256, 2048)),
        ("A100-SXM", "0.32", (256, 2048)),
        ("A6000", "0.32", (256, 2048)),
        ("RTX4090", "0.32", (256, 2048)),
        ("B200", "0.27", (1024, 8192)),
        ("B200", "0.28", (1024, 16384)),
        ("MI300X", "0.32", (1024, 16384)),
        ("TPU-v6e", "0.32", (256, 2048)),
    ],
)
def test_seats_and_tokens_follow_the_device(
    tmp_path: Path, device: str, version: str, expected: tuple[int, int]
) -> None:
    one = asked(tmp_path, device, version=version)
    assert limits(one) == expected
    (note,) = [note for note in one.notes if note.startswith("defaults of vllm serve on ")]
    assert f"max_num_batched_tokens {expected[1]}, max_num_seqs {expected[0]}" in note


def test_a_note_says_what_was_taken_and_why(tmp_path: Path) -> None:
    assert [note for note in asked(tmp_path, "A100-80GB").notes if "default" in note] == [
        "defaults of vLLM 0.32, which nothing states otherwise: gpu_memory_utilization 0.92",
        "defaults of vllm serve on A100-80GB with 80.00 GiB, an A100, which nothing states otherwise: "
        "async_scheduling True, block_size 16, max_num_batched_tokens 2048, max_num_seqs 256",
    ]


def test_what_is_stated_is_neither_changed_nor_noted(tmp_path: Path) -> None:
    stated = (
        "max_num_seqs: 64, max_num_batched_tokens: 2048, block_size: 16, async_scheduling: true, "
        "gpu_memory_utilization: 0.5, cudagraph_capture_sizes: [8]"
    )
    one = asked(tmp_path, "B200", stated)
    expected = EngineOptions(max_num_seqs=64, gpu_memory_utilization=0.5, cudagraph_capture_sizes=(8,))
    assert one.options == expected
    assert one.notes == ()


@pytest.mark.parametrize(
    ("engine", "expected", "reason"),
    [
        ("max_num_seqs: 4, max_model_len: 512", (4, 2048), "max_model_len 512 and max_num_seqs 4"),
        ("max_num_seqs: 1", (1, 8192), "80.00 GiB"),
        ("max_num_batched_tokens: 300", (300, 300), "80.00 GiB"),
        ("max_model_len: 1", (1024, 1024), "max_model_len 1 and max_num_seqs 1024"),
        ("enable_chunked_prefill: false", (1024, 131072), "max_model_len 131072"),
        ("enable_chunked_prefill: false, max_model_len: 4096", (1024, 8192), "80.00 GiB"),
    ],
)
def test_one_limits_the_other(tmp_path: Path, engine: str, expected: tuple[int, int], reason: str) -> None:
    one = asked(tmp_path, "OWN", engine, own=DEVICE.format(name="OWN", gib=85.89934592))
    assert limits(one) == expected
    (note,) = [note for note in one.notes if "vllm serve" in note]
    assert f"{reason}, which nothing states otherwise" in note


@pytest.mark.parametrize(
    ("name", "gib", "more", "expected"),
    [
        ("OWN", 75.161927679, "", (256, 2048)),
        ("OWN", 75.161927681, "", (1024, 8192)),
        ("OWN", 171.798691839, "", (1024, 8192)),
        ("OWN", 171.798691841, "", (1024, 16384)),
        ("OWN-A100X", 85.0, "", (256, 2048)),
        ("OWN-A100X", 200.0, "", (1024, 16384)),
        ("OWN-A800", 85.0, "", (1024, 8192)),
        ("OWN", 85.0, "aliases: [a100-something]", (256, 2048)),
        ("OWN", 120.0, 'compute_capability: "12.1"', (256, 2048)),
        ("OWN", 120.0, "device_type: tpu", (256, 2048)),
        ("OWN", 120.0, "device_type: cpu", (128, 2048)),
    ],
)
def test_a_device_of_ones_own(tmp_path: Path, name: str, gib: float, more: str, expected: tuple[int, int]) -> None:
    assert limits(asked(tmp_path, name, own=f"{DEVICE.format(name=name, gib=gib)}{more}\n")) == expected


def test_a_device_that_nobody_describes(tmp_path: Path) -> None:
    one = asked(tmp_path, "NEW", "num_gpu_blocks: 100")
    assert limits(one) == (256, 2048)
    assert any("NEW, whose memory is not known" in note for note in one.notes)


def test_on_a_cpu_vllm_takes_larger_blocks_and_plans_no_step_ahead(tmp_path: Path) -> None:
    """A profile says that it was measured on a CPU; the world size is that of tensor times pipeline parallelism."""
    one = asked(tmp_path, "AMD-EPYC-2vCPU", tensor_parallel_size=2, pipeline_parallel_size=2, data_parallel_size=2)
    assert limits(one) == (512, 8192)
    assert one.options.block_size == 128
    assert not one.options.async_scheduling
    assert one.options.capture_sizes() == ()
    assert any("a CPU with world size 4, which" in note for note in one.notes)


def test_parallel_gpus_have_no_more_seats(tmp_path: Path) -> None:
    assert limits(asked(tmp_path, "H100", tensor_parallel_size=4)) == (1024, 8192)


def test_the_share_of_memory_follows_the_version(tmp_path: Path) -> None:
    shares = [asked(tmp_path, "H100", version=version).options for version in ("0.19", "0.20", "0.33")]
    assert [one.gpu_memory_utilization for one in shares] == [0.9, 0.92, 0.92]
    assert not any("utilization" in note for note in asked(tmp_path, "H100", "num_gpu_blocks: 9").notes)


def test_drafts_that_are_looked_up_are_not_planned_ahead(tmp_path: Path) -> None:
    drafter = "speculative_config: {method: ngram, num_speculative_tokens: 2, draft_s: 0, draft_rate: 1}"
    assert not asked(tmp_path, "H100", drafter).options.async_scheduling
    assert asked(tmp_path, "H100").options.async_scheduling


def test_sizes_of_cuda_graphs_follow_device_and_version(tmp_path: Path) -> None:
    def sizes(device: str, version: str, engine: str = "") -> tuple[int, ...]:
        return asked(tmp_path, device, engine, version=version).options.capture_sizes()

    assert sizes("H100", "0.32")[-1] == sizes("B200", "0.27")[-1] == 512
    assert sizes("B200", "0.28")[-2:] == (1008, 1024)
    assert sizes("B200", "0.28", "enforce_eager: true") == ()
    few = "max_num_seqs: 100, max_num_batched_tokens: 180"
    assert [size for size in sizes("H100", "0.19", few) if size % 8] == [1, 2, 4]
    assert [size for size in sizes("H100", "0.20", few) if size % 8] == [1, 2, 4, 180]
    assert [size for size in sizes("H100", "0.31", few) if size % 8] == [1, 2, 4, 100, 180]


def test_more_seats_than_tokens_are_refused_as_vllm_refuses_them(tmp_path: Path) -> None:
    one = asked(tmp_path, "A6000", "max_num_seqs: 4096")
    with pytest.raises(InputError, match=r"max_num_batched_tokens': found 2048: accepted: at least max_num_seqs 4096"):
        check_options(one.options, 131072, one.rules)


def test_an_a6000_seats_a_quarter_of_what_an_h100_does() -> None:
    seated = {}
    for device in ("H100", "A6000"):
        meta = example("defaults", f"cluster.instances.0.device={device}").meta
        seated[device] = meta.engine_options["max_num_seqs"], meta.engine_options["max_num_batched_tokens"]
    assert seated == {"H100": (1024, 8192), "A6000": (256, 2048)}
