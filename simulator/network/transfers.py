"""Transfers over links that they share: a fluid model, exact between events.

A transfer takes the latencies of its links before its first byte. From then on it has its max-min fair share of every
link on its path: no transfer can have more without another that has no more than it getting less (Bertsekas and
Gallager, Data Networks, 2nd ed., section 6.5.2, which also has the progressive filling used here). Rates change only
when a transfer joins or leaves, so that time passes from one such event to the next and is never sliced.

Something else may take part of a link at set times, as an engine's collectives do: transfers share what it leaves, and
at least what they would have if each such user were one transfer more.

Transfers over the same links have the same rate. They are one flow with one count of bytes, and an event costs as much
as the flows that share links with it, however many transfers these hold. Packets, congestion control and loss are not
modelled.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Protocol

import numpy as np
import numpy.typing as npt

from simulator.network.links import Link, Path
from traces.steps import Floats


class User(Protocol):
    """What takes part of a link beside transfers."""

    def rate(self, link: Link, at_s: float) -> tuple[float, float]:
        """Bytes per second from this moment on, and until when as far as that is known; infinite when it is not."""
        ...


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes on their way.

    Attributes:
        path: the links it crosses.
        n_bytes: what is sent.
        start_s: when its latency begins.
        number: transfers of a network are counted from 0, in the order they were started.
        owner: whatever the caller wants to find it by.
        end_s: when its last byte arrived; None before, and when it was cancelled.
        cancelled_s: when it was cancelled; None when it was not.
        carried_bytes: what was sent when it ended or was cancelled; None before.
        first_byte_s: when its latency is over.
    """

    path: Path
    n_bytes: float
    start_s: float
    number: int
    owner: object = None
    end_s: float | None = None
    cancelled_s: float | None = None
    carried_bytes: float | None = None
    first_byte_s: float = 0.0
    _flow: _Flow | None = field(default=None, repr=False)
    _until_bytes: float = field(default=0.0, repr=False)


@dataclass(slots=True, eq=False)
class _Line:
    """A link in use: its flows, the bytes they have carried, and each change of the rate of all of them together.

    `left` is the bandwidth that its other users leave.

    Bytes are counted and not integrated from the record: a small transfer late in a long run may be shorter than what
    a float can tell of the time.
    """

    link: Link
    left: float
    flows: dict[_Flow, None] = field(default_factory=dict)
    carried_bytes: float = 0.0
    times_s: array[float] = field(default_factory=lambda: array("d"))
    rates: array[float] = field(default_factory=lambda: array("d"))
    carried: array[float] = field(default_factory=lambda: array("d"))


@dataclass(slots=True, eq=False)
class _Flow:
    """Transfers over the same links.

    `served_bytes` is what one that was there all the while had got at `at_s`; each ends at a value of it.
    """

    path: Path
    lines: tuple[_Line, ...]
    at_s: float
    count: int = 0
    rate: float = 0.0
    served_bytes: float = 0.0
    ends: list[tuple[float, int, Transfer]] = field(default_factory=list)
    entry: int = -1


_CANCEL, _JOIN, _SHARE = 0, 1, 2


