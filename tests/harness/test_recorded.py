"""The scenario that a capture is of is valid as it stands, and leaves nothing to be taken from the capture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.demo import BUNDLED
from harness.deploy.asked import engine_asked, read_cluster
from harness.descriptions.agreement import agree
from harness.descriptions.recorded import scenario_text, with_device
from harness.descriptions.scenario import read_scenario
from tests.command_line import servetwin
from tests.harness.reports.runs import run
from traces.capture import read_capture, write_capture
from traces.errors import InputError

LIGHT = BUNDLED / "captures" / "light-1"


def written(folder: Path, **said: Any) -> Path:
    """A capture that says this of its engine."""
    capture = run()
    write_capture(replace(capture, meta=msgspec.structs.replace(capture.meta, **said)), folder)
    return folder


def test_it_says_all_that_the_capture_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["capture", "scenario", str(LIGHT)])
    assert ran.exit_code == 0
    (tmp_path / "scenario.yaml").write_text(ran.stdout)
    scenario = read_scenario(tmp_path / "scenario.yaml")
    asked = engine_asked(scenario, read_capture(LIGHT).meta)
    assert not asked.mismatches
    assert not [note for note in asked.notes if "taken from the capture" in note]
    assert scenario.trace_path.resolve() == (LIGHT / "trace.jsonl.gz").resolve()
    assert scenario.file.engine_version == "0.32"


def test_names_are_quoted_where_yaml_would_read_something_else(tmp_path: Path) -> None:
    options = {"tensor_parallel_size": 2, "max_num_seqs": 8, "dtype": "auto", "lora": True, "block_size": None}
    folder = written(tmp_path / "run", model="a model: of mine", device="no", engine=None, engine_options=options)
    text = scenario_text(folder, tmp_path / "other.jsonl")
    assert 'instances: [{model: "a model: of mine", device: "no", tensor_parallel_size: 2}]' in text
    assert "# Recorded, and not simulated: lora." in text
    assert "other.jsonl" in text
    assert "engine_version" not in text
    (tmp_path / "scenario.yaml").write_text(text)
    scenario = read_scenario(tmp_path / "scenario.yaml")
    assert scenario.file.engine.max_num_seqs == 8
    assert "dtype" not in text


def test_how_devices_sum_is_said_of_the_instance(tmp_path: Path) -> None:
    spread = {"tensor_parallel_size": 2, "disable_custom_all_reduce": True}
    text = scenario_text(written(tmp_path / "run", device="H100", engine_options=spread))
    assert "tensor_parallel_size: 2, collectives: {disable_custom_all_reduce: true}}]" in text
    assert "# The collectives' option needs a `fabric` with a `link`" in text
    assert "not simulated" not in text
    (tmp_path / "scenario.yaml").write_text(text)
    (kind,) = read_cluster(read_scenario(tmp_path / "scenario.yaml")).instances
    assert kind.collectives.disable_custom_all_reduce
    said = agree({}, kind, read_capture(tmp_path / "run").meta, [])
    assert not [note for note in said.notes if "disable_custom_all_reduce" in note]
    alone = scenario_text(written(tmp_path / "one", device="H100", engine_options={"disable_custom_all_reduce": True}))
    assert "collectives" not in alone
    assert "# Recorded, and not simulated: disable_custom_all_reduce." in alone


def test_whoever_imports_a_run_can_name_its_device(tmp_path: Path) -> None:
    source = written(tmp_path / "run", device=None)
    ran = servetwin("capture", "import", source, "--device", "H100", "--out", tmp_path / "named")
    assert ran.returncode == 0, ran.stderr
    meta = read_capture(tmp_path / "named").meta
    assert meta.device == "H100"
    assert meta.notes[-1] == "the device is H100, as told at the import"
    assert "device: H100" in scenario_text(tmp_path / "named")
    assert with_device(read_capture(tmp_path / "named"), "H100").meta == meta


@pytest.mark.parametrize(
    ("device", "said"),
    [("H200", "'--device': the run says its device itself: found 'H200': accepted: H100"), (" ", "the device's name")],
)
def test_a_device_that_contradicts_the_run_is_refused(tmp_path: Path, device: str, said: str) -> None:
    source = written(tmp_path / "run", device="H100")
    ran = servetwin("capture", "import", source, "--device", device, "--out", tmp_path / "named")
    assert ran.returncode == 2
    assert said in ran.stderr
    assert not (tmp_path / "named").exists()


def test_a_capture_without_a_device_has_no_scenario(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not say its device"):
        scenario_text(written(tmp_path / "run", device=None))
