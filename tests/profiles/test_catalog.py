"""The catalogue: exactly what was asked for, or an error that says what is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from profiles.catalog import BUNDLED, diff_profiles, find_device, find_model, find_profile, list_profiles, with_bundled
from profiles.llmservingsim import import_profiles
from profiles.profile import Curve, Profile
from profiles.profile_folder import read_profile, write_profile
from tests.profiles.bundles import write_bundle
from traces.errors import InputError, ProfileError

ASKED = ("TESTGPU", "test/tiny", "bfloat16", "auto")


def add(folder: Path, name: str, **changes: str) -> None:
    """A profile in the folder, with other words in its description."""
    if not (folder.parent / "bundle").exists():
        write_bundle(folder.parent / "bundle")
    (profile,) = import_profiles(folder.parent / "bundle")
    meta = msgspec.structs.replace(profile.meta, **changes)
    write_profile(Profile(meta, profile.tables), folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add(tmp_path / "profiles", "a")
    return tmp_path / "profiles"


def test_the_first_folder_that_has_it_wins(folder: Path, tmp_path: Path) -> None:
    add(tmp_path / "mine", "x", source="me")
    assert find_profile(*ASKED, [tmp_path / "mine", folder]).meta.source == "me"
    assert find_profile(*ASKED, [folder, tmp_path / "mine"]).meta.source == "LLMServingSim 2.0 profiler"


@pytest.mark.parametrize("i", range(4))
def test_none_but_exactly_what_was_asked_for(folder: Path, i: int) -> None:
    asked = [*ASKED[:i], "fp8" if i > 1 else f"{ASKED[i]}2", *ASKED[i + 1 :]]
    with pytest.raises(ProfileError, match=r"there are: TESTGPU / test/tiny / bfloat16 / kv auto$"):
        find_profile(*asked, [folder])


def test_what_is_there_is_listed_nearest_first(folder: Path) -> None:
    add(folder, "b", device="OTHER", model="other/model")
    add(folder, "c", device="OTHER")
    with pytest.raises(ProfileError) as raised:
        find_profile("TESTGPU", "test/tiny", "float16", "auto", [folder])
    listed = str(raised.value).split("there are: ")[1].split("; ")
    assert [key.split(" / ")[:2] for key in listed] == [
        ["TESTGPU", "test/tiny"],
        ["OTHER", "test/tiny"],
        ["OTHER", "other/model"],
    ]


def test_the_same_device_by_another_name_is_nearer_than_one_of_a_like_name(folder: Path) -> None:
    add(folder, "b", device="RTXPRO6000")
    add(folder, "c", device="NVIDIA RTX PRO 6000 Blackwell Workstation Edition")
    asked = ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "test/tiny", "float16", "auto")
    with pytest.raises(ProfileError, match="there are: RTXPRO6000 /"):
        find_profile(*asked, with_bundled([folder]))


def test_an_empty_catalogue_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="there are: none"):
        find_profile(*ASKED, [tmp_path])


def test_a_device_goes_by_any_of_its_names(folder: Path) -> None:
    add(folder, "b", device="RTXPRO6000")
    alias = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    assert find_profile(alias, *ASKED[1:], with_bundled([folder])).meta.device == "RTXPRO6000"
    assert find_device(alias, [BUNDLED]) == find_device("RTXPRO6000", [BUNDLED])
    with pytest.raises(InputError, match=r"'A6000' is the nearest known name"):
        find_device("A600", [BUNDLED])


def test_auto_is_the_models_own_type_unless_its_weights_are_quantized(folder: Path) -> None:
    assert find_profile("TESTGPU", "test/tiny", "bfloat16", "bfloat16", [folder]).meta.kv_cache_dtype == "auto"
    add(folder, "b", dtype="fp8")
    with pytest.raises(ProfileError):
        find_profile("TESTGPU", "test/tiny", "fp8", "fp8", [folder])


def test_listing_reads_descriptions_only(folder: Path) -> None:
    (folder / "a" / "dense.csv").unlink()
    assert [info.key for info in list_profiles([folder])] == ["TESTGPU / test/tiny / bfloat16 / kv auto"]


def test_a_folder_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        with_bundled([folder / "nowhere"])


def test_a_model_goes_by_name_by_file_and_by_folder(tmp_path: Path) -> None:
    bundled = find_model("meta-llama/Llama-3.1-8B", [BUNDLED])
    copy = tmp_path / "own"
    shutil.copytree(BUNDLED / "models/meta-llama/Llama-3.1-8B", copy)
    for name in (str(copy), str(copy / "config.json")):
        assert find_model(name, [BUNDLED]).num_parameters() == bundled.num_parameters()
    with pytest.raises(InputError, match=r"field 'model'.*'meta-llama/Llama-3.1-8B' is the nearest"):
        find_model("meta-llama/Llama-3.1-8b", [BUNDLED])


def test_everything_bundled_is_readable() -> None:
    for info in list_profiles([BUNDLED]):
        read_profile(info.path)
    for file in (BUNDLED / "models").rglob("config.json"):
        name = file.parent.relative_to(BUNDLED / "models").as_posix()
        assert find_model(name, [BUNDLED]).name == name


def test_a_profile_differs_from_itself_by_nothing(folder: Path) -> None:
    same = read_profile(folder / "a")
    rows = diff_profiles(same, same)
    assert {row["ratio_min"] for row in rows} | {row["ratio_max"] for row in rows} == {1.0}
    assert {row["n_only_a"] + row["n_only_b"] for row in rows} == {0}


def test_differences_are_told_per_operator(folder: Path) -> None:
    ours, theirs = read_profile(folder / "a"), read_profile(folder / "a")
    curve = theirs.tables[1].dense["qkv_proj"]
    theirs.tables[1].dense["qkv_proj"] = Curve(curve.x * [1, 2], curve.time_s * 1.5)
    theirs.tables[2] = ours.tables[1]
    rows = {(row["tp"], row["operator"]): row for row in diff_profiles(ours, theirs)}
    changed = rows[1, "qkv_proj"]
    assert (changed["n_common"], changed["n_only_a"], changed["n_only_b"]) == (1, 1, 1)
    assert changed["ratio_median"] == pytest.approx(1.5)
    assert rows[1, "attention"]["ratio_max"] == 1.0
    only_theirs = rows[2, "attention"]
    assert (only_theirs["n_common"], only_theirs["n_only_b"], only_theirs["ratio_median"]) == (0, 10, None)
