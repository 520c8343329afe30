"""DRAM timing files as DRAMsim3 has them (Li et al., IEEE CAL 2020), and what they say of one channel.

LLMServingSim keeps one for each kind of memory that computes (`configs/pim/*.ini`), with `idle_power` and `peak_power`
of a channel beside DRAMsim3's own keys. Of the timing only what a transfer takes is used: the bus, the data rate and
the time to the first byte of a read. How long attention takes inside a bank does not follow from it; it is stated, or
known by the file's name (`profiles.near_memory`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from traces.decoding import lines, read_bytes
from traces.errors import InputError, nearest

MIB = 1 << 20
_COMMENTS = ("#", ";")


@dataclass(frozen=True, slots=True)
class DramChannel:
    """One channel of a memory.

    Attributes:
        name: the timing file's, without its ending.
        path: the file.
        capacity_bytes: what it holds: whole ranks of devices side by side on its bus.
        bandwidth_bytes_per_s: of its bus.
        read_latency_s: from a read to its first byte.
        idle_w: at rest; None: the file does not say.
        peak_w: while it computes; None likewise.
    """

    name: str
    path: Path
    capacity_bytes: int
    bandwidth_bytes_per_s: float
    read_latency_s: float
    idle_w: float | None
    peak_w: float | None


def read_dram(path: Path) -> DramChannel:
    """A channel from its timing file. Raises InputError with file, line and field for what is missing or no number.

    Capacity is DRAMsim3's (`src/configuration.cc`, `CalculateSize`): as many ranks as the stated `channel_size`, in
    MiB, has room for, and one at least. Its keys that are not named here are not read.
    """
    said = _Said(path)
    device_width, bus_width = said.whole("device_width"), said.whole("bus_width")
    if bus_width % device_width:
        raise said.error("bus_width", accepted=f"a multiple of device_width {device_width}")
    page_bytes = said.whole("columns") * device_width // 8
    banks = said.whole("bankgroups") * said.whole("banks_per_group")
    rank_bytes = page_bytes * said.whole("rows") * banks * (bus_width // device_width)
    ranks = max(1, said.whole("channel_size") * MIB // rank_bytes)
    idle_mw, peak_mw = (said.number(name) if said.has(name) else None for name in ("idle_power", "peak_power"))
    if idle_mw is not None and peak_mw is not None and peak_mw < idle_mw:
        raise said.error("peak_power", accepted=f"at least idle_power {idle_mw:g}")
    return DramChannel(
        path.stem,
        path,
        ranks * rank_bytes,
        bus_width / 8 * said.number("data_rate") * 1e6,  # MT/s
        said.number("CL") * said.number("tCK") * 1e-9,  # cycles of so many ns
        None if idle_mw is None else idle_mw * 1e-3,
        None if peak_mw is None else peak_mw * 1e-3,
    )


def find_dram(name: str, beside: Path, folders: Sequence[Path]) -> DramChannel:
    """A channel by its file's path, or by its name without an ending in the folders, at any depth.

    Raises InputError that lists what is there.
    """
    if name.endswith(".ini"):
        return read_dram(beside.parent / name)
    files = {file.stem: file for folder in reversed(folders) for file in sorted(folder.rglob("*.ini"), reverse=True)}
    if name not in files:
        accepted = (
            f"a path ending in .ini, or the name of such a file under a folder of profiles: {_known(name, files)}"
        )
        raise InputError(field="timing", found=name, accepted=accepted)
    return read_dram(files[name])


def _known(name: str, files: dict[str, Path]) -> str:
    return nearest(name, files) if files else "there are none"


class _Said:
    """The file's keys with their values and lines; sections only group them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, tuple[str, int]] = {}
        for number, raw in lines(read_bytes(path)):
            line = raw.decode("utf-8", "replace")
            for comment in _COMMENTS:
                line = line.partition(comment)[0]
            line = line.strip()
            if not line or line.startswith("["):
                continue
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals:
                raise InputError(file=path, line=number, found=line, accepted="key = value, or a [section]")
            self._values[key] = (value, number)

    def has(self, name: str) -> bool:
        return name in self._values

    def number(self, name: str) -> float:
        """A number above 0."""
        if not self.has(name):
            raise InputError("is missing", file=self._path, field=name, accepted="a number above 0")
        try:
            value = float(self._values[name][0])
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise self.error(name, accepted="a number above 0")
        return value

    def whole(self, name: str) -> int:
        """A whole number above 0."""
        value = self.number(name)
        if value != int(value):
            raise self.error(name, accepted="a whole number")
        return int(value)

    def error(self, name: str, *, accepted: str) -> InputError:
        value, line = self._values[name]
        return InputError(file=self._path, line=line, field=name, found=value, accepted=accepted)
