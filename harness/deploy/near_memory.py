"""Memories that compute: what an engine makes of the one that its description names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.descriptions.cluster import InstanceSpec
from harness.descriptions.memories import Attention, NearMemoryFile
from profiles.dram import DramChannel, find_dram
from profiles.model import ModelSpec, compute_dtype, dtype_bytes, kv_dtype
from profiles.near_memory import find_rate
from simulator.power.beside import ChannelPower
from simulator.scheduling.options import EngineOptions
from simulator.steps.near_memory import NearMemory
from simulator.steps.partition import stage_layers
from traces.errors import InputError


def channels_of(file: NearMemoryFile, beside: Path, folders: Sequence[Path]) -> tuple[DramChannel, int]:
    """A channel of the memory, and how many it has. Raises InputError where it has not one."""
    channel = find_dram(file.timing, beside, folders)
    n_channels = int(file.capacity_bytes // channel.capacity_bytes)
    if not n_channels:
        accepted = f"at least one channel of {channel.name}, {channel.capacity_bytes} bytes"
        raise InputError(field="near_memory.capacity_bytes", found=file.capacity_bytes, accepted=accepted)
    return channel, n_channels


def attention_of(spec: InstanceSpec, said: Attention | None) -> Attention:
    """Where an engine's decodes attend; `said` by the scenario. Raises InputError where that has no effect."""
    if spec.near_memory is None:
        if said is not None or spec.attention is not None:
            raise InputError("has no effect without near_memory", field="attention", found=said or spec.attention)
        return "device"
    return said or spec.attention or "near_memory"


def near_memory_of(
    spec: InstanceSpec, attention: Attention, model: ModelSpec, options: EngineOptions, folders: Sequence[Path]
) -> NearMemory | None:
    """The engine's near memory; None where decodes attend on the device. Raises InputError for what is not modelled."""
    file = spec.near_memory
    if file is None or attention == "device":
        return None
    _check(spec, file, attention, model, options)
    channel, n_channels = channels_of(file, spec.document.path, folders)
    kv_bytes = dtype_bytes(kv_dtype(options.dtype, options.kv_cache_dtype))
    rate = (file.attention or find_rate(channel.name)).scaled(model, kv_bytes)
    query_bytes = model.num_heads * model.head_dim * dtype_bytes(compute_dtype(options.dtype))
    token_bytes = 2 * model.num_kv_heads * model.head_dim * kv_bytes
    return NearMemory(
        n_channels,
        min(n_channels, model.num_kv_heads),
        rate.request_s,
        rate.token_s,
        decode_bytes=2 * query_bytes + token_bytes,
        token_bytes=token_bytes,
        bytes_per_s=file.link.bandwidth_bytes_per_s if file.link else n_channels * channel.bandwidth_bytes_per_s,
        latency_s=channel.read_latency_s + (file.link.latency_s if file.link else 0.0),
        num_layers=model.num_layers,
        placing=file.placing,
        min_prompt_tokens=file.min_prompt_tokens,
        reads_history=not file.kv_on_device,
        interleaves=attention == "interleaved",
    )


def near_blocks(file: NearMemoryFile, model: ModelSpec, options: EngineOptions, stages: int = 1) -> int:
    """KV blocks that the near memories of all pipeline stages have room for, the null block included.

    The stage with most layers has least of it.
    """
    token_bytes = model.kv_bytes_per_token(kv_dtype(options.dtype, options.kv_cache_dtype)) / model.num_layers
    most_layers = max(stage_layers(model.num_layers, stages))
    return int(file.capacity_bytes // (token_bytes * most_layers * options.block_size))


def check_room(
    file: NearMemoryFile, model: ModelSpec, options: EngineOptions, num_gpu_blocks: int, stages: int = 1
) -> None:
    """Raise InputError where a near memory cannot hold all KV that the engine's blocks can."""
    room = near_blocks(file, model, options, stages)
    if room < num_gpu_blocks:
        accepted = f"room for the engine's {num_gpu_blocks} KV blocks; it has room for {room}"
        raise InputError(field="near_memory.capacity_bytes", found=file.capacity_bytes, accepted=accepted)


def channel_power(
    file: NearMemoryFile | None, beside: Path, folders: Sequence[Path], stages: int = 1
) -> ChannelPower | None:
    """Power of the channels of all stages; None where there is no near memory, or its timing file does not say."""
    if file is None:
        return None
    channel, n_channels = channels_of(file, beside, folders)
    if channel.idle_w is None or channel.peak_w is None:
        return None
    return ChannelPower(stages * n_channels, channel.idle_w, channel.peak_w)


def near_memory_notes(spec: InstanceSpec, model: ModelSpec, options: EngineOptions, memory: NearMemory) -> list[str]:
    """What a reader should know of where the numbers are from."""
    file = spec.near_memory
    assert file is not None
    rate = file.attention or find_rate(Path(file.timing).name.removesuffix(".ini"))
    source = "as stated" if file.attention else "LLMServingSim's fit to its own memory simulation, not measured"
    notes = [f"attention near memory: {memory.request_s:.3g} s and {memory.token_s:.3g} s a token, {source}"]
    if (rate.num_heads, rate.head_dim) != (model.num_heads, model.head_dim):
        said = f"{rate.num_heads} heads of {rate.head_dim}"
        notes.append(f"attention near memory is said of {said} and scaled to {model.num_heads} of {model.head_dim}")
    of_kv = kv_dtype(options.dtype, options.kv_cache_dtype)
    if dtype_bytes(of_kv) != 2:
        notes.append(f"attention near memory is said of 16 bits and scaled to {of_kv}, by what is read")
    return notes


def _check(
    spec: InstanceSpec, file: NearMemoryFile, attention: Attention, model: ModelSpec, options: EngineOptions
) -> None:
    """Raise InputError for what is not modelled together."""
    of_kv = kv_dtype(options.dtype, options.kv_cache_dtype)
    if dtype_bytes(of_kv) > 2:
        accepted = "a type of 16 bits or 8: what is known of attention near memory is of such"
        raise InputError(field="kv_cache_dtype", found=of_kv, accepted=accepted)
    if spec.pipeline_parallel_size > 1 and attention == "interleaved":
        raise InputError("is not modelled with pipeline stages", field="attention", found=attention)
    if model.num_experts and attention == "interleaved":
        raise InputError("is not modelled for a mixture of experts", field="attention", found=attention)
    if spec.role == "prefill":
        raise InputError("has no effect: a prefill engine decodes nothing", field="near_memory")
    if file.min_prompt_tokens and not file.kv_on_device:
        accepted = "true with min_prompt_tokens: KV of short prompts is on the device"
        raise InputError(field="near_memory.kv_on_device", found=False, accepted=accepted)
