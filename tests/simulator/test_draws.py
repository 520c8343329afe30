"""Draws are made once: found by what they are made of, the same to the bit, whatever became of their files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from profiles import kept
from profiles.kept import COUNTS
from simulator.steps import draws
from simulator.steps.draws import Draws, forget, half_octaves, kept_draws
from simulator.steps.experts import ExpertTimes, linear
from simulator.steps.gates import Gate, uniform, zipf
from tests.simulator.test_experts import table
from traces.steps import Floats


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, in the process and on the disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(kept.SWITCH, raising=False)
    forget()
    COUNTS.clear()
    yield tmp_path / "cache" / "servetwin" / "tables"
    forget()
    COUNTS.clear()


def make() -> Iterator[Floats]:
    """Three draws of each size, none of which can be had without those before it."""
    rng = np.random.default_rng(3)
    while True:
        yield rng.random(3)


def experts(gate: Gate | None = None, parts: int = 1) -> ExpertTimes:
    """Sixteen experts on two ranks."""
    return ExpertTimes(table(), gate or uniform(16, 2), linear(16, 2), num_layers=3, parts=parts)


def test_sizes_are_half_an_octave_apart() -> None:
    assert list(islice(half_octaves(), 10)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def test_draws_are_linear_between_sizes_and_none_at_size_0() -> None:
    one = Draws("key", 3, make)
    at_4, at_6 = list(islice(make(), 5))[3:]
    np.testing.assert_array_equal(one.at(4), at_4)
    np.testing.assert_array_equal(one.at(5), 0.5 * at_4 + 0.5 * at_6)


@pytest.mark.parametrize("asked", [(100, 7, 1), (1, 7, 100), (7, 100, 1)])
def test_no_answer_depends_on_those_before_nor_on_the_file(home: Path, asked: tuple[int, ...]) -> None:
    first = [Draws("key", 3, make).at(size).tobytes() for size in asked]
    (file,) = home.iterdir()
    file.unlink()
    one = Draws("key", 3, make)
    assert [one.at(size).tobytes() for size in asked] == first


def test_the_next_process_reads_what_this_one_has_made_and_goes_on_behind_it() -> None:
    Draws("key", 3, make).at(4)
    assert COUNTS == {"draws read": 0, "draws made": 4}
    again = Draws("key", 3, make)
    again.at(3)
    assert COUNTS == {"draws read": 4, "draws made": 4}
    np.testing.assert_array_equal(again.at(8), list(islice(make(), 6))[5])
    assert COUNTS == {"draws read": 4, "draws made": 6}
    Draws("key", 3, make).at(8)
    assert COUNTS == {"draws read": 10, "draws made": 6}


def test_a_damaged_file_is_made_again_counted_and_replaced(home: Path) -> None:
    right = Draws("key", 3, make).at(5)
    (file,) = home.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    np.testing.assert_array_equal(Draws("key", 3, make).at(5), right)
    assert COUNTS["damaged"] == 1
    assert file.read_bytes() == whole


def test_a_process_keeps_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "MOST_KEPT", 2)
    one = kept_draws("one", 3, make)
    assert kept_draws("one", 3, make) is one
    kept_draws("two", 3, make)
    kept_draws("one", 3, make)
    kept_draws("three", 3, make)
    assert kept_draws("one", 3, make) is one
    assert list(draws._KEPT) == ["three", "one"]


def test_engines_whose_experts_are_alike_share_their_draws(home: Path) -> None:
    first_s = experts().layer_s(20)
    made = COUNTS["draws made"]
    assert experts().layer_s(20) == first_s
    assert COUNTS["draws made"] == made == len([size for size in islice(half_octaves(), 20) if size < 32])
    forget()  # as a new process
    assert experts().layer_s(20) == first_s
    assert (COUNTS["draws made"], COUNTS["draws read"]) == (made, made)
    for other in (experts(zipf(16, 2, 0.5)), experts(uniform(16, 3)), experts(parts=2)):
        other.layer_s(20)
    assert COUNTS["draws made"] == 4 * made
    assert len(list(home.iterdir())) == 4
