"""Runs the operator profiler inside the engine's own environment, which has the engine and not servetwin."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import collectors
from traces.errors import EngineError, InputError

ROOT = Path(collectors.__file__).resolve().parents[1]
"""Where servetwin's packages are, for the engine's Python to find."""


def profile_operators(engine_python: Path, options: Mapping[str, object], flags: Sequence[str] = ()) -> None:
    """Run `collectors.operators`; it says itself, on stderr, how far it is and what is wrong.

    Args:
        engine_python: the Python of the environment with the engine.
        options: values by option; those that are None are left to the profiler.
        flags: further words of the command line.

    Raises:
        InputError: there is no such Python, or the profiler refuses its input.
        EngineError: it fails; run again, it goes on.
    """
    if not engine_python.is_file():
        accepted = "the Python of an environment with vLLM, as scripts/install_engine.sh makes one"
        raise InputError("no such file", file=engine_python, field="--engine-python", accepted=accepted)
    command = [str(engine_python), "-m", "collectors.operators", *flags]
    for option, value in options.items():
        command += [] if value is None else [option, str(value)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, check=False, env=environment, stdout=sys.stderr)  # vLLM logs on stdout
    if ran.returncode == InputError.exit_code:
        raise InputError("the profiler refused its input, as it says above")
    if ran.returncode:
        raise EngineError(
            f"the profiler failed with exit code {ran.returncode}; its output is above; run again, it goes on"
        )
