"""What a device can do at most, measured with plain torch: the rate of copies and of matrix products in bfloat16.

Runs in the engine's environment and prints JSON: `python -m collectors.campaign.device_rates --seconds 8`; with
`--facts`, only what the host is. Beside torch it imports the standard library and modules that need nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from collectors.operators.provenance import host_facts

COPY_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
"""Far more than a cache holds, so that every byte goes through the device's memory."""

MATMUL_SIZE = {"cuda": 8192, "cpu": 512}
"""Rows and columns of square matrices."""

BATCH = {"cuda": 10, "cpu": 1}
"""Runs between two looks at the clock: waiting for a GPU takes some 20 us."""


SERVER = "vllm.entrypoints.openai.api_server"
FLASH_ATTENTION = "vllm.vllm_flash_attn"
EXPERTS = "vllm._moe_C_stable_libtorch"
"""Modules of vLLM that may be missing: what serves, and compiled parts that a payload may leave out."""


def measure_rates(seconds: float) -> dict[str, Any]:
    """Copy and multiply for so many seconds each.

    Returns:
        For each: what one run moves or computes, its median `run_s`, how many runs, the rate, and between which moments
        of the host's monotonic clock it ran. A copy counts the bytes that are read and those that are written.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {"device_type": device, "copy": _copy(device, seconds), "matmul_bfloat16": _matmul(device, seconds)}
    if device == "cuda":
        free_bytes, memory_bytes = torch.cuda.mem_get_info()
        found |= {"memory_bytes": memory_bytes, "free_bytes": free_bytes}
        found["multiprocessors"] = torch.cuda.get_device_properties(0).multi_processor_count
    return found


def _copy(device: str, seconds: float) -> dict[str, Any]:
    import torch

    n = COPY_BYTES[device] // 2
    source = torch.rand(n, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    timed = _timed(lambda: target.copy_(source), device, seconds)
    return {"bytes": 4 * n, **timed, "bytes_per_s": 4 * n / timed["run_s"]}


def _matmul(device: str, seconds: float) -> dict[str, Any]:
    import torch

    size = MATMUL_SIZE[device]
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    timed = _timed(lambda: torch.mm(a, b, out=product), device, seconds)
    return {"flops": 2 * size**3, "size": size, **timed, "flops_per_s": 2 * size**3 / timed["run_s"]}


def _timed(run: Callable[[], Any], device: str, seconds: float) -> dict[str, Any]:
    import torch

    def batch_s() -> float:
        begun_s = time.perf_counter()
        for _ in range(BATCH[device]):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begun_s) / BATCH[device]

    batch_s()  # warm-up
    begin_s = time.monotonic()
    runs_s: list[float] = []
    while time.monotonic() < begin_s + seconds or len(runs_s) < 3:
        runs_s.append(batch_s())
    window_s = [begin_s, time.monotonic()]
    return {"run_s": statistics.median(runs_s), "n": len(runs_s) * BATCH[device], "window_s": window_s}


def engine_facts() -> dict[str, Any]:
    """The host, and whether vLLM can be imported here, and with which kernels of attention."""
    facts = host_facts()
    for name in ("vllm", SERVER, FLASH_ATTENTION, EXPERTS):
        try:
            __import__(name)
            facts.setdefault("imports", {})[name] = "ok"
        except Exception as error:  # a compiled part may fail in any way; it is told, and the campaign decides
            facts.setdefault("imports", {})[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return facts


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of copies, and again of products")
    parser.add_argument("--facts", action="store_true", help="only what the host is, and what of vLLM loads")
    chosen = parser.parse_args()
    print(json.dumps(engine_facts() if chosen.facts else measure_rates(chosen.seconds)))


if __name__ == "__main__":
    main()
