"""The machine a measurement is taken on, named by what matters and by nothing that tells whose it is."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model and number of CPUs in one word, as `AMD-EPYC-9R14-2vCPU`; `CPU-2vCPU` where the model is not told."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    words = re.sub(r"\(.*?\)|Processor|CPU|@.*|\d+-Core", " ", match[1] if match else "CPU").split()
    return "-".join([*(words or ["CPU"]), f"{os.cpu_count()}vCPU"])
