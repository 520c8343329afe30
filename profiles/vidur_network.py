"""Vidur's times between devices (`data/profiling/network/<network device>/{all_reduce,send_recv}.csv`).

A row has the median and the standard deviation, in milliseconds, of a collective of NCCL over `size` bytes (what each
rank holds, microsoft/vidur `vidur/profiling/collectives/collectives_wrapper.py`) between `num_workers` devices,
`devices_per_node` of them on each node. Vidur takes all-reduces of devices on one node, and sends between two devices
of one node or, of several nodes, of two (`sklearn_execution_time_predictor.py`).

What was not measured: the all-gather of the logits, which Vidur leaves out. On a ring an all-reduce is a reduce-scatter
and an all-gather of as many bytes (nccl-tests, doc/PERFORMANCE.md), so half of its time is taken, and said.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from profiles.csv_table import CsvTable, read_csv
from profiles.profile import Curve
from traces.errors import InputError
from traces.steps import Floats

COUNTS = ("num_workers", "devices_per_node", "size")


@dataclass(frozen=True, slots=True)
class Network:
    """What was measured between the devices of a node.

    Attributes:
        name: the folder's, Vidur's name of such a node.
        collectives: curves over bytes by operation and number of ranks.
        notes: what was left out, and what a link of that kind is.
    """

    name: str
    collectives: dict[str, dict[int, Curve]]
    notes: tuple[str, ...]

    def check_device(self, device: str) -> None:
        """Raise InputError unless the network is one of such devices: its name begins with theirs, as in Vidur."""
        if not self.name.startswith(device):
            accepted = f"a network whose name begins with {device}"
            raise InputError(f"is between other devices than {device}", field="--network", found=self.name,
                             accepted=accepted)  # fmt: skip


def read_network(folder: Path) -> Network:
    """Read a folder with an all_reduce.csv and perhaps a send_recv.csv. Raises InputError with file, line and field."""
    if not (file := folder / "all_reduce.csv").is_file():
        accepted = "a folder with an all_reduce.csv, as <network device> of Vidur's data/profiling/network"
        raise InputError("holds no network of Vidur", file=folder, accepted=accepted)
    reduces = _Times(file, "all_reduce")
    by_ranks = {ranks: reduces.curve(ranks, ranks) for ranks in reduces.of_one_node()}
    if not by_ranks:
        raise InputError("has no rows of devices on one node", file=file, field="devices_per_node")
    gathers = {n: Curve(curve.x, curve.time_s / 2, curve.spread) for n, curve in by_ranks.items()}
    notes = [
        f"all-reduces of {folder.resolve().name}; an all-gather is half an all-reduce of as many bytes, as on a ring",
        *reduces.notes(sum(len(curve.x) for curve in by_ranks.values())),
    ]
    if (sends := folder / "send_recv.csv").is_file():
        notes += _link_notes(_Times(sends, "send_recv"))
    return Network(folder.resolve().name, {"all_reduce": by_ranks, "all_gather": gathers}, tuple(notes))


def _link_notes(sends: _Times) -> list[str]:
    """What pipeline stages need, a latency and a bandwidth: the line through the times, weighted by 1 / time."""
    notes = []
    for per_node, where in ((2, "on one node"), (1, "on two nodes")):
        if not sends.has(2, per_node):
            continue
        curve = sends.curve(2, per_node)
        terms = np.column_stack([np.ones(len(curve.x)), curve.x]) / curve.time_s[:, None]
        (latency_s, per_byte_s), *_ = np.linalg.lstsq(terms, np.ones(len(curve.x)), rcond=None)
        if len(curve.x) < 2 or per_byte_s <= 0 or latency_s < 0:
            notes.append(f"sends between two devices {where} do not grow with their bytes: no link is made of them")
            continue
        off = np.median(np.abs(latency_s + per_byte_s * curve.x - curve.time_s) / curve.time_s)
        link = f"bandwidth_bytes_per_s: {1 / per_byte_s:.4g}, latency_s: {latency_s:.3g}"
        notes.append(f"a link between two devices {where}, for a fabric: {{{link}}}; median error {off:.1%}")
    return notes


class _Times:
    """A file of one collective: medians by bytes, of those ranks that are asked for."""

    def __init__(self, file: Path, collective: str) -> None:
        columns = [f"time_stats.{collective}.{stat}" for stat in ("median", "std")]
        table: CsvTable = read_csv(file, [*COUNTS, "collective", *columns], others=True)
        self._file = file
        self._ranks, self._per_node, self._bytes = (table.numbers(name, above_0=True, whole=True) for name in COUNTS)
        names = np.asarray(table.texts("collective"))
        if (other := np.flatnonzero(names != collective)).size:
            raise table.error(int(other[0]), "collective", found=str(names[other[0]]), accepted=collective)
        for name, values, most in ((COUNTS[0], 1 / self._ranks, 0.5), (COUNTS[1], self._per_node, self._ranks)):
            if (wrong := np.flatnonzero(values > most)).size:
                at, accepted = int(wrong[0]), "2 or more" if name == COUNTS[0] else "at most num_workers"
                raise table.error(at, name, found=table.texts(name)[at], accepted=accepted)
        self._median_s, self._std_s = (table.numbers(column) * 1e-3 for column in columns)

    def of_one_node(self) -> list[int]:
        """Numbers of ranks that were measured on one node."""
        return [int(n) for n in np.unique(self._ranks[(self._per_node == self._ranks) & (self._median_s > 0)])]

    def has(self, ranks: int, per_node: int) -> bool:
        """Whether there are times above 0 of so many ranks."""
        return bool(self._rows(ranks, per_node).any())

    def curve(self, ranks: int, per_node: int) -> Curve:
        """Their times; of a size measured several times the mean counts."""
        own = self._rows(ranks, per_node)
        sizes, group, runs = np.unique(self._bytes[own], return_inverse=True, return_counts=True)
        time_s = np.bincount(group.reshape(-1), self._median_s[own]) / runs
        spread: Floats = np.bincount(group.reshape(-1), self._std_s[own]) / runs / time_s
        return Curve(sizes, time_s, spread)

    def _rows(self, ranks: int, per_node: int) -> npt.NDArray[np.bool_]:
        own: npt.NDArray[np.bool_] = (self._ranks == ranks) & (self._per_node == per_node) & (self._median_s > 0)
        return own

    def notes(self, n_points: int) -> list[str]:
        """What was left out or averaged, of `n_points` that were made of the file."""
        apart = int((self._per_node != self._ranks).sum())
        zero = int(((self._per_node == self._ranks) & (self._median_s == 0)).sum())
        again = len(self._ranks) - apart - zero - n_points
        said = [(again, "rows measured again, averaged"), (apart, "rows between nodes left out"),
                (zero, "times of 0 ms left out")]  # fmt: skip
        return [f"{self._file.name}: {count} {what}" for count, what in said if count]
