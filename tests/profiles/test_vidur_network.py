"""Vidur's times between devices: what its columns become, what is said of them, and 200 damaged copies of each file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.running.simulate import simulate_scenario
from profiles.profile_folder import read_profile
from profiles.vidur_network import Network, read_network
from tests.engines import trace
from tests.profiles.vidur_files import CONFIG, STATS, write_vidur
from tests.traces.mutations import N_COPIES, read_copies
from traces.errors import InputError
from traces.trace import write_trace

SIZES = (2048, 10240, 65536, 1048576)


def write_network(root: Path, name: str = "a100_dgx") -> Path:
    """All-reduces of 10 us and a byte in 10 ns, times (ranks - 1), on one node; of 4 ranks on two nodes, ten times it.

    Sends take 5 us and a byte in 0.1 ns on one node, and four times it between two.
    """
    folder = root / "network" / name
    folder.mkdir(parents=True)
    reduces, sends = [], []
    for size in SIZES:
        for ranks, per_node, factor in ((2, 2, 1.0), (4, 4, 3.0), (4, 2, 30.0)):
            reduces.append(_row("all_reduce", ranks, per_node, size, factor * (0.010 + size * 1e-8)))
        for per_node, factor in ((2, 1.0), (1, 4.0)):
            sends.append(_row("send_recv", 2, per_node, size, factor * (0.005 + size * 1e-7)))
    reduces.append(_row("all_reduce", 2, 2, SIZES[0], 0.012 + SIZES[0] * 1e-8))
    reduces.append(_row("all_reduce", 2, 2, 16, 0.0))
    for file, rows in (("all_reduce.csv", reduces), ("send_recv.csv", sends)):
        with (folder / file).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["", *rows[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"": i, **row} for i, row in enumerate(rows))
    return folder


def _row(collective: str, ranks: int, per_node: int, size: int, ms: float) -> dict[str, object]:
    stats = {stat: f"{ms / 10 if stat == 'std' else ms:.9f}" for stat in STATS}
    row: dict[str, object] = {f"time_stats.{collective}.{stat}": value for stat, value in stats.items()}
    row |= {"rank": 0, "num_workers": ranks, "size": size, "collective": collective}
    return row | {"devices_per_node": per_node, "max_devices_per_node": 8}


def test_all_reduces_of_one_node_are_the_collectives(tmp_path: Path) -> None:
    network = read_network(write_network(tmp_path))
    assert network.name == "a100_dgx"
    reduce, gather = network.collectives["all_reduce"], network.collectives["all_gather"]
    assert sorted(reduce) == sorted(gather) == [2, 4]
    assert reduce[4].x.tolist() == list(SIZES)
    assert reduce[4].time_s == pytest.approx([3 * (10e-6 + size * 1e-11) for size in SIZES])
    assert reduce[2].time_s[0] == pytest.approx(11e-6 + SIZES[0] * 1e-11)  # measured twice: the mean
    assert reduce[4].spread == pytest.approx([0.1] * 4)
    assert gather[4].time_s == pytest.approx(reduce[4].time_s / 2)


def test_what_was_assumed_averaged_and_left_out_is_said(tmp_path: Path) -> None:
    notes = "\n".join(read_network(write_network(tmp_path)).notes)
    assert "all-reduces of a100_dgx; an all-gather is half an all-reduce of as many bytes, as on a ring" in notes
    assert "all_reduce.csv: 1 rows measured again, averaged" in notes
    assert "all_reduce.csv: 4 rows between nodes left out" in notes
    assert "all_reduce.csv: 1 times of 0 ms left out" in notes


def test_sends_become_the_link_of_a_fabric(tmp_path: Path) -> None:
    notes = read_network(write_network(tmp_path)).notes
    links = [note for note in notes if "a link between two devices" in note]
    assert "on one node, for a fabric: {bandwidth_bytes_per_s: 1e+10, latency_s: 5e-06}; median error 0.0%" in links[0]
    assert "on two nodes, for a fabric: {bandwidth_bytes_per_s: 2.5e+09, latency_s: 2e-05}" in links[1]


def test_the_command_puts_them_beside_the_operators_and_they_are_simulated(tmp_path: Path) -> None:
    write_vidur(tmp_path / "compute", tps=(1, 2))
    out = tmp_path / "profiles"
    words = ["profile", "import", str(tmp_path / "compute"), "--network", str(write_network(tmp_path)), "--out"]
    result = CliRunner().invoke(app, [*words, str(out)])
    assert result.exit_code == 0, result.output
    profile = read_profile(out / "a100" / "test" / "tiny" / "float16")
    assert profile.collectives is not None
    assert sorted(profile.collectives["all_reduce"]) == [2, 4]
    assert any("an all-gather is half an all-reduce" in note for note in profile.meta.notes)
    model = out / "models" / "test" / "tiny" / "config.json"
    model.parent.mkdir(parents=True)
    model.write_text(json.dumps(CONFIG))
    write_trace(trace((0.0, 20, 5), (0.1, 40, 5)), tmp_path / "requests.jsonl")
    scenario = tmp_path / "s.yaml"
    scenario.write_text(
        "trace: requests.jsonl\nprofiles: [profiles]\n"
        "cluster: {instances: [{model: test/tiny, device: a100, tensor_parallel_size: 2}]}\n"
        "engine: {dtype: float16, num_gpu_blocks: 100, max_num_batched_tokens: 256, enforce_eager: true}\n"
    )
    simulation, figures = simulate_scenario(scenario)
    assert figures["n_finished"] == 2
    all_reduces = 2 * 2 + 1  # two in each of two layers, and the embedding's
    for outcome in simulation.capture.outcomes:
        assert ((outcome.finish_s or 0) - (outcome.first_token_s or 0)) / 4 > all_reduces * 11e-6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_workers", "workers", "all_reduce.csv:1: field 'num_workers': is missing"),
        (",all_reduce,4,", ",all_gather,4,", "csv:3: field 'collective': found 'all_gather': accepted: all_reduce"),
        ("0,4,2048,all_reduce,4,", "0,1,2048,all_reduce,1,", "csv:3: field 'num_workers': found '1': accepted: 2 or m"),
        (
            "0,4,2048,all_reduce,4,",
            "0,4,2048,all_reduce,8,",
            "csv:3: field 'devices_per_node': found '8': accepted: at",
        ),
        ("0,4,2048,all_reduce,4,", "0,4,-2048,all_reduce,4,", "csv:3: field 'size': found -2048"),
        (",0.010020480" * 4, ",1,1,1,fast", "csv:2: field 'time_stats.all_reduce.median': found 'fast'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = write_network(tmp_path) / "all_reduce.csv"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        read_network(file.parent)


def test_a_network_of_other_devices_or_of_another_format_is_refused(tmp_path: Path) -> None:
    write_vidur(tmp_path / "compute")
    network = write_network(tmp_path, "h100_dgx")
    words = ["profile", "import", str(tmp_path / "compute"), "--out", str(tmp_path / "p"), "--network"]
    result = CliRunner().invoke(app, [*words, str(network)])
    assert "'--network': is between other devices than a100: found 'h100_dgx'" in str(result.exception)
    result = CliRunner().invoke(app, [*words, str(tmp_path / "compute")])
    assert "holds no network of Vidur" in str(result.exception)
    words[2] = "aiconfigurator:h100_sxm"
    assert CliRunner().invoke(app, [*words, str(network)]).exit_code == 2
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "meta.yaml").write_text("")
    words[2] = str(tmp_path / "bundle")
    result = CliRunner().invoke(app, [*words, str(network)])
    assert "accepted: none for llmservingsim, only for vidur" in str(result.exception)


@pytest.mark.parametrize("name", ["all_reduce.csv", "send_recv.csv"])
def test_damaged_copies_are_read_or_refused(tmp_path: Path, name: str) -> None:
    path = write_network(tmp_path) / name

    def read(at: Path) -> Network:
        return read_network(at.parent)

    refused = 0
    for _, found in read_copies(path.read_bytes(), read, path):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path)
            assert found.line is not None or found.field is not None or "CSV" in str(found) or "text" in str(found)
        else:
            for curves in found.collectives.values():
                for curve in curves.values():
                    assert (np.diff(curve.x) > 0).all()
                    assert (curve.time_s > 0).all()
                    assert np.isfinite(curve.time_s).all()
    assert 0 < refused < N_COPIES
