"""The machine a measurement is taken on, named by what matters and by nothing that tells whose it is."""

from __future__ import annotations

import os
import re
from pathlib import Path

KERNEL_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)
"""Features of a CPU by which matrix kernels are chosen, as /proc/cpuinfo of x86 and Arm spells them."""


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model and number of CPUs in one word, as `AMD-EPYC-9R14-2vCPU`; `CPU-2vCPU` where the model is not told."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    words = re.sub(r"\(.*?\)|Processor|CPU|@.*|\d+-Core", " ", match[1] if match else "CPU").split()
    return "-".join([*(words or ["CPU"]), f"{os.cpu_count()}vCPU"])


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of `KERNEL_FLAGS` that the CPU has; empty where they are not told."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    there = set(match[1].split()) if match else set()
    return [flag for flag in KERNEL_FLAGS if flag in there]


def nvidia_driver(version: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Version of NVIDIA's kernel driver; None where there is none."""
    if not version.exists():
        return None
    match = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", version.read_text())
    return match[1] if match else None
