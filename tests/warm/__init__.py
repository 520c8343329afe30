"""`servetwin` without its imports: one process imports everything, and forks for every command that a shell gives it.

Most commands take less time than what they import. For the shell there is no difference: the fork has the command's
arguments, environment, folder and open files, and ends as the command ends. `test_warm` holds that.
"""

from __future__ import annotations

import atexit
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

CLIENT, SERVER = (Path(__file__).with_name(f"{name}.py") for name in ("client", "server"))


@cache
def folder() -> Path:
    """A folder for the PATH with a `servetwin` that is warm until this process ends."""
    made = Path(tempfile.mkdtemp(prefix="servetwin-"))
    shim = made / "servetwin"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{CLIENT}" "{made}/socket" "$@"\n')
    shim.chmod(0o755)
    # What connects before the server has imported everything waits.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{made}/socket")
        listener.listen()
        command = [sys.executable, "-P", str(SERVER), str(listener.fileno()), str(made)]
        # It ends when its standard input does, whichever way this process ends, and removes the folder.
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()]
        )
    atexit.register(server.communicate)
    return made
