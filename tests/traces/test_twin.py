"""A twin keeps a trace's arrivals, lengths and shared prefixes, and is another trace all the same."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import msgspec
import numpy as np
import pytest

from traces.arrivals import Rate, arrivals_s
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.trace import Trace, TraceRow
from traces.twin import fit, twin

SIZE = 16


def conversations(n: int = 3000, seed: int = 2) -> Trace:
    """Requests in bunches, of talks that each build on what was said, behind one of five system prompts."""
    rng = np.random.default_rng(seed)
    times_s = arrivals_s(n, Rate.bursts(5.0, 4.0, 20.0, 100.0), "gamma", 1.5, rng)
    talks: list[list[int]] = []
    next_id = 100
    rows = []
    for i, arrival_s in enumerate(times_s.tolist()):
        if talks and rng.random() < 0.7:
            talk = talks[max(0, len(talks) - 1 - int(rng.geometric(0.1)))]
        else:
            talk = [int(rng.integers(5))] * 4
            talk = [10 * talk[0] + k for k in range(4)]
            talks.append(talk)
        more = int(rng.integers(2, 12))
        talk += range(next_id, next_id + more)
        next_id += more
        prompt = len(talk) * SIZE + int(rng.integers(SIZE))
        output = int(rng.lognormal(4, 1)) + 1
        rows.append(
            TraceRow(
                request_id=str(i),
                arrival_s=arrival_s,
                prompt_tokens=prompt,
                output_tokens=output,
                block_hashes=tuple(talk),
            )
        )
    return Trace(tuple(rows), SIZE, "conversations", "sha256:0")


def hit_rate(trace: Trace, capacity: int) -> float:
    """Blocks that a cache of so many finds, least recently used out first."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = asked = 0
    for row in trace.rows:
        found = True
        for hash_ in row.block_hashes or ():
            found = found and hash_ in cache
            hits += found
            cache[hash_] = None
            cache.move_to_end(hash_)
        while len(cache) > capacity:
            cache.popitem(last=False)
        asked += len(row.block_hashes or ())
    return hits / asked


def dispersion(trace: Trace, window_s: float) -> float:
    """Variance over mean of the arrivals per window: 1 for Poisson arrivals of a steady rate."""
    times_s = np.array([row.arrival_s for row in trace.rows])
    counts = np.histogram(times_s, np.arange(0, times_s[-1], window_s))[0]
    return float(counts.var() / counts.mean())


def check_resembles(found: Trace, trace: Trace) -> None:
    a, b = (np.array([row.arrival_s for row in t.rows]) for t in (found, trace))
    assert (len(a) - 1) / a[-1] == pytest.approx((len(b) - 1) / (b[-1] - b[0]), rel=0.1)
    assert np.diff(a).std() / np.diff(a).mean() == pytest.approx(np.diff(b).std() / np.diff(b).mean(), rel=0.25)
    assert dispersion(found, 10.0) == pytest.approx(dispersion(trace, 10.0), rel=0.3)
    for name in ("prompt_tokens", "output_tokens"):
        one, other = (np.sort([getattr(row, name) for row in t.rows]) for t in (found, trace))
        grid = np.union1d(one, other)
        distance = np.abs(
            np.searchsorted(one, grid, "right") / len(one) - np.searchsorted(other, grid, "right") / len(other)
        ).max()
        assert distance < 1.95 * np.sqrt(1 / len(one) + 1 / len(other))  # Kolmogorov-Smirnov, 0.1 %


