"""A campaign's parts: each within its time, each kept as it ends, and none run twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from collectors.campaign.parts import (
    Campaign,
    CampaignRecord,
    Part,
    PartRecord,
    Session,
    guarded_python,
    run_within,
    unpack_bundles,
    write_bundles,
)
from traces.errors import CollectorError, EngineError

MIB = 1 << 20


def writes(text: str) -> Callable[[Path, str], list[str]]:
    """A command that writes a text, and its server's address, into its folder."""
    code = "import sys, pathlib; pathlib.Path(sys.argv[1], 'found').write_text(sys.argv[2] + sys.argv[3])"
    return lambda folder, url: [sys.executable, "-c", code, str(folder), text, url]


def python(code: str) -> Callable[[Path, str], list[str]]:
    return lambda folder, _: [sys.executable, "-c", code, str(folder)]


def campaign(folder: Path, clock: Callable[[], float] = time.monotonic) -> Campaign:
    return Campaign(
        folder / "work", folder / "out", {"cpu": "a CPU"}, file_bytes=MIB, report=lambda _: None, clock=clock
    )


def statuses(records: tuple[PartRecord, ...]) -> dict[str, str]:
    return {record.name: record.status for record in records}


def found(folder: Path, part: str) -> str:
    """What a complete part wrote, as it is carried home."""
    unpack_bundles(folder / "out", folder / "home")
    with tarfile.open(folder / "home" / f"{part}.tar.gz") as tar:
        member = tar.extractfile("./found")
        assert member is not None
        return member.read().decode()


def ends(pid: str) -> bool:
    """Whether a process that was asked to end has ended, or does soon; one that nobody waits for stays as a zombie."""
    stat = Path("/proc", pid, "stat")
    for _ in range(1000):
        try:
            if ") Z " in stat.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_part_that_fails_loses_itself_alone_and_says_why(tmp_path: Path) -> None:
    parts = [Part("bad", 60, python("print('the GPU is gone'); raise SystemExit(3)")), Part("good", 60, writes("yes"))]
    records = campaign(tmp_path).run(parts, 600)
    assert statuses(records) == {"bad": "failed", "good": "complete"}
    assert records[0].reason == "exit code 3\nthe GPU is gone"
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as tar:
        assert {"./bad.log", "./good.log"} <= set(tar.getnames())
    assert found(tmp_path, "good") == "yes"
    told = msgspec.json.decode((tmp_path / "out" / "campaign.json").read_bytes(), type=CampaignRecord)
    assert told.parts == records
    assert told.host == {"cpu": "a CPU"}


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import subprocess, pathlib; c = subprocess.Popen(['sleep', '600']); pathlib.Path({str(pid)!r})"
    code += ".write_text(str(c.pid)); c.wait()"
    records = campaign(tmp_path).run([Part("hangs", 1.0, python(code)), Part("next", 60, writes("ran"))], 600)
    assert statuses(records) == {"hangs": "failed", "next": "complete"}
    assert records[0].reason == "not done within 1 s"
    assert ends(pid.read_text())


def test_what_is_complete_is_not_run_again(tmp_path: Path) -> None:
    first, second = Part("first", 60, writes("1")), Part("second", 60, writes("2"))
    campaign(tmp_path).run([first, Part("second", 60, python("raise SystemExit(1)"))], 600)
    assert statuses(campaign(tmp_path).run([Part("first", 60, writes("other")), second], 600)) == {
        "first": "complete",
        "second": "complete",
    }
    assert (found(tmp_path, "first"), found(tmp_path, "second")) == ("1", "2")


def test_it_goes_on_elsewhere_with_what_was_carried_home(tmp_path: Path) -> None:
    campaign(tmp_path / "a").run([Part("first", 60, writes("1"))], 600)
    assert unpack_bundles(tmp_path / "a" / "out", tmp_path / "b" / "work" / "done") == ["first"]
    records = campaign(tmp_path / "b").run([Part("first", 60, writes("2")), Part("second", 60, writes("3"))], 600)
    assert records[0] == PartRecord(name="first", status="complete")
    assert found(tmp_path / "b", "first") == "1"


def test_parts_that_share_a_server_start_it_once_and_only_when_one_is_to_run(tmp_path: Path) -> None:
    opened: list[str] = []

    @contextmanager
    def serving(log: Path, within_s: float) -> Iterator[str]:
        opened.append("begin")
        yield f"http://{log.name}"
        opened.append("end")

    session = Session("server", 60, serving)
    parts = [Part(name, 60, writes(""), session) for name in "ab"]
    campaign(tmp_path).run([*parts, Part("c", 60, writes(""))], 600)
    assert opened == ["begin", "end"]
    assert found(tmp_path, "b") == "http://server.log"
    assert found(tmp_path, "c") == ""
    campaign(tmp_path).run(parts, 600)
    assert opened == ["begin", "end"]


