"""A campaign: measurements on a device that is there for a while only, in order of value, each kept once it ends.

Every part is a command of its own with a time of its own, so that one that hangs, fails or is cut off loses itself and
nothing else. Parts that need the same server follow each other and share it. Run again, a campaign does what is left.

    WORK/running/<part>/     the part under way, or what is left of one that was cut off
    WORK/done/<part>.tar.gz  a part that is complete
    WORK/logs/               what servers and parts printed
    OUT/campaign.json        what became of every part
    OUT/campaign-1.tar ...   the complete parts, in files of a size that can be carried
    OUT/logs.tar.gz          the logs
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from collectors.journal import say
from traces.errors import ServetwinError

SCHEMA = "servetwin.campaign/1"

LEAST_SHARE = 0.5
"""Share of a part's time that must be left for it to begin: times are generous, and half of one is often enough."""

END_WITHIN_S = 15.0
"""How long a part that is ended may take to end its own programs."""

REASON_LINES, REASON_LINE = 12, 300
"""Lines of a failed part's output that are kept as the reason, and characters of each; WORK/logs has all of it."""

_PR_SET_PDEATHSIG = 1
"""`prctl(2)`: the signal that a process gets when its parent ends."""


@dataclass(frozen=True, slots=True)
class Session:
    """A server that several parts in a row use.

    Attributes:
        name: of its log.
        budget_s: seconds that it may take to start.
        open: starts it and yields its address, ends it afterwards; given the file of its log and the seconds that it
            may take to start.
    """

    name: str
    budget_s: float
    open: Callable[[Path, float], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement.

    Attributes:
        name: of its folder and its archive.
        budget_s: seconds that it may take; it is ended then, and lost.
        command: program and arguments, given the folder to write into and the server's address ("" without a session).
        session: the server that it needs.
        instead_of: an earlier part that it stands in for: it runs only where that one failed.
        resumes: goes on with what is left in its folder; others begin with an empty one.
    """

    name: str
    budget_s: float
    command: Callable[[Path, str], Sequence[str | Path]]
    session: Session | None = None
    instead_of: str | None = None
    resumes: bool = False


class PartRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of a part.

    Attributes:
        status: `not needed` is one that would have stood in for a part that is complete.
        took_s: seconds; None: it did not run now.
        reason: why it is not complete.
    """

    name: str
    status: Literal["complete", "failed", "no time left", "not needed"]
    took_s: float | None = None
    reason: str = ""


class CampaignRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a campaign was run on and what became of its parts, in their order."""

    schema_version: str = SCHEMA
    host: dict[str, Any]
    parts: tuple[PartRecord, ...]


class Campaign:
    """Runs parts and keeps what they write."""

    def __init__(
        self,
        work: Path,
        out: Path,
        host: Mapping[str, Any],
        *,
        file_bytes: int,
        report: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is run yet.

        Args:
            work: where the campaign lives; the same again to go on.
            out: for what is to be carried home.
            host: facts about the host, kept beside the parts.
            file_bytes: most bytes of a file in `out`; a part that is larger has one of its own.
            report: takes a line for a person.
            clock: seconds.
        """
        self._work, self._out, self._host = work, out, dict(host)
        self._file_bytes, self._report, self._clock = file_bytes, report, clock
        self._records: dict[str, PartRecord] = {}
        for folder in (out, *(work / name for name in ("running", "done", "logs"))):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, parts: Sequence[Part], budget_s: float) -> tuple[PartRecord, ...]:
        """Run the parts that are not complete, in their order, for so many seconds at most. Returns all records."""
        self._ends_s = self._clock() + budget_s
        self._names = [part.name for part in parts]
        for part in parts:
            if self._archive(part).is_file():
                self._keep(PartRecord(name=part.name, status="complete"))
        for session, group in itertools.groupby(parts, key=lambda part: part.session):
            self._run_group(session, list(group))
        return self._in_order()

    def _run_group(self, session: Session | None, parts: Sequence[Part]) -> None:
        """Parts that share a server, or need none. The server is started for the first that is to run."""
        with ExitStack() as stack:
            url: str | None = "" if session is None else None
            for part in parts:
                start_s = session.budget_s if session is not None and url is None else 0.0
                if (record := self._without_running(part, start_s)) is not None:
                    self._keep(record)
                    continue
                if url is None and session is not None:
                    try:
                        url = self._started(session, stack)
                    except ServetwinError as error:
                        for lost in parts:
                            if lost.name not in self._records:
                                self._keep(self._not_served(lost, error))
                        return
                    if (record := self._without_running(part)) is not None:
                        self._keep(record)
                        continue
                self._keep(self._run(part, url or ""))

    def _not_served(self, part: Part, error: ServetwinError) -> PartRecord:
        """The record of a part whose server did not start: for want of time, or for a reason of its own."""
        if self._ends_s <= self._clock():
            return PartRecord(name=part.name, status="no time left")
        return PartRecord(name=part.name, status="failed", reason=_tail(str(error)))

    def _without_running(self, part: Part, start_s: float = 0.0) -> PartRecord | None:
        """The record of a part that is complete, is not needed, or has no time left; None: it is to run."""
        if part.name in self._records:
            return self._records[part.name]
        if part.instead_of is not None:
            first = self._records.get(part.instead_of)
            if first is None or first.status != "failed":
                return PartRecord(name=part.name, status="not needed", reason=f"{part.instead_of} did not fail")
        if self._ends_s - self._clock() < LEAST_SHARE * (start_s + part.budget_s):
            return PartRecord(name=part.name, status="no time left")
        return None

    def _started(self, session: Session, stack: ExitStack) -> str:
        begun_s = self._clock()
        most_s = min(session.budget_s, self._ends_s - begun_s)
        self._report(f"starting {session.name}, {most_s:.0f} s at most")
        url = stack.enter_context(session.open(self._work / "logs" / f"{session.name}.log", most_s))
        self._report(f"{session.name} serves after {self._clock() - begun_s:.0f} s")
        return url

    def _run(self, part: Part, url: str) -> PartRecord:
        folder, log = self._work / "running" / part.name, self._work / "logs" / f"{part.name}.log"
        if not part.resumes:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        begun_s = self._clock()
        most_s = min(part.budget_s, self._ends_s - begun_s)
        self._report(f"{part.name}, {most_s:.0f} s at most")
        try:
            code = run_within(part.command(folder, url), log, most_s)
        except ServetwinError as error:
            return PartRecord(name=part.name, status="failed", reason=_tail(str(error)))
        took_s = round(self._clock() - begun_s, 1)
        if code == 0:
            _pack(folder, self._archive(part))
            shutil.rmtree(folder)
            return PartRecord(name=part.name, status="complete", took_s=took_s)
        why = f"not done within {most_s:.0f} s" if code is None else f"exit code {code}"
        reason = f"{why}\n{_tail(log.read_text(errors='replace'))}".strip()
        return PartRecord(name=part.name, status="failed", took_s=took_s, reason=reason)

    def _in_order(self) -> tuple[PartRecord, ...]:
        return tuple(self._records[name] for name in self._names if name in self._records)

    def _archive(self, part: Part) -> Path:
        return self._work / "done" / f"{part.name}.tar.gz"

    def _keep(self, record: PartRecord) -> None:
        """Note what became of a part, and renew what is to be carried home."""
        if self._records.get(record.name) == record:
            return
        self._records[record.name] = record
        took = "" if record.took_s is None else f" after {record.took_s:.0f} s"
        reason = f": {record.reason}" if record.reason else ""
        self._report(f"{record.name}: {record.status}{took}{reason}")
        records = self._in_order()
        complete = [self._work / "done" / f"{one.name}.tar.gz" for one in records if one.status == "complete"]
        write_bundles(complete, self._out, self._file_bytes)
        campaign = CampaignRecord(host=self._host, parts=records)
        _pack(self._work / "logs", self._out / "logs.tar.gz")
        _replace(self._out / "campaign.json", msgspec.json.format(msgspec.json.encode(campaign), indent=1) + b"\n")


