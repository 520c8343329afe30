"""200 damaged copies of each file of profiles (ours and LLMServingSim's), devices and models: read, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from profiles.device import read_device
from profiles.llmservingsim import import_profiles
from profiles.llmservingsim_artifact import import_profiles as import_older_profiles
from profiles.model import read_model
from profiles.profile import Profile
from profiles.profile_folder import read_profile, write_profile
from tests.profiles.bundles import write_bundle
from tests.profiles.older_bundles import write_degree
from tests.traces.mutations import N_COPIES, read_copies
from traces.errors import InputError

OF_THE_WHOLE_FILE = ("is not", "holds no", "is empty", "has no", "no such", "a mapping of keys")


def check(found: Profile | InputError, folder: Path) -> bool:
    """Whether it was refused, with the place; what was read has times above 0 alone."""
    if isinstance(found, InputError):
        assert found.file is not None, str(found)
        assert Path(found.file).resolve().is_relative_to(folder.resolve()), str(found)
        placed = found.line is not None or found.field is not None
        assert placed or any(text in str(found) for text in OF_THE_WHOLE_FILE), str(found)
        return True
    for tables in found.tables.values():
        times = [curve.time_s for curve in (*tables.dense.values(), *tables.per_request.values())]
        times += [tables.attention.time_s] + ([] if tables.moe is None else [tables.moe.time_s])
        assert all((one > 0).all() and np.isfinite(one).all() for one in times)
    return False


@pytest.mark.parametrize("name", ["dense.csv", "per_sequence.csv", "attention.csv", "moe.csv", "../meta.yaml"])
def test_llmservingsims(tmp_path: Path, name: str) -> None:
    bundle = write_bundle(tmp_path / "hw" / "b" / "bf16", architecture="mixtral")
    path = (bundle / "tp1" / name).resolve()
    refused = sum(
        check(found, tmp_path)
        for _, found in read_copies(path.read_bytes(), lambda _: import_profiles(tmp_path)[0], path)
    )
    assert 0 < refused < N_COPIES


@pytest.mark.parametrize("name", ["layers.csv", "attention.csv"])
def test_llmservingsims_older_ones(tmp_path: Path, name: str) -> None:
    folder = write_degree(tmp_path / "A6000" / "test" / "tiny")
    path = folder / name

    def read(_: Path) -> Profile:
        found = import_older_profiles(tmp_path, {})
        if not found.profiles:
            raise InputError("holds no profile", file=folder)
        return found.profiles[0]

    refused = sum(check(found, tmp_path) for _, found in read_copies(path.read_bytes(), read, path))
    assert 0 < refused < N_COPIES


@pytest.mark.parametrize("name", ["profile.json", "dense.csv", "per_request.csv", "attention.csv", "moe.csv"])
def test_our_own(tmp_path: Path, name: str) -> None:
    (profile,) = import_profiles(write_bundle(tmp_path / "hw" / "b" / "bf16", architecture="mixtral"))
    write_profile(profile, tmp_path / "own")
    path = tmp_path / "own" / name
    data = path.read_bytes()
    if name == "profile.json":
        data = b" ".join(data.split())  # on one line, as values are changed there
    refused = sum(check(found, tmp_path) for _, found in read_copies(data, lambda at: read_profile(at.parent), path))
    assert 0 < refused < N_COPIES


def test_a_device(tmp_path: Path) -> None:
    """JSON is YAML, and on one line its values can be changed."""
    device = {"name": "MY-GPU", "aliases": ["A", "B"], "memory_bytes": 80e9, "memory_bandwidth_bytes_per_s": 3.35e12}
    device |= {"peak_flops_per_s": {"bfloat16": 1e15, "fp8": 2e15}, "tdp_w": 700, "multiprocessors": 132}
    power = {"idle_w": 70, "active_w_by_tokens": [[1, 300], [512, 650]]}
    sources = dict.fromkeys(device.keys() - {"name", "aliases"} | {"power"}, "datasheet")
    path = tmp_path / "device.yaml"
    path.write_text(json.dumps({**device, "power": power, "sources": sources}) + "\n")
    assert read_device(path).name == "MY-GPU"
    refused = 0
    for _, found in read_copies(path.read_bytes(), read_device, path):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path), str(found)
            assert found.line or found.field or any(text in str(found) for text in OF_THE_WHOLE_FILE), str(found)
    assert N_COPIES / 4 < refused < N_COPIES


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_a_models_config(tmp_path: Path, model_type: str) -> None:
    config = {"model_type": model_type, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512}
    config |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "torch_dtype": "bfloat16"}
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({**config, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "tie_word_embeddings": False})
        + "\n"
    )
    refused = 0
    for _, found in read_copies(path.read_bytes(), read_model, path):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path), str(found)
            assert found.field or any(text in str(found) for text in OF_THE_WHOLE_FILE), str(found)
        else:
            assert found.num_parameters() > 0
    assert N_COPIES / 4 < refused < N_COPIES
