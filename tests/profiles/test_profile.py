"""Profiles on disk: what is written comes back, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from profiles.catalog import BUNDLED, diff_profiles, find_device, find_model, find_profile, list_profiles, with_bundled
from profiles.llmservingsim import import_profiles
from profiles.profile import read_profile, write_profile
from tests.profiles.bundles import write_bundle
from traces.errors import InputError, ProfileError


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    (imported,) = import_profiles(write_bundle(tmp_path / "bundle"))
    write_profile(imported, tmp_path / "profile")
    return tmp_path / "profile"


def test_an_import_is_read_back_as_it_was_written(profile: Path, tmp_path: Path) -> None:
    read = read_profile(profile)
    (imported,) = import_profiles(tmp_path / "bundle")
    assert read.meta == imported.meta
    assert (read.meta.device, read.meta.model, read.meta.dtype) == ("TESTGPU", "test/tiny", "bfloat16")
    curve = read.tables[1].dense["qkv_proj"]
    assert curve.x.tolist() == [1, 64]
    assert curve.time_s.tolist() == pytest.approx([2e-6, 10e-6])
    np.testing.assert_allclose(read.tables[1].attention.time_s, imported.tables[1].attention.time_s, rtol=1e-12)


def test_writing_again_gives_the_same_bytes(profile: Path, tmp_path: Path) -> None:
    again = read_profile(profile)
    write_profile(again, tmp_path / "again")
    assert read_profile(tmp_path / "again").sha256 == again.sha256


def test_an_import_of_a_tree_finds_every_variant(tmp_path: Path) -> None:
    write_bundle(tmp_path / "hw" / "a" / "bf16")
    write_bundle(tmp_path / "hw" / "b" / "bf16")
    assert len(import_profiles(tmp_path)) == 2


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return apply


WRONG = {
    "a column is missing": (edit("dense.csv", "n_tokens", "tokens"), r"dense.csv:1: field 'n_tokens': is missing"),
    "a time is negative": (edit("dense.csv", ",1,2\n", ",1,-2\n"), r"dense.csv:2: field 'time_us': found -2.0"),
    "a time is no number": (edit("dense.csv", ",64,10\n", ",64,x\n"), r"dense.csv:3: field 'time_us': found 'x'"),
    "a time is missing": (edit("attention.csv", "0,261", "0,"), r"attention.csv:\d: field 'time_us'"),
    "an operator is unknown": (
        edit("dense.csv", "act_fn", "act_fnn"),
        r"dense.csv:2: field 'operator'.*'act_fnn'",
    ),
    "a point stands twice": (edit("dense.csv", ",64,", ",1,"), r"dense.csv:3: field 'n_tokens': is measured twice"),
    "a grid point stands twice": (edit("attention.csv", "16,64,0,0", "16,0,0,0"), r"attention.csv:3: .*measured twice"),
    "there are no rows": (lambda f: (f / "dense.csv").write_text("tp,operator,n_tokens,time_us\n"), "holds no rows"),
    "a file is missing": (lambda f: (f / "attention.csv").unlink(), r"attention.csv: no such file"),
    "a key is unknown": (
        edit("profile.json", '"device"', '"devise"'),
        r"field 'devise': is unknown.*'device'",
    ),
    "the schema is another": (edit("profile.json", "profile/1", "profile/9"), r"field 'schema_version'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(profile: Path, case: str) -> None:
    damage, message = WRONG[case]
    damage(profile)
    with pytest.raises(InputError, match=message):
        read_profile(profile)


def test_an_operator_without_rows_is_named(profile: Path) -> None:
    file = profile / "dense.csv"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "o_proj" not in line))
    with pytest.raises(ProfileError, match="no rows of operator 'o_proj'"):
        read_profile(profile)


def test_looking_up_finds_exactly_what_was_asked_for(profile: Path) -> None:
    folders = [profile.parent]
    assert find_profile("TESTGPU", "test/tiny", "bfloat16", "auto", folders).meta.device == "TESTGPU"
    with pytest.raises(ProfileError, match=r"no profile of TESTGPU2 / test/tiny.*there are: TESTGPU / test/tiny"):
        find_profile("TESTGPU2", "test/tiny", "bfloat16", "auto", folders)
    with pytest.raises(InputError, match="no such folder"):
        with_bundled([profile / "nowhere"])


def test_the_bundled_catalogue_is_readable() -> None:
    for info in list_profiles([BUNDLED]):
        read_profile(info.path)
    assert find_device("NVIDIA RTX A6000", [BUNDLED]).name == "A6000"
    assert find_model("meta-llama/Llama-3.1-8B", [BUNDLED]).num_layers == 32
    with pytest.raises(InputError, match=r"'A6000' is the nearest known name"):
        find_device("A600", [BUNDLED])


def test_a_profile_differs_from_itself_by_nothing(profile: Path) -> None:
    same = read_profile(profile)
    assert {row["ratio_median"] for row in diff_profiles(same, same)} == {1.0}


@pytest.mark.ground_truth
def test_measured_bundles_import_whole(ground_truth: Path) -> None:
    profiles = {p.meta.model: p for p in import_profiles(ground_truth / "vllm-0.19" / "perf")}
    llama = profiles["meta-llama/Llama-3.1-8B"]
    assert sorted(llama.tables) == [1, 2]
    assert len(llama.tables[1].attention.time_s) == 19364
    assert sum(len(curve.x) for curve in llama.tables[1].dense.values()) == 1368
    moe = profiles["Qwen/Qwen3-30B-A3B-Instruct-2507"].tables
    assert moe[1].moe is not None
    assert len(moe[1].moe.time_s) == 50
