"""The engine's environment, as scripts/install_engine.sh makes it, and how something of ours runs inside."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / ".venv-engine" / "bin" / "python"

RUNNER = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), run_name='__main__')"


def run_in_engine(module: str, *arguments: str) -> str:
    """Run a module of ours beside vLLM. Returns what it prints; a failure raises CalledProcessError.

    What the engine's environment has goes first; what it lacks (pandas, pyarrow, ...) is taken from ours, which must
    be of the same Python.
    """
    ran = subprocess.run(
        [ENGINE, "-c", RUNNER, sysconfig.get_paths()["purelib"], module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.stderr.write(ran.stderr)
        ran.check_returncode()
    return ran.stdout
