"""The process that has imported everything. For each command it forks twice: who runs it, and who waits for its end."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import sys
from typing import NoReturn

PACKAGES = ("traces", "profiles", "simulator", "calibrate", "harness")
LATE = (
    "collectors.recording.replay",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "pandas",
    "pyarrow.parquet",
)
"""What commands import when they need it."""


def import_everything() -> None:
    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    gc.freeze()


def next_command(listener: socket.socket) -> bool:
    """Wait for commands. Returns True in a process that is to run one, False when none will come."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how those that wait ended
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        with connection:
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                become(connection)
                return True
    return False


def become(connection: socket.socket) -> None:
    """Turn into the command that the other side is; the process that called this one waits for it and tells its end."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as sent:
        command = json.loads(sent.read())
    if runs := os.fork():
        for file in files:
            os.close(file)
        _, status = os.waitpid(runs, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    # Python's own streams have read and written nothing yet: they are the command's when their files are.
    for file, standard in zip(files, range(3), strict=True):
        os.dup2(file, standard)
        os.close(file)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv = ["servetwin", *command["arguments"]]


def run() -> NoReturn:
    """Run the command and end, without taking apart all that was imported: that takes longer than most commands."""
    from harness.cli import main

    code: object = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    assert code is None or isinstance(code, int)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        import_everything()
        asked = next_command(listening)
    if asked:
        run()
    shutil.rmtree(sys.argv[2])