class Network:
    """Links with transfers on them.

    Starts and cancellations may be told ahead of time; they happen in `advance`, in order of time. At one moment ends
    come first, then cancellations, then first bytes, each in the order they were told.

    Attributes:
        now_s: up to when everything has happened.
        under_way: transfers that have neither ended nor been cancelled, by number.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.under_way: dict[int, Transfer] = {}
        self._n_started = 0
        self._lines: dict[Link, _Line] = {}
        self._flows: dict[Path, _Flow] = {}
        # First bytes and cancellations to come, and the next end of each flow while its rate stays as it is. An entry
        # is the flow's own only while the flow names it: others are left over from former rates.
        self._changes: list[tuple[float, int, int, Transfer | _Line]] = []
        self._ends: list[tuple[float, int, _Flow]] = []
        self._n_entries = 0
        # Who else takes part of a link.
        self._users: dict[Link, list[User]] = {}

    def start(self, path: Path, n_bytes: float, start_s: float, owner: object = None) -> Transfer:
        """Send bytes over a path, from `start_s` on, which is not before `now_s`."""
        assert start_s >= self.now_s, f"a transfer cannot start at {start_s} s, it is {self.now_s} s"
        assert 0 <= n_bytes < math.inf, f"a transfer of {n_bytes} bytes"
        transfer = Transfer(path, n_bytes, start_s, self._n_started, owner)
        self._n_started += 1
        self.under_way[transfer.number] = transfer
        transfer.first_byte_s = start_s + sum([link.latency_s for link in path])
        self._at(transfer.first_byte_s, _JOIN, transfer)
        return transfer

    def cancel(self, transfer: Transfer, at_s: float) -> None:
        """Take a transfer off its links, at `at_s`, which is not before `now_s`; one that has ended by then has ended.

        What it has carried stays in the record of its links.
        """
        assert at_s >= self.now_s, f"a transfer cannot be cancelled at {at_s} s, it is {self.now_s} s"
        self._at(at_s, _CANCEL, transfer)

    def next_event_s(self) -> float:
        """When rates next change, or a transfer next ends; infinite when nothing is under way."""
        ends = self._ends
        while ends and ends[0][2].entry != ends[0][1]:
            heappop(ends)
        end_s = ends[0][0] if ends else math.inf
        return min(end_s, self._changes[0][0]) if self._changes else end_s

    def advance(self, now_s: float) -> list[Transfer]:
        """Let everything happen up to and at `now_s`. Returns the transfers that have ended, in order of end and start.

        An infinite `now_s` lets all end; `now_s` is then the time of the last event.
        """
        ended: list[Transfer] = []
        while (at_s := self.next_event_s()) <= now_s and at_s < math.inf:
            self.now_s = at_s
            ended += self._happen()
        if now_s < math.inf:
            self.now_s = max(self.now_s, now_s)
        return ended

    def rate_bytes_per_s(self, transfer: Transfer) -> float:
        """What a transfer gets at present; 0 before its first byte and after its last."""
        return 0.0 if transfer._flow is None else transfer._flow.rate

    @property
    def is_shared(self) -> bool:
        """Whether anybody else takes part of a link."""
        return bool(self._users)

    def share_with(self, link: Link, user: User) -> None:
        """From the start on, somebody else takes part of a link."""
        self._users.setdefault(link, []).append(user)

    def shared_anew(self, links: Iterable[Link], at_s: float) -> None:
        """Another user takes more or less of these links from `at_s` on, which is not before `now_s`."""
        for link in links:
            line = self._lines.get(link)
            if line is not None and line.flows:
                self._n_entries += 1
                heappush(self._changes, (max(at_s, self.now_s), _SHARE, self._n_entries, line))

    def on(self, links: Collection[Link]) -> list[Transfer]:
        """Transfers under way that cross any of these links, those included that are still to begin."""
        return [one for one in self.under_way.values() if any(link in links for link in one.path)]

    def left_bytes(self, transfer: Transfer, at_s: float) -> float:
        """What of a transfer under way is still to come at a moment at which rates are what they are now."""
        flow = transfer._flow
        if flow is None:
            return transfer.n_bytes
        served_bytes = flow.served_bytes + flow.rate * (at_s - flow.at_s)
        return min(max(0.0, transfer._until_bytes - served_bytes), transfer.n_bytes)

    @property
    def links(self) -> tuple[Link, ...]:
        """The links that were ever used, in order of their first use."""
        return tuple(self._lines)

    def carried_bytes(self, link: Link, at_s: npt.ArrayLike) -> Floats:
        """What a link has carried by each of these times, none after `now_s`; of the shape of `at_s`.

        Differences of it are the traffic of intervals; by bandwidth and length, their utilisation.
        """
        at = np.asarray(at_s, dtype=np.float64)
        assert (at <= self.now_s).all(), f"the record of {link.name} ends at {self.now_s} s"
        line = self._lines.get(link)
        if line is None or not line.times_s:
            return np.zeros(at.shape)
        times_s, rates, carried = (np.array(column) for column in (line.times_s, line.rates, line.carried))
        i = np.searchsorted(times_s, at, side="right") - 1
        by_then = np.minimum(carried[i] + rates[i] * (at - times_s[i]), np.append(carried, np.inf)[i + 1])
        return np.where(i >= 0, by_then, 0.0)

    def _at(self, time_s: float, kind: int, transfer: Transfer) -> None:
        self._n_entries += 1
        heappush(self._changes, (time_s, kind, self._n_entries, transfer))

    def _happen(self) -> list[Transfer]:
        """All that happens now. Returns what has ended."""
        ended: list[Transfer] = []
        touched: dict[_Line, None] = {}
        while self._ends and self._ends[0][0] <= self.now_s:
            _, entry, flow = heappop(self._ends)
            if flow.entry == entry:
                ended += self._end(flow, touched)
        while self._changes and self._changes[0][0] <= self.now_s:
            _, kind, _, changed = heappop(self._changes)
            if isinstance(changed, _Line):
                if changed.flows:
                    touched[changed] = None
                continue
            transfer = changed
            if transfer.number not in self.under_way:
                continue
            if kind == _CANCEL:
                self._cancel(transfer, touched)
            elif transfer.path and transfer.n_bytes:
                self._join(transfer, touched)
            else:
                self._finish(transfer)
                ended.append(transfer)
        if touched:
            self._share(touched)
        ended.sort(key=lambda transfer: transfer.number)
        return ended

    def _join(self, transfer: Transfer, touched: dict[_Line, None]) -> None:
        """First byte of a transfer."""
        flow = self._flows.get(transfer.path)
        if flow is None:
            flow = self._flows[transfer.path] = self._new_flow(transfer.path)
        self._settle(flow)
        flow.count += 1
        transfer._flow = flow
        transfer._until_bytes = flow.served_bytes + transfer.n_bytes
        heappush(flow.ends, (transfer._until_bytes, transfer.number, transfer))
        self._touch(flow, touched)

    def _end(self, flow: _Flow, touched: dict[_Line, None]) -> list[Transfer]:
        """Last byte of a flow's next transfer, and of those that end with it."""
        self._settle(flow, flow.ends[0][0])
        ended = []
        while flow.ends and flow.ends[0][0] <= flow.served_bytes:
            _, _, transfer = heappop(flow.ends)
            if transfer.cancelled_s is None:
                self._finish(transfer)
                ended.append(transfer)
        flow.count -= len(ended)
        self._touch(flow, touched)
        return ended

    def _finish(self, transfer: Transfer) -> None:
        transfer.end_s = self.now_s
        transfer.carried_bytes = transfer.n_bytes
        transfer._flow = None
        del self.under_way[transfer.number]

    def _cancel(self, transfer: Transfer, touched: dict[_Line, None]) -> None:
        """Take a transfer away; its flow forgets it when it comes upon it."""
        transfer.cancelled_s, transfer.carried_bytes = self.now_s, 0.0
        del self.under_way[transfer.number]
        if (flow := transfer._flow) is not None:
            self._settle(flow)
            flow.count -= 1
            transfer.carried_bytes = transfer.n_bytes - max(0.0, transfer._until_bytes - flow.served_bytes)
            transfer._flow = None
            self._touch(flow, touched)

    def _new_flow(self, path: Path) -> _Flow:
        lines = tuple([self._lines.get(link) or self._new_line(link) for link in path])
        assert len(set(lines)) == len(lines), f"a path crosses a link twice: {', '.join(link.name for link in path)}"
        flow = _Flow(path, lines, self.now_s)
        for line in lines:
            line.flows[flow] = None
        return flow

    def _new_line(self, link: Link) -> _Line:
        line = self._lines[link] = _Line(link, link.bandwidth_bytes_per_s)
        return line

    def _settle(self, flow: _Flow, served_bytes: float | None = None) -> None:
        """Count what its transfers have got by now, which an end says exactly."""
        if served_bytes is None:
            served_bytes = flow.served_bytes + flow.rate * (self.now_s - flow.at_s)
        for line in flow.lines:
            line.carried_bytes += (served_bytes - flow.served_bytes) * flow.count
        flow.served_bytes, flow.at_s = served_bytes, self.now_s

    def _touch(self, flow: _Flow, touched: dict[_Line, None]) -> None:
        """Its transfers are others than before: rates on its links and its next end are to be found again."""
        flow.entry = -1
        for line in flow.lines:
            touched[line] = None
        if not flow.count:
            del self._flows[flow.path]
            flow.ends.clear()
            for line in flow.lines:
                del line.flows[flow]

    def _share(self, touched: dict[_Line, None]) -> None:
        """New rates for all flows that share links with the touched ones, directly or through others."""
        lines, flows = _connected(touched)
        if self._users:
            for line in lines:
                self._look_at_users(line)
        for flow, rate in zip(flows, _fair_rates(flows), strict=True):
            self._settle(flow)
            if rate != flow.rate or flow.entry < 0 or self._users:
                flow.rate = rate
                self._schedule(flow)
        for line in lines:
            self._record(line)

    def _look_at_users(self, line: _Line) -> None:
        """What others leave of a link now, and when to look again."""
        full = line.link.bandwidth_bytes_per_s
        taken, n_users, until_s = 0.0, 0, math.inf
        for user in self._users.get(line.link, ()):
            rate, so_long_s = user.rate(line.link, self.now_s)
            taken, n_users, until_s = taken + rate, n_users + (rate > 0), min(until_s, so_long_s)
        line.left = full if not n_users else max(full - taken, full / (1 + n_users))
        if until_s < math.inf and line.flows:
            self._n_entries += 1
            heappush(self._changes, (until_s, _SHARE, self._n_entries, line))

    def _schedule(self, flow: _Flow) -> None:
        """Find when the flow's next transfer ends at its present rate."""
        while flow.ends[0][2].cancelled_s is not None:
            heappop(flow.ends)
        self._n_entries += 1
        flow.entry = self._n_entries
        end_s = self.now_s + max(0.0, flow.ends[0][0] - flow.served_bytes) / flow.rate
        heappush(self._ends, (end_s, flow.entry, flow))
        if len(self._ends) > 64 + 4 * len(self._flows):
            self._ends = [entry for entry in self._ends if entry[2].entry == entry[1]]
            heapify(self._ends)

    def _record(self, line: _Line) -> None:
        """Keep the link's rate from now on, where it is another than before."""
        rate = sum([flow.rate * flow.count for flow in line.flows])
        full = line.left
        if rate > full * (1 - 1e-12):
            rate = full  # a full link is full, whatever the last bit of a sum says
        if rate != (line.rates[-1] if line.rates else 0.0):
            line.times_s.append(self.now_s)
            line.rates.append(rate)
            line.carried.append(line.carried_bytes)


