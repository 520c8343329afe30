"""Attention of any batch from a ragged grid: exact where measured, sensible between, never flat beyond."""

from __future__ import annotations

import numpy as np
import pytest

from profiles.attention import AttentionTable, Chunk
from profiles.profile import AttentionRows, SkewRows
from traces.errors import ProfileError

LAUNCH_S = 5e-6


def prefill_s(tokens: float, history: float) -> float:
    """A kernel in proportion to its work."""
    return LAUNCH_S + 1e-9 * tokens * (history + tokens / 2)


def decode_s(n: float, history: float) -> float:
    return LAUNCH_S + 1e-8 * n * history


def grid(*, drop: set[tuple[int, int, int, int]] | None = None) -> AttentionRows:
    """Kernels measured on a grid, in which mixed batches take 1.2 times the two alone."""
    points = [(t, h, 0, 0) for t in (64, 128, 512, 1024) for h in (0, 256, 1024)]
    points += [(0, 0, n, h) for n in (1, 2, 8, 32) for h in (64, 256, 1024)]
    points += [(t, h, n, k) for t in (64, 512) for h in (0, 1024) for n in (2, 32) for k in (64, 1024)]
    points = [point for point in points if point not in (drop or set())]
    times = []
    for t, h, n, k in points:
        alone = (prefill_s(t, h) if t else 0.0) + (decode_s(n, k) if n else 0.0)
        times.append(alone * (1.2 if t and n else 1.0))
    return AttentionRows(*np.array(points, dtype=float).T, np.array(times))


def one(value: float) -> np.ndarray:
    return np.array([float(value)])


def test_measured_points_come_back() -> None:
    table = AttentionTable(grid())
    assert table.prefill_s([Chunk(512, 256)]) == pytest.approx(prefill_s(512, 256), rel=1e-12)
    assert table.decode_s(8, one(256), one(256))[0] == pytest.approx(decode_s(8, 256), rel=1e-12)
    mixed = 1.2 * (prefill_s(512, 1024) + decode_s(32, 64))
    assert table.mixed_s([Chunk(512, 1024)], 32, 64, 64) == pytest.approx(mixed, rel=1e-12)


def test_between_chunk_lengths_time_follows_the_work_and_not_the_length() -> None:
    """Linear in the length would say 25 % too much here."""
    assert AttentionTable(grid()).prefill_s([Chunk(700, 0)]) == pytest.approx(prefill_s(700, 0), rel=1e-9)


def test_decodes_are_linear_in_history_and_in_number() -> None:
    table = AttentionTable(grid())
    assert table.decode_s(5, one(500), one(500))[0] == pytest.approx(decode_s(5, 500), rel=1e-9)


def test_beyond_the_grid_time_goes_on_growing() -> None:
    table = AttentionTable(grid())
    assert table.decode_s(32, one(4096), one(4096))[0] == pytest.approx(decode_s(32, 4096), rel=1e-9)
    assert table.prefill_s([Chunk(512, 4096)]) == pytest.approx(prefill_s(512, 4096), rel=1e-9)


def test_below_the_grid_the_floor_stands() -> None:
    assert AttentionTable(grid()).decode_s(1, one(1), one(1))[0] == pytest.approx(decode_s(1, 64))


def test_a_missing_corner_is_not_taken_flat() -> None:
    """The largest decode batch was not measured at the longest history, as when memory ends."""
    table = AttentionTable(grid(drop={(0, 0, 32, 1024)}))
    assert table.decode_s(32, one(1024), one(1024))[0] == pytest.approx(decode_s(32, 1024), rel=1e-9)


def test_a_missing_mixed_corner_takes_its_neighbours_ratio() -> None:
    table = AttentionTable(grid(drop={(512, 1024, 32, 1024)}))
    expected = 1.2 * (prefill_s(512, 1024) + decode_s(32, 1024))
    assert table.mixed_s([Chunk(512, 1024)], 32, 1024, 1024) == pytest.approx(expected, rel=1e-9)
    assert table.filled_corners == 1


def test_several_chunks_are_several_problems() -> None:
    """Four fresh prompts of 128 are a quarter of the work of one of 512."""
    table = AttentionTable(grid())
    together = table.prefill_s([Chunk(128, 0)] * 4)
    assert together == pytest.approx(LAUNCH_S + 4 * (prefill_s(128, 0) - LAUNCH_S), rel=1e-6)
    assert together < 0.5 * table.prefill_s([Chunk(512, 0)])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.7, 1.0), (-0.4, 0.0)])
def test_measured_batches_tell_whether_chunks_are_computed_in_turn(share: float, expected: float) -> None:
    """Between one chunk of the same work and each alone; what lies outside is the measurement's error."""

    def kernel_s(tokens: float, history: float) -> float:  # a tile of 16 queries, whole or not
        return LAUNCH_S + 1e-9 * 16 * np.ceil(tokens / 16) * (history + tokens / 2)

    points = [(t, h, 0, 0, 1) for t in (4, 16, 64, 256) for h in (0, 512)] + [(0, 0, 1, 64, 1)]
    times = [kernel_s(t, h) if t else LAUNCH_S for t, h, *_ in points]
    alone = AttentionTable(AttentionRows(*np.array(points, dtype=float).T[:4], np.array(times)))
    together_s, in_turn_s, _ = alone._several_s([Chunk(4, 512)] * 8)
    assert in_turn_s > 1.5 * together_s
    points.append((4, 512, 0, 0, 8))
    times.append(together_s + share * (in_turn_s - together_s))
    columns = np.array(points, dtype=float).T
    table = AttentionTable(AttentionRows(*columns[:4], np.array(times), n_chunks=columns[4]))
    assert table.prefill_s([Chunk(4, 512)] * 8) == pytest.approx(together_s + expected * (in_turn_s - together_s))
    assert table.prefill_s([Chunk(64, 512)]) == alone.prefill_s([Chunk(64, 512)])


def test_a_batch_of_chunks_takes_at_least_as_long_as_its_slowest() -> None:
    table = AttentionTable(grid())
    assert table.prefill_s([Chunk(64, 1024), Chunk(64, 0)]) >= table.prefill_s([Chunk(64, 1024)])


def test_unequal_histories_cost_their_measured_share() -> None:
    n = np.array([2.0, 8.0, 32.0])
    mean_s, max_s = np.full(3, 1e-5), np.full(3, 3e-5)
    skew = SkewRows(n, n / 2, n * 0, n * 0, n, n, n, mean_s, max_s, mean_s + 0.25 * (max_s - mean_s))
    even, skewed = AttentionTable(grid()), AttentionTable(grid(), skew)
    mean, longest = decode_s(8, 256), decode_s(8, 1024)
    assert even.decode_s(8, one(256), one(1024))[0] == pytest.approx(mean)
    assert skewed.decode_s(8, one(256), one(1024))[0] == pytest.approx(mean + 0.25 * (longest - mean))


def test_splitting_a_sweep_changes_no_bit() -> None:
    table = AttentionTable(grid())
    history = 100.0 + np.arange(300) * 3.7
    whole = table.decode_s(7, history, history)
    parts = [table.decode_s(7, one(value), one(value))[0] for value in history]
    assert whole.tolist() == parts


def test_a_grid_without_decodes_is_refused() -> None:
    rows = AttentionRows(*np.array([[64.0, 0.0, 0.0, 0.0]]).T, np.array([1e-5]))
    with pytest.raises(ProfileError, match="decode alone"):
        AttentionTable(rows)
