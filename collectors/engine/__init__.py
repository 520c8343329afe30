"""What runs inside an engine, loaded by vLLM from a folder of its own, and what reads the files that it writes."""

from __future__ import annotations

from pathlib import Path


def recorder_path() -> Path:
    """The step recorder: one file, to be put on the server's PYTHONPATH and named with --scheduler-cls."""
    return Path(__file__).with_name("recorder.py")
