"""Other lengths, and loads on rows as they come: what is shared scales too, and nothing of old lengths is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces.test_writers import row, trace_of
from traces.errors import InputError
from traces.hashes import chained
from traces.load import Load, LoadStream, loaded
from traces.row_changes import Scaling
from traces.trace import Trace, checked_row

SCALES = st.floats(0.05, 8)
LOADS = st.builds(
    Load,
    start_s=st.none() | st.floats(0, 1.5),
    end_s=st.none() | st.floats(2, 3),
    speed=st.none() | SCALES,
    prompt_scale=st.none() | SCALES,
    output_scale=st.none() | SCALES,
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Six requests with blocks of 4 tokens, of which some are of answers, and some are shared."""
    rows = []
    for i in range(6):
        prompt, output = draw(st.integers(1, 60)), draw(st.integers(1, 30))
        n_known = draw(st.integers(0, (prompt + output) // 4))
        hashes = draw(st.none() | st.just(chained([draw(st.integers(0, 1)), *range(n_known)][:n_known])))
        session = draw(st.sampled_from([None, "s"]))
        rows.append(row(i, prompt_tokens=prompt, output_tokens=output, block_hashes=hashes, session_id=session))
    return trace_of(rows, 4)


def under(trace: Trace, **load: float) -> Trace:
    return loaded(trace, Load(**load), seed=0)


def test_lengths_are_rounded_and_at_least_1() -> None:
    trace = trace_of([row(i, prompt_tokens=p, output_tokens=o) for i, (p, o) in enumerate([(1, 1), (5, 10), (30, 7)])])
    scaled = under(trace, prompt_scale=0.1, output_scale=1.5)
    assert [(r.prompt_tokens, r.output_tokens) for r in scaled.rows] == [(1, 2), (1, 15), (3, 11)]
    assert scaled.notes == ("prompts at 0.1 times their length, answers at 1.5 times",)
    assert [r.arrival_s for r in scaled.rows] == [r.arrival_s for r in trace.rows]
    with pytest.raises(InputError, match=r"'prompt_scale': found \d+: accepted: at most \d+ tokens of request '0'"):
        under(trace_of([row(0, prompt_tokens=2**62)]), prompt_scale=2.0)


@given(traces(), SCALES, SCALES | st.none())
def test_rows_stay_what_a_trace_may_hold(trace: Trace, prompt: float, output: float | None) -> None:
    scaled = under(trace, prompt_scale=prompt, output_scale=prompt if output is None else output)
    for r in scaled.rows:
        assert checked_row(r, 4, "x", 1) is r  # type: ignore[arg-type]


def test_prompts_share_as_much_more() -> None:
    a, b = chained([1, 2, 3, 4]), chained([1, 2, 3, 9])
    rows = [row(i, prompt_tokens=64, output_tokens=16, block_hashes=hashes) for i, hashes in enumerate([a, b])]
    for scale, expected in ((1.5, 4), (2.0, 6), (0.5, 1), (0.1, 0)):
        one, other = (r.block_hashes or () for r in under(trace_of(rows, 16), prompt_scale=scale).rows)
        assert len(set(one) & set(other)) == expected == int(3 * scale)


def test_blocks_of_answers_stay_where_answers_are_scaled_as_prompts_are() -> None:
    hashes = chained(range(5))  # 2 of the prompt, 2 of the answer; and of the next prompt, which holds both
    first = row(0, prompt_tokens=32, output_tokens=32, block_hashes=hashes[:4], session_id="s")
    second = row(1, prompt_tokens=80, output_tokens=8, block_hashes=hashes, session_id="s", delay_s=1.0)
    trace = trace_of([first, second], 16)
    alike = under(trace, prompt_scale=2.0, output_scale=2.0)
    one, other = (r.block_hashes or () for r in alike.rows)
    assert (len(one), len(other), one) == (8, 10, other[:8])
    assert len(alike.notes) == 1
    for load in ({"output_scale": 2.0}, {"prompt_scale": 2.0}):
        unlike = under(trace, **load)
        one, other = (r.block_hashes or () for r in unlike.rows)
        n = int(load.get("prompt_scale", 1))
        assert (len(one), len(other), one) == (2 * n, 5 * n, other[: 2 * n])
        assert unlike.notes[1:] == (
            "blocks of 1 answers are left out: prompts that hold them are scaled unlike",
            "2 requests of sessions: answers within their prompts are scaled as prompts",
        )
        assert [r.delay_s for r in unlike.rows] == [None, 1.0]


@given(traces(), LOADS)
def test_rows_that_come_one_by_one_are_those_of_the_whole(trace: Trace, load: Load) -> None:
    stream = LoadStream(load, 4)
    rows = tuple(stream.rows(iter(trace.rows)))
    whole = loaded(trace, load, seed=0)
    assert rows == whole.rows
    assert stream.trace(trace_of([], 4)).notes == whole.notes


def test_no_load_changes_nothing() -> None:
    trace = trace_of([row(0), row(1)])
    assert loaded(trace, Load(), seed=0) is trace


def test_what_came_to_nothing_is_said_at_the_end() -> None:
    for load, said in ((Load(start_s=9.0), "no request is left"), (Load(speed=2.0), "has no effect")):
        stream = LoadStream(load, None)
        list(stream.rows([row(0)]))
        with pytest.raises(InputError, match=said):
            stream.trace(trace_of([]))


def test_factors_are_taken_as_they_are_written() -> None:
    """0.3 is less than three tenths in binary: ten blocks by it would be two and something."""
    scaling = Scaling(0.3, 0.3, 1)
    assert len(scaling.row(row(0, block_hashes=chained(range(10)))).block_hashes or ()) == 3
