"""`meta.json` of a run that LLMServingSim's bench recorded: what ran, by vLLM's names.

Every run states the arguments it was started with (`engine_kwargs`). Newer ones also hold what vLLM made of them:
`kv_cache` (blocks that were allocated), `hardware` (the accelerator's name) and `resolved_config` (all of vLLM's own
configuration, a mapping per part). Any of the three may be missing or empty. An argument that was stated counts as it
stands, and what was not stated counts as it was resolved.
"""

from __future__ import annotations

from typing import Any

import msgspec


class RunMeta(msgspec.Struct):
    """What is used of meta.json; it holds more."""

    model: str
    vllm_version: str | None = None
    engine_kwargs: dict[str, Any] = {}
    dataset_hash: str | None = None
    num_requests: int | None = None
    started_at: str | None = None
    kv_cache: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    resolved_config: dict[str, Any] | None = None
    resolve_only: bool = False


_RESOLVED: dict[str, tuple[str, str, type]] = {
    "tensor_parallel_size": ("parallel_config", "tensor_parallel_size", int),
    "pipeline_parallel_size": ("parallel_config", "pipeline_parallel_size", int),
    "data_parallel_size": ("parallel_config", "data_parallel_size", int),
    "enable_expert_parallel": ("parallel_config", "enable_expert_parallel", bool),
    "max_num_seqs": ("scheduler_config", "max_num_seqs", int),
    "max_num_batched_tokens": ("scheduler_config", "max_num_batched_tokens", int),
    "enable_chunked_prefill": ("scheduler_config", "enable_chunked_prefill", bool),
    "long_prefill_token_threshold": ("scheduler_config", "long_prefill_token_threshold", int),
    "scheduling_policy": ("scheduler_config", "policy", str),
    "scheduler_reserve_full_isl": ("scheduler_config", "scheduler_reserve_full_isl", bool),
    "async_scheduling": ("scheduler_config", "async_scheduling", bool),
    "max_model_len": ("model_config", "max_model_len", int),
    "enforce_eager": ("model_config", "enforce_eager", bool),
    "dtype": ("model_config", "dtype", str),
    "block_size": ("cache_config", "block_size", int),
    "gpu_memory_utilization": ("cache_config", "gpu_memory_utilization", float),
    "kv_cache_memory_bytes": ("cache_config", "kv_cache_memory_bytes", int),
    "enable_prefix_caching": ("cache_config", "enable_prefix_caching", bool),
    "kv_cache_dtype": ("cache_config", "cache_dtype", str),
    "cudagraph_capture_sizes": ("compilation_config", "cudagraph_capture_sizes", list),
}
"""Part, field and type of each engine option in vLLM's own configuration (0.19 `vllm/config/`)."""

_SPELLINGS = {
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
    "torch.float32": "float32",
    "half": "float16",
    "float": "float32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
}
"""Other words of vLLM's for a type of so many bits."""


def engine_options(meta: RunMeta) -> dict[str, Any]:
    """The options that the engine ran with; those that are null or not recorded are not in it.

    vLLM's `dtype` is that of activations; where its configuration says that the weights are of eight bits, that is
    the dtype here.
    """
    stated = {name: value for name, value in meta.engine_kwargs.items() if name != "model" and value is not None}
    resolved = meta.resolved_config or {}
    cache = dict(_part(resolved, "cache_config"))
    cache |= {name: value for name, value in (meta.kv_cache or {}).items() if value is not None}
    parts = {**resolved, "cache_config": cache}
    for name, (part, field, kind) in _RESOLVED.items():
        found = _part(parts, part).get(field)
        if stated.get(name) in (None, "auto") and _is(found, kind):
            stated[name] = found
    for name in ("dtype", "kv_cache_dtype"):
        if name in stated:
            stated[name] = _SPELLINGS.get(stated[name], stated[name])
    if _part(resolved, "model_config").get("quantization") == "fp8":
        stated["dtype"] = "fp8"
    return stated


def num_gpu_blocks(meta: RunMeta) -> int | None:
    """KV blocks of each engine; None where they were not recorded.

    vLLM's front end adds up those of all data-parallel engines (0.19 and 0.32 `v1/engine/core_client.py`).
    """
    found = (meta.kv_cache or {}).get("num_gpu_blocks")
    if not _is(found, int):
        found = _part(meta.resolved_config or {}, "cache_config").get("num_gpu_blocks")
    ranks = engine_options(meta).get("data_parallel_size", 1)
    return found // ranks if _is(found, int) and _is(ranks, int) and ranks and found >= 2 * ranks else None


def version(meta: RunMeta) -> str | None:
    """vLLM's version; None where it was not recorded, which the bench writes as "unknown"."""
    return None if meta.vllm_version in (None, "", "unknown") else meta.vllm_version


def device(meta: RunMeta) -> str | None:
    """The accelerator's own name; None where it was not recorded."""
    found = (meta.hardware or {}).get("device_name")
    return found if isinstance(found, str) and found else None


def notes(meta: RunMeta) -> list[str]:
    """What of meta.json a reader of results should know."""
    found = []
    if not version(meta):
        found.append("meta.json does not state the version of vLLM")
    if not meta.engine_kwargs:
        found.append("meta.json does not state the engine's arguments (engine_kwargs)")
    if meta.resolved_config and _part(meta.resolved_config, "speculative_config"):
        found.append("meta.json: the engine drafted tokens (speculative_config), which is not read")
    blocks, ranks = num_gpu_blocks(meta), engine_options(meta).get("data_parallel_size", 1)
    if blocks is not None and ranks > 1:
        found.append(f"meta.json: num_gpu_blocks is that of {ranks} data-parallel engines together")
    return found


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a type: a bool is no number, and a whole number is one."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is list:
        return isinstance(value, list) and all(isinstance(one, int) for one in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
