"""Series derived from outcomes and steps on a grid of windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.capture import Capture, Series
from traces.outcome import Outcome, Status
from traces.series import (
    derive,
    kv_usage,
    n_running,
    n_waiting,
    output_tokens_per_s,
    prefix_hit_rate,
    prompt_tokens_per_s,
)
from traces.steps import STEP_COLUMNS, Batches, Steps, steps_from_columns
from traces.windows import Grid, grid_like, grid_over, held_s, power_windows, windows_of

Served = Callable[..., Outcome]
Captured = Callable[..., Capture]


def steps_of(batches: Batches | None = None, **columns: list[float]) -> Steps:
    n = len(columns["end_s"])
    return steps_from_columns({name: columns.get(name, [0] * n) for name in STEP_COLUMNS}, batches)


def values(series: Series | None) -> list[float]:
    assert series is not None
    return series.value.tolist()


def test_a_window_owns_its_end_and_not_its_start() -> None:
    grid = Grid(start_s=1.0, window_s=2.0, n=3)
    assert grid.ends_s().tolist() == [3.0, 5.0, 7.0]
    amounts = grid.sums(np.array([1.0, 1.1, 3.0, 3.1, 7.0, 7.1]), np.array([1.0, 2, 4, 8, 16, 32]))
    assert amounts.tolist() == [6.0, 8.0, 16.0]


@pytest.mark.parametrize(
    ("between_s", "held"),
    [
        ([1, 1, 3, 1, 1], [1, 1, 3, 1, 1]),  # three intervals are no gap
        ([1, 1, 3.1, 1, 1], [1, 1, 1, 1, 1]),
        ([1, 1, 60], [1, 1, 1]),
        ([60, 1, 1], [1, 1, 1]),
        ([*[0.2] * 20, *[1.0] * 20], [*[0.2] * 20, *[1.0] * 20]),  # from 5 Hz to 1 Hz: no gap
        ([*[1.0] * 20, *[0.2] * 20], [*[1.0] * 20, *[0.2] * 20]),
        ([*[0.2] * 20, 30, *[1.0] * 20], [*[0.2] * 20, 1.0, *[1.0] * 20]),
        ([*[1] * 6, 0.2, 0.2, 1, 0.2, 0.2, *[1] * 6],) * 2,  # usual is the median of eleven, not of the nearest
        ([7], [7]),
    ],
)
def test_a_reading_holds_until_the_next_unless_that_is_far_away(between_s: list[float], held: list[float]) -> None:
    time_s = np.concatenate([[0.0], np.cumsum(between_s)])
    assert held_s(time_s) == pytest.approx(held)


def test_windows_of_power_are_the_times_that_its_rows_stand_for() -> None:
    time_s = np.array([1.0, 2.0, 4.0, 5.0, 60.0, 61.0])
    grid = power_windows(Series(time_s, np.ones(6)))
    assert grid is not None
    assert grid.begins_s().tolist() == [0, 1, 2, 4, 59, 60]
    assert grid.ends_s().tolist() == time_s.tolist()
    assert grid.gaps_s().tolist() == [54]
    assert grid.earlier(0.5).begins_s().tolist() == [-0.5, 0.5, 1.5, 3.5, 58.5, 59.5]
    assert grid.sums(np.array([0.5, 3.0, 30.0, 59.0, 59.5]), np.ones(5)).tolist() == [1, 0, 1, 0, 1, 0]


def test_windows_begin_where_the_series_says() -> None:
    begin_s, end_s = np.array([0.0, 1.0, 1.7, 30.0]), np.array([1.0, 1.7, 2.7, 30.2])
    series = Series(end_s, np.ones(4), begin_s)
    grid = power_windows(series)
    assert grid is not None
    assert grid.begins_s().tolist() == begin_s.tolist()
    assert grid.gaps_s() == pytest.approx([27.3])
    even = Series(np.arange(1.0, 5.0), np.ones(4), np.arange(4.0))
    assert power_windows(even) == Grid(0.0, 1.0, 4)
    rate = windows_of(Series(np.arange(1.0, 5.0), np.ones(4), np.array([0.5, 1, 2, 3])))
    assert rate is not None
    assert rate.begins_s().tolist() == [0.5, 1, 2, 3]
    assert grid_like(Series(np.arange(1.0, 5.0), np.ones(4), np.array([0.5, 1, 2, 3]))) is None


def test_even_power_has_an_even_grid_and_too_little_has_none() -> None:
    assert power_windows(Series(np.arange(1.0, 5.0), np.ones(4))) == Grid(0.0, 1.0, 4)
    assert power_windows(Series(np.ones(1), np.ones(1))) is None
    assert power_windows(Series(np.array([1.0, 1.0, 2.0]), np.ones(3))) is None


def test_the_grid_covers_the_run(served: Served, captured: Captured) -> None:
    assert grid_over(captured([served(finish_s=7.2)])) == Grid(0.0, 1.0, 8)
    assert grid_over(captured([served()]), window_s=2.0) == Grid(0.0, 2.0, 4)


def test_a_recorded_series_gives_its_own_grid() -> None:
    time_s = np.array([0.98, 1.98, 2.98])
    grid = grid_like(Series(time_s, np.zeros(3)))
    assert grid is not None
    np.testing.assert_allclose(grid.ends_s(), time_s)
    assert grid_like(Series(np.array([1.0, 2.0, 9.0]), np.zeros(3))) is None
    assert grid_like(Series(np.array([1.0]), np.zeros(1))) is None


def test_output_tokens_from_token_times(served: Served, captured: Captured) -> None:
    capture = captured(
        [
            served("0", output_tokens=3, token_times_s=(0.5, 1.0, 1.5)),
            served("1", output_tokens=2, token_times_s=(1.2, 2.5)),
            served("2", output_tokens=0, status=Status.ABORTED),
        ]
    )
    assert values(output_tokens_per_s(capture, Grid(0.0, 1.0, 3))) == [2.0, 2.0, 1.0]


def test_output_tokens_from_batches_see_through_chunks_and_preemption(served: Served, captured: Captured) -> None:
    # Request 0: prompt of 10 as 6 + 4 (first token), one decode, preempted, recomputed as 6 + 6 (third token).
    # Request 1: prompt of 4 at once (first token), one decode.
    entries = [(0, 6, 0), (0, 4, 6), (1, 4, 0), (0, 1, 10), (1, 1, 4), (0, 6, 0), (0, 6, 6)]
    request, new, computed = (np.array(column) for column in zip(*entries, strict=True))
    batches = Batches(np.array([0, 1, 3, 5, 6, 7]), request, new, computed)
    steps = steps_of(batches, end_s=[1, 2, 3, 4, 5])
    capture = captured(
        [served("0", prompt_tokens=10, output_tokens=3), served("1", prompt_tokens=4, output_tokens=2)], steps
    )
    assert values(output_tokens_per_s(capture, Grid(0.0, 1.0, 5))) == [0.0, 2.0, 2.0, 0.0, 1.0]


def test_output_tokens_from_step_counts_add_the_first_tokens(served: Served, captured: Captured) -> None:
    steps = steps_of(end_s=[3, 4, 5], n_decode_tokens=[0, 1, 1])
    capture = captured([served(first_token_s=3.0, output_tokens=3)], steps)
    assert values(output_tokens_per_s(capture, Grid(0.0, 1.0, 5))) == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_a_prompt_counts_when_its_first_token_is_out(served: Served, captured: Captured) -> None:
    capture = captured([served("0", prompt_tokens=10), served("1", prompt_tokens=7, first_token_s=None)])
    assert values(prompt_tokens_per_s(capture, Grid(0.0, 2.0, 3))) == [0.0, 5.0, 0.0]


def test_running_and_waiting_from_the_outcomes(served: Served, captured: Captured) -> None:
    outcomes = [served("0"), served("1", queued_s=0.5, scheduled_s=5.0, finish_s=9.0), served("2", arrival_s=6.5)]
    outcomes.append(served("3", status=Status.REJECTED, scheduled_s=None, first_token_s=None, finish_s=None))
    capture = captured(outcomes[:2] + outcomes[3:])
    grid = Grid(0.0, 1.0, 9)
    assert values(n_running(capture, grid)) == [1, 1, 1, 1, 2, 2, 1, 1, 0]
    assert values(n_waiting(capture, grid)) == [1, 1, 1, 1, 0, 0, 0, 0, 0]


def test_states_of_steps_hold_until_the_next_step_and_fall_to_zero_when_idle(
    captured: Captured, served: Served
) -> None:
    steps = steps_of(
        instance=[0, 1, 0, 0],
        scheduled_s=[0.0, 0.0, 0.9, 5.5],
        end_s=[0.9, 2.5, 1.8, 6.0],
        n_running=[1, 5, 2, 3],
        n_waiting=[0, 1, 0, 0],
        kv_blocks=[10, 50, 20, 30],
    )
    capture = captured([served()], steps, num_gpu_blocks=101)
    grid = Grid(0.0, 1.0, 6)
    assert values(n_running(capture, grid)) == [7, 5, 0, 0, 0, 0]
    assert values(n_waiting(capture, grid)) == [1, 1, 0, 0, 0, 0]
    assert values(kv_usage(capture, grid)) == pytest.approx([0.35, 0.25, 0, 0, 0, 0])


def test_kv_usage_needs_the_number_of_blocks(captured: Captured, served: Served) -> None:
    steps = steps_of(end_s=[1.0])
    assert kv_usage(captured([served()], steps), Grid(0.0, 1.0, 1)) is None


def test_hits_count_when_the_step_that_admitted_the_request_is_over(captured: Captured, served: Served) -> None:
    outcomes = [served("0", cached_tokens=0), served("1", cached_tokens=5, scheduled_s=2.0)]
    steps = steps_of(scheduled_s=[1.0, 2.0], end_s=[1.9, 3.5])
    grid = Grid(0.0, 1.0, 4)
    by_steps, without = (prefix_hit_rate(captured(outcomes, own), grid) for own in (steps, None))
    assert by_steps is not None
    assert without is not None
    assert (by_steps.time_s.tolist(), values(by_steps)) == ([2, 3, 4], [0, 0, 0.25])
    assert (without.time_s.tolist(), values(without)) == ([1, 2, 3, 4], [0, 0.25, 0.25, 0.25])


def test_nothing_recorded_derives_nothing(captured: Captured, served: Served) -> None:
    assert derive(captured([served(scheduled_s=None, first_token_s=None)]), Grid(0.0, 1.0, 1)) == {}


@given(st.lists(st.lists(st.floats(0.001, 50), min_size=1, max_size=20), min_size=1, max_size=10), st.floats(0.1, 5))
def test_no_token_is_lost_between_windows(
    served: Served, captured: Captured, times: list[list[float]], window_s: float
) -> None:
    outcomes = [
        served(str(i), output_tokens=len(t), token_times_s=tuple(sorted(t)), finish_s=max(t))
        for i, t in enumerate(times)
    ]
    capture = captured(outcomes)
    series = output_tokens_per_s(capture, grid_over(capture, window_s))
    assert series is not None
    assert series.value.sum() * window_s == pytest.approx(sum(map(len, times)))
