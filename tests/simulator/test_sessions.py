"""Arrivals that wait for others: chains, graphs, closed loops; the same as the client that asks real servers."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.client.load import chains
from simulator.sessions import Sessions, Think, predecessors
from traces.errors import InputError
from traces.trace import Trace, TraceRow


def row(name: str, arrival_s: float = 0.0, session: str | None = None, delay_s: float | None = None) -> TraceRow:
    return TraceRow(
        request_id=name, arrival_s=arrival_s, prompt_tokens=8, output_tokens=2, session_id=session, delay_s=delay_s
    )


def trace(*rows: TraceRow) -> Trace:
    return Trace(rows, None, "test", "sha256:0")


def played(sessions: Sessions, service_s: Sequence[float]) -> dict[int, float]:
    """When each row arrives, if row i ends `service_s[i]` after its arrival."""
    events = [(time_s, 1, index) for time_s, index in sessions.initial()]
    heapq.heapify(events)
    arrived: dict[int, float] = {}
    while events:
        time_s, is_arrival, index = heapq.heappop(events)
        if is_arrival:
            assert index not in arrived
            arrived[index] = time_s
            heapq.heappush(events, (time_s + service_s[index], 0, index))
        else:
            for start_s, follower in sessions.finished(index, time_s):
                assert start_s >= time_s
                heapq.heappush(events, (start_s, 1, follower))
    return arrived


def test_rows_without_delay_arrive_by_the_clock() -> None:
    sessions = Sessions(trace(row("a", 0.0, "s"), row("b", 1.0, "s"), row("c", 1.5)))
    assert sessions.initial() == [(0.0, 0), (1.0, 1), (1.5, 2)]
    assert sessions.finished(0, 9.0) == []


def test_an_agents_next_call_waits_for_its_last_and_its_tool() -> None:
    sessions = Sessions(trace(row("a0", 2.0, "a"), row("b0", 2.5, "b"), row("a1", 2.5, "a", 0.5), row("a2", 7, "a", 0)))
    assert sessions.initial() == [(2.0, 0), (2.5, 1)]
    assert sessions.finished(1, 3.0) == []
    assert sessions.finished(0, 3.0) == [(3.5, 2)]
    assert sessions.finished(2, 4.0) == [(7.0, 3)]  # not before its own arrival


def test_a_row_without_delay_begins_a_chain_of_its_own() -> None:
    rows = [row("a0", 0, "a"), row("a1", 0, "a", 1.0), row("a2", 5, "a"), row("a3", 5, "a", 1.0)]
    assert predecessors(rows, {}) == [(), (0,), (), (2,)]


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", None]), st.one_of(st.none(), st.floats(0, 3)), st.floats(0, 2)),
        max_size=25,
    )
)
def test_chains_are_those_of_the_client(drawn: list[tuple[str | None, float | None, float]]) -> None:
    rows, seen, at_s = [], set(), 0.0
    for i, (session, delay_s, gap_s) in enumerate(drawn):
        at_s += gap_s
        rows.append(row(str(i), at_s, session, delay_s if session in seen else None))
        seen |= {session} - {None}
    followed = {before[0]: index for index, before in enumerate(predecessors(rows, {})) if before}
    for chain in chains(rows):
        indices = [int(one.request_id) for one in chain]
        assert [followed.get(i) for i in indices] == [*indices[1:], None]


def seats_of_the_client(rows: Sequence[TraceRow], concurrency: int, service_s: Sequence[float]) -> dict[int, float]:
    """What `collectors.client.load` does with seats: each takes the next chain and sends its rows one after another."""
    left = iter(chains(rows))
    free = [(0.0, seat) for seat in range(concurrency)]
    heapq.heapify(free)
    sent: dict[int, float] = {}
    for chain in left:
        at_s, seat = heapq.heappop(free)
        for i, one in enumerate(chain):
            if i:
                at_s = max(one.arrival_s, at_s + (one.delay_s or 0.0))
            sent[int(one.request_id)] = at_s
            at_s += service_s[int(one.request_id)]
        heapq.heappush(free, (at_s, seat))
    return sent


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans(), st.floats(0.01, 5)), max_size=20),
    st.integers(1, 4),
)
def test_a_closed_loop_is_that_of_the_client(drawn: list[tuple[str | None, bool, float]], concurrency: int) -> None:
    rows, seen = [], set()
    for i, (session, follows, _) in enumerate(drawn):
        rows.append(row(str(i), 0.5 * i, session, 0.25 if follows and session in seen else None))
        seen |= {session} - {None}
    service_s = [s for *_, s in drawn]
    expected = seats_of_the_client(rows, concurrency, service_s)
    assert played(Sessions(trace(*rows), concurrency=concurrency), service_s) == expected


def test_a_closed_loop_has_so_many_under_way_and_minds_no_arrivals() -> None:
    rows = [row(str(i), 100.0 * i) for i in range(5)]
    arrived = played(Sessions(trace(*rows), concurrency=2), [1.0, 3.0, 1.0, 1.0, 1.0])
    assert arrived == {0: 0.0, 1: 0.0, 2: 1.0, 3: 2.0, 4: 3.0}


def test_a_seat_thinks_between_its_groups_and_not_within_one() -> None:
    rows = [row("a0", 0, "a"), row("a1", 0, "a", 0.5), row("b", 0), row("c", 0)]
    arrived = played(Sessions(trace(*rows), concurrency=1, think_s=10.0), [1.0] * 4)
    assert arrived == {0: 0.0, 1: 1.5, 2: 12.5, 3: 23.5}


def test_more_seats_than_there_is_to_do() -> None:
    assert Sessions(trace(row("a"), row("b")), concurrency=9).initial() == [(0.0, 0), (0.0, 1)]


def test_drawn_thinking_has_its_mean_and_repeats_with_its_seed() -> None:
    rows = [row(str(i)) for i in range(4001)]

    def starts(think: Think, seed: int) -> list[float]:
        return list(
            played(Sessions(trace(*rows), concurrency=1, think_s=2.0, think=think, seed=seed), [0.0] * 4001).values()
        )

    assert starts("constant", 0)[-1] == 8000.0
    drawn = starts("exponential", 1)
    assert drawn[-1] == pytest.approx(8000, rel=0.06)
    assert drawn == starts("exponential", 1)
    assert drawn != starts("exponential", 2)


DIAMOND = [row("plan", 1.0, "s"), row("search", 1, "s", 0.5), row("read", 1, "s"), row("answer", 1, "s", 0.25)]
AFTER = {"search": ["plan"], "read": ["plan"], "answer": ["search", "read"]}


def test_a_graph_fans_out_and_joins() -> None:
    sessions = Sessions(trace(*DIAMOND), after=AFTER)
    assert sessions.initial() == [(1.0, 0)]
    assert sessions.finished(0, 2.0) == [(2.5, 1), (2.0, 2)]
    assert sessions.finished(2, 3.0) == []
    assert sessions.finished(1, 5.0) == [(5.25, 3)]
    assert sessions.finished(3, 6.0) == []


def test_a_seat_works_on_a_whole_graph_at_a_time() -> None:
    rows = [*DIAMOND, row("other", 1.0)]
    arrived = played(Sessions(trace(*rows), concurrency=1, after=AFTER), [1.0, 1.0, 4.0, 1.0, 1.0])
    assert arrived == {0: 0.0, 1: 1.5, 2: 1.0, 3: 5.25, 4: 6.25}


@given(
    st.integers(1, 15).flatmap(
        lambda n: st.tuples(
            *(st.sets(st.integers(0, max(i - 1, 0)), max_size=3) if i else st.just(set()) for i in range(n))
        )
    ),
    st.one_of(st.none(), st.integers(1, 3)),
)
def test_every_row_arrives_once_and_after_those_it_waits_for(
    before: tuple[set[int], ...], concurrency: int | None
) -> None:
    rows = [row(str(i), 0.1 * i) for i in range(len(before))]
    after = {str(i): [str(j) for j in sorted(of)] for i, of in enumerate(before) if of}
    service_s = [0.5 + 0.1 * (i % 4) for i in range(len(rows))]
    arrived = played(Sessions(trace(*rows), concurrency=concurrency, after=after), service_s)
    assert sorted(arrived) == list(range(len(rows)))
    for i, of in enumerate(before):
        assert all(arrived[i] >= arrived[j] + service_s[j] for j in of)


@pytest.mark.parametrize(
    ("after", "found"), [({"x": ["a"]}, "x"), ({"b": ["x"]}, "x"), ({"a": ["b"]}, "b"), ({"b": ["b"]}, "b")]
)
def test_waiting_for_what_is_not_before_is_refused(after: dict[str, list[str]], found: str) -> None:
    with pytest.raises(InputError) as caught:
        Sessions(trace(row("a"), row("b")), after=after)
    assert (caught.value.field, caught.value.found) == ("after", found)


def test_thinking_in_an_open_loop_is_refused() -> None:
    with pytest.raises(InputError, match="think_s"):
        Sessions(trace(row("a")), think_s=1.0)
