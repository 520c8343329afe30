"""Options that nobody states, as vLLM's own functions choose them, against ours.

    .venv/bin/python -m tests.conformance.engine_defaults [--work out/conformance] [VERSION]...

prints a row for each version, as `tests.conformance.versions` does for our scheduler, and needs the same. No device is
needed: vLLM is told of one, as its platform would.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from harness.deploy.defaults import with_defaults
from harness.descriptions.cluster import InstanceSpec
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.rules import version_of
from tests.conformance.engine import ENGINE, ROOT
from tests.conformance.judge import QUIET
from tests.conformance.versions import VERSIONS, fetched, fetched_extras
from traces.decoding import read_document

GIB = 2**30


class Device(msgspec.Struct, frozen=True):
    """A device as vLLM's platform would tell of it."""

    name: str
    memory_bytes: int
    device_type: str = "cuda"
    compute_capability: str | None = None


class Case(msgspec.Struct, frozen=True):
    """An engine's command line, as far as it matters; None: not stated."""

    device: Device
    tensor_parallel_size: int
    pipeline_parallel_size: int
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    max_model_len: int
    enable_chunked_prefill: bool


class Chosen(msgspec.Struct, frozen=True):
    """What comes of it; no sizes of CUDA graphs without CUDA, or with more seats than tokens, which vLLM refuses."""

    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    capture_sizes: tuple[int, ...]


class Answer(msgspec.Struct, frozen=True):
    """Of a vLLM version: what it chose in each case."""

    version: str
    chosen: list[Chosen]


DEVICES = (
    Device("NVIDIA H100 80GB HBM3", 81559 * 2**20, compute_capability="9.0"),
    Device("NVIDIA A100-SXM4-80GB", 81920 * 2**20, compute_capability="8.0"),
    Device("NVIDIA A800-SXM4-80GB", 81920 * 2**20, compute_capability="8.0"),
    Device("NVIDIA RTX A6000", 49140 * 2**20, compute_capability="8.6"),
    Device("NVIDIA B200", 183359 * 2**20, compute_capability="10.0"),
    Device("NVIDIA GB10", 120 * GIB, compute_capability="12.1"),
    Device("AMD Instinct MI300X", 206_141_652_992),
    Device("just under", 70 * GIB - 1),
    Device("just enough", 70 * GIB),
    Device("just under the largest", 160 * GIB - 1),
    Device("an A100 of the largest", 160 * GIB),
    Device("TPU v6e", 32 * GIB, "tpu"),
    Device("cpu", 200 * GIB, "cpu"),
)

CASES = tuple(
    itertools.starmap(
        lambda device, degrees, *rest: Case(device, *degrees, *rest),
        itertools.product(
            DEVICES,
            ((1, 1), (4, 2)),
            (None, 1, 100, 4096),
            (None, 180, 2048, 20000),
            (16, 4096, 131072),
            (True, False),
        ),
    )
)


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description="Compare options that nobody states with those of vLLM versions.")
    parser.add_argument("--work", type=Path, default=Path("out/conformance"), help="where versions are kept")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    arguments = parser.parse_args()
    print("| vLLM | command lines | differing |\n|---|---|---|")
    print(row([]), flush=True)
    extras = fetched_extras(arguments.work)
    for version in arguments.versions:
        print(row([fetched(version, arguments.work), extras]), flush=True)


def row(paths: Sequence[Path]) -> str:
    """One version's line; the first that differs goes to stderr. `paths` hold another version than is installed."""
    answer = asked_of_vllm(paths)
    differing = differences(answer)
    if differing:
        sys.stderr.write(f"{answer.version}: {differing[0]}\n")
    return f"| {answer.version} | {len(answer.chosen):,} | {len(differing)} |"


