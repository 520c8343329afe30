"""The command line from outside: what a command prints, and how it ends.

A process of its own takes as long to import as most commands take to run, so that commands run in this one.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from harness.cli import main

COMMAND = [sys.executable, "-c", "from harness.cli import main; main()"]
"""`servetwin` of the tree that is tested, as a process."""


def servetwin(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, with more in its environment. What it raises and does not turn into an exit code is raised."""
    command = ["servetwin", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), None
    with (
        patch.object(sys, "argv", command),
        patch.dict(os.environ, environment),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert code is None or isinstance(code, int)
    return subprocess.CompletedProcess(command, code or 0, out.getvalue(), err.getvalue())


def as_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, where that is what matters."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)


def ok(*arguments: object) -> str:
    """What a command prints that must end well."""
    ran = servetwin(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
