"""What a study file may say, and how it is refused where it says something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.sweeps.study import read_study
from traces.errors import InputError

RANGES = "ranges: {engine.max_num_seqs: [1, 2]}"

WRONG = {
    "": r"says no points: accepted: one of grid, sample, search",
    "grid: {}": r"study.yaml:2: field 'grid': found \{\}: accepted: a mapping of length >= 1",
    "grid: {a: []}": r"study.yaml:2: field 'grid.a': found \[\]: accepted: a list of values",
    "grid: {a: [1, 1]}": r"field 'grid.a': holds a value twice",
    "grid: {a: 3}": r"study.yaml:2: field 'grid.a': found 3: accepted: a list of values",
    "sample: {n: 2, ranges: {a: {low: 3, hihg: 3}}}": r"field 'sample.ranges.a': found .*: accepted: a list",
    "grid: {a: [1]}\nsample: {n: 1, ranges: {a: [1]}}": r"study.yaml:3: field 'sample': says grid and sample",
    "grids: {a: [1]}": r"study.yaml:2: field 'grids': is unknown: accepted: .*grid",
    "sample: {n: 0, ranges: {a: [1]}}": r"field 'sample.n': found 0",
    "sample: {n: 2, ranges: {a: {low: 3, high: 3}}}": r"field 'sample.ranges.a.high': found 3: accepted: more",
    "sample: {n: 2, ranges: {a: {low: 0, high: 3, log: true}}}": r"ranges.a.low': found 0: accepted: above 0 with log",
    "search: {method: luck, n_trials: 3, ranges: {a: [1]}}": r"method': found 'luck': accepted: .*tpe",
    f"search: {{method: tpe, n_trials: 3, eta: 2, {RANGES}}}": r"search.eta': has no effect with method tpe",
    f"search: {{method: successive_halving, n_trials: 3, at_once: 2, min_requests: 1, {RANGES}}}": r"at_once': has no",
    f"search: {{method: successive_halving, n_trials: 3, {RANGES}}}": r"search.min_requests': is missing",
    "capacity: {key: a, low: 3, high: 3}": r"field 'capacity.high': found 3: accepted: a number above low, 3",
    "capacity: {key: a, low: 0, high: 3.5}": r"capacity.low': found 0: accepted: above 0: values grow by factors",
    "capacity: {key: a, low: 0, high: 3, tolerance: 0.1}": r"capacity.low': found 0: accepted: above 0: values grow",
    "capacity: {key: a, low: 1, high: 3, tolerance: 0}": r"capacity.tolerance': found 0",
    "capacity: {key: a, low: 1, high: 3}": r"has no constraints: a capacity is within some",
    "capacity: {key: a, low: 1, high: 3}\ngrid: {a: [1]}": r"study.yaml:2: field 'capacity.key': is varied by grid too",
    f"capacity: {{key: a, low: 1, high: 3}}\nsearch: {{method: tpe, n_trials: 3, {RANGES}}}": (
        r"field 'capacity': has no effect with search"
    ),
    "capacity: {key: a, low: 1, high: 3, at_once: 1001}": r"'capacity.at_once': found 1001: accepted: int <= 1000",
    "grid: {a: [1]}\nobjectives: {ttft_s.p99: up}": r"study.yaml:3: field 'objectives.ttft_s.p99': found 'up'",
    "grid: {a: [1]}\nconstraints: {ttft_s.p99: {}}": r"field 'constraints.ttft_s.p99': sets no limit",
    "grid: {a: [1]}\nconstraints: {ttft_s.p99: {min: 2, max: 1}}": (
        r"field 'constraints.ttft_s.p99.max': found 1: accepted: at least min, 2"
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_study_that_cannot_be_run_says_why(text: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"scenario: scenario.yaml\n{text}\n")
    with pytest.raises(InputError) as refused:
        read_study(file)
    assert re.search(WRONG[text], str(refused.value)), str(refused.value)


def test_objectives_are_throughput_and_first_tokens_unless_said(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("scenario: scenario.yaml\ngrid: {seed: [1, 2]}\n")
    assert read_study(file).file.objectives == {"output_tokens_per_s": "max", "ttft_s.p99": "min"}
