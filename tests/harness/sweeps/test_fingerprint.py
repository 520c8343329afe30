"""A result is used again where all that it depends on is the same, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.descriptions.scenario import read_scenario
from harness.sweeps import fingerprint
from harness.sweeps.fingerprint import Fingerprints
from tests.harness.scenarios import write_scenario


def of(scenario: Path, *overrides: str, first_requests: int | None = None) -> str:
    own = scenario.parent / "profiles" / "out"
    return Fingerprints(own).of(read_scenario(scenario, overrides), first_requests)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return write_scenario(tmp_path)


def append(file: Path, text: str = "\n") -> None:
    file.write_text(file.read_text() + text)


def test_what_is_asked_for_counts(scenario: Path) -> None:
    known = of(scenario)
    assert known == of(scenario)
    assert known != of(scenario, "engine.max_num_seqs=8")
    assert known != of(scenario, first_requests=10)


def test_where_it_stands_does_not_count(scenario: Path, tmp_path: Path) -> None:
    elsewhere = write_scenario(tmp_path / "elsewhere")
    assert of(scenario) == of(elsewhere)


@pytest.mark.parametrize("name", ["requests.jsonl", "profiles/tiny/dense.csv", "profiles/models/test/tiny/config.json"])
def test_content_that_is_read_counts(name: str, scenario: Path) -> None:
    known = of(scenario)
    append(scenario.parent / name)
    assert known != of(scenario)


def test_the_studys_own_folder_does_not_count(scenario: Path) -> None:
    known = of(scenario)
    (scenario.parent / "profiles" / "out").mkdir()
    (scenario.parent / "profiles" / "out" / "results.csv").write_text("point\n")
    assert known == of(scenario)


def test_a_cluster_file_counts_with_the_files_that_it_names(scenario: Path) -> None:
    cluster, caps = scenario.parent / "cluster.yaml", scenario.parent / "caps.csv"
    cluster.write_text("instances: [{model: test/tiny, device: TESTGPU}]\npower: {cap_slowdown: caps.csv}\n")
    caps.write_text("power_w,slowdown\n")
    known = of(scenario, "cluster=cluster.yaml")
    append(caps)
    other = of(scenario, "cluster=cluster.yaml")
    assert other != known
    append(cluster)
    assert of(scenario, "cluster=cluster.yaml") not in (known, other)


def test_a_rule_of_ones_own_counts_with_its_module(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(scenario.parent))
    module = scenario.parent / "sweeps_own_rule.py"
    module.write_text("class Rule: ...\n")
    known = of(scenario, "routing=sweeps_own_rule:Rule")
    append(module)
    assert of(scenario, "routing=sweeps_own_rule:Rule") != known


def test_servetwin_itself_counts(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = of(scenario)
    monkeypatch.setattr(fingerprint, "files_digest", lambda: "another")
    assert of(scenario) != known
