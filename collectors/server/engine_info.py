"""What a server says of itself: its version and, where it can be asked, the options it was started with.

Of the many things that vLLM tells in its development mode only the options that a simulation knows are taken, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import aiohttp

ANSWER_WITHIN_S = 30.0
"""vLLM's /server_info also looks at its host, which takes seconds the first time."""

VERSION_PATHS = {"vllm": ("/version",), "sglang": ("/server_info", "/get_server_info"), "tgi": ("/info",)}

OPTIONS: Mapping[str, tuple[str, str]] = {
    "max_num_seqs": ("scheduler_config", "max_num_seqs"),
    "max_num_batched_tokens": ("scheduler_config", "max_num_batched_tokens"),
    "max_model_len": ("model_config", "max_model_len"),
    "block_size": ("cache_config", "block_size"),
    "gpu_memory_utilization": ("cache_config", "gpu_memory_utilization"),
    "enable_prefix_caching": ("cache_config", "enable_prefix_caching"),
    "enable_chunked_prefill": ("scheduler_config", "enable_chunked_prefill"),
    "long_prefill_token_threshold": ("scheduler_config", "long_prefill_token_threshold"),
    "scheduler_reserve_full_isl": ("scheduler_config", "scheduler_reserve_full_isl"),
    "async_scheduling": ("scheduler_config", "async_scheduling"),
    "enforce_eager": ("model_config", "enforce_eager"),
    "cudagraph_capture_sizes": ("compilation_config", "cudagraph_capture_sizes"),
    "dtype": ("model_config", "dtype"),
    "kv_cache_dtype": ("cache_config", "cache_dtype"),
    "tensor_parallel_size": ("parallel_config", "tensor_parallel_size"),
    "pipeline_parallel_size": ("parallel_config", "pipeline_parallel_size"),
    "data_parallel_size": ("parallel_config", "data_parallel_size"),
    "enable_expert_parallel": ("parallel_config", "enable_expert_parallel"),
    "disable_custom_all_reduce": ("parallel_config", "disable_custom_all_reduce"),
}
"""The step recorder's options (collectors/engine/recorder.py header), and where vLLM 0.32's /server_info has them."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself.

    Attributes:
        engine: name and version, as `vllm 0.32.0`; the version is left out where it is not told.
        options: by vLLM's names; empty where they are not told.
        num_gpu_blocks: as the engine reports them; None where they are not told.
    """

    engine: str
    options: dict[str, Any] = {}
    num_gpu_blocks: int | None = None


async def ask_engine(session: aiohttp.ClientSession, url: str, server: str) -> EngineInfo:
    """Ask a server, of the name that its metrics have, of itself. What it does not tell is left out."""
    version = None
    for path in VERSION_PATHS.get(server, ()):
        version = version or (await _ask(session, url + path)).get("version")
    told = await _ask(session, f"{url}/server_info?config_format=json") if server == "vllm" else {}
    config = told.get("vllm_config")
    config = config if isinstance(config, dict) else {}
    blocks = _at(config, "cache_config", "num_gpu_blocks")
    return EngineInfo(
        engine=f"{server} {version}" if isinstance(version, str) else server,
        options=_options(config),
        num_gpu_blocks=blocks if isinstance(blocks, int) else None,
    )


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _at(config, *path) for name, path in OPTIONS.items()}
    if isinstance(dtype := found["dtype"], str):
        found["dtype"] = dtype.removeprefix("torch.")
    if found["enforce_eager"]:
        found["cudagraph_capture_sizes"] = None  # a list of those that an eager engine does not use
    on_gpus = _at(config, "device_config", "device_type") == "cuda"
    if found["tensor_parallel_size"] in (None, 1) or not on_gpus or not found["disable_custom_all_reduce"]:
        found["disable_custom_all_reduce"] = None
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        found[name] = None if found[name] == 1 else found[name]
    if any(_at(config, "parallel_config", f"data_parallel_{kind}_lb") for kind in ("external", "hybrid")):
        found["data_parallel_size"] = None  # of which this server has some ranks alone
    found["enable_expert_parallel"] = found["enable_expert_parallel"] or None
    return {name: value for name, value in found.items() if value is not None}


def _at(config: Mapping[str, Any], section: str, name: str) -> Any:
    part = config.get(section)
    return part.get(name) if isinstance(part, dict) else None


async def _ask(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """A JSON object that a server answers with; empty where it answers with nothing of the kind."""
    import aiohttp

    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)) as answer:
            if answer.status != 200:
                return {}
            value = msgspec.json.decode(await answer.read())
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
