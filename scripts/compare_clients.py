"""Our client against vLLM's own benchmark client, on the same server and the same load, in alternating runs.

    .venv/bin/python scripts/compare_clients.py --runs 5 --out docs/clients.md

A small model on a real vLLM on this machine's CPU. Each round is a run of `vllm bench serve` and a run of ours in turn,
which of them first alternates. The benchmark draws lengths and arrivals from its seed; ours sends the requests that
the benchmark's first run sent, at the times it sent them. Prompts are random in both and share nothing. The table says
for each figure what the two measured, and how far runs of the same client lie apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from collectors.client.load import Pacing
from collectors.client.request import Target
from collectors.local.server import local_server
from collectors.local.small_model import VOCAB_SIZE, write_small_model
from collectors.recording.folder import About
from collectors.recording.replay import replay
from traces.metrics import requests, throughput
from traces.outcome import as_the_client_saw
from traces.trace import Trace, TraceRow

ROOT = Path(__file__).resolve().parents[1]
N_REQUESTS, RATE = 60, 3.0
BENCH = "import argparse; from vllm.benchmarks.serve import add_cli_args, main; p = argparse.ArgumentParser(); " + (
    "add_cli_args(p); main(p.parse_args())"
)
LATENCIES = ("ttft", "tpot", "itl", "e2el")
FIGURES = [f"{name} {what}, ms" for name in LATENCIES for what in ("mean", "p50", "p99")] + ["output tokens/s"]


def bench(python: Path, url: str, model: Path, folder: Path) -> dict[str, Any]:
    """One run of vLLM's benchmark; its detailed result."""
    result = folder / "bench.json"
    options = ["--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions", "--model", "model"]
    options += ["--tokenizer", str(model), "--dataset-name", "random", "--random-input-len", "160"]
    options += ["--random-output-len", "48", "--random-range-ratio", "0.6", "--num-prompts", str(N_REQUESTS)]
    options += ["--request-rate", str(RATE), "--seed", "7", "--ignore-eos", "--disable-tqdm", "--temperature", "0"]
    options += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"]
    options += ["--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", result.name]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    ran = subprocess.run([python, "-c", BENCH, *options], check=False, capture_output=True, text=True, env=environment)
    if ran.returncode:
        sys.exit(f"the benchmark failed:\n{ran.stderr[-3000:]}")
    return dict(json.loads(result.read_text()))


def bench_figures(result: dict[str, Any]) -> list[float]:
    """The figures that the benchmark reports."""
    latencies = [float(result[f"{what}_{name}_ms"]) for name in LATENCIES for what in ("mean", "p50", "p99")]
    return [*latencies, float(result["output_throughput"])]


def trace_of(result: dict[str, Any]) -> Trace:
    """The requests that the benchmark sent, at the times it sent them."""
    begun_s = min(result["start_times"])
    sent = sorted(zip(result["start_times"], result["input_lens"], result["output_lens"], strict=True))
    rows = [
        TraceRow(request_id=str(i), arrival_s=at - begun_s, prompt_tokens=prompt, output_tokens=output)
        for i, (at, prompt, output) in enumerate(sent)
    ]
    return Trace(tuple(rows), None, "vllm bench serve", "sha256:none")


def our_figures(trace: Trace, url: str, out: Path) -> list[float]:
    """One run of our client; the same figures, by the client's times."""
    about = About(model="model", device=None, recorded_at="")
    capture = replay(trace, Target(url, "model", vocab_size=VOCAB_SIZE), Pacing(), about, out)
    print("\n".join([*capture.meta.notes, *capture.meta.reasons]), file=sys.stderr)
    seen = [as_the_client_saw(outcome) for outcome in capture.outcomes]
    by_request = requests(seen)
    pieces_s = [np.diff(outcome.client_token_times_s or ()) for outcome in seen]  # ITL is of pieces, as the benchmark's
    gaps_s = np.concatenate(pieces_s)
    samples = (by_request.ttft_s, by_request.tpot_s, gaps_s, by_request.e2el_s)
    latencies = [
        1e3 * float(of(values[~np.isnan(values)]))
        for values in samples
        for of in (np.mean, np.median, lambda known: np.quantile(known, 0.99))
    ]
    amounts = throughput(seen)
    assert amounts is not None
    return [*latencies, amounts.output_tokens_per_s]


def table(theirs: list[list[float]], ours: list[list[float]]) -> tuple[list[str], int]:
    """The figures of all runs as Markdown, and how many of them differ by more than runs of one client do."""
    lines = [
        "| figure | vllm bench serve | ours | difference | runs of one client differ by |",
        "|---|---|---|---|---|",
    ]
    outside = 0
    for name, their, our in zip(FIGURES, zip(*theirs, strict=True), zip(*ours, strict=True), strict=True):
        middle_theirs, middle_ours = statistics.median(their), statistics.median(our)
        spread = max(max(their) - min(their), max(our) - min(our))
        outside += abs(middle_ours - middle_theirs) > spread
        ranges = [f"{statistics.median(v):.4g} ({min(v):.4g} to {max(v):.4g})" for v in (their, our)]
        difference = f"{middle_ours - middle_theirs:+.3g} ({middle_ours / middle_theirs - 1:+.1%})"
        lines.append(f"| {name} | {ranges[0]} | {ranges[1]} | {difference} | {spread:.3g} |")
    return lines, outside


def compare(n_runs: int, python: Path) -> tuple[list[str], int]:
    """Run both in turn and compare; see `table`."""
    theirs: list[list[float]] = []
    ours: list[list[float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_small_model(folder / "model", "s")
        flags = ["--load-format", "dummy", "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "2048"]
        flags += ["--max-num-seqs", "32", "--max-num-batched-tokens", "512", "--block-size", "32"]
        flags += ["--kv-cache-memory-bytes", str(1 << 28), "--no-enable-prefix-caching"]
        with local_server(python, model, folder / "server.log", flags=flags) as url:
            trace = trace_of(bench(python, url, model, folder))  # a warm-up too
            turns: list[Callable[[], None]] = [
                lambda: theirs.append(bench_figures(bench(python, url, model, folder))),
                lambda: ours.append(our_figures(trace, url, folder / f"ours-{len(ours)}")),
            ]
            for i in range(n_runs):
                for turn in turns if i % 2 == 0 else reversed(turns):
                    turn()
                print(f"round {i + 1} of {n_runs}", file=sys.stderr, flush=True)
    return table(theirs, ours)


def main() -> None:
    """Compare, print the table, and write it where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each client")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument("--engine-python", type=Path, default=ROOT / ".venv-engine" / "bin" / "python")
    options = parser.parse_args()
    lines, outside = compare(options.runs, options.engine_python)
    lines += ["", f"{outside} of {len(FIGURES)} figures differ by more than runs of one client do."]
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
