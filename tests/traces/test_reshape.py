"""Other traces out of given ones: what was asked for, said in the notes, and nothing lost without a word."""

from __future__ import annotations

import pytest

from tests.traces.test_writers import CHAIN, row, trace_of
from traces.errors import InputError
from traces.hashes import chained
from traces.load import Load, loaded
from traces.reshape import anonymised, mixed_traces, share
from traces.trace import Trace

PLAIN = trace_of([row(i) for i in range(10)])  # one every half second
NAN, INFINITE = float("nan"), float("inf")


def under(trace: Trace, **load: float) -> Trace:
    return loaded(trace, Load(**load), seed=1)


def test_a_part_of_the_time_starts_at_0() -> None:
    part = under(PLAIN, start_s=1.0, end_s=2.5)
    assert [(r.request_id, r.arrival_s) for r in part.rows] == [("2", 0.0), ("3", 0.5), ("4", 1.0)]
    assert part.notes == ("requests from second 1 to 2.5, 3 of 10",)


def test_a_request_whose_predecessor_is_cut_off_waits_for_nothing() -> None:
    rows = [row(0, session_id="s"), row(4, session_id="s", delay_s=0.5), row(5, session_id="s", delay_s=0.5)]
    part = under(trace_of(rows), start_s=1.0)
    assert [r.delay_s for r in part.rows] == [None, 0.5]
    assert "1 requests waited for one that was cut off" in part.notes[-1]


def test_a_graph_keeps_the_edges_whose_ends_are_left() -> None:
    rows = [row(0), row(4), row(5, after=("0", "4"), delay_s=0.5), row(6, after=("0",), delay_s=0.5)]
    part = under(trace_of(rows), start_s=1.0)
    assert [(r.after, r.delay_s) for r in part.rows] == [(None, None), (("4",), 0.5), (None, None)]
    assert "2 requests waited for one that was cut off" in part.notes[-1]
    whole = trace_of(rows)
    assert [r.after for r in mixed_traces([whole, PLAIN]).rows if r.after] == [("0/0", "0/4"), ("0/0",)]
    assert [r.after for r in anonymised(whole, b"salt").rows if r.after] == [("0", "1"), ("0",)]


def test_speed_moves_arrivals_and_no_delays() -> None:
    quick = under(trace_of(sorted(CHAIN, key=lambda r: r.arrival_s)), speed=2.0)
    assert [(r.arrival_s, r.delay_s) for r in quick.rows] == [(0.0, None), (0.0, 0.25), (0.0, 0.0), (0.75, None)]
    assert quick.notes == ("arrivals at 2 times the rate",)


def test_a_request_rate_is_that_of_the_gaps() -> None:
    paced = under(trace_of([row(i, arrival_s=4.0 + i) for i in range(11)]), request_rate=8.0)
    arrivals_s = [r.arrival_s for r in paced.rows]
    assert (arrivals_s[-1] - arrivals_s[0]) * 8 == pytest.approx(10)
    assert paced.notes == ("arrivals at 8 times the rate", "8 requests per second are offered")


def test_a_share_keeps_sessions_whole() -> None:
    trace = trace_of([row(i, session_id=f"s{i % 40}") for i in range(400)])
    some = under(trace, share=0.5)
    sessions = {r.session_id for r in some.rows}
    assert len(some) == 10 * len(sessions)
    assert 10 < len(sessions) < 30
    assert some == share(trace, 0.5, seed=1) != share(trace, 0.5, seed=2)


def test_steps_are_taken_in_the_order_of_the_fields() -> None:
    both = under(PLAIN, start_s=1.0, end_s=3.0, share=0.9, request_rate=1.0, prompt_scale=0.5)
    assert [note.split()[0] for note in both.notes] == ["requests", "a", "arrivals", "1", "prompts"]
    alone = under(under(under(PLAIN, start_s=1.0, end_s=3.0), share=0.9), request_rate=1.0)
    assert both.rows == under(alone, prompt_scale=0.5).rows


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ({"start_s": -1.0}, "'--start': found '-1 to inf'"),
        ({"start_s": 2.0, "end_s": 2.0}, "'--start': found '2 to 2': accepted: --start from second 0 on, before --end"),
        ({"start_s": NAN}, "'--start'"),
        ({"end_s": NAN}, "'--end'"),
        ({"start_s": 100.0}, "'--start': no request is left: requests from second 100 to inf, 0 of 10"),
        ({"end_s": 0.0}, "'--end': found '0 to 0'"),
        ({"share": 0.0}, "'--share': found 0.0"),
        ({"share": 1.5}, "'--share': found 1.5"),
        ({"share": NAN}, "'--share'"),
        ({"share": 1e-9}, "'--share': no request is left: a share of 1e-09 drawn with seed 1, 0 of 10 requests"),
        ({"speed": 0.0}, "'--speed': found 0.0"),
        ({"speed": INFINITE}, "'--speed'"),
        ({"speed": NAN}, "'--speed'"),
        (
            {"speed": 1e-308},
            "'--speed': found 1e-308: accepted: a factor by which request '4', at second 2, still arrives",
        ),
        ({"request_rate": 0.0}, "'--request-rate': found 0.0"),
        ({"request_rate": NAN}, "'--request-rate'"),
        (
            {"request_rate": 1e-320},
            "'--request-rate': found 1e-320: accepted: a rate at which every request still arrives",
        ),
        ({"request_rate": 1.7e308}, "'--request-rate': found 1.7e+308: accepted: a rate at which"),
        ({"request_rate": 1.0, "speed": 1.0}, "'--request-rate': found '--speed too': accepted: one of them"),
        ({"prompt_scale": 0.0}, "'--prompt-scale': found 0.0: accepted: a factor from 0.001 to 1000"),
        ({"output_scale": 2000.0}, "'--output-scale': found 2000.0"),
        ({"output_scale": NAN}, "'--output-scale'"),
    ],
)
def test_what_cannot_be_is_named_as_the_caller_names_it(load: dict[str, float], said: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded(PLAIN, Load(**load), 1, lambda name: "--" + name.removesuffix("_s").replace("_", "-"))
    assert f"field {said}" in str(caught.value)
    with pytest.raises(InputError, match=f"field '{next(iter(load))}'"):
        under(PLAIN, **load)


def test_a_rate_that_means_nothing_is_refused() -> None:
    at_once = trace_of([row(i, arrival_s=0.0) for i in range(3)])
    with pytest.raises(InputError, match="'speed': has no effect: all requests arrive at second 0"):
        under(at_once, speed=2.0)
    for trace in (at_once, trace_of([row(7)])):
        with pytest.raises(InputError, match="'request_rate': has no effect: all requests arrive at once"):
            under(trace, request_rate=2.0)
    for waits in ({"delay_s": 1.0}, {"after": ("0",)}):
        trace = trace_of([row(0, session_id="s"), row(1, session_id="s", **waits)])
        with pytest.raises(InputError, match=r"'request_rate': requests that wait .* offer no rate: accepted: speed"):
            under(trace, request_rate=2.0)


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
