"""Other traces out of given ones: what was asked for, said in the notes, and nothing lost without a word."""

from __future__ import annotations

import pytest

from tests.traces.test_writers import CHAIN, row, trace_of
from traces.errors import InputError
from traces.hashes import chained
from traces.reshape import anonymised, between, faster, mixed_traces, share

PLAIN = trace_of([row(i) for i in range(10)])  # one every half second


def test_a_part_of_the_time_starts_at_0() -> None:
    part = between(PLAIN, 1.0, 2.5)
    assert [(r.request_id, r.arrival_s) for r in part.rows] == [("2", 0.0), ("3", 0.5), ("4", 1.0)]
    assert part.notes == ("requests from second 1 to 2.5, 3 of 10",)


@pytest.mark.parametrize(("start_s", "end_s"), [(-1.0, 2.0), (2.0, 2.0), (float("nan"), 2.0), (3.0, float("nan"))])
def test_a_part_that_is_none_is_refused(start_s: float, end_s: float) -> None:
    with pytest.raises(InputError, match="--start"):
        between(PLAIN, start_s, end_s)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(InputError, match="no request is left"):
        between(PLAIN, 100.0, 200.0)


def test_a_request_whose_predecessor_is_cut_off_waits_for_nothing() -> None:
    rows = [row(0, session_id="s"), row(4, session_id="s", delay_s=0.5), row(5, session_id="s", delay_s=0.5)]
    part = between(trace_of(rows), 1.0, 9.0)
    assert [r.delay_s for r in part.rows] == [None, 0.5]
    assert "1 requests waited for one that was cut off" in part.notes[-1]


def test_a_graph_keeps_the_edges_whose_ends_are_left() -> None:
    rows = [row(0), row(4), row(5, after=("0", "4"), delay_s=0.5), row(6, after=("0",), delay_s=0.5)]
    part = between(trace_of(rows), 1.0, 9.0)
    assert [(r.after, r.delay_s) for r in part.rows] == [(None, None), (("4",), 0.5), (None, None)]
    assert "2 requests waited for one that was cut off" in part.notes[-1]
    whole = trace_of(rows)
    assert [r.after for r in mixed_traces([whole, PLAIN]).rows if r.after] == [("0/0", "0/4"), ("0/0",)]
    assert [r.after for r in anonymised(whole, b"salt").rows if r.after] == [("0", "1"), ("0",)]


def test_faster_moves_arrivals_and_no_delays() -> None:
    quick = faster(trace_of(sorted(CHAIN, key=lambda r: r.arrival_s)), 2.0)
    assert [(r.arrival_s, r.delay_s) for r in quick.rows] == [(0.0, None), (0.0, 0.25), (0.0, 0.0), (0.75, None)]
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="--speed"):
            faster(PLAIN, factor)


def test_a_share_keeps_sessions_whole() -> None:
    rows = [row(i, session_id=f"s{i % 40}") for i in range(400)]
    some = share(trace_of(rows), 0.5, seed=1)
    sessions = {r.session_id for r in some.rows}
    assert len(some) == 10 * len(sessions)
    assert 10 < len(sessions) < 30
    assert some == share(trace_of(rows), 0.5, seed=1) != share(trace_of(rows), 0.5, seed=2)
    for part in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="--share"):
            share(PLAIN, part, 0)


def test_a_mix_shares_nothing_between_its_traces() -> None:
    hashes = chained([1, 2])
    fine = trace_of([row(0, block_hashes=hashes), row(1, block_hashes=hashes)], 16)
    coarse = trace_of([row(0, prompt_tokens=99, block_hashes=hashes, session_id="s")], 32)
    both = mixed_traces([fine, coarse])
    assert [(r.request_id, r.session_id, r.arrival_s) for r in both.rows] == [
        ("0/0", None, 0.0),
        ("1/0", "1/s", 0.0),
        ("0/1", None, 0.5),
    ]
    first, other, second = (r.block_hashes or () for r in both.rows)
    assert both.hash_block_size == 16
    assert first == second
    assert (len(first), len(other)) == (2, 4)
    assert not set(first) & set(other)


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(InputError, match="two traces or more"):
        mixed_traces([PLAIN])
    odd = trace_of([row(0, block_hashes=(1,))], 24)
    with pytest.raises(InputError, match="hash_block_size': found 24: accepted: a multiple of 16"):
        mixed_traces([odd, trace_of([row(0, block_hashes=(1,))], 16)])


def test_no_name_is_left_and_what_is_shared_still_is() -> None:
    hashes = chained([1, 2])
    rows = [row(0, request_id="alice-1", session_id="alice", block_hashes=hashes)]
    rows += [row(1, request_id="bob-7", session_id="alice", block_hashes=(*hashes, 5), prompt_tokens=48)]
    hidden = anonymised(trace_of(rows, 16), b"salt")
    assert "alice" not in repr(hidden)
    assert "bob" not in repr(hidden)
    assert not set(hashes) & set(hidden.rows[0].block_hashes or ())
    assert (hidden.rows[1].block_hashes or ())[:2] == hidden.rows[0].block_hashes
    assert hidden.rows[0].session_id == hidden.rows[1].session_id
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in hidden.rows] == [(0.0, 40, 3), (0.5, 48, 3)]
    assert hidden == anonymised(trace_of(rows, 16), b"salt") != anonymised(trace_of(rows, 16), b"other")
    for salt in (b"", b"x" * 65):
        with pytest.raises(InputError, match="--salt"):
            anonymised(PLAIN, salt)
