"""Traces that others published load whole: counts, sums and spans equal figures that are computed another way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from traces.formats import read_any_trace, stream_trace
from traces.hashes import resized
from traces.trace import Trace, read_trace, write_trace

pytestmark = pytest.mark.ground_truth


@pytest.fixture(scope="module")
def folder(ground_truth: Path) -> Path:
    path = ground_truth / "traces"
    if not path.is_dir():
        pytest.skip(f"no published traces at {path}")
    return path


@pytest.fixture(scope="module")
def mooncake(folder: Path) -> Trace:
    return read_any_trace(folder / "mooncake_conversation_trace.jsonl")


@pytest.mark.parametrize(("name", "n"), [("code", 8819), ("conv", 19366)])
def test_azure_loads_whole(folder: Path, name: str, n: int) -> None:
    path = folder / f"AzureLLMInferenceTrace_{name}.csv"
    trace = read_any_trace(path)
    frame = pd.read_csv(path)
    times = pd.to_datetime(frame["TIMESTAMP"])
    assert len(trace) == n == len(frame)
    assert sum(row.prompt_tokens for row in trace.rows) == frame["ContextTokens"].sum()
    assert sum(row.output_tokens for row in trace.rows) == frame["GeneratedTokens"].sum()
    assert trace.rows[-1].arrival_s == pytest.approx((times.iloc[-1] - times.iloc[0]).total_seconds(), abs=1e-6)
    seconds = (times - times.iloc[0]).to_numpy().astype("timedelta64[ns]").astype(np.int64) / 1e9
    assert np.array_equal([row.arrival_s for row in trace.rows], seconds)
    assert not any("left out" in note or "sorted" in note for note in trace.notes)


def test_mooncake_loads_whole(folder: Path, mooncake: Trace) -> None:
    lines = [json.loads(line) for line in (folder / "mooncake_conversation_trace.jsonl").read_text().splitlines()]
    assert len(mooncake) == len(lines) == 12031
    for name, field in (("prompt_tokens", "input_length"), ("output_tokens", "output_length")):
        assert sum(getattr(row, name) for row in mooncake.rows) == sum(line[field] for line in lines)
    assert [row.arrival_s for row in mooncake.rows] == [line["timestamp"] / 1000 for line in lines]
    assert not any("sorted" in note or "requests of 0" in note for note in mooncake.notes)


def test_mooncake_shares_what_its_ids_say(folder: Path, mooncake: Trace) -> None:
    lines = [json.loads(line) for line in (folder / "mooncake_conversation_trace.jsonl").read_text().splitlines()]
    full = [line["hash_ids"][: line["input_length"] // 512] for line in lines]
    assert len({number for ids in full for number in ids}) == len(
        {hash_ for row in mooncake.rows for hash_ in row.block_hashes or ()}
    )
    assert [len(ids) for ids in full] == [len(row.block_hashes or ()) for row in mooncake.rows]
    number_of: dict[int, int] = {}
    for ids, row in zip(full, mooncake.rows, strict=True):
        for number, hash_ in zip(ids, row.block_hashes or (), strict=True):
            assert number_of.setdefault(hash_, number) == number


def test_a_cache_without_limit_finds_as_much_in_blocks_of_16_as_in_blocks_of_512(mooncake: Trace) -> None:
    seen: set[int] = set()
    seen_small: set[int] = set()
    found = found_small = 0
    for row in mooncake.rows[:3000]:
        large = row.block_hashes or ()
        small = resized(large, 512, 16) or ()
        found += 512 * next((i for i, h in enumerate(large) if h not in seen), len(large))
        found_small += 16 * next((i for i, h in enumerate(small) if h not in seen_small), len(small))
        seen.update(large)
        seen_small.update(small)
    assert found == found_small > 0


def test_what_is_imported_is_what_is_written(tmp_path: Path, mooncake: Trace) -> None:
    write_trace(mooncake, tmp_path / "own.jsonl.gz")
    back = read_trace(tmp_path / "own.jsonl.gz")
    assert (back.rows, back.hash_block_size, back.notes) == (mooncake.rows, 512, mooncake.notes)


def test_a_stream_gives_the_same_rows(folder: Path, mooncake: Trace) -> None:
    assert tuple(stream_trace(folder / "mooncake_conversation_trace.jsonl")) == mooncake.rows
