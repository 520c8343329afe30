"""How many devices a study's points use: in tables where they differ, in a line where they do not, and as a figure."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from harness.reports.sweep_page import grounds, read_sweep
from harness.running.simulate import simulate_scenario
from harness.running.stream import stream_scenario
from harness.sweeps.capacity_table import capacity_table
from harness.sweeps.devices import device_cell, device_lines
from harness.sweeps.front_table import front_table
from harness.sweeps.sweep import sweep
from tests.harness.scenarios import write_scenario
from tests.harness.sweeps.studies import points_of, write_study

COUNTS = "grid: {cluster.instances.0.count: [1, 3]}\nobjectives: {ttft_s.p50: min, n_devices: min}\n"


def test_a_summary_counts_the_clusters_devices(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    _, figures = simulate_scenario(scenario, ["cluster.instances.0.count=3"])
    assert figures["n_devices"] == 3
    assert figures["devices"] == [{"device": "TESTGPU", "count": 3}]
    streamed = stream_scenario(scenario, tmp_path / "out", ["cluster.instances.0.count=3"])
    assert {name: streamed[name] for name in ("n_devices", "devices")} == {
        name: figures[name] for name in ("n_devices", "devices")
    }


def test_devices_are_an_objective_a_constraint_and_a_column(tmp_path: Path) -> None:
    study = write_study(tmp_path, COUNTS + "constraints: {n_devices: {max: 2}}\n")
    swept = sweep(study, tmp_path / "out", workers=1)
    assert [(point["figures"]["n_devices"], point["is_feasible"]) for point in points_of(swept)] == [
        (1, True),
        (3, False),
    ]
    assert swept.record["front"] == [0]
    columns, rows = front_table(swept.record)
    assert columns == ["point", "cluster.instances.0.count", "ttft_s.p50", "n_devices ≤ 2"]  # and no second one
    assert rows[0][-1] == "1"
    lines = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [(line["devices"], line["n_devices"]) for line in lines] == [("1 TESTGPU", "1"), ("3 TESTGPU", "3")]
    assert "devices" in read_sweep(tmp_path / "out").columns


def test_where_all_points_use_the_same_there_is_a_line_and_no_column(tmp_path: Path) -> None:
    study = write_study(tmp_path, "grid: {engine.max_num_seqs: [2, 8]}\nobjectives: {ttft_s.p50: min}\n")
    swept = sweep(study, tmp_path / "out", workers=1)
    assert device_lines(swept.record) == ["devices of all points: 1 TESTGPU"]
    assert "devices" not in front_table(swept.record)[0]
    read = read_sweep(tmp_path / "out")
    assert "devices" not in read.columns
    assert "devices of all points: 1 TESTGPU" in grounds(read)


def test_each_variant_of_a_capacity_says_its_devices_also_one_that_has_none(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        "grid: {cluster.instances.0.count: [1, 2]}\ncapacity: {key: concurrency, low: 1, high: 2}\n"
        "constraints: {n_finished: {min: 1000}}\n",
    )
    columns, rows = capacity_table(sweep(study, tmp_path / "out", workers=1).record)
    assert columns[:4] == ["point", "cluster.instances.0.count", "devices", "concurrency"]
    assert [row[:4] for row in rows] == [("–", "1", "1", "< 1"), ("–", "2", "2", "< 1")]


def of_devices(*points: dict[str, int] | None) -> dict[str, Any]:
    return {
        "objectives": {},
        "constraints": {},
        "points": [{"figures": None if one is None else figures_of(one)} for one in points],
    }


def figures_of(counts: dict[str, int]) -> dict[str, Any]:
    devices = [{"device": name, "count": count} for name, count in counts.items()]
    return {"n_devices": sum(counts.values()), "devices": devices}


@pytest.mark.parametrize(
    ("points", "cells"),
    [
        ([{"A": 1}, {"A": 2}, None], ["1", "2", "–"]),
        ([{"A": 1}, {"B": 1}, {"A": 1, "B": 2}], ["1 A", "1 B", "1 A, 2 B"]),
    ],
)
def test_names_stand_where_they_differ(points: list[dict[str, int] | None], cells: list[str]) -> None:
    record = of_devices(*points)
    cell = device_cell(record)
    assert cell is not None
    assert [cell(i) for i in range(len(points))] == cells
    assert device_lines(record) == []


def test_a_study_of_an_earlier_version_says_nothing_of_devices() -> None:
    record = {"objectives": {}, "constraints": {}, "points": [{"figures": {"n_requests": 1}}]}
    assert device_cell(record) is None
    assert device_lines(record) == []
