"""Runs that load generators measured: their instants become a capture, and our metrics are what they call the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.traces.mutations import N_COPIES, read_copies
from traces.capture import Capture, read_capture, write_capture
from traces.errors import InputError
from traces.formats import import_capture
from traces.metrics import requests, summary
from traces.outcome import Status
from traces.trace import Trace, TraceRow

SENT_S = [100.0, 100.5, 101.25]
TTFT_S = [0.25, 0.5, 0.125]
GAPS_S = [[0.0625, 0.125], [0.25], []]
PROMPTS, OUTPUTS = [40, 50, 60], [3, 2, 1]


def ends_s(i: int) -> float:
    return SENT_S[i] + TTFT_S[i] + sum(GAPS_S[i])


def vllm_bench() -> Any:
    return {
        "date": "20260102-030405",
        "backend": "vllm",
        "model_id": "m",
        "request_rate": "inf",
        "max_concurrency": 4,
        "completed": 3,
        "input_lens": [*PROMPTS, 70],
        "output_lens": [*OUTPUTS, 0],
        "ttfts": [*TTFT_S, 0.0],
        "itls": [*GAPS_S, []],
        "start_times": [*SENT_S, 102.0],
        "latencies": [*(ends_s(i) - SENT_S[i] for i in range(3)), 0.0],
        "errors": ["", "", "", "Bad Gateway"],
        "generated_texts": ["secret"] * 4,
        "mean_ttft_ms": 1e3 * sum(TTFT_S) / 3,
        "mean_tpot_ms": 1e3 * (0.09375 + 0.25) / 2,
    }


def guidellm() -> Any:
    def request(i: int, **more: Any) -> Any:
        last_s = ends_s(i)
        timings = {
            "request_start": SENT_S[i],
            "first_token_iteration": SENT_S[i] + TTFT_S[i],
            "last_token_iteration": last_s,
            "request_end": last_s + 0.01,
        }
        itl_ms = 1e3 * (last_s - timings["first_token_iteration"]) / (OUTPUTS[i] - 1) if OUTPUTS[i] > 1 else None
        return {
            "request_id": f"r{i}",
            "request_args": "secret",
            "info": {"timings": timings, "status": "completed", "error": None},
            "input_metrics": {"text_tokens": PROMPTS[i]},
            "output_metrics": {"text_tokens": OUTPUTS[i]},
            "prompt_tokens": PROMPTS[i],
            "output_tokens": OUTPUTS[i],
            "cached_tokens": 16,
            "inter_token_latency_ms": itl_ms,
            "time_per_output_token_ms": 1e3 * (last_s - SENT_S[i]) / OUTPUTS[i],
            **more,
        }

    failed = {"timings": {"resolve_start": 102.0}, "error": "boom"}
    return {
        "benchmarks": [
            {
                "config": {"backend": {"model": "m"}},
                "requests": {
                    "successful": [request(i) for i in (1, 0, 2)],
                    "incomplete": [],
                    "errored": [{"request_id": "r3", "info": failed, "input_metrics": {"text_tokens": 70}}],
                },
            }
        ]
    }


def aiperf() -> list[Any]:
    def record(i: int, **metadata: Any) -> Any:
        metrics = {
            "time_to_first_token": {"value": TTFT_S[i] * 1e3, "unit": "ms"},
            "request_latency": {"value": (ends_s(i) - SENT_S[i]) * 1e9, "unit": "ns"},
            "input_sequence_length": {"value": PROMPTS[i], "unit": "tokens"},
            "output_sequence_length": {"value": OUTPUTS[i], "unit": "tokens"},
        }
        if OUTPUTS[i] > 1:
            mean_ms = 1e3 * sum(GAPS_S[i]) / (OUTPUTS[i] - 1)
            metrics["inter_token_latency"] = {"value": mean_ms, "unit": "ms"}
        usual = {
            "x_request_id": f"r{i}",
            "request_start_ns": int(SENT_S[i] * 1e9) + 10**18,
            "benchmark_phase": "profiling",
        }
        return {"metadata": {**usual, **metadata}, "metrics": metrics, "error": None}

    failed = {"metadata": {"x_request_id": "r3", "request_start_ns": int(102e9) + 10**18}, "metrics": {}}
    return [
        record(0, x_request_id="w", benchmark_phase="warmup"),
        *(record(i) for i in range(3)),
        {**failed, "metrics": {"input_sequence_length": {"value": 70, "unit": "tokens"}}, "error": {"type": "HTTP"}},
    ]


def inference_perf() -> list[Any]:
    def record(i: int) -> Any:
        times_s = [SENT_S[i] + TTFT_S[i]]
        for gap_s in GAPS_S[i]:
            times_s.append(times_s[-1] + gap_s)
        response = {"output_tokens": OUTPUTS[i], "output_token_times": times_s, "chunk_times": times_s}
        info = {"input_tokens": PROMPTS[i], "response_metrics": response}
        return {
            "stage_id": 0,
            "scheduled_time": SENT_S[i],
            "start_time": SENT_S[i],
            "end_time": times_s[-1] + 0.01,
            "request_data": "secret",
            "info": info,
            "error": None,
        }

    error = {"error_type": "HTTP", "error_msg": "secret"}
    failed = {"stage_id": 1, "start_time": 102.0, "end_time": 102.5, "info": {"input_tokens": 70}, "error": error}
    return [*(record(i) for i in range(3)), failed]


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


FILES: dict[str, Callable[[], str]] = {
    "vllm-bench": lambda: json.dumps(vllm_bench()),
    "guidellm": lambda: json.dumps(guidellm()),
    "aiperf": lambda: lines(aiperf()),
    "inference-perf": lambda: json.dumps(inference_perf()),
}
TIMES_PIECES = ("vllm-bench", "inference-perf")


def read(folder: Path, text: str, **more: Any) -> Capture:
    path = folder / "result"
    path.write_text(text)
    return import_capture(path, **more)


@pytest.mark.parametrize("name", FILES)
def test_all_tools_that_saw_the_same_run_give_the_same_metrics(tmp_path: Path, name: str) -> None:
    capture = read(tmp_path, FILES[name]())
    assert capture.outcomes == read(tmp_path, FILES[name](), format=name).outcomes
    done = [o for o in capture.outcomes if o.status is Status.FINISHED]
    found = requests(done)
    assert [o.arrival_s for o in capture.outcomes] == pytest.approx([0.0, 0.5, 1.25, 2.0])
    assert found.ttft_s == pytest.approx(TTFT_S)
    assert found.tpot_s[:2] == pytest.approx([0.09375, 0.25])
    assert found.e2el_s == pytest.approx([ends_s(i) - SENT_S[i] for i in range(3)])
    assert [(o.prompt_tokens, o.output_tokens) for o in done] == list(zip(PROMPTS, OUTPUTS, strict=True))
    assert [o.status for o in capture.outcomes[3:]] == [Status.FAILED]
    itl = summary(capture)["metrics"]["itl_s"]["mean"]
    assert (itl == pytest.approx((0.0625 + 0.125 + 0.25) / 3)) if name in TIMES_PIECES else itl is None
    assert not any("state" in note for note in capture.meta.notes), capture.meta.notes


@pytest.mark.parametrize("name", FILES)
def test_a_capture_of_it_is_kept_without_what_was_said(tmp_path: Path, name: str) -> None:
    capture = read(tmp_path, FILES[name]())
    write_capture(capture, tmp_path / "capture")
    assert read_capture(tmp_path / "capture").outcomes == capture.outcomes
    kept = b"".join(path.read_bytes() for path in (tmp_path / "capture").iterdir())
    assert b"secret" not in kept
    assert "secret" not in repr(capture)


def test_time_per_output_token_of_guidellm_is_not_ours(tmp_path: Path) -> None:
    capture = read(tmp_path, FILES["guidellm"]())
    theirs_s = guidellm()["benchmarks"][0]["requests"]["successful"][1]["time_per_output_token_ms"] / 1e3
    assert theirs_s == pytest.approx((0.25 + 0.0625 + 0.125) / 3)
    assert requests(capture.outcomes).tpot_s[0] == pytest.approx((0.0625 + 0.125) / 2)
    assert capture.outcomes[0].cached_tokens == 16


@pytest.mark.parametrize("name", ["vllm-bench", "guidellm", "aiperf"])
def test_figures_that_contradict_the_times_are_said(tmp_path: Path, name: str) -> None:
    text = FILES[name]()
    for stated, other in (('"mean_tpot_ms": 171.875', '"mean_tpot_ms": 200'), ("93.75", "40.5")):
        text = text.replace(stated, other)
    assert any("the times it recorded give" in note for note in read(tmp_path, text).meta.notes)


def test_folders_that_the_tools_write_are_told(tmp_path: Path) -> None:
    for name, file in (
        ("aiperf", "profile_export.jsonl"),
        ("guidellm", "benchmarks.json"),
        ("inference-perf", "per_request_lifecycle_metrics.json"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(FILES[name]())
        assert len(import_capture(tmp_path / name).outcomes) == 4


def test_a_result_without_details_says_what_to_ask_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'input_lens': is missing: accepted: .*--save-detailed"):
        read(tmp_path, json.dumps({"mean_ttft_ms": 3.0, "request_throughput": 1.0}))


def test_pieces_of_several_tokens_are_no_token_times(tmp_path: Path) -> None:
    result = vllm_bench()
    result["output_lens"][0] = 9
    capture = read(tmp_path, json.dumps(result))
    assert capture.outcomes[0].token_times_s is None
    assert len(capture.outcomes[0].client_token_times_s or ()) == 3
    assert "1 answers came in pieces of several tokens: their ITL is not known" in capture.meta.notes


def test_a_trace_gives_a_vllm_run_its_ids_and_prefixes(tmp_path: Path) -> None:
    rows = [
        TraceRow(request_id=f"t{i}", arrival_s=float(i), prompt_tokens=p, output_tokens=9, block_hashes=(5, 6))
        for i, p in enumerate([*PROMPTS, 70])
    ]
    trace = Trace(tuple(rows), 16, "workload", "sha256:1")
    capture = read(tmp_path, FILES["vllm-bench"](), trace=trace)
    assert capture.trace is trace
    assert [o.request_id for o in capture.outcomes] == ["t0", "t1", "t2", "t3"]
    with pytest.raises(InputError, match=r"found '4 requests': accepted: 3, as workload has"):
        read(tmp_path, FILES["vllm-bench"](), trace=Trace(tuple(rows[:3]), 16, "workload", "sha256:1"))
    with pytest.raises(InputError, match=r"'\[0\].prompt tokens': found 40: accepted: 50"):
        read(tmp_path, FILES["vllm-bench"](), trace=Trace((rows[1], *rows[1:]), 16, "workload", "sha256:1"))
    with pytest.raises(InputError, match="no --trace beside it"):
        read(tmp_path, FILES["guidellm"](), trace=trace)


def test_one_of_several_runs_is_asked_for(tmp_path: Path) -> None:
    report = guidellm()
    report["benchmarks"] *= 2
    with pytest.raises(InputError, match=r"2 benchmarks.*--part"):
        read(tmp_path, json.dumps(report))
    assert len(read(tmp_path, json.dumps(report), part=1).outcomes) == 4
    assert len(read(tmp_path, FILES["inference-perf"](), part=0).outcomes) == 3
    for name, part in (("guidellm", 7), ("inference-perf", 7), ("aiperf", 0), ("vllm-bench", 1)):
        with pytest.raises(InputError, match="--part"):
            read(tmp_path, FILES[name](), part=part)


def naive(name: str, text: str) -> list[tuple[float, float | None, float, int, int]]:
    """Sending, TTFT, E2EL, prompt and output tokens of the requests that finished, in order of sending."""
    found = []
    match name:
        case "vllm-bench":
            r = json.loads(text)
            for i, tokens in enumerate(r["output_lens"]):
                if tokens and not (r.get("errors") or [""] * 9)[i]:
                    end_s = r["ttfts"][i] + sum(r["itls"][i])
                    found.append((r["start_times"][i], r["ttfts"][i], end_s, r["input_lens"][i], tokens))
        case "guidellm":
            for r in json.loads(text)["benchmarks"][0]["requests"].get("successful", []):
                t = r["info"]["timings"]
                sent_s = t["request_start"] if t.get("request_start") is not None else t["resolve_start"]
                end_s = t["last_token_iteration"] if t.get("last_token_iteration") is not None else t["request_end"]
                first_s = t.get("first_token_iteration")
                ttft_s = None if first_s is None else first_s - sent_s
                prompt = (
                    r.get("prompt_tokens") if r.get("prompt_tokens") is not None else r["input_metrics"]["text_tokens"]
                )
                output = (
                    r.get("output_tokens") if r.get("output_tokens") is not None else r["output_metrics"]["text_tokens"]
                )
                found.append((sent_s, ttft_s, end_s - sent_s, prompt, output))
        case "aiperf":
            unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "sec": 1}
            for r in (json.loads(line) for line in text.split("\n") if line.strip()):
                meta, m = r["metadata"], r.get("metrics", {})
                warm = (meta.get("benchmark_phase") or "").lower().startswith("warm")
                if r.get("error") is None and not warm and not meta.get("was_cancelled"):
                    ttft, latency = m.get("time_to_first_token"), m["request_latency"]
                    ttft_s = None if ttft is None else ttft["value"] * unit[ttft["unit"]]
                    tokens = m["input_sequence_length"]["value"], m["output_sequence_length"]["value"]
                    found.append(
                        (meta["request_start_ns"] / 1e9, ttft_s, latency["value"] * unit[latency["unit"]], *tokens)
                    )
        case _:
            for r in json.loads(text):
                if r.get("error") is None:
                    answer = r["info"].get("response_metrics") or r["info"]
                    times_s = answer.get("output_token_times") or []
                    ttft_s = times_s[0] - r["start_time"] if times_s else None
                    end_s = times_s[-1] if times_s else r["end_time"]
                    tokens = r["info"]["input_tokens"], answer["output_tokens"]
                    found.append((r["start_time"], ttft_s, end_s - r["start_time"], *tokens))
    return sorted((row for row in found if row[3]), key=lambda row: row[0])


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_copy_is_refused_where_it_is_damaged_or_read_aright(tmp_path: Path, name: str) -> None:
    path = tmp_path / "result"
    refused = 0
    for copy, found in read_copies(FILES[name]().encode(), lambda path: import_capture(path, name), path):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path), (copy, str(found))
            continue
        done = sorted((o for o in found.outcomes if o.status is Status.FINISHED), key=lambda o: o.arrival_s)
        columns = requests(done)
        expected = naive(name, copy.decode())
        assert [(o.prompt_tokens, o.output_tokens) for o in done] == [row[3:] for row in expected], copy
        assert columns.e2el_s == pytest.approx([row[2] for row in expected], rel=1e-6, abs=1e-6), copy
        ttft_s = [float("nan") if row[1] is None else row[1] for row in expected]
        assert columns.ttft_s == pytest.approx(ttft_s, rel=1e-6, abs=1e-6, nan_ok=True), copy
        assert all(o.arrival_s >= 0 for o in found.outcomes)
    assert refused > N_COPIES / 4