def asked_of_vllm(paths: Sequence[Path] = ()) -> Answer:
    """What vLLM chooses in all cases, in the engine's environment. Raises CalledProcessError when vLLM fails."""
    ran = subprocess.run(
        [ENGINE, "-c", "from tests.conformance.engine_defaults import inside; inside()"],
        cwd=ROOT,
        env={**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(ran.stdout.splitlines()[-1], type=Answer)


def differences(answer: Answer) -> list[tuple[Case, Chosen, Chosen]]:
    """The cases in which vLLM chose otherwise than we do: the case, vLLM's choice, ours."""
    version = version_of(answer.version)
    assert version is not None
    with tempfile.TemporaryDirectory() as folder:
        ours = [_ours(case, version, Path(folder)) for case in _described(Path(folder))]
    return [each for each in zip(CASES, answer.chosen, ours, strict=True) if each[1] != each[2]]


def _described(folder: Path) -> Sequence[Case]:
    """All cases, their devices described in the folder."""
    (folder / "devices").mkdir()
    for number, device in enumerate(DEVICES):
        facts = {name: value for name, value in msgspec.to_builtins(device).items() if value is not None}
        sources = {name: "a test" for name in facts if name not in ("name", "device_type")}
        (folder / "devices" / f"{number}.yaml").write_bytes(msgspec.json.encode({**facts, "sources": sources}))
    (folder / "cluster.yaml").write_text("instances: []\n")
    return CASES


def _ours(case: Case, version: tuple[int, int], folder: Path) -> Chosen:
    stated = {name: value for name, value in msgspec.structs.asdict(case).items() if value is not None}
    degrees = {name: stated.pop(name) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    device = stated.pop("device")
    spec = InstanceSpec("a model", device.name, {}, read_document(folder / "cluster.yaml"), (), **degrees)
    options, _ = with_defaults(EngineOptions(**stated), stated, spec, version, [folder])
    refused = options.max_num_seqs > options.max_num_batched_tokens
    return Chosen(
        options.max_num_seqs,
        options.max_num_batched_tokens,
        options.gpu_memory_utilization,
        () if device.device_type != "cuda" or refused else options.capture_sizes(),
    )


def inside() -> None:
    """Beside vLLM: print its version and what it chooses, as JSON."""
    import vllm

    version = version_of(vllm.__version__)
    assert version is not None
    answer = Answer(vllm.__version__, [_of_vllm(case, version) for case in CASES])
    print(msgspec.json.encode(answer).decode())


def _of_vllm(case: Case, version: tuple[int, int]) -> Chosen:
    """vLLM's own functions, on objects with the fields that they read."""
    import vllm.engine.arg_utils as arguments
    import vllm.platforms
    from vllm.config import CacheConfig, CUDAGraphMode, VllmConfig
    from vllm.usage.usage_lib import UsageContext

    platform: Any = _Platform(case.device, version)
    arguments.current_platform = vllm.platforms.current_platform = platform
    asked = SimpleNamespace(
        **{name: value for name, value in msgspec.structs.asdict(case).items() if name != "device"},
        performance_mode="balanced",
        get_batch_defaults=arguments.EngineArgs.get_batch_defaults,
    )
    model = SimpleNamespace(
        max_model_len=case.max_model_len, is_multimodal_model=False, enforce_eager=False, is_mm_prefix_lm=False
    )
    parallel = SimpleNamespace(use_batched_dp_moe=False, tensor_parallel_size=case.tensor_parallel_size)
    choose = arguments.EngineArgs._set_default_max_num_seqs_and_batched_tokens_args
    given = (asked, UsageContext.OPENAI_API_SERVER, model, parallel)
    choose(*given[: len(inspect.signature(choose).parameters)])
    sizes: tuple[int, ...] = ()
    if case.device.device_type == "cuda" and asked.max_num_seqs <= asked.max_num_batched_tokens:
        compilation = SimpleNamespace(
            cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
            max_cudagraph_capture_size=None,
            cudagraph_capture_sizes=None,
            pass_config=SimpleNamespace(enable_sp=False),
            post_init_cudagraph_sizes=lambda: None,
        )
        config: Any = SimpleNamespace(
            model_config=model,
            compilation_config=compilation,
            scheduler_config=asked,
            parallel_config=parallel,
            speculative_config=None,
            performance_mode="balanced",
            uniform_decode_query_len=1,
            num_speculative_tokens=0,
        )
        VllmConfig._set_cudagraph_sizes(config)
        sizes = tuple(compilation.cudagraph_capture_sizes or ())
    share = CacheConfig(block_size=16).gpu_memory_utilization
    return Chosen(asked.max_num_seqs, asked.max_num_batched_tokens, share, sizes)


class _Platform:
    """As `vllm.platforms.current_platform`, of a device that is not there."""

    def __init__(self, device: Device, version: tuple[int, int]) -> None:
        self._device = device
        # NVML does not tell the memory of a GB10, and vLLM has another way since 0.33; a TPU's plugin has none.
        self._is_told = device.compute_capability != "12.1" or version >= (0, 33)

    def get_device_total_memory(self, device_id: int = 0) -> int:
        if not self._is_told or self.is_tpu():
            raise NotImplementedError
        return self._device.memory_bytes

    def get_device_name(self, device_id: int = 0) -> str:
        return self._device.name

    def is_tpu(self) -> bool:
        return self._device.device_type == "tpu"

    def is_cpu(self) -> bool:
        return self._device.device_type == "cpu"

    def is_device_capability(self, capability: tuple[int, int], device_id: int = 0) -> bool:
        return self._device.compute_capability == ".".join(map(str, capability))

    def is_device_capability_family(self, capability: int, device_id: int = 0) -> bool:
        found = self._device.compute_capability
        return found is not None and int(found.partition(".")[0]) == capability // 10


if __name__ == "__main__":
    main()
