"""Runs a program that never outlives whoever started it: `python -I guard.py PROGRAM ...`.

An engine that is left behind holds the device against the next one, and a server that is asked to end while it starts
may hang. So a second process watches: once the one that started the program is gone, it ends the program's process
group, asked first and killed soon after. It ends by itself when the program does.

Imports the standard library only, and runs in any environment.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

LOOK_EVERY_S = 0.5
END_WITHIN_S = 5.0
"""How long the program may take to end its own processes once it is asked."""


def main() -> None:
    """Become the program, in a process group of its own, watched by a child."""
    program, starter = os.getpid(), os.getppid()
    with suppress(PermissionError):  # the leader of a session leads a group already
        os.setpgid(0, 0)
    if os.fork():
        os.execv(sys.argv[1], sys.argv[1:])
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    watch(program, starter)


def watch(program: int, starter: int) -> None:
    """End the group of `program`, this process's parent, once `starter` is no longer its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the group: the program may need longer than that
    while os.getppid() == program and parent_of(program) == starter:
        time.sleep(LOOK_EVERY_S)
    if os.getppid() != program:
        return
    os.killpg(program, signal.SIGTERM)
    give_up_s = time.monotonic() + END_WITHIN_S
    while os.getppid() == program and time.monotonic() < give_up_s:
        time.sleep(LOOK_EVERY_S)
    os.killpg(program, signal.SIGKILL)


def parent_of(process: int) -> int | None:
    """The parent of a process; None when it is gone (Linux, `proc(5)`: the second field behind the name)."""
    try:
        with open(f"/proc/{process}/stat") as stat:  # noqa: PTH123
            return int(stat.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


if __name__ == "__main__":
    main()
