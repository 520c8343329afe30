"""Engine options that nobody states, as `vllm serve` chooses them: by device, world size, version and other options.

The rules are those of vLLM 0.32 for `UsageContext.OPENAI_API_SERVER`; where another version from 0.19 to 0.33 differs,
it is said below. A program that calls vLLM's `LLM` gets other token budgets and seats. What a stated option is worth,
vLLM may overrule (on a CPU it does); here it counts as it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness.descriptions.agreement import default_note
from harness.descriptions.cluster import InstanceSpec
from profiles.catalog import find_model, known_device, list_profiles
from profiles.device import DeviceType
from profiles.model import model_of
from simulator.scheduling.options import CHOSEN_BY_DEVICE, EngineOptions, default_capture_sizes
from traces.errors import InputError

GIB = 2**30
LARGE_BYTES = 70 * GIB
LARGEST_BYTES = 160 * GIB
LARGEST_SINCE = (0, 28)
"""The version that brought a larger token budget for devices of `LARGEST_BYTES`, and graphs of 1024 tokens."""
SMALL = 256, 2048
"""Seats and tokens of any other device, and of one whose memory vLLM cannot tell."""
UTILIZATION_SINCE = (0, 20)
"""Before, `gpu_memory_utilization` was 0.9; that version also made the token budget a size of CUDA graphs."""
SEATS_SINCE = (0, 31)
"""The version from which as many tokens as requests can run are a size of CUDA graphs."""
CPU_BLOCK_SIZE = 128


@dataclass(frozen=True, slots=True)
class Served:
    """What vLLM's defaults depend on beside the options themselves.

    Attributes:
        names: of the device, the one that is asked for first.
        device_type: its kind.
        memory_bytes: of the device; None: not known.
        compute_capability: NVIDIA's, as "8.6"; None: not known, or another's.
        world_size: devices of an engine, tensor times pipeline parallel.
        version: vLLM's.
    """

    names: tuple[str, ...]
    device_type: DeviceType
    memory_bytes: float | None
    compute_capability: str | None
    world_size: int
    version: tuple[int, int]


def served_on(spec: InstanceSpec, version: tuple[int, int], folders: Sequence[Path]) -> Served:
    """What is known of an engine's device: described, else by profiles that were measured on it. Raises InputError."""
    device = known_device(spec.device, folders)
    world_size = spec.tensor_parallel_size * spec.pipeline_parallel_size
    if device is None:
        kind = _measured_type(spec.device, folders)
        return Served((spec.device,), kind, spec.memory_bytes, None, world_size, version)
    memory_bytes = device.memory_bytes if spec.memory_bytes is None else min(device.memory_bytes, spec.memory_bytes)
    names = (spec.device, device.name, *device.aliases)
    return Served(names, device.device_type, memory_bytes, device.compute_capability, world_size, version)


def batch_defaults(served: Served) -> tuple[int, int, str]:
    """`max_num_seqs` and `max_num_batched_tokens` before the model's length limits them, and on which device.

    vLLM 0.32 `engine/arg_utils.py::EngineArgs.get_batch_defaults`. The memory there is the driver's total, some percent
    above the one here; no GPU known to us lies between the two and a limit. vLLM's values for TPUs go by names that its
    plugin does not report (tpu-inference, `platforms/tpu_platform.py`: "TPU v6e" for "V6E", and no memory).
    """
    name, memory_bytes = served.names[0], served.memory_bytes
    if served.device_type == "cpu":
        return 128 * served.world_size, 2048 * served.world_size, f"a CPU with world size {served.world_size}"
    if served.device_type == "tpu":
        return *SMALL, f"{name}, a TPU"
    if memory_bytes is None:
        return *SMALL, f"{name}, whose memory is not known"
    on = f"{name} with {memory_bytes / GIB:.2f} GiB"
    if served.compute_capability == "12.1":
        # Excepted since 0.33; NVML does not tell the memory of a GB10, so that vLLM took the same before.
        return *SMALL, f"{on}, a GB10"
    if memory_bytes >= LARGEST_BYTES and served.version >= LARGEST_SINCE:
        return 1024, 16384, on
    if memory_bytes < LARGE_BYTES:
        return *SMALL, on
    if any("a100" in known.lower() for known in served.names):
        return *SMALL, f"{on}, an A100"
    return 1024, 8192, on