def _connected(touched: Iterable[_Line]) -> tuple[dict[_Line, None], list[_Flow]]:
    """The lines that flows tie to the touched ones, those included, and the flows on them, in order of discovery."""
    lines = dict.fromkeys(touched)
    flows: dict[_Flow, None] = {}
    to_visit = list(lines)
    for line in to_visit:
        for flow in line.flows:
            if flow not in flows:
                flows[flow] = None
                for other in flow.lines:
                    if other not in lines:
                        lines[other] = None
                        to_visit.append(other)
    return lines, list(flows)


def fair_rates(paths: Sequence[Path]) -> list[float]:
    """Max-min fair rate of transfers over these paths, bytes per second, [n_paths], if nobody else used the links."""
    lines: dict[Link, _Line] = {}
    flows: dict[Path, _Flow] = {}
    for path in paths:
        if path not in flows:
            own = [lines.setdefault(link, _Line(link, link.bandwidth_bytes_per_s)) for link in path]
            flows[path] = _Flow(path, tuple(own), 0.0)
            for line in own:
                line.flows[flows[path]] = None
        flows[path].count += 1
    rates = dict(zip(flows, _fair_rates(list(flows.values())), strict=True))
    return [rates[path] for path in paths]


def _fair_rates(flows: list[_Flow]) -> list[float]:
    """Max-min fair rate of each transfer of each flow, bytes per second, [n_flows].

    Progressive filling: all rates grow together until a link is full, which fixes the rates of its flows; the others
    grow on. What a link has left for each grows with every link that fills before it, so that a heap finds the next.
    """
    if len(flows) == 1:
        (flow,) = flows
        return [min([line.left for line in flow.lines]) / flow.count]
    left: dict[_Line, float] = {}
    growing: dict[_Line, int] = {}
    for flow in flows:
        for line in flow.lines:
            left[line] = line.left
            growing[line] = growing.get(line, 0) + flow.count
    fullest = [(left[line] / growing[line], i, line) for i, line in enumerate(left)]
    heapify(fullest)
    rates: dict[_Flow, float] = {}
    while len(rates) < len(flows):
        share, i, line = heappop(fullest)
        if not growing[line]:
            continue
        if (now := left[line] / growing[line]) > share:
            heappush(fullest, (now, i, line))
            continue
        for flow in line.flows:
            if flow not in rates:
                rates[flow] = now
                for other in flow.lines:
                    left[other] -= now * flow.count
                    growing[other] -= flow.count
    return [rates[flow] for flow in flows]
