"""What a real engine did: a client, a step recorder and an operator profiler, joined into a capture."""

from __future__ import annotations

from pathlib import Path


def recorder_path() -> Path:
    """The step recorder: one file, to be put on the server's PYTHONPATH and named with --scheduler-cls."""
    return Path(__file__).with_name("recorder.py")