def test_a_twin_keeps_arrivals_lengths_and_prefixes() -> None:
    trace = conversations()
    found = twin(fit(trace), len(trace), 7, "it")
    check_resembles(found, trace)
    for capacity in (500, 5000, 10**9):
        assert hit_rate(found, capacity) == pytest.approx(hit_rate(trace, capacity), abs=0.06)
    assert hit_rate(trace, 10**9) > hit_rate(trace, 500) + 0.05
    size = found.hash_block_size
    assert size == SIZE
    assert all(len(row.block_hashes or ()) == row.prompt_tokens // SIZE for row in found.rows)


def test_it_is_another_trace_and_the_same_for_the_same_seed() -> None:
    model = fit(conversations())
    first, again, other = (twin(model, 500, seed, "it") for seed in (1, 1, 2))
    assert first == again
    assert first.rows != other.rows


@pytest.mark.parametrize("n", [1, 100, 9000])
def test_it_has_as_many_requests_as_asked_for_at_the_same_rate(n: int) -> None:
    trace = conversations()
    found = twin(fit(trace), n, 3, "it")
    assert len(found) == n
    if n > 100:
        rate_per_s = (len(trace) - 1) / trace.rows[-1].arrival_s
        assert (n - 1) / found.rows[-1].arrival_s == pytest.approx(rate_per_s, rel=0.15)
        faster = twin(fit(trace), n, 3, "it", rate_per_s=50.0)
        assert (n - 1) / faster.rows[-1].arrival_s == pytest.approx(50.0, rel=0.15)
        assert [row.block_hashes for row in faster.rows] == [row.block_hashes for row in found.rows]


def test_what_is_known_of_no_block_stays_unknown() -> None:
    bare = {"block_hashes": None, "prompt_tokens": 9}
    known = conversations(400).rows
    rows = [row if i % 2 else msgspec.structs.replace(row, **bare) for i, row in enumerate(known)]
    found = twin(fit(Trace(tuple(rows), SIZE, "half", "sha256:0")), 1000, 1, "it")
    unknown = [row for row in found.rows if row.block_hashes is None]
    assert len(unknown) / 1000 == pytest.approx(0.5, abs=0.06)
    assert {row.prompt_tokens for row in unknown} == {9}


def test_what_cannot_be_fitted_is_refused() -> None:
    row = TraceRow(request_id="0", arrival_s=0.0, prompt_tokens=1, output_tokens=1, session_id="s")
    follows = TraceRow(request_id="1", arrival_s=1.0, prompt_tokens=1, output_tokens=1, session_id="s", delay_s=1.0)
    with pytest.raises(InputError, match="only a run can tell"):
        fit(Trace((row, follows), None, "chain", "sha256:0"))
    model = fit(conversations(50))
    for n, scale in ((0, 1.0), (5, 0.0), (5, float("nan"))):
        with pytest.raises(InputError, match="--r"):
            twin(model, n, 0, "it", scale)


def test_lengths_without_arrivals_get_them_at_a_rate() -> None:
    rows = tuple(msgspec.structs.replace(row, arrival_s=0.0) for row in conversations(300).rows)
    model = fit(Trace(rows, SIZE, "lengths", "sha256:0"))
    with pytest.raises(InputError, match="--rate': is missing"):
        twin(model, 5, 0, "it")
    found = twin(model, 4000, 0, "it", rate_per_s=20.0)
    assert 3999 / found.rows[-1].arrival_s == pytest.approx(20.0, rel=0.06)
    assert dispersion(found, 5.0) == pytest.approx(1.0, abs=0.5)


@pytest.mark.ground_truth
@pytest.mark.parametrize(
    "name", ["AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_conv.csv", "mooncake_conversation_trace.jsonl"]
)
def test_twins_of_published_traces(ground_truth: Path, name: str) -> None:
    if not (ground_truth / "traces" / name).is_file():
        pytest.skip(f"no {name} in the ground truth")
    trace = read_any_trace(ground_truth / "traces" / name)
    found = twin(fit(trace), len(trace), 1, name)
    check_resembles(found, trace)
    if trace.hash_block_size is not None:
        for capacity in (1000, 10_000, 10**9):
            assert hit_rate(found, capacity) == pytest.approx(hit_rate(trace, capacity), abs=0.03)
