"""The command line from outside, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

COMMAND = [sys.executable, "-c", "from harness.cli import main; main()"]
"""`servetwin` of the tree that is tested."""


def servetwin(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, with more in its environment."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def ok(*arguments: object) -> str:
    """What a command prints that must end well."""
    ran = servetwin(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
