"""A server of our own: waited for, ended with all it started, and quoted when it does not come up."""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from collectors.local.server import local_server
from traces.errors import EngineError

SERVING = """
import http.server, pathlib, subprocess, sys
child = subprocess.Popen(["sleep", "600"])
pathlib.Path({child_file!r}).write_text(str(child.pid))
print("flags", *sys.argv[1:], flush=True)

statuses = [503]

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(statuses.pop() if statuses else 200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""

DYING = """
import sys
for line in range(40):
    print("line", line)
sys.exit("no such model")
"""


def stand_in(folder: Path, program: str) -> Path:
    """Something to start in the place of the engine's interpreter."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\n{program}")
    file.chmod(0o755)
    return file


def ends(pid: int) -> bool:
    """Whether a process that was sent a signal ends; one that only waits to be collected has."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_it_is_up_inside_the_block_and_gone_with_its_children_after(tmp_path: Path) -> None:
    child = tmp_path / "child"
    python = stand_in(tmp_path, SERVING.format(child_file=str(child)))
    with local_server(python, tmp_path / "model", tmp_path / "log", flags=["--enforce-eager"]) as url:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            assert answer.status == 200
        os.kill(int(child.read_text()), 0)
    assert ends(int(child.read_text()))
    flags = (tmp_path / "log").read_text()
    assert f"--model {tmp_path / 'model'}" in flags
    assert "--host 127.0.0.1" in flags
    assert "--enforce-eager" in flags


def test_one_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    python = stand_in(tmp_path, DYING)
    with (
        pytest.raises(EngineError, match=r"exit status 1:\n(.|\n)*line 39\nno such model$") as raised,
        local_server(python, tmp_path / "model", tmp_path / "log"),
    ):
        pytest.fail("it never came up")
    assert "line 2\n" not in str(raised.value)