def run_within(command: Sequence[str | Path], log: Path, most_s: float) -> int | None:
    """Run a command with its output in a log. Returns its exit code; None when it was ended for want of time.

    It and all it started in its process group are ended: asked first, killed after `END_WITHIN_S`.
    """
    with log.open("ab") as stream:
        child = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, process_group=0
        )
        try:
            return child.wait(timeout=most_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(child)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=END_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, however that comes about (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def guarded_python(python: Path, out: Path) -> Path:
    """Write a program that is the interpreter `python`, but never outlives its parent. Returns it.

    An engine then never outlives a campaign that was killed, and never holds a device against the next one.
    """
    guard = Path(__file__).with_name("guard.py").resolve()
    out.write_text(f'#!/bin/sh\nexec "{python}" -I "{guard}" "{python}" "$@"\n')
    out.chmod(0o755)
    return out


def write_bundles(archives: Iterable[Path], out: Path, file_bytes: int) -> None:
    """Pack the archives, in their order, into `campaign-1.tar` and so on, none larger than so many bytes."""
    bundles: list[list[Path]] = []
    room = 0
    for archive in archives:
        size = archive.stat().st_size + 2 * tarfile.BLOCKSIZE
        if not bundles or size > room:
            bundles.append([])
            room = file_bytes - tarfile.RECORDSIZE
        bundles[-1].append(archive)
        room -= size
    for number, members in enumerate(bundles, start=1):
        path = out / f"campaign-{number}.tar"
        temporary = path.with_suffix(".part")
        with tarfile.open(temporary, "w") as tar:
            for member in members:
                tar.add(member, member.name)
        temporary.replace(path)


def unpack_bundles(folder: Path, done: Path) -> list[str]:
    """Put the complete parts that bundles in a folder hold among the done ones. Returns their names."""
    done.mkdir(parents=True, exist_ok=True)
    names = []
    for bundle in sorted(folder.glob("campaign-*.tar")):
        with tarfile.open(bundle) as tar:
            names += [name.removesuffix(".tar.gz") for name in tar.getnames()]
            tar.extractall(done, filter="data")
    return names


def _tail(text: str) -> str:
    """The last lines of a text, and of each its beginning."""
    return "\n".join(line[:REASON_LINE] for line in text.splitlines()[-REASON_LINES:])


def _pack(folder: Path, archive: Path) -> None:
    temporary = archive.with_suffix(".part")
    with tarfile.open(temporary, "w:gz") as tar:
        tar.add(folder, ".")
    temporary.replace(archive)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_bytes(data)
    temporary.replace(path)
