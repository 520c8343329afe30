"""What was appended can be read: after a kill, on a full disk, and behind what an earlier run left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collectors.journal import FLUSH_EVERY_S, Journal, read_journal
from traces.errors import CollectorError

WRITES_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from collectors.journal import Journal
journal = Journal(Path(sys.argv[1]), "test/1")
for i in range(10**9):
    journal.append({"i": i, "at_s": time.monotonic(), "padding": "x" * 500})
    time.sleep(0.0005)
"""


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for _, line in read_journal(path)]


def test_records_stand_behind_a_header_with_both_clocks(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", "test/1", who="me") as journal:
        journal.append({"i": 1})
    header, one = records(tmp_path / "j")
    assert (header["kind"], header["schema"], header["who"]) == ("header", "test/1", "me")
    assert {"wall_ns", "monotonic_ns"} <= header.keys()
    assert one == {"i": 1}


def test_all_but_the_last_second_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with subprocess.Popen([sys.executable, "-c", WRITES_UNTIL_KILLED, str(path)]) as writer:
        while not path.exists() or path.stat().st_size < 200_000:
            time.sleep(0.05)
        killed_s = time.monotonic()
        writer.send_signal(signal.SIGKILL)
    last = records(path)[1:]
    assert [record["i"] for record in last] == list(range(len(last)))
    assert float(str(last[-1]["at_s"])) > killed_s - 2 * FLUSH_EVERY_S - 1.0  # and the time the machine was busy


def test_a_journal_goes_on_behind_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, "test/1") as journal:
        journal.append({"i": 1})
    with path.open("ab") as stream:
        stream.write(b'{"i": 2, "cut')
    assert [record.get("i") for record in records(path)] == [None, 1]
    with Journal(path, "test/1") as journal:
        journal.append({"i": 3})
    assert [record.get("i") for record in records(path)] == [None, 1, None, 3]


@pytest.mark.parametrize("content", [b"no line at all", b"x" * 200_000, b"a\n" + b"x" * 200_000, b""])
def test_only_whole_lines_are_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    Journal(path, "test/1").close()
    whole = content[: content.rfind(b"\n") + 1]
    assert path.read_bytes().startswith(whole + b'{"kind":"header"')


def test_a_full_disk_is_said_once_and_a_loss_at_the_end_is_an_error(tmp_path: Path) -> None:
    full = tmp_path / "j"
    full.symlink_to("/dev/full")
    said: list[str] = []
    journal = Journal(full, "test/1", said.append)
    journal.append({"i": 1})
    journal.flush()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    with pytest.raises(CollectorError, match="bytes could not be written"):
        journal.close()


def test_nothing_is_lost_once_there_is_space_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes three bytes more and is then full for a while, in the middle of a line."""
    said: list[str] = []
    journal = Journal(tmp_path / "j", "test/1", said.append)
    import os

    write, room = os.write, [3]

    def short_write(file: int, data: bytearray) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = write(file, bytes(data[: room[0]]))
        room[0] -= taken
        return taken

    with monkeypatch.context() as patched:
        patched.setattr("collectors.journal.os.write", short_write)
        journal.append({"i": 1})
        journal.flush()
        journal.append({"i": 2})
        journal.flush()
    journal.flush()
    journal.close()
    assert [record.get("i") for record in records(tmp_path / "j")] == [None, 1, 2]
    assert [("kept in memory" in line, "written again" in line) for line in said] == [(True, False), (False, True)]


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match="No such file or directory"):
        Journal(tmp_path / "nowhere" / "j", "test/1")
