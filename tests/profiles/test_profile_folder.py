"""Profiles on disk: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.attention import AttentionTable
from profiles.device import read_device
from profiles.llmservingsim import import_profiles
from profiles.profile import (
    NO_OPERATORS,
    AttentionRows,
    Composition,
    Curve,
    MoeRows,
    OperatorTables,
    Profile,
    ProfileMeta,
    StepRows,
)
from profiles.profile_folder import read_profile, write_profile
from tests.conftest import ROOT
from tests.edits import edit
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
    "a degree is no whole number": (
        edit("dense.csv", "1,act_fn,64", "1.5,act_fn,64"),
        r"dense.csv:3: field 'tp': found 1.5",
    ),
    "a degree is in one table only": (
        edit("attention.csv", "1,16,64,", "2,16,64,"),
        r"dense.csv: field 'tp': no rows: accepted: rows of tp 2, as attention.csv has",
    ),
    "a degree lacks an operator": (
        edit("dense.csv", "1,act_fn,1,2\n1,act_fn,64", "1,act_fn,1,2\n2,act_fn,64"),
        r"dense.csv: field 'operator': no rows of operator 'down_proj' at tp 2",
    ),
    "a row computes nothing": (edit("attention.csv", "1,16,0,0", "1,0,0,0"), r"attention.csv:2: field 'n_decode'"),
    "a history is nobody's": (
        edit("attention.csv", "1,16,0,0,0", "1,16,0,0,9"),
        r"attention.csv:2: field 'decode_kv_tokens': found 9.0: accepted: 0",
    ),
    "experts are measured and there are none": (
        lambda f: (f / "moe.csv").write_text("tp,n_tokens,n_experts,time_us\n1,1,1,1\n"),
        r"moe.csv: belongs to no operator",
    ),
    "experts are not measured": (
        edit("profile.json", '"down_proj"', '"down_proj", "moe"'),
        r"moe.csv: no such file",
    ),
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


SIZES = st.integers(1, 10**6)
HISTORIES = st.integers(0, 10**6)
BATCHES = (
    st.tuples(SIZES, HISTORIES, st.just(0), st.just(0))
    | st.tuples(st.just(0), st.just(0), SIZES, HISTORIES)
    | st.tuples(SIZES, HISTORIES, SIZES, HISTORIES)
)
Points = list[tuple[int, ...]]


def only_steps(**more: np.ndarray | None) -> Profile:
    """Two whole steps, as a device without hooks gives them."""
    ones = np.ones(2)
    columns: dict[str, Any] = {"instrumented_s": None, "repeats": 5 * ones, **more}
    steps = StepRows(np.array([8.0, 0.0]), 0 * ones, np.array([0.0, 4.0]), 16 * ones, ones, 1e-3 * ones, **columns)
    meta = ProfileMeta(
        device="d", model="m", dtype="bfloat16", source="s", method="m", composition=Composition((), (), ())
    )
    return Profile(meta, {1: OperatorTables(**NO_OPERATORS, steps=steps)})


def test_a_profile_of_whole_steps_alone_is_one(tmp_path: Path) -> None:
    write_profile(only_steps(), tmp_path / "p")
    assert sorted(file.name for file in (tmp_path / "p").iterdir()) == ["profile.json", "steps.csv"]
    tables = read_profile(tmp_path / "p").tables[1]
    assert tables.steps is not None
    assert tables.steps.instrumented_s is None
    assert tables.steps.step_s.tolist() == [1e-3, 1e-3]
    assert (tables.dense, tables.per_request, len(tables.attention.time_s)) == ({}, {}, 0)
    with pytest.raises(ProfileError, match="attention needs points"):
        AttentionTable(tables.attention)


def test_a_profile_of_neither_operators_nor_steps_is_none(tmp_path: Path) -> None:
    write_profile(only_steps(), tmp_path / "p")
    (tmp_path / "p" / "steps.csv").unlink()
    with pytest.raises(InputError, match=r"steps.csv: no such file"):
        read_profile(tmp_path / "p")


def test_how_sure_a_time_is_comes_back_with_its_gaps(tmp_path: Path) -> None:
    write_profile(only_steps(spread=np.array([0.02, np.nan])), tmp_path / "p")
    assert (tmp_path / "p" / "steps.csv").read_text().splitlines()[0].endswith("step_us,repeats,spread")
    steps = read_profile(tmp_path / "p").tables[1].steps
    assert steps is not None
    np.testing.assert_array_equal(steps.spread, [0.02, np.nan])


def test_a_curve_without_spread_stands_beside_one_that_has_it(profile: Path, tmp_path: Path) -> None:
    read = read_profile(profile)
    dense = read.tables[1].dense
    dense["act_fn"] = dataclasses.replace(dense["act_fn"], spread=np.array([0.1, 0.2]), n=np.array([3.0, 4.0]))
    write_profile(read, tmp_path / "again")
    again = read_profile(tmp_path / "again").tables[1].dense
    assert again["act_fn"].spread is not None
    assert (again["act_fn"].spread.tolist(), again["o_proj"].spread) == ([0.1, 0.2], None)


def test_several_chunks_are_points_of_their_own(profile: Path, tmp_path: Path) -> None:
    file = profile / "attention.csv"
    header, *rows = file.read_text().splitlines()
    of_four = rows[0].rsplit(",", 1)[0] + ",900,4"
    file.write_text("\n".join([header + ",n_chunks", *(row + ",1" for row in rows), of_four]) + "\n")
    read = read_profile(profile)
    write_profile(read, tmp_path / "again")
    again = read_profile(tmp_path / "again").tables[1].attention
    assert again.n_chunks is not None
    assert again.n_chunks.tolist() == [1.0] * len(rows) + [4.0]
    file.write_text(file.read_text() + "1,0,0,1,16,5,4\n")
    with pytest.raises(InputError, match=r"attention.csv:\d+: field 'n_chunks': found 4.0: accepted: 1"):
        read_profile(profile)


def test_collectives_come_back(profile: Path, tmp_path: Path) -> None:
    curve = Curve(np.array([1024.0, 4096.0]), np.array([1e-5, 2e-5]), np.array([0.1, 0.2]), np.array([9.0, 9.0]))
    assert read_profile(profile).collectives is None
    write_profile(dataclasses.replace(read_profile(profile), collectives={"all_reduce": {2: curve}}), tmp_path / "c")
    read = read_profile(tmp_path / "c").collectives
    assert read is not None
    assert read["all_reduce"][2].time_s.tolist() == pytest.approx([1e-5, 2e-5])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("all_reduced,2,8,1", r"collectives.csv:2: field 'op': found 'all_reduced'.*all_reduce"),
        ("all_reduce,1,8,1", r"collectives.csv:2: field 'ranks'"),
        ("all_reduce,2,0,1", r"collectives.csv:2: field 'bytes'"),
        ("all_reduce,2,8,1\nall_reduce,2,8,2", r"collectives.csv:3: field 'bytes': is measured twice"),
    ],
)
def test_wrong_collectives_are_named(profile: Path, row: str, message: str) -> None:
    (profile / "collectives.csv").write_text(f"op,ranks,bytes,time_us\n{row}\n")
    with pytest.raises(InputError, match=message):
        read_profile(profile)


@settings(max_examples=30, deadline=None)
@given(
    grid=st.lists(BATCHES, min_size=1, max_size=20, unique=True),
    moe=st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=5, unique=True),
    data=st.data(),
)
def test_any_table_comes_back(grid: Points, moe: Points, data: st.DataObject) -> None:
    """Times are kept to the picosecond, points exactly."""

    def times(n: int) -> np.ndarray:
        us = st.floats(1e-3, 1e9, allow_nan=False)
        return np.array(data.draw(st.lists(us, min_size=n, max_size=n))) * 1e-6

    def curve() -> Curve:
        x = sorted(data.draw(st.sets(st.integers(1, 10**6), min_size=1, max_size=5)))
        return Curve(np.array(x, dtype=float), times(len(x)))

    tables = OperatorTables(
        dense={"embedding": curve(), "mlp": curve()},
        per_request={"lm_head": curve()},
        attention=AttentionRows(*np.array(grid, dtype=float).T, times(len(grid))),
        moe=MoeRows(*np.array(moe, dtype=float).T, times(len(moe))),
    )
    composition = Composition(("embedding",), ("attention", "mlp", "moe"), ("lm_head",))
    meta = ProfileMeta(device="d", model="m", dtype="bfloat16", source="s", method="m", composition=composition)
    with tempfile.TemporaryDirectory() as folder:
        write_profile(Profile(meta, {4: tables}), Path(folder) / "p")
        read = read_profile(Path(folder) / "p")
    assert read.meta == meta
    assert list(read.tables) == [4]
    for name in ("attention", "moe"):
        wrote, back = getattr(tables, name), getattr(read.tables[4], name)
        for field in dataclasses.fields(wrote):
            if getattr(wrote, field.name) is None:
                assert getattr(back, field.name) is None
                continue
            tolerance = 1e-12 if field.name == "time_s" else 0
            np.testing.assert_allclose(getattr(back, field.name), getattr(wrote, field.name), rtol=1e-9, atol=tolerance)
    for name, wrote in tables.dense.items():
        np.testing.assert_array_equal(read.tables[4].dense[name].x, wrote.x)
        np.testing.assert_allclose(read.tables[4].dense[name].time_s, wrote.time_s, rtol=1e-9, atol=1e-12)


def test_the_example_of_the_documentation_is_a_profile(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "profiles.md").read_text()
    files = dict(re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    profile = read_profile(tmp_path)
    assert profile.tables[1].dense.keys() == {"embedding", "rest"}
    assert len(AttentionTable(profile.tables[1].attention).decode_s(2, np.array([512.0]), np.array([512.0]))) == 1


def test_the_device_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "profiles.md").read_text()
    (device,) = re.findall(r"```yaml\n(name.*?)```", text, re.DOTALL)
    (tmp_path / "d.yaml").write_text(device)
    assert read_device(tmp_path / "d.yaml").name == "MY-GPU"
