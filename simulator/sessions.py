"""When requests that wait for others arrive: chains and graphs of a session, and closed loops of so many seats.

The rules are those by which `collectors.client.load` sends a trace to a real server. A row with `delay_s` arrives so
long after the row before it in its session has ended, and never before its own `arrival_s`. How that row ended makes no
difference: a request that was rejected or aborted, or timed out, has ended, and the next one follows. In a closed loop
arrivals mean nothing for a row that waits for no other: a seat starts it as soon as its last is over, and thinking.

Rows that wait for one another, directly or not, are a group: what a seat works on at a time. It is a chain, as a trace
says it, or any graph without circles, where `after` says it: a step of an agent that needs the answers of several calls
that ran side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Literal

import numpy as np

from traces.errors import InputError
from traces.trace import Trace, TraceRow

Think = Literal["constant", "exponential"]
"""How long a seat thinks: always the same, or drawn with that mean."""


class Sessions:
    """Which requests arrive when, as others end.

    `initial` is to be asked once, then `finished` for every request that has ended, in order of time. Each row arrives
    exactly once, as long as every row that has arrived ends.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        concurrency: int | None = None,
        think_s: float = 0.0,
        think: Think = "constant",
        seed: int = 0,
        after: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Nothing has arrived yet.

        Args:
            trace: the requests.
            concurrency: seats of a closed loop; None: open loop.
            think_s: mean time from the end of a seat's group to the start of its next.
            think: how it is distributed; each group's is drawn with the seed, whichever seat takes it and when.
            seed: of what is drawn.
            after: by request id, the ids of those that must have ended before it arrives, in place of the row before
                it in its session; its `delay_s`, or none, counts from the last of them.

        Raises:
            InputError: `after` names a request that is not there, or that stands behind the one that waits for it; or
                there is something to think about and nobody does, in an open loop.
        """
        self._rows = trace.rows
        self._before = predecessors(trace.rows, after or {})
        self._followers: list[list[int]] = [[] for _ in self._rows]
        for index, before in enumerate(self._before):
            for i in before:
                self._followers[i].append(index)
        self._n_awaited = [len(before) for before in self._before]
        self._is_closed = concurrency is not None
        self._seats = concurrency or 0
        self._group_of, self._groups = _groups(self._before)
        self._n_left = [len(group) for group in self._groups]
        if concurrency is None and think_s:
            accepted = "0 without concurrency: thinking is what a seat of a closed loop does"
            raise InputError(field="think_s", found=think_s, accepted=accepted)
        draws = np.random.default_rng(seed).exponential(size=len(self._groups)) if think == "exponential" else None
        self._think_s = np.full(len(self._groups), think_s) if draws is None else think_s * draws
        self._next_groups = iter(range(len(self._groups)))

    def initial(self) -> list[tuple[float, int]]:
        """Arrivals that wait for no other's end, in order of time: second and index of the row."""
        if not self._is_closed:
            return [(row.arrival_s, i) for i, row in enumerate(self._rows) if not self._before[i]]
        return [(0.0, i) for group in islice(self._next_groups, self._seats) for i in self._first(group)]

    def finished(self, index: int, time_s: float) -> list[tuple[float, int]]:
        """Arrivals that the end of a request at `time_s` brings about, in order of the rows: second and index."""
        starts = []
        for i in self._followers[index]:
            self._n_awaited[i] -= 1
            if not self._n_awaited[i]:
                row = self._rows[i]
                starts.append((max(row.arrival_s, time_s + (row.delay_s or 0.0)), i))
        group = self._group_of[index]
        self._n_left[group] -= 1
        if self._is_closed and not self._n_left[group]:
            next_group = next(self._next_groups, None)
            if next_group is not None:
                at_s = time_s + float(self._think_s[next_group])
                starts += [(at_s, i) for i in self._first(next_group)]
        return starts

    def _first(self, group: int) -> list[int]:
        """Rows of a group that wait for no other."""
        return [i for i in self._groups[group] if not self._before[i]]


def predecessors(rows: Sequence[TraceRow], after: Mapping[str, Sequence[str]]) -> list[tuple[int, ...]]:
    """Indices of the rows that each row waits for, ascending, [n_rows]. Raises InputError as `Sessions` says."""
    index_of = {row.request_id: i for i, row in enumerate(rows)}
    for name in after:
        if name not in index_of:
            raise InputError(field="after", found=name, accepted="the request_id of a row")
    last_of_session: dict[str, int] = {}
    found: list[tuple[int, ...]] = []
    for index, row in enumerate(rows):
        before = set()
        if row.delay_s is not None and row.session_id in last_of_session and row.request_id not in after:
            before.add(last_of_session[row.session_id])
        for name in after.get(row.request_id, ()):
            if index_of.get(name, index) >= index:
                accepted = "request_ids of earlier rows"
                raise InputError(f"of {row.request_id!r}", field="after", found=name, accepted=accepted)
            before.add(index_of[name])
        found.append(tuple(sorted(before)))
        if row.session_id is not None:
            last_of_session[row.session_id] = index
    return found


def _groups(before: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The group of each row, and the rows of each group, both in order of the rows."""
    root = list(range(len(before)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for index, waited_for in enumerate(before):
        for i in waited_for:
            one, other = find(i), find(index)
            root[max(one, other)] = min(one, other)
    number: dict[int, int] = {}
    groups: list[list[int]] = []
    group_of = []
    for index in range(len(before)):
        group = number.setdefault(find(index), len(groups))
        if group == len(groups):
            groups.append([])
        groups[group].append(index)
        group_of.append(group)
    return group_of, groups
