"""Runs the operator profiler inside the engine's own environment, which has vLLM and not servetwin."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import collectors
from traces.errors import EngineError, InputError

ROOT = Path(collectors.__file__).resolve().parents[1]
"""Where servetwin's packages are, for the engine's Python to find."""


def profile_operators(engine_python: Path, arguments: Sequence[object]) -> None:
    """Run `collectors.operators` with these arguments; it says itself, on stderr, how far it is and what is wrong.

    Raises InputError when there is no such Python or the profiler refuses its input, EngineError when it fails.
    """
    if not engine_python.is_file():
        accepted = "the Python of an environment with vLLM, as scripts/install_engine.sh makes one"
        raise InputError("no such file", file=engine_python, field="--engine-python", accepted=accepted)
    command = [str(engine_python), "-m", "collectors.operators", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, check=False, env=environment, stdout=sys.stderr)  # vLLM logs on stdout
    if ran.returncode == InputError.exit_code:
        raise InputError("the profiler refused its input, as it says above")
    if ran.returncode:
        raise EngineError(f"the profiler failed with exit code {ran.returncode}; its output is above")
