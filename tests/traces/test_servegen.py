"""ServeGen's client files: what they say is what is read, and 200 damaged copies of each are refused or read aright."""

from __future__ import annotations

import ast
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from harness.cli import app
from tests.pages import ROOT, shown_and_printed
from tests.traces.mutations import N_COPIES, read_copies
from traces.clients import ClientPool, clients_trace
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.servegen import read_clients

FOLDER = ROOT / "docs" / "examples" / "servegen"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example, each dataset on one line."""
    copy = Path(shutil.copytree(FOLDER, tmp_path / "clients"))
    for path in copy.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text())) + "\n")
    return copy


def read(path: Path) -> ClientPool:
    return read_clients(path.parent, 0, 7200)


def test_what_the_files_say_is_what_is_read() -> None:
    pool = read_clients(FOLDER, 0, 7200)
    assert [client.number for client in pool.clients] == [0, 1, 2]
    script, agent = pool.clients[1], pool.clients[2]
    assert script.windows.rate_per_s.tolist() == [0, 0, 0, 2, 2, 2, 0, 0, 0, 0, 0, 0]
    assert script.windows.law[2:4] == ("", "Gamma")
    assert script.windows.shape[3] == 1 / 4.0**2
    assert set(agent.windows.law) == {"Weibull"}
    assert sorted(script.lengths) == [1800, 2400, 3000]  # no others are asked for
    late = agent.lengths[3600]
    assert late is not None
    assert late.text.values.tolist() == [2400, 3600, 6000]
    assert late.text.cumulative.tolist() == pytest.approx([0.3, 0.6, 1.0])
    assert any("1 windows of lengths are empty" in note for note in pool.notes)


def test_lengths_are_those_of_the_last_window_that_has_any(folder: Path) -> None:
    path = folder / "chunk-1-trace.csv"
    path.write_text(path.read_text().replace("3600,0,0,,0,0", "3600,0.5,1.0,Gamma,1.0,2.0"))
    later = read(path).clients[1].lengths[3600]
    assert later is not None
    assert later.text.values.tolist() == [1500]


def test_a_client_without_lengths_as_yet_is_left_out_and_counted(folder: Path) -> None:
    path = folder / "chunk-2-dataset.json"
    path.write_text(json.dumps({"3600": json.loads(path.read_text())["3600"]}))
    trace = clients_trace(read(path), 0, 7200, 1)
    assert min(row.arrival_s for row in trace.rows if row.session_id == "client 2") >= 3600
    assert any("6 windows of clients were left out" in note for note in trace.notes)


def test_a_multimodal_prompt_is_all_its_tokens(folder: Path) -> None:
    one, none = "{1: 1.0}", "{0: 1.0}"
    fields = {"text_tokens": "{50: 1.0}", "output_tokens": "{20: 1.0}", "image_tokens": "{200: 0.5, 300: 0.5}"}
    fields |= {"audio_tokens": none, "video_tokens": "{7: 1.0}"}
    fields |= {"image_count": one, "audio_count": one, "video_count": none}
    path = folder / "chunk-2-dataset.json"
    path.write_text(json.dumps({"0": fields}))
    trace = clients_trace(read(path), 0, 7200, 1)
    assert {row.prompt_tokens for row in trace.rows if row.session_id == "client 2"} == {250, 350}
    assert any("what encodes these takes no time" in note for note in trace.notes)


def test_reasoning_is_part_of_the_answer(folder: Path) -> None:
    path = folder / "chunk-0-dataset.json"
    windows = json.loads(path.read_text())
    windows["0"]["reason_ratio"] = "{0.0: 0.25, 0.5: 0.75}"
    path.write_text(json.dumps(windows))
    assert any("reason_ratio is not read" in note for note in read(path).notes)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("chunk-1-trace.csv", "Gamma", "Pareto", "csv:4: field 'law': found 'Pareto': accepted: Gamma, Weibull"),
        ("chunk-1-trace.csv", "1800,2.0", "1800,-2.0", "csv:4: field 'rate_per_s': found '-2.0': accepted: a number"),
        ("chunk-1-trace.csv", "2400,2", "2500,2", "csv:5: field 'start_s': found 2500: accepted: 2400: windows"),
        ("chunk-1-trace.csv", "600,0,0,,0,0", "600,0,0,,0", "csv:2: has 5 cells: accepted: start_s, rate_per_s"),
        ("chunk-1-trace.csv", "6600,0,0,,0,0\n", "", "the windows of client 0: 12 of 600 s from 0"),
        ("chunk-1-trace.csv", "0.0625", "1e-9", "field 'shape': found '1e-9': accepted: a number from 0.0001 to 10000"),
        ("chunk-2-dataset.json", "0.5, 3600", "0.4, 3600", r"json:3: field '0.input_tokens': found 0.9.*: accepted"),
        ("chunk-2-dataset.json", "2400: 0.3", "3600: 0.3", "json:7: field '3600.input_tokens': the length 3600 stands"),
        ("chunk-2-dataset.json", "260: 0.5", "260.5: 0.5", "json:4: field '0.output_tokens': found ' 260.5: 0.5"),
        ("chunk-2-dataset.json", "output_", "out_", "json:2: field '0.output_tokens': is missing|json:1: field"),
        ("chunk-2-dataset.json", '"3600":', '"noon":', "field 'noon': found 'noon': accepted: the start of a window"),
        ("chunk-2-dataset.json", "{\n", "version https://git-lfs.github.com/spec/v1\n{", "a pointer of Git LFS"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    path = Path(shutil.copytree(FOLDER, tmp_path / "clients")) / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        read(path)


def test_a_folder_without_pairs_of_files_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "chunk-1-dataset.json").unlink()
    with pytest.raises(InputError, match=r"chunk-1-dataset.json: no such file: accepted: a dataset beside each trace"):
        read_clients(folder, 0, 600)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no client of ServeGen"):
        read_clients(tmp_path / "empty", 0, 600)
    with pytest.raises(InputError, match="is no folder"):
        read_clients(tmp_path / "none", 0, 600)


def test_a_folder_is_no_trace_and_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"is a folder: accepted: a file; of a folder of ServeGen's clients, what"):
        read_any_trace(FOLDER)


def windows_of(text: str) -> list[tuple[int, float, str, float]]:
    """A naive reading of a trace file."""
    rows = [line.strip().split(",") for line in text.split("\n") if line.strip()]
    return [(int(float(s)), float(r), law if float(r) else "", float(k)) for s, r, _, law, k, _ in rows]


def lengths_of(text: str) -> dict[int, dict[int, dict[int, float]]]:
    """A naive reading of a dataset: by window, for prompts (0) and answers (1)."""
    found: dict[int, dict[int, dict[int, float]]] = {}
    for start, fields in json.loads(text).items():
        if any(ast.literal_eval(law) == {} for law in fields.values()):
            continue
        laws = [ast.literal_eval(fields[name]) for name in ("input_tokens", "output_tokens")]
        found[int(start)] = dict(enumerate(laws))
    return found


@pytest.mark.parametrize("name", ["chunk-0-trace.csv", "chunk-2-trace.csv"])
def test_damaged_windows_are_refused_or_read_aright(folder: Path, name: str) -> None:
    path = folder / name
    refused = 0
    for copy, found in read_copies(path.read_bytes(), read, path):
        if isinstance(found, InputError):
            refused += 1
            assert found.file is not None, copy
            assert Path(found.file).parent == folder, copy
            assert found.line is not None or "windows" in str(found), (copy, str(found))
            continue
        windows = next(client.windows for client in found.clients if f"-{client.number}-" in name)
        laws = [law if rate else "" for law, rate in zip(windows.law, windows.rate_per_s, strict=True)]
        says = zip(windows.start_s.tolist(), windows.rate_per_s.tolist(), laws, windows.shape.tolist(), strict=True)
        assert list(says) == windows_of(copy.decode()), copy
    assert N_COPIES / 4 < refused < N_COPIES


def test_damaged_lengths_are_refused_or_read_aright(folder: Path) -> None:
    path = folder / "chunk-2-dataset.json"
    refused = 0
    for copy, found in read_copies(path.read_bytes(), read, path):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path), (copy, str(found))
            assert found.field is not None or "is not JSON" in str(found) or "accepted: a mapping" in str(found), str(
                found
            )
            continue
        said = lengths_of(copy.decode())
        for window, lengths in found.clients[2].lengths.items():
            start = max((start for start in said if start <= window), default=None)
            assert (lengths is None) == (start is None), copy
            if lengths is not None and start is not None:
                for law, wanted in zip((lengths.text, lengths.output), said[start].values(), strict=True):
                    assert law.values.tolist() == sorted(wanted), copy
                    shares = np.diff(law.cumulative, prepend=0.0)
                    assert shares.tolist() == pytest.approx([wanted[n] for n in sorted(wanted)], abs=1e-6), copy
    assert N_COPIES / 4 < refused < N_COPIES


def test_the_command_draws_a_workload_and_says_what_was_assumed(tmp_path: Path) -> None:
    words = ["trace", "synth", "--servegen", str(FOLDER), "--start", "1800", "--end", "3600", "--rate", "5"]
    for name in ("a", "b"):
        result = CliRunner().invoke(app, [*words, "--seed", "3", "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        assert "ServeGen itself draws both with one number" in " ".join(result.output.split())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    trace = read_any_trace(tmp_path / "a")
    script_cv2 = 16.0
    spread = math.sqrt(script_cv2 * len(trace))
    assert len(trace) == pytest.approx(9000, abs=4 * spread)
    assert {row.session_id for row in trace.rows} == {"client 0", "client 1", "client 2"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--servegen", str(FOLDER)], "field '--end': is missing"),
        (["--servegen", str(FOLDER), "--end", "600", "--cv", "2"], "field '--servegen': found '--cv too'"),
        (["--servegen", str(FOLDER), "--end", "600", "--requests", "9"], "found '--requests too'"),
        (["--end", "600"], "field '--end': found 600.0: accepted: only with --servegen"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(tmp_path: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["trace", "synth", *words, "--out", str(tmp_path / "a")])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert not (tmp_path / "a").exists()


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("traces.md", tmp_path)
    assert printed == shown
