"""Readers of LLMServingSim's workloads and measured runs: the arithmetic of the clocks, refusals, the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.capture import read_capture, write_capture
from traces.errors import InputError
from traces.hashes import token_hashes
from traces.llmservingsim_run import read_run
from traces.metrics import requests, summary
from traces.readers.llmservingsim import read_workload
from traces.series import derive
from traces.windows import grid_like

LINE = {"input_toks": 5, "output_toks": 3, "arrival_time_ns": 2_000_000_000}


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# Workloads


def test_a_workload_without_ids_shares_nothing(tmp_path: Path) -> None:
    trace = read_workload(write_lines(tmp_path / "w.jsonl", LINE, "", {**LINE, "arrival_time_ns": 2.5e9}))
    assert [(r.request_id, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.rows] == [
        ("0", 2.0, 5, 3),
        ("1", 2.5, 5, 3),
    ]
    assert trace.rows[0].block_hashes is None
    assert trace.hash_block_size is None
    assert trace.notes == ("0 of 2 requests have token ids; the others share no prefix",)


def test_ids_become_hashes_of_full_blocks_over_prompt_and_answer(tmp_path: Path) -> None:
    with_ids = {**LINE, "input_tok_ids": [1, 2, 3, 4, 5], "output_tok_ids": [6, 7, 8]}
    prompt_only = {**LINE, "input_tok_ids": [1, 2, 3, 4, 9]}
    trace = read_workload(write_lines(tmp_path / "w.jsonl", with_ids, prompt_only), block_size=4)
    first, second = (row.block_hashes for row in trace.rows)
    assert first == token_hashes([1, 2, 3, 4, 5, 6, 7, 8], 4)
    assert second is not None
    assert len(second) == 1
    assert second[0] == first[0]
    assert trace.hash_block_size == 4


def test_fields_that_are_not_read_are_noted(tmp_path: Path) -> None:
    trace = read_workload(write_lines(tmp_path / "w.jsonl", {**LINE, "user": "u"}))
    assert "w.jsonl that were not read: user" in trace.notes[1]


@given(
    st.lists(st.integers(0, 200_000), max_size=40), st.lists(st.integers(0, 200_000), max_size=40), st.integers(1, 8)
)
def test_equal_hashes_are_equal_prefixes(one: list[int], other: list[int], block_size: int) -> None:
    shared = sum(a == b for a, b in zip(token_hashes(one, block_size), token_hashes(other, block_size), strict=False))
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert shared == same // block_size
    assert all(0 <= h < 2**64 for h in token_hashes(one, block_size))


CALL = {"input_toks": 5, "output_toks": 3, "tool_duration_ns": 0}


def calls(*sub_requests: dict[str, Any], session_id: str = "s") -> dict[str, Any]:
    return {"session_id": session_id, "arrival_time_ns": 2_000_000_000, "sub_requests": list(sub_requests)}


SESSION = calls(CALL)


def test_a_session_is_a_chain_with_its_tools_time_between(tmp_path: Path) -> None:
    first = {**CALL, "tool_duration_ns": 500_000_000}
    file = write_lines(tmp_path / "w.jsonl", LINE, calls(first, {**CALL, "tool_duration_ns": 1}, CALL), SESSION2, LINE)
    trace = read_workload(file)
    assert [(row.request_id, row.arrival_s, row.session_id, row.delay_s) for row in trace.rows] == [
        ("0", 2.0, None, None),
        ("s/0", 2.0, "s", None),
        ("s/1", 2.0, "s", 0.5),
        ("s/2", 2.0, "s", 1e-9),
        ("t/0", 2.0, "t", None),
        ("3", 2.0, None, None),
    ]
    assert trace.notes == ("0 of 6 requests have token ids; the others share no prefix",)


SESSION2 = calls({"input_toks": 5, "output_toks": 3}, session_id="t")


def test_a_sessions_calls_share_their_prefix(tmp_path: Path) -> None:
    """The next call's prompt is the last one's, its answer, and what the tool said."""
    first = {**CALL, "input_tok_ids": [1, 2, 3, 4, 5], "output_tok_ids": [6, 7, 8]}
    then = {"input_toks": 9, "output_toks": 3, "input_tok_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9]}
    trace = read_workload(write_lines(tmp_path / "w.jsonl", calls(first, then, CALL)), block_size=4)
    one, other, unknown = (row.block_hashes for row in trace.rows)
    assert one == other == token_hashes([1, 2, 3, 4, 5, 6, 7, 8], 4)
    assert unknown is None
    assert trace.hash_block_size == 4


def test_what_is_not_read_of_a_session_is_noted(tmp_path: Path) -> None:
    session = calls({**CALL, "tool_duration_ns": 7, "tool": "pytest"})
    trace = read_workload(write_lines(tmp_path / "w.jsonl", {**session, "user": "u"}))
    assert trace.notes[1:] == (
        "1 of 1 sessions state a tool time after their last call: nothing waits for it",
        "fields of w.jsonl that were not read: sub_requests.tool, user",
    )


BAD_WORKLOADS: list[tuple[str, list[object], int | None, str | None]] = [
    ("empty", [], None, None),
    ("bad JSON", [LINE, '{"input_toks": 5,'], 2, None),
    ("no prompt", [{**LINE, "input_toks": 0}], 1, "input_toks"),
    ("negative prompt", [LINE, {**LINE, "input_toks": -5}], 2, "input_toks"),
    ("no output", [{**LINE, "output_toks": 0}], 1, "output_toks"),
    ("missing output", [{"input_toks": 5, "arrival_time_ns": 0}], 1, "output_toks"),
    ("NaN arrival", [{**LINE, "arrival_time_ns": float("nan")}], 1, "arrival_time_ns"),
    ("negative arrival", [{**LINE, "arrival_time_ns": -1}], 1, "arrival_time_ns"),
    ("unsorted", [LINE, "", {**LINE, "arrival_time_ns": 1}], 3, "arrival_time_ns"),
    ("too few ids", [{**LINE, "input_tok_ids": [1, 2]}], 1, "input_tok_ids"),
    ("too many output ids", [{**LINE, "output_tok_ids": [1, 2, 3, 4]}], 1, "output_tok_ids"),
    ("negative id", [{**LINE, "input_tok_ids": [1, 2, 3, 4, -5]}], 1, "input_tok_ids[4]"),
    ("session without calls", [LINE, {**SESSION, "sub_requests": []}], 2, "sub_requests"),
    ("session without id", [{**SESSION, "session_id": ""}], 1, "session_id"),
    ("session without arrival", [{"session_id": "s", "sub_requests": [CALL]}], 1, "arrival_time_ns"),
    ("same session", [SESSION, LINE, SESSION], 3, "session_id"),
    ("session too early", [LINE, {**SESSION, "arrival_time_ns": 1}], 2, "arrival_time_ns"),
    ("call without output", [calls({"input_toks": 5})], 1, "sub_requests[0].output_toks"),
    ("negative tool time", [calls(CALL, {**CALL, "tool_duration_ns": -1})], 1, "sub_requests[1].tool_duration_ns"),
    ("call of too few ids", [calls(CALL, {**CALL, "input_tok_ids": [1]})], 1, "sub_requests[1].input_tok_ids"),
]


@pytest.mark.parametrize(("rows", "line", "field"), [c[1:] for c in BAD_WORKLOADS], ids=[c[0] for c in BAD_WORKLOADS])
def test_a_wrong_workload_is_refused(tmp_path: Path, rows: list[object], line: int | None, field: str | None) -> None:
    path = write_lines(tmp_path / "w.jsonl", *rows)
    with pytest.raises(InputError) as caught:
        read_workload(path)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), line, field)


# Runs

META: dict[str, Any] = {
    "schema_version": 1,
    "model": "org/tiny",
    "vllm_version": "0.19.0",
    "engine_kwargs": {"model": "org/tiny", "max_num_seqs": 8, "max_model_len": None, "data_parallel_size": 1},
    "num_requests": 2,
    "started_at": "1970-01-01T00:16:39.500000Z",  # wall clock 999.5
}
# The engine's clock is 990 s behind the wall clock. Request 1 waited 0.25 s more than request 0 to be drained.
RUN = [
    {
        "request_id": f"bench-{i}",
        "input_toks": 5,
        "output_toks": 3,
        "arrival_time": 1000.0 + i,
        "queued_ts": 10.0 + i + 0.25 * i,
        "scheduled_ts": 11.5 + i,
        "first_token_ts": 12.0 + i,
        "last_token_ts": 14.0 + i,
    }
    for i in range(2)
]
TICKS = "t,prompt_throughput,gen_throughput,running,waiting,kv_cache_pct\n1.0,5,1,1,0,{kv}\n2.0,5,2,2,1,{kv}\n"


def write_run(folder: Path, rows: list[dict[str, Any]] = RUN, meta: dict[str, Any] = META, ticks: str = TICKS) -> Path:
    folder.mkdir(exist_ok=True)
    write_lines(folder / "requests.jsonl", *rows)
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "timeseries.csv").write_text(ticks.format(kv="25.0"))
    return folder


def test_arrivals_are_moved_to_the_engines_clock_by_the_quickest_request(tmp_path: Path) -> None:
    workload = write_lines(tmp_path / "w.jsonl", LINE, {**LINE, "arrival_time_ns": 3_000_000_000})
    capture = read_run(write_run(tmp_path / "run"), read_workload(workload))
    first, second = capture.outcomes
    assert (first.arrival_s, first.queued_s, first.scheduled_s, first.finish_s) == (2.0, 2.0, 3.5, 6.0)
    assert (second.arrival_s, second.queued_s, second.first_token_s) == (3.0, 3.25, 5.0)
    assert [o.request_id for o in capture.outcomes] == ["0", "1"]
    assert capture.meta.engine == "vllm 0.19.0"
    assert capture.meta.engine_options == {"max_num_seqs": 8, "data_parallel_size": 1}
    assert (capture.meta.device, capture.meta.num_gpu_blocks, first.cached_tokens) == (None, None, None)


def test_without_a_trace_one_is_made_from_the_run(tmp_path: Path) -> None:
    capture = read_run(write_run(tmp_path / "run", rows=RUN[::-1]))
    assert [(r.request_id, r.arrival_s) for r in capture.trace.rows] == [("0", 0.0), ("1", 1.0)]
    assert [o.request_id for o in capture.outcomes] == ["0", "1"]


def test_series_start_with_their_recorder(tmp_path: Path) -> None:
    capture = read_run(write_run(tmp_path / "run"))  # second 0 is the first arrival, half a second after the recorder's
    assert sorted(capture.series) == [
        "kv_usage",
        "n_running",
        "n_waiting",
        "output_tokens_per_s",
        "prompt_tokens_per_s",
    ]
    assert capture.series["output_tokens_per_s"].time_s.tolist() == [0.5, 1.5]
    assert capture.series["output_tokens_per_s"].value.tolist() == [1, 2]
    assert capture.series["kv_usage"].value.tolist() == [0.25, 0.25]


def test_series_that_were_not_measured_are_left_out_and_noted(tmp_path: Path) -> None:
    no_kv = read_run(write_run(tmp_path / "a", ticks=TICKS.replace("{kv}", "0.0")))
    assert "kv_usage" not in no_kv.series
    assert any("kv_cache_pct is 0 throughout" in note for note in no_kv.meta.notes)
    no_start = read_run(write_run(tmp_path / "b", meta={**META, "started_at": None}))
    assert no_start.series == {}
    assert any("started_at" in note for note in no_start.meta.notes)
    (tmp_path / "b" / "timeseries.csv").unlink()
    assert "no timeseries.csv" in read_run(tmp_path / "b").meta.notes[1]


def test_another_dataset_is_noted(tmp_path: Path) -> None:
    trace = read_workload(write_lines(tmp_path / "w.jsonl", LINE, {**LINE, "arrival_time_ns": 3_000_000_000}))
    same = read_run(
        write_run(tmp_path / "a", meta={**META, "dataset_hash": trace.sha256.removeprefix("sha256:")}), trace
    )
    other = read_run(write_run(tmp_path / "b", meta={**META, "dataset_hash": "00"}), trace)
    assert not any("dataset_hash" in note for note in same.meta.notes)
    assert any("dataset_hash" in note for note in other.meta.notes)
    assert other.meta.provenance["dataset_hash"] == "sha256:00"


RESOLVED: dict[str, Any] = {
    **META,
    "engine_kwargs": {**META["engine_kwargs"], "data_parallel_size": 2, "dtype": "auto", "kv_cache_dtype": "fp8_e4m3"},
    "kv_cache": {"num_gpu_blocks": 900, "block_size": 32, "num_kv_tokens": 28800, "gpu_memory_utilization": 0.85},
    "hardware": {"device_name": "NVIDIA GeForce RTX 4090", "device_count": 2},
    "resolved_config": {
        "model_config": {"max_model_len": 4096, "dtype": "torch.bfloat16", "enforce_eager": False},
        "scheduler_config": {"max_num_seqs": 999, "async_scheduling": True, "policy": "fcfs", "max_model_len": 4096},
        "cache_config": {"num_gpu_blocks": 900, "enable_prefix_caching": True, "cache_dtype": "fp8_e4m3"},
        "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4], "cudagraph_mode": "<unreadable: E>"},
        "parallel_config": "<ParallelConfig>",
        "speculative_config": None,
    },
}


def test_what_the_engine_resolved_fills_what_was_not_stated(tmp_path: Path) -> None:
    meta = read_run(write_run(tmp_path / "run", meta=RESOLVED)).meta
    assert meta.device == "NVIDIA GeForce RTX 4090"
    assert meta.num_gpu_blocks == 450  # vLLM's front end adds up those of both data-parallel engines
    assert any("2 data-parallel engines together" in note for note in meta.notes)
    assert meta.engine_options == {
        "max_num_seqs": 8,
        "data_parallel_size": 2,
        "dtype": "bfloat16",
        "kv_cache_dtype": "fp8",
        "block_size": 32,
        "gpu_memory_utilization": 0.85,
        "enable_prefix_caching": True,
        "enforce_eager": False,
        "max_model_len": 4096,
        "async_scheduling": True,
        "scheduling_policy": "fcfs",
        "cudagraph_capture_sizes": [1, 2, 4],
    }


@pytest.mark.parametrize("part", ["kv_cache", "hardware", "resolved_config"])
@pytest.mark.parametrize("empty", [None, {}])
def test_what_could_not_be_resolved_is_not_recorded(tmp_path: Path, part: str, empty: object) -> None:
    meta = read_run(write_run(tmp_path / "run", meta={**RESOLVED, part: empty})).meta
    assert meta.engine_options["max_num_seqs"] == 8
    assert (meta.device is None) == (part == "hardware")
    assert meta.num_gpu_blocks == 450


@pytest.mark.parametrize("version", [{}, {"vllm_version": "unknown"}])
def test_a_run_may_say_little_of_its_engine(tmp_path: Path, version: dict[str, str]) -> None:
    meta = {name: value for name, value in META.items() if name not in ("vllm_version", "engine_kwargs")}
    capture = read_run(write_run(tmp_path / "run", meta={**meta, **version}))
    assert (capture.meta.engine, capture.meta.engine_options) == (None, {})
    said = " ".join(capture.meta.notes)
    assert "does not state the version of vLLM" in said
    assert "does not state the engine's arguments" in said
    assert [one.instance for one in capture.outcomes] == [None, None]


def test_weights_of_eight_bits_are_the_dtype(tmp_path: Path) -> None:
    resolved = {"model_config": {"dtype": "torch.bfloat16", "quantization": "fp8"}}
    meta = read_run(write_run(tmp_path / "run", meta={**META, "resolved_config": resolved})).meta
    assert meta.engine_options["dtype"] == "fp8"


def test_a_run_of_the_first_requests_is_of_that_part_of_the_workload(tmp_path: Path) -> None:
    arrivals = [{**LINE, "arrival_time_ns": ns} for ns in (0, 1, 2)]
    capture = read_run(write_run(tmp_path / "run"), read_workload(write_lines(tmp_path / "w.jsonl", *arrivals)))
    assert [row.request_id for row in capture.trace.rows] == ["0", "1"]
    assert any("the first 2 requests of the 3" in note for note in capture.meta.notes)


def changed(index: int, **fields: object) -> list[dict[str, Any]]:
    return [{**row, **(fields if i == index else {})} for i, row in enumerate(RUN)]


BAD_RUNS: list[tuple[str, dict[str, Any], str, int | None, str | None]] = [
    ("no requests", {"rows": []}, "requests.jsonl", None, None),
    ("NaN time", {"rows": changed(1, queued_ts=float("nan"))}, "requests.jsonl", 2, "queued_ts"),
    ("time missing", {"rows": changed(1, first_token_ts=None)}, "requests.jsonl", 2, "first_token_ts"),
    ("scheduled before queued", {"rows": changed(0, scheduled_ts=9.0)}, "requests.jsonl", 1, "scheduled_ts"),
    ("last before first", {"rows": changed(1, last_token_ts=12.5)}, "requests.jsonl", 2, "last_token_ts"),
    ("other id", {"rows": changed(1, request_id="cmpl-1")}, "requests.jsonl", 2, "request_id"),
    ("same id", {"rows": changed(1, request_id="bench-0")}, "requests.jsonl", 2, "request_id"),
    ("unknown id", {"rows": changed(1, request_id="bench-7")}, "requests.jsonl", 2, "request_id"),
    ("other prompt", {"rows": changed(1, input_toks=6)}, "requests.jsonl", 2, "input_toks"),
    ("other output", {"rows": changed(0, output_toks=4)}, "requests.jsonl", 1, "output_toks"),
    ("lost request", {"rows": RUN[:1], "meta": {**META, "num_requests": None}}, "requests.jsonl", None, None),
    ("lost row", {"rows": RUN[:1]}, "requests.jsonl", None, None),
    ("no model", {"meta": {k: v for k, v in META.items() if k != "model"}}, "meta.json", None, "model"),
    ("no date", {"meta": {**META, "started_at": "yesterday"}}, "meta.json", None, "started_at"),
    ("no zone", {"meta": {**META, "started_at": "2026-04-25T18:47:18"}}, "meta.json", None, "started_at"),
    ("wrong header", {"ticks": TICKS.replace("running", "busy")}, "timeseries.csv", 1, "running"),
    ("NaN series", {"ticks": TICKS.replace("2.0,5", "2.0,nan")}, "timeseries.csv", 3, "prompt_throughput"),
    ("time runs back", {"ticks": TICKS.replace("2.0,", "0.5,")}, "timeseries.csv", 3, "t"),
]


@pytest.mark.parametrize(
    ("parts", "name", "line", "field"), [case[1:] for case in BAD_RUNS], ids=[case[0] for case in BAD_RUNS]
)
def test_a_wrong_run_is_refused(
    tmp_path: Path, parts: dict[str, Any], name: str, line: int | None, field: str | None
) -> None:
    trace = read_workload(write_lines(tmp_path / "w.jsonl", LINE, LINE))
    folder = write_run(tmp_path / "run", **parts)
    with pytest.raises(InputError) as caught:
        read_run(folder, trace)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(folder / name), line, field)


# The published files


@pytest.mark.ground_truth
def test_the_llama_run_is_read_whole(ground_truth: Path, tmp_path: Path) -> None:
    root = ground_truth / "vllm-0.19"
    trace = read_workload(root / "workloads" / "sharegpt-llama-3.1-8b-300-sps10.jsonl")
    assert len(trace) == 300
    assert sum(row.prompt_tokens for row in trace.rows) == 257_239
    assert sum(row.output_tokens for row in trace.rows) == 195_753
    assert all(len(r.block_hashes or ()) == (r.prompt_tokens + r.output_tokens) // 16 for r in trace.rows)

    capture = read_run(root / "bench" / "RTXPRO6000" / "Llama-3.1-8B", trace)
    ttft_s = requests(capture.outcomes).ttft_s
    assert ttft_s.mean() == pytest.approx(7.119974885630072, abs=1e-9)
    assert ttft_s.max() == pytest.approx(20.3221832, abs=1e-5)
    assert not any("dataset_hash" in note for note in capture.meta.notes)
    assert "kv_usage" not in capture.series

    write_capture(capture, tmp_path / "capture")
    assert summary(read_capture(tmp_path / "capture")) == summary(capture)


@pytest.mark.ground_truth
@pytest.mark.parametrize(
    ("workload", "run"),
    [
        ("sharegpt-llama-3.1-8b-300-sps10.jsonl", "Llama-3.1-8B"),
        ("sharegpt-qwen3-30b-a3b-300-sps10.jsonl", "Qwen3-30B-A3B-Instruct-2507"),
    ],
)
def test_recorded_and_derived_series_share_one_clock(ground_truth: Path, workload: str, run: str) -> None:
    """Prompt throughput follows from first tokens alone, so it shows whether the two clocks were joined right."""
    root = ground_truth / "vllm-0.19"
    capture = read_run(root / "bench" / "RTXPRO6000" / run, read_workload(root / "workloads" / workload))
    recorded = capture.series["prompt_tokens_per_s"]
    grid = grid_like(recorded)
    assert grid is not None
    derived = derive(capture, grid)
    assert np.mean(derived["prompt_tokens_per_s"].value == recorded.value) > 0.9
    for name in ("n_running", "n_waiting"):
        assert np.abs(derived[name].value - capture.series[name].value).mean() < 0.5
    assert capture.series["output_tokens_per_s"].value.sum() == sum(o.output_tokens for o in capture.outcomes)