def test_a_server_that_does_not_start_loses_its_parts_alone(tmp_path: Path) -> None:
    @contextmanager
    def serving(log: Path, within_s: float) -> Iterator[str]:
        raise EngineError("out of memory")
        yield ""

    session = Session("server", 60, serving)
    records = campaign(tmp_path).run([Part("a", 60, writes(""), session), Part("b", 60, writes("yes"))], 600)
    assert statuses(records) == {"a": "failed", "b": "complete"}
    assert records[0].reason == "out of memory"


@pytest.mark.parametrize("starts", [True, False])
def test_a_server_may_take_what_is_left_and_no_more(tmp_path: Path, starts: bool) -> None:
    """A part that has no time left after the start, or through it, is one for which there was no time."""
    now_s, given = [0.0], []

    @contextmanager
    def serving(log: Path, within_s: float) -> Iterator[str]:
        given.append(within_s)
        now_s[0] += within_s
        if not starts:
            raise EngineError("not ready in time")
        yield ""

    session = Session("server", 300, serving)
    parts = [Part(name, 180, writes(""), session) for name in "ab"]
    records = campaign(tmp_path, clock=lambda: now_s[0]).run(parts, 250)
    assert given == [250]
    assert statuses(records) == {"a": "no time left", "b": "no time left"}


def test_a_part_whose_premise_is_missing_fails_before_it_begins(tmp_path: Path) -> None:
    def command(folder: Path, url: str) -> list[str]:
        raise CollectorError("no rate")

    (record,) = campaign(tmp_path).run([Part("knee", 60, command)], 600)
    assert (record.status, record.reason) == ("failed", "no rate")


def test_a_part_that_stands_in_runs_only_where_the_first_failed(tmp_path: Path) -> None:
    good, bad = writes("yes"), python("raise SystemExit(1)")
    parts = [Part("a", 60, good), Part("a2", 60, good, instead_of="a"), Part("a3", 60, good, instead_of="a2")]
    parts += [Part("b", 60, bad), Part("b2", 60, bad, instead_of="b"), Part("b3", 60, good, instead_of="b2")]
    assert list(statuses(campaign(tmp_path).run(parts, 600)).values()) == [
        *("complete", "not needed", "not needed"),
        *("failed", "failed", "complete"),
    ]


def test_a_part_begins_only_with_half_its_time_left_and_a_shorter_one_still_may(tmp_path: Path) -> None:
    parts = [Part("long", 300, writes("")), Part("short", 100, writes(""))]
    records = campaign(tmp_path, clock=lambda: 0.0).run(parts, 120)
    assert statuses(records) == {"long": "no time left", "short": "complete"}


def test_a_part_that_resumes_finds_what_was_left(tmp_path: Path) -> None:
    code = "import sys, pathlib; f = pathlib.Path(sys.argv[1], 'found'); f.open('a').write('x')"
    once = python(code + "; raise SystemExit(len(f.read_text()) < 2)")
    for name, resumes in (("resumes", True), ("begins", False)):
        parts = [Part(name, 60, once, resumes=resumes)]
        assert [statuses(campaign(tmp_path).run(parts, 600))[name] for _ in range(2)] == [
            "failed",
            "complete" if resumes else "failed",
        ]


def test_bundles_are_no_larger_than_what_can_be_carried(tmp_path: Path) -> None:
    archives = []
    for i, size in enumerate((300_000, 600_000, 200_000, 2 * MIB)):
        archives.append(tmp_path / f"{i}.tar.gz")
        archives[-1].write_bytes(os.urandom(size))
    write_bundles(archives, tmp_path, MIB)
    bundles = sorted(tmp_path.glob("campaign-*.tar"))
    members = []
    for bundle in bundles:
        with tarfile.open(bundle) as tar:
            members.append(tar.getnames())
    assert members == [["0.tar.gz", "1.tar.gz"], ["2.tar.gz"], ["3.tar.gz"]]  # the last is too large by itself
    assert all(bundle.stat().st_size <= MIB for bundle in bundles[:2])


def test_an_engine_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """A campaign that is killed leaves nothing that holds the device, not even a server that does not mind SIGTERM."""
    engine = guarded_python(Path(sys.executable), tmp_path / "python")
    pid = tmp_path / "pid"
    inner = "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    inner += f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    outer = f"import subprocess; subprocess.run([{str(engine)!r}, '-c', {inner!r}])"
    starter = subprocess.Popen([sys.executable, "-c", outer])
    while not pid.exists() or not pid.read_text():
        time.sleep(0.02)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert ends(pid.read_text())


def test_what_runs_in_time_returns_its_exit_code(tmp_path: Path) -> None:
    assert run_within([sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "log", 60) == 7
