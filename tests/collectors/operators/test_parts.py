"""Timers, kernels by operator, options, shards, collectives and the host: the parts that need no engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collectors.host import cpu_flags, nvidia_driver
from collectors.operators.collectives import Devices, Row, collective_curves, devices_of
from collectors.operators.composition import composition_of
from collectors.operators.kernels import Kernel, Range, kernels_by_range, leading
from collectors.operators.options import Options, parse
from collectors.operators.routing import expert_blocks, gates_of
from collectors.operators.sharding import sharded, share_of
from collectors.operators.timers import HostTimer, TimedCall, launched_kernels, timer_of, watched
from profiles.model import model_of
from tests.collectors.operators.shot_answers import CONFIG, MOE_CONFIG
from traces.errors import InputError

NEEDED = ["--model", "m", "--model-name", "n", "--out", "o"]


def test_kernels_belong_to_the_calls_they_were_launched_in() -> None:
    ranges = [
        Range("self_attn", 0, 100),
        Range("qkv_proj", 0, 10),
        Range("o_proj", 90, 100),
        Range("qkv_proj", 200, 210),
    ]
    kernels = [Kernel("gemm", 5, 3.0), Kernel("flash", 50, 7.0), Kernel("gemm", 95, 2.0), Kernel("gemm", 205, 4.0)]
    kernels += [Kernel("lost", 150, 99.0)]
    assert kernels_by_range(ranges, kernels) == {
        "self_attn": {"gemm": 5.0, "flash": 7.0},
        "qkv_proj": {"gemm": 7.0},
        "o_proj": {"gemm": 2.0},
    }


def test_a_kernel_of_a_gpu_runs_long_after_the_call_that_launched_it() -> None:
    """Its runtime call bears the same correlation id; annotations and calls without a kernel are none."""

    def event(name: str, device: str, correlation: int, start: float, end: float) -> Any:
        at = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, device_type=f"DeviceType.{device}", id=correlation, time_range=at)

    events = [
        event("servetwin.qkv_proj", "CPU", 1, 0.0, 10.0),
        event("servetwin.qkv_proj", "CUDA", 1, 900.0, 930.0),
        event("aten::linear", "CPU", 7, 1.0, 9.0),
        event("cudaLaunchKernel", "CPU", 42, 5.0, 6.0),
        event("cuLaunchKernelEx", "CPU", 43, 7.0, 8.0),
        event("cudaDeviceSynchronize", "CPU", 44, 11.0, 950.0),
        event("sm90_gemm", "CUDA", 42, 900.0, 912.0),
        event("triton_kernel", "CUDA", 43, 912.0, 930.0),
    ]
    assert launched_kernels(events) == [Kernel("sm90_gemm", 5.0, 12.0), Kernel("triton_kernel", 7.0, 18.0)]


def test_the_leading_kernels_are_those_that_take_the_time() -> None:
    assert leading({"copy": 1.0, "gemm": 90.0, "add": 9.0}) == ["gemm", "add"]
    assert leading({}) == []


class Module:
    """As a torch module calls its hooks."""

    def __init__(self) -> None:
        self.before: list[Any] = []
        self.after: list[Any] = []

    def register_forward_pre_hook(self, hook: Any) -> Any:
        self.before.append(hook)
        return SimpleNamespace(remove=lambda: self.before.remove(hook))

    def register_forward_hook(self, hook: Any) -> Any:
        self.after.append(hook)
        return SimpleNamespace(remove=lambda: self.after.remove(hook))

    def __call__(self) -> None:
        for hook in self.before:
            hook(self, ())
        for hook in self.after:
            hook(self, (), None)


def test_watched_modules_are_timed_and_left_as_they_were() -> None:
    outer, inner = Module(), Module()
    timer = timer_of("hooks", "cpu")
    assert isinstance(timer, HostTimer)
    with watched(timer, [("self_attn", outer), ("qkv_proj", inner)]), timer:
        for _ in range(3):
            timer.begin("self_attn")
            inner()
            timer.end("self_attn")
        sampler = TimedCall(lambda x: x + 1, timer, "sampler")
        assert sampler(1) == 2
    totals = timer.totals()
    assert totals.keys() == {"self_attn", "qkv_proj", "sampler"}
    assert totals["self_attn"] >= totals["qkv_proj"] > 0
    assert not inner.before
    assert not inner.after


def test_blocks_of_experts_are_found_whatever_their_name() -> None:
    block = SimpleNamespace(experts=object(), gate="the gate")
    modules = [("layers.0.mlp", block), ("layers.0.mlp.experts", SimpleNamespace(gate="its own")), ("norm", object())]
    assert expert_blocks(modules) == [("layers.0.mlp", block)]
    assert gates_of(modules) == ["the gate"]


def test_a_composition_has_the_families_operators() -> None:
    dense, moe = composition_of(model_of(CONFIG, "d")), composition_of(model_of(MOE_CONFIG, "m"))
    assert dense.per_layer.count("layernorm") == 2
    assert dense.tables() == {"dense", "per_request", "attention"}
    assert {"qk_norm", "moe"} <= set(moe.per_layer)
    assert moe.tables() == {"dense", "per_request", "attention", "moe"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compiled"], r"'--compiled': found '--operators modules': accepted: --operators none"),
        (["--operators", "none", "--timer", "profiler"], r"'--timer'"),
        (["--engine", "torch", "--operators", "none", "--compiled"], r"'--compiled': found '--engine torch'"),
        (["--engine", "torch", "--kv-cache-dtype", "fp8"], r"'--kv-cache-dtype': found 'fp8'"),
        (["--max-tokens", "0"], r"'--max-tokens': found 0: accepted: a whole number above 0"),
        (["--tensor-parallel", "2", "2"], r"'--tensor-parallel': found \(2, 2\)"),
        (["--tensor-parallel", "0"], r"'--tensor-parallel'"),
    ],
)
def test_options_that_cannot_go_together_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse([*NEEDED, *words])


def test_what_tells_measurements_apart_is_every_option_but_where_it_goes() -> None:
    one, other = parse(NEEDED), parse([*NEEDED[:-1], "elsewhere"])
    assert one.identity() == other.identity()
    assert one.identity().keys() >= {"--budget-s", "--tensor-parallel", "--timer", "--dtype", "--max-kv"}
    assert one.identity() != parse([*NEEDED, "--timer", "profiler"]).identity()


def test_a_grid_beyond_the_models_positions_is_refused() -> None:
    options = Options(model=Path("m"), model_name="n", out=Path("o"), max_kv=2048, max_tokens=512)
    short = model_of({**CONFIG, "max_position_embeddings": 2048}, "short")
    with pytest.raises(InputError, match=r"found 2560: accepted: together at most 2047"):
        options.limits(short)
    assert options.limits(model_of(MOE_CONFIG, "m")).top_k == 4


def test_a_ranks_share_has_its_shapes() -> None:
    model = model_of(MOE_CONFIG, "m")
    assert sharded(MOE_CONFIG, model, 1) == {}
    share = share_of(MOE_CONFIG, model, 4)
    assert (share.num_heads, share.num_kv_heads, share.head_dim, share.hidden_size) == (1, 1, 16, 64)
    assert (share.intermediate_size, share.vocab_size, share.num_experts) == (32, 256, 16)
    assert share.parameters()["attention"] == model.parameters(4)["attention"]
    assert share.parameters()["embedding"] == model.parameters(4)["embedding"]
    with pytest.raises(InputError, match="divisor"):
        sharded(MOE_CONFIG, model, 3)


def test_collectives_are_curves_and_what_failed_is_a_note() -> None:
    rows = [Row("all_reduce", 2, 4096, [20.0, 30.0, 40.0]), Row("all_reduce", 2, 1024, [10.0])]
    rows.append(Row("all_to_all", 2, 1024, [], "gloo has none"))
    curves, notes = collective_curves(rows)
    assert curves.keys() == {"all_reduce"}
    assert curves["all_reduce"][2].x.tolist() == [1024, 4096]
    assert curves["all_reduce"][2].time_s == pytest.approx([10e-6, 30e-6])
    assert notes == ("all_to_all of 2 ranks was not measured: gloo has none",)


def test_groups_are_powers_of_two_and_all() -> None:
    assert Devices("cpu", 2).group_sizes() == [2]
    assert Devices("cuda", 6).group_sizes() == [2, 4, 6]
    assert Devices("cuda", 8).group_sizes() == [2, 4, 8]


@pytest.mark.parametrize("asked", ["cpu", "cpu:1", "tpu:4", "cpu:two", "cuda:99"])
def test_devices_that_are_not_there_are_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.operators.collectives._n_gpus", lambda: 0)
    with pytest.raises(InputError, match="--collectives"):
        devices_of(asked)


def test_collectives_are_measured_where_there_are_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.operators.collectives._n_gpus", lambda: 1)
    assert devices_of("auto") is None
    assert devices_of("none") is None
    assert devices_of("cpu:2") == Devices("cpu", 2)
    monkeypatch.setattr("collectors.operators.collectives._n_gpus", lambda: 4)
    assert devices_of("auto") == Devices("cuda", 4)


def test_the_host_tells_what_kernels_are_chosen_by(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("model name : X\nflags\t\t: fpu avx2 avx512f amx_bf16 avx512_bf16\n")
    assert cpu_flags(tmp_path / "x86") == ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]
    assert cpu_flags(tmp_path / "none") == []
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12\n"
    (tmp_path / "nvidia").write_text(text)
    assert nvidia_driver(tmp_path / "nvidia") == "550.54.15"
    assert nvidia_driver(tmp_path / "none") is None
