"""Vidur's profiles: what its columns become, and 200 damaged copies of each file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.running.simulate import simulate_scenario
from harness.terminal.facts import import_profiles_to
from profiles.formats import import_any_profiles
from profiles.profile import Profile
from profiles.profile_folder import read_profile, write_profile
from profiles.vidur import import_profiles
from tests.engines import trace
from tests.profiles.vidur_files import CONFIG, write_vidur
from tests.traces.mutations import N_COPIES, read_copies
from traces.errors import InputError
from traces.trace import write_trace


def imported(folder: Path) -> Profile:
    (profile,) = import_profiles(folder, {"test/tiny": CONFIG})
    return profile


def test_folders_name_device_and_model_and_medians_are_the_times(tmp_path: Path) -> None:
    profile = imported(write_vidur(tmp_path))
    assert (profile.meta.device, profile.meta.model) == ("a100", "test/tiny")
    assert sorted(profile.tables) == [1, 2]
    projection = profile.tables[2].dense["attn_pre_proj"]
    assert list(projection.x) == [1, 64, 256]
    assert projection.time_s == pytest.approx([2e-6, 33.5e-6, 129.5e-6])
    assert projection.spread == pytest.approx([0.1] * 3)


def test_attention_is_chunks_and_decodes_with_their_own_history(tmp_path: Path) -> None:
    rows = imported(write_vidur(tmp_path)).tables[1].attention
    points = zip(rows.prefill_tokens, rows.prefill_kv_tokens, rows.n_decode, rows.decode_kv_tokens, strict=True)
    times = dict(zip(points, rows.time_s, strict=True))
    assert times[64, 64, 0, 0] == pytest.approx(128e-6)
    assert times[0, 0, 8, 64] == pytest.approx(5e-6 + 0.01e-6 * 8 * 64)
    assert len(times) == 8


def test_what_was_averaged_and_left_out_is_counted(tmp_path: Path) -> None:
    profile = imported(write_vidur(tmp_path))
    assert list(profile.tables[1].dense["attn_kv_cache_save"].x) == [1, 8, 16, 64]
    assert "mlp.csv: 20 points measured again, averaged" in profile.meta.notes  # 64 tokens, ten operators, two degrees
    assert "attention.csv: 2 times of 0 ms left out" in profile.meta.notes
    assert any("no output head and no sampler" in note for note in profile.meta.notes)


def test_an_operator_that_was_not_measured_is_not_in_the_composition(tmp_path: Path) -> None:
    folder = write_vidur(tmp_path)
    for name, operator in (("attention.csv", "attn_kv_cache_save"), ("mlp.csv", "add")):
        text = (folder / name).read_text().replace(f"time_stats.{operator}.", "time_stats.other.")
        (folder / name).write_text(text)
    meta = imported(folder).meta
    assert not {"add", "attn_kv_cache_save"} & set(meta.composition.per_layer)
    assert "not measured, and not in the composition: add, attn_kv_cache_save" in meta.notes


def test_a_tree_is_imported_told_by_its_files_and_simulated(tmp_path: Path) -> None:
    write_vidur(tmp_path / "compute")
    write_vidur(tmp_path / "compute", "h100/test/tiny")
    places = import_profiles_to(tmp_path / "compute", tmp_path / "profiles")
    assert [read_profile(place).meta.device for place in places] == ["a100", "h100"]
    write_trace(trace((0.0, 20, 5), (0.1, 40, 5)), tmp_path / "requests.jsonl")
    model = tmp_path / "profiles" / "models" / "test" / "tiny" / "config.json"
    model.parent.mkdir(parents=True)
    model.write_text(str(CONFIG).replace("'", '"'))
    (tmp_path / "s.yaml").write_text(
        "trace: requests.jsonl\nprofiles: [profiles]\ncluster: {instances: [{model: test/tiny, device: h100}]}\n"
        "engine: {dtype: float16, num_gpu_blocks: 100, max_num_batched_tokens: 256}\n"
    )
    _, figures = simulate_scenario(tmp_path / "s.yaml")
    assert figures["n_finished"] == 2


def test_a_profile_as_written_reads_back(tmp_path: Path) -> None:
    profile = imported(write_vidur(tmp_path))
    write_profile(profile, tmp_path / "own")
    again = read_profile(tmp_path / "own").tables[2]
    assert np.allclose(again.attention.time_s, profile.tables[2].attention.time_s)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("mlp.csv", "num_tokens", "tokens", r"mlp.csv:1: field 'num_tokens': is missing"),
        ("mlp.csv", "time_stats.emb.median", "time_stats.emb.p50", r"field 'time_stats.emb.median': is missing"),
        ("mlp.csv", "True,256,2", "True,-256,2", r"mlp.csv:9: field 'num_tokens': found -256.0"),
        ("mlp.csv", "4,4,64,128,100,True,1,1", "4,4,32,128,100,True,1,1", r"field 'n_embd': found 64.0: accepted: 32"),
        (
            "mlp.csv",
            ",64,128,100",
            ",64,192,100",
            r"field 'n_expanded_embd': found 192.0: accepted: 128, the catalogue's",
        ),
        ("attention.csv", "64,4,4,16,2", "64,4,4,16,4", r"no rows: accepted: rows of 2 workers, as mlp.csv has"),
        (
            "attention.csv",
            ",16,2,4096,1,64",
            ",32,2,4096,1,64",
            r"field 'block_size': found 32.0: accepted: 16, as before",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    path = write_vidur(tmp_path) / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        imported(path.parent)


def test_a_folder_without_both_files_is_none(tmp_path: Path) -> None:
    (write_vidur(tmp_path) / "attention.csv").unlink()
    with pytest.raises(InputError, match="holds no Vidur profile"):
        import_profiles(tmp_path, {})
    with pytest.raises(InputError, match="holds no profile of a known format"):
        import_any_profiles(tmp_path, {})


@pytest.mark.parametrize("file", ["mlp.csv", "attention.csv"])
def test_damaged_copies_are_read_or_refused(tmp_path: Path, file: str) -> None:
    path = write_vidur(tmp_path, tps=(1,)) / file
    read = 0
    for _, result in read_copies(path.read_bytes(), lambda at: imported(at.parent), path):
        if isinstance(result, InputError):
            assert result.file is not None
            assert result.line is not None or result.field is not None or "CSV" in str(result) or "text" in str(result)
        else:
            read += 1
            for tables in result.tables.values():
                times = [curve.time_s for curve in tables.dense.values()] + [tables.attention.time_s]
                assert all((one > 0).all() and np.isfinite(one).all() for one in times)
    assert 0 < read < N_COPIES
