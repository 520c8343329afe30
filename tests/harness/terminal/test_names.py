"""Which models and devices are known by name, with what is known of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.terminal.names import known_devices, known_models
from profiles.catalog import list_devices, model_configs, with_bundled
from tests.command_line import servetwin
from tests.harness.scenarios import write_scenario

MINE = "name: MINE\nmemory_bytes: 1e9\nsources: {memory_bytes: here}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Profiles of one's own: a model, one of a family that is not modelled, and a device."""
    write_scenario(tmp_path)
    profiles = tmp_path / "profiles"
    (profiles / "models" / "test" / "other.json").write_text('{"model_type": "mamba"}')
    (profiles / "devices").mkdir()
    (profiles / "devices" / "mine.yaml").write_text(MINE)
    (profiles / "devices" / "h100.yaml").write_text(MINE.replace("MINE", "H100"))
    return profiles


def test_models_are_those_of_the_catalogue_and_of_profiles() -> None:
    rows = {row["name"]: row for row in known_models([])}
    assert rows.keys() == {*model_configs(with_bundled([])), "servetwin/llama-s"}
    llama = rows["meta-llama/Llama-3.1-8B"]
    assert (llama["num_layers"], llama["hidden_size"], llama["num_kv_heads"], llama["head_dim"]) == (32, 4096, 8, 128)
    assert llama["parameters"] == 8_030_261_248  # of the model's card: 8.03B
    assert llama["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert (llama["source"], llama["error"]) == ("catalogue", None)
    assert Path(rows["servetwin/llama-s"]["source"], "profile.json").is_file()
    assert rows["mistralai/Mixtral-8x7B-v0.1"]["num_experts"] == 8


def test_a_model_that_is_not_modelled_is_there_and_says_why(folder: Path) -> None:
    rows = {row["name"]: row for row in known_models([folder])}
    assert rows["test/tiny"]["num_layers"] == 2
    assert "mamba" in rows["test/other"]["error"]
    ran = servetwin("profile", "models", "--profiles", folder)
    assert ran.returncode == 0, ran.stderr
    assert "not modelled: " in ran.stdout
    (line,) = [line for line in ran.stdout.splitlines() if "Mixtral" in line]
    assert "8 x 14336, 2 used" in line
    assert "46.70 B" in line


def test_ones_own_devices_come_before_those_of_the_package(folder: Path) -> None:
    rows = {row["name"]: row for row in known_devices([folder])}
    assert rows.keys() == {"MINE", *(device.name for device in list_devices(with_bundled([])))}
    assert rows["H100"]["memory_bytes"] == 1e9
    assert rows["H200"]["aliases"][0] == "NVIDIA H200"
    ran = servetwin("profile", "devices", "--profiles", folder)
    assert ran.returncode == 0, ran.stderr
    (line,) = [line for line in ran.stdout.splitlines() if line.lstrip().startswith("H200")]
    assert "139.80 GiB" in line
    assert "4.8 TB/s" in line


@pytest.mark.parametrize("kind", ["models", "devices"])
def test_both_are_printed_as_json_and_a_folder_that_is_not_there_is_refused(kind: str, tmp_path: Path) -> None:
    rows = json.loads(servetwin("profile", kind, "--json").stdout)
    names = [row["name"] for row in rows]
    assert names == sorted(names, key=str.lower)
    ran = servetwin("profile", kind, "--profiles", tmp_path / "none")
    assert ran.returncode == 2
    assert "no such folder" in ran.stderr
