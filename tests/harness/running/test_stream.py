"""`simulate --stream`: the same files, as far as it writes them, and a refusal of what it cannot tell."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.running.simulate import simulate_scenario, write_simulation
from harness.running.stream import Figures, Gaps, stream_scenario
from tests.harness.scenarios import write_scenario
from traces.capture import read_capture
from traces.errors import InputError
from traces.statistics import statistic

ROOT = Path(__file__).parents[3]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return write_scenario(tmp_path)


def test_outcomes_trace_and_figures_are_those_of_the_whole(scenario: Path, tmp_path: Path) -> None:
    write_simulation(*simulate_scenario(scenario), tmp_path / "whole")
    figures = stream_scenario(scenario, tmp_path / "streamed")
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    assert (streamed / "outcomes.parquet").read_bytes() == (whole / "outcomes.parquet").read_bytes()
    unpacked = [gzip.decompress((folder / "trace.jsonl.gz").read_bytes()) for folder in (whole, streamed)]
    assert unpacked[0] == unpacked[1]
    expected = json.loads((whole / "summary.json").read_text())
    for name in ("metrics", "requests", "prompt_tokens", "cached_tokens", "prefix_hit_rate", "steps"):
        assert figures[name] == expected[name], name
    read = read_capture(streamed)
    assert (read.steps, len(read.outcomes)) == (None, 40)
    assert "streamed: steps, series and intervals were not kept" in read.meta.notes
    assert sorted(file.name for file in streamed.iterdir()) == [
        "meta.json",
        "outcomes.parquet",
        "summary.json",
        "trace.jsonl.gz",
    ]


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "160"}
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n\$ (.*?)\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    for command, shown in blocks:
        ran = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert not ran.stderr, ran.stderr
        assert ran.stdout.split() == shown.split()


def test_the_example_is_the_same_as_without(tmp_path: Path) -> None:
    example = ROOT / "docs" / "examples" / "stream.yaml"
    simulation, _ = simulate_scenario(example)
    stream_scenario(example, tmp_path / "out")
    assert read_capture(tmp_path / "out").outcomes == simulation.capture.outcomes


def test_what_needs_more_is_refused_and_nothing_is_left(scenario: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'slo': is not told while streaming"):
        stream_scenario(scenario, tmp_path / "out", ["slo.ttft_s=1"])
    with pytest.raises(InputError, match="'concurrency': cannot be streamed"):
        stream_scenario(scenario, tmp_path / "out", ["concurrency=4"])
    assert not (tmp_path / "out").exists()


def test_what_ends_on_the_way_leaves_no_file_open_while_its_error_is_kept(scenario: Path, tmp_path: Path) -> None:
    trace = tmp_path / "requests.jsonl"
    lines = trace.read_text().splitlines()
    late = json.dumps({**json.loads(lines[-1]), "request_id": "late", "session_id": "s", "delay_s": 1.0})
    trace.write_text("\n".join([*lines, late]) + "\n")
    with pytest.raises(InputError, match="cannot be streamed") as kept:
        stream_scenario(scenario, tmp_path / "out")
    opened = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [file for file in opened if file.is_relative_to(tmp_path)], kept
    assert not (tmp_path / "out").exists()


def test_many_gaps_are_counted_and_their_percentiles_are_right_to_a_thousandth() -> None:
    gaps_s = np.random.default_rng(0).lognormal(-4, 1, 5000)
    few, many = Gaps(), Gaps(most=1000)
    for part in np.array_split(gaps_s, 7):
        few.add(part)
        many.add(part)
    assert (few.are_exact, many.are_exact) == (True, False)
    for name in ("mean", "p50", "p90", "p99"):
        assert few.statistics()[name] == statistic(gaps_s, name)
        assert many.statistics()[name] == pytest.approx(statistic(gaps_s, name), rel=2e-3)


def test_figures_of_nothing_are_none() -> None:
    figures = Figures().summary()
    assert (figures["n_requests"], figures["cached_tokens"], figures["metrics"]["duration_s"]) == (0, None, None)