@dataclass(slots=True)
class _Settling:
    """Options on their way: what is chosen for those that nobody states, and what to say of it."""

    options: EngineOptions
    unsaid: frozenset[str]
    notes: list[str]

    def take(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Take those of the chosen that nobody states. Returns them."""
        taken = {name: value for name, value in chosen.items() if name in self.unsaid}
        self.options = msgspec.structs.replace(self.options, **taken)
        return taken

    def take_and_say(self, chosen: dict[str, Any], where: str) -> None:
        """The same, with a note of what was taken and where vLLM does so."""
        if taken := self.take(chosen):
            told = ", ".join(f"{name} {value}" for name, value in sorted(taken.items()))
            self.notes.append(f"defaults of vllm serve on {where}, which nothing states otherwise: {told}")


def with_defaults(
    options: EngineOptions,
    stated: Collection[str],
    spec: InstanceSpec,
    version: tuple[int, int],
    folders: Sequence[Path],
) -> tuple[EngineOptions, list[str]]:
    """The options with what vLLM would choose in place of those that nobody states, and notes of what and why.

    Args:
        options: of the engine, as far as they are stated.
        stated: names of those that are.
        spec: its model, device and parallelism.
        version: vLLM's.
        folders: where devices, models and profiles are looked up.

    Raises:
        InputError: a file in the folders cannot be read.
    """
    settling = _Settling(options, frozenset(CHOSEN_BY_DEVICE).difference(stated), [])
    share = settling.take({"gpu_memory_utilization": 0.92 if version >= UTILIZATION_SINCE else 0.9})
    if share and options.num_gpu_blocks is None and options.kv_cache_memory_bytes is None:
        settling.notes.append(default_note(version, share))
    if settling.unsaid - {"gpu_memory_utilization"}:
        _settle(settling, served_on(spec, version, folders), spec, folders)
    return settling.options, settling.notes


def _settle(settling: _Settling, served: Served, spec: InstanceSpec, folders: Sequence[Path]) -> None:
    """Choose what depends on the device."""
    seats, tokens, where = batch_defaults(served)
    if "max_num_seqs" not in settling.unsaid:
        seats = settling.options.max_num_seqs
    if "max_num_batched_tokens" in settling.unsaid:
        tokens, limit = _limited(settling.options, seats, tokens, _length(settling.options, spec, folders))
        where += limit
    else:
        tokens = settling.options.max_num_batched_tokens
    is_cpu, drafter = served.device_type == "cpu", settling.options.speculative_config
    by_lookup = drafter is not None and drafter.method == "ngram"
    chosen = {
        "max_num_seqs": min(seats, tokens),
        "max_num_batched_tokens": tokens,
        # vLLM 0.32 `platforms/cpu.py::check_and_update_config`; `config/vllm.py` for drafts that are looked up.
        "block_size": CPU_BLOCK_SIZE if is_cpu else settling.options.block_size,
        "async_scheduling": not (is_cpu or by_lookup),
    }
    settling.take_and_say(chosen, f"{where}{', drafting by ngram' if by_lookup else ''}")
    if served.device_type != "tpu" and not settling.options.enforce_eager:
        _settle_graphs(settling, served)
    if served.device_type == "tpu" and "block_size" in settling.unsaid:
        settling.notes.append("block_size is assumed: vLLM's plugin for TPUs chooses one by the model")


def _limited(options: EngineOptions, seats: int, tokens: int, length: int | None) -> tuple[int, str]:
    """A token budget that nobody states, by the longest request, and in which way that counts.

    vLLM 0.32 `engine/arg_utils.py::_set_default_max_num_seqs_and_batched_tokens_args`. A length that is not known
    (None) keeps the engine from being simulated, and is an error later.
    """
    if length is None:
        return tokens, ""
    least = tokens if options.enable_chunked_prefill else max(length, tokens)
    found = min(seats * length, least)
    if found == tokens:
        return tokens, ""
    return found, f", max_model_len {length}{'' if found > tokens else f' and max_num_seqs {seats}'}"


def _settle_graphs(settling: _Settling, served: Served) -> None:
    """Choose the sizes of CUDA graphs, where device or version have others than `EngineOptions` by itself.

    vLLM 0.19 to 0.33 `config/vllm.py::_set_cudagraph_sizes`; compute capability 10 is that of data center Blackwells.
    """
    if served.device_type == "cpu":
        settling.take({"cudagraph_capture_sizes": ()})
        return
    options = settling.options
    is_blackwell = (served.compute_capability or "").startswith("10.")
    sizes = default_capture_sizes(
        options,
        most=1024 if is_blackwell and served.version >= LARGEST_SINCE else 512,
        with_budget=served.version >= UTILIZATION_SINCE,
        with_seats=served.version >= SEATS_SINCE,
    )
    if sizes != options.capture_sizes() and settling.take({"cudagraph_capture_sizes": sizes}):
        version = ".".join(map(str, served.version))
        settling.notes.append(f"CUDA graphs of {len(sizes)} sizes up to {sizes[-1]} tokens, as vLLM {version} has them")


def _length(options: EngineOptions, spec: InstanceSpec, folders: Sequence[Path]) -> int | None:
    """Most tokens of a request: as stated, or the model's own limit; None where neither is known."""
    if options.max_model_len is not None:
        return options.max_model_len
    for info in list_profiles(folders):
        if info.meta.model == spec.model and info.meta.model_config is not None:
            return model_of(info.meta.model_config, spec.model, info.path / "profile.json").max_position_embeddings
    try:
        return find_model(spec.model, folders).max_position_embeddings
    except InputError:
        return None  # whoever needs the model says that it is not there


def _measured_type(name: str, folders: Sequence[Path]) -> DeviceType:
    """The kind of a device that nobody describes: a CPU where a profile says that it was measured on one."""
    measured = [info.meta.measured.get("device_type") for info in list_profiles(folders) if info.meta.device == name]
    return "cpu" if "cpu" in measured else "cuda"
