"""LLMServingSim's older profiles: what is imported, how it is read, what is noted, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.terminal.facts import import_profiles_to
from profiles.attention import AttentionTable
from profiles.catalog import BUNDLED, find_model, model_configs
from profiles.formats import import_any_profiles
from profiles.llmservingsim_artifact import import_profiles
from profiles.profile import AttentionRows, Profile
from profiles.profile_folder import read_profile, write_profile
from simulator.scheduling.options import EngineOptions
from simulator.steps.operator_model import OperatorModel
from tests.profiles.bundles import write_bundle
from tests.profiles.older_bundles import (
    LLAMA,
    MOE,
    MOE_CONFIG,
    decode_us,
    prefill_us,
    replace_in,
    write_attention,
    write_degree,
    write_predictions,
    write_tpu_attention,
)
from traces.errors import InputError, ProfileError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "GPU1" / "org" / "tiny"


def imported(model: Path, configs: dict[str, dict[str, Any]] | None = None) -> Profile:
    (profile,) = import_profiles(model, configs or {}).profiles
    return profile


def at(rows: AttentionRows, chunk: int, history: int, n: int, kv: int) -> float:
    """Microseconds of the one row of this batch."""
    found = (rows.prefill_tokens == chunk) & (rows.prefill_kv_tokens == history)
    found &= (rows.n_decode == n) & (rows.decode_kv_tokens == kv)
    assert np.count_nonzero(found) == 1
    return float(rows.time_s[found][0]) * 1e6


def test_folders_name_device_and_model_and_every_degree_is_in_one_profile(model: Path) -> None:
    write_degree(model)
    write_degree(model, tp=2)
    profile = imported(model)
    assert (profile.meta.device, profile.meta.model, profile.meta.dtype) == ("GPU1", "org/tiny", "bfloat16")
    assert profile.meta.engine is None
    assert sorted(profile.tables) == [1, 2]
    assert profile.meta.composition.per_layer.index("rope") < profile.meta.composition.per_layer.index("attention")
    assert profile.meta.composition.per_request == ("lm_head",)
    assert profile.tables[2].dense["q_proj"].time_s.tolist() == pytest.approx([10.1e-6, 16.4e-6, 35.6e-6])
    assert [p.meta.model for p in import_profiles(model / "tp2", {}).profiles] == ["org/tiny"]


def test_a_profile_survives_its_folder_and_prices_steps(model: Path, tmp_path: Path) -> None:
    write_degree(model)
    write_profile(imported(model), tmp_path / "out")
    again = read_profile(tmp_path / "out")
    assert again.tables[1].attention.spread is not None
    options = EngineOptions(max_num_seqs=8, max_num_batched_tokens=256, enforce_eager=True)
    OperatorModel(again, options, num_layers=2)


def test_keys_are_of_all_in_the_batch_each_request_s_new_one_among_them(model: Path) -> None:
    write_degree(model)
    rows = imported(model).tables[1].attention
    assert at(rows, 64, 0, 0, 0) == pytest.approx(prefill_us(64, 64))
    assert at(rows, 64, 64, 0, 0) == pytest.approx(prefill_us(64, 128))
    assert at(rows, 0, 0, 1, 1023) == pytest.approx(decode_us(1, 1024))
    assert at(rows, 0, 0, 4, 255) == pytest.approx(decode_us(4, 1024))
    assert 128 not in rows.n_decode
    assert rows.spread is not None
    assert np.nanmax(rows.spread) == pytest.approx(0.01)


def test_rows_of_more_requests_than_keys_are_counted(model: Path) -> None:
    write_degree(model)
    assert "tp 1: attention of decodes: 1 rows of more requests than keys left out" in imported(model).meta.notes


def test_a_point_measured_twice_counts_with_its_mean(model: Path) -> None:
    folder = write_degree(model)
    with (folder / "attention.csv").open("a") as file:
        file.write(",,,1,0.1084,0.001,1,1,0,64,False\n")
    profile = imported(model)
    assert at(profile.tables[1].attention, 0, 0, 1, 63) == pytest.approx((decode_us(1, 64) + 108.4) / 2)
    assert any("8 rows measured, of which 1 repeat a point" in note for note in profile.meta.notes)


def test_lengths_without_history_come_from_layers_csv_and_history_adds_in_proportion(model: Path) -> None:
    write_degree(model)
    profile = imported(model)
    rows = profile.tables[1].attention
    assert at(rows, 256, 0, 0, 0) == pytest.approx(prefill_us(256, 256), abs=1e-3)
    # 64 tokens of history cost the chunk of 64 tokens 0.41 us, and as many times that as it is longer.
    for tokens in (128, 256):
        history_us = (prefill_us(64, 128) - prefill_us(64, 64)) * tokens / 64
        assert at(rows, tokens, 64, 0, 0) == pytest.approx(prefill_us(tokens, tokens) + history_us, abs=1e-3)
    assert any("1 lengths without history from layers.csv" in note for note in profile.meta.notes)
    assert any("2 lengths above 64 were measured without history" in note for note in profile.meta.notes)


def test_predictions_stand_only_beyond_what_was_measured(model: Path) -> None:
    write_predictions(write_degree(model), factor=3.0)
    profile = imported(model)
    rows = profile.tables[1].attention
    assert at(rows, 0, 0, 4, 255) == pytest.approx(decode_us(4, 1024))
    assert at(rows, 0, 0, 4, 1024) == pytest.approx(3 * decode_us(4, 1024))
    assert not np.any((rows.n_decode == 4) & (rows.decode_kv_tokens == 128))
    assert not np.any((rows.n_decode == 256) & (rows.decode_kv_tokens < 256))
    (note,) = [note for note in profile.meta.notes if "beyond what was measured" in note]
    assert "at the 7 rows that both have they are 3.00 times the measurement" in note
    assert any("3 predictions of LLMServingSim not used; at the 3 rows" in note for note in profile.meta.notes)
    assert any("predictions for more requests than keys left out" in note for note in profile.meta.notes)


def test_no_measured_batch_takes_longer_than_a_predicted_one_that_contains_it(model: Path) -> None:
    write_predictions(write_degree(model), factor=0.1)
    profile = imported(model)
    rows = profile.tables[1].attention
    alone = rows.n_decode > 0
    sizes, histories, time_s = rows.n_decode[alone], rows.decode_kv_tokens[alone], rows.time_s[alone]
    predicted = histories >= 1024
    for n, history, own_s in zip(sizes[~predicted], histories[~predicted], time_s[~predicted], strict=True):
        contains = predicted & (sizes >= n) & (histories >= history)
        assert own_s <= time_s[contains].min(initial=np.inf)
    assert at(rows, 0, 0, 4, 255) == pytest.approx(0.1 * decode_us(4, 1024))
    assert any("measured rows take longer than a prediction for more work" in note for note in profile.meta.notes)


def test_without_measurements_predictions_are_all_there_is_and_that_is_said(model: Path) -> None:
    write_predictions(write_degree(model, attention=False))
    profile = imported(model)
    assert at(profile.tables[1].attention, 64, 128, 0, 0) == pytest.approx(3 * prefill_us(64, 128), abs=1e-3)
    assert any("3 predictions of LLMServingSim, none measured" in note for note in profile.meta.notes)


@pytest.mark.parametrize("each", [True, False])
def test_nanoseconds_of_a_tpu_and_what_its_keys_are_of(model: Path, each: bool) -> None:
    folder = write_degree(model, layers=[name for name in LLAMA if name != "rope"], attention=False)
    write_tpu_attention(folder / "attention.csv", each=each)
    profile = imported(model)
    rows = profile.tables[1].attention
    assert at(rows, 64, 64, 0, 0) == pytest.approx(prefill_us(64, 128))
    assert at(rows, 0, 0, 16, 1023 if each else 63) == pytest.approx(decode_us(16, 16 * 1024 if each else 1024))
    assert "rope" not in profile.meta.composition.per_layer
    words = "the keys of each request" if each else "the keys of the whole batch, by how its times grow"
    assert any(words in note for note in profile.meta.notes)
    assert any("has no rope" in note for note in profile.meta.notes)


def test_a_models_config_can_lie_in_a_folder_of_ones_own(model: Path, tmp_path: Path) -> None:
    write_degree(model, layers=MOE)
    with pytest.raises(InputError, match="in a folder that --profiles names"):
        import_profiles_to(model, tmp_path / "refused")
    (tmp_path / "mine" / "models" / "org").mkdir(parents=True)
    (tmp_path / "mine" / "models" / "org" / "tiny.json").write_text(json.dumps(MOE_CONFIG))
    (place,) = import_profiles_to(model, tmp_path / "profiles", folders=[tmp_path / "mine"])
    assert read_profile(place).meta.model_config == MOE_CONFIG


def test_experts_are_composed_of_one_expert_by_its_share_of_tokens(model: Path) -> None:
    write_degree(model, layers=MOE)
    profile = imported(model, {"org/tiny": MOE_CONFIG})
    moe = profile.tables[1].moe
    assert moe is not None
    assert profile.meta.composition.per_layer[-2:] == ("gate", "moe")
    assert "act_fn" not in profile.tables[1].dense
    for tokens, experts in ((1, 1), (1, 2), (64, 4), (128, 1)):
        (row,) = np.flatnonzero((moe.n_tokens == tokens) & (moe.n_experts == experts))
        share = 2 * tokens / experts
        assert moe.time_s[row] == pytest.approx(experts * 4 * (10 + 0.1 * share) * 1e-6)
    assert moe.n_experts.max() == 4
    assert not np.any(2 * moe.n_tokens < moe.n_experts)
    with pytest.raises(
        InputError, match=r"holds experts, and how many a token uses is not known.*config as models/org/tiny.json"
    ):
        import_profiles(model, {})


def test_what_is_no_time_is_left_out_and_counted(model: Path) -> None:
    file = write_degree(model) / "layers.csv"
    with file.open("a") as stream:
        stream.write("attn,1,64,1,700\nq_proj,2,0,1,0\nq_proj,64,0,1,18400\n")
    profile = imported(model)
    assert profile.tables[1].dense["q_proj"].time_s[1] == pytest.approx(17.4e-6)
    for said in ("1 rows with a history", "1 rows of 0 ns", "1 rows repeat a point"):
        assert any(said in note for note in profile.meta.notes)


def test_a_degree_without_attention_is_left_out_of_its_profile(model: Path) -> None:
    write_degree(model)
    write_degree(model, tp=2, attention=False)
    found = import_profiles(model, {})
    assert sorted(found.profiles[0].tables) == [1]
    assert len(found.left_out) == 1
    assert any(
        note.startswith("tp 2 was left out: it holds no attention times") for note in found.profiles[0].meta.notes
    )


def test_a_model_without_attention_is_left_out_of_a_tree_and_refused_alone(tmp_path: Path, model: Path) -> None:
    write_degree(model)
    write_degree(tmp_path / "GPU2" / "org" / "tiny", attention=False)
    found = import_any_profiles(tmp_path, {})
    assert [profile.meta.device for profile in found.profiles] == ["GPU1"]
    assert "GPU2" in found.left_out[0]
    with pytest.raises(ProfileError, match=r"tp1: holds no attention times of decodes: accepted: attention.csv"):
        import_profiles(tmp_path / "GPU2", {})


def test_a_tree_may_hold_both_formats(tmp_path: Path, model: Path) -> None:
    write_degree(model)
    write_bundle(tmp_path / "GPU3" / "bf16")
    assert [p.meta.device for p in import_any_profiles(tmp_path, {}).profiles] == ["TESTGPU", "GPU1"]
    assert [p.meta.device for p in import_any_profiles(tmp_path, {}, "llmservingsim-older").profiles] == ["GPU1"]
    with pytest.raises(InputError, match="accepted: llmservingsim-older, "):
        import_any_profiles(tmp_path, {}, "llmservingsim-old")


def test_a_folder_that_holds_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no profile of a known format: accepted: .*meta.yaml.*layers.csv"):
        import_any_profiles(tmp_path, {})
    with pytest.raises(InputError, match="no such folder"):
        import_any_profiles(tmp_path / "nowhere", {})
    with pytest.raises(InputError, match="holds no older LLMServingSim profile"):
        import_profiles(tmp_path, {})


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("layers.csv", "q_proj,64", "q_prj,64", r"layers.csv:\d+: field 'layer_name': found 'q_prj'.*'q_proj'"),
        ("layers.csv", "latency(ns)", "latency", r"layers.csv:1: field 'latency\(ns\)': is missing"),
        ("layers.csv", ",0,1,10100", ",0,1,-5", r"layers.csv:2: field 'latency\(ns\)': found -5"),
        (
            "layers.csv",
            "embedding,1,0,1",
            "embedding,1,0,2",
            r"layers.csv:2: field 'tp_size': found 2.0.*1, as the fold",
        ),
        ("layers.csv", "embedding,1,", "gate,1,", r"field 'layer_name': has rows of 'gate' beside 'gate_proj'"),
        ("attention.csv", "1,64,64,True", "2,64,64,True", r"attention.csv:2: field 'batch_size': found 2"),
        (
            "attention.csv",
            ",1,1,64,64,",
            ",4,1,64,64,",
            r"attention.csv:2: field 'num_tensor_parallel_workers': found 4",
        ),
        (
            "attention.csv",
            "64,64,True",
            "64,32,True",
            r"attention.csv:2: field 'kv_cache_size': found 32.*at least prefil",
        ),
        (
            "attention.csv",
            "64,64,True",
            "0,64,True",
            r"attention.csv:2: field 'time_stats.attn_decode.median': is empty",
        ),
        ("attention.csv", "attn_prefill.median", "attn_prefill.middle", r"attention.csv:1: .*median.*: is missing"),
        ("predictions/attn_decode_predictions.csv", "4,64,", "4,0,", r"attn_decode_predictions.csv:\d+: .*twice"),
        ("predictions/attn_prefill_predictions.csv", "prediction", "predicted", r":1: field 'prediction': is missing"),
    ],
)
def test_what_is_wrong_is_named(model: Path, file: str, old: str, new: str, message: str) -> None:
    folder = write_degree(model)
    write_predictions(folder)
    replace_in(folder / file, old, new)
    with pytest.raises(InputError, match=message):
        import_profiles(model, {})


def test_a_layer_that_is_missing_is_named(model: Path) -> None:
    write_degree(model, layers=[name for name in LLAMA if name != "k_proj"])
    with pytest.raises(InputError, match=r"layers.csv: field 'layer_name': has no rows of 'k_proj'"):
        import_profiles(model, {})


def test_degrees_of_other_layers_are_refused(model: Path) -> None:
    write_degree(model)
    folder = write_degree(model, tp=2, layers=MOE, attention=False)
    write_attention(folder / "attention.csv", tp=2)
    with pytest.raises(InputError, match=r"tp2/layers.csv: field 'layer_name': has other layers"):
        import_profiles(model, {"org/tiny": MOE_CONFIG})


def test_the_command_s_function_writes_profiles_and_tells_what_it_left_out(tmp_path: Path, model: Path) -> None:
    write_degree(model)
    write_degree(tmp_path / "GPU2" / "org" / "tiny", attention=False)
    left_out: list[str] = []
    (place,) = import_profiles_to(tmp_path, tmp_path / "out", None, left_out)
    assert place == tmp_path / "out" / "GPU1" / "org" / "tiny" / "bfloat16"
    assert read_profile(place).meta.device == "GPU1"
    assert len(left_out) == 1


def test_configs_that_bear_the_model_s_name_are_found(tmp_path: Path) -> None:
    (tmp_path / "models" / "org" / "whole").mkdir(parents=True)
    for name in ("tiny.json", "whole/config.json", "whole/generation_config.json"):
        (tmp_path / "models" / "org" / name).write_text(json.dumps(MOE_CONFIG))
    assert sorted(model_configs([tmp_path])) == ["org/tiny", "org/whole"]
    assert find_model("org/tiny", [tmp_path]).num_experts == 4
    assert find_model(str(tmp_path / "models" / "org" / "tiny.json"), []).name == "tiny"


@pytest.mark.ground_truth
def test_the_artifact_s_configs_are_those_of_the_catalogue(ground_truth: Path) -> None:
    folder = ground_truth / "ispass26"
    names = model_configs([folder])
    assert len(names) == 4
    for name in names:
        theirs, ours = find_model(name, [folder]), find_model(name, [BUNDLED])
        assert theirs.parameters() == ours.parameters()
        assert theirs.kv_bytes_per_token("bfloat16") == ours.kv_bytes_per_token("bfloat16")


@pytest.mark.ground_truth
def test_measured_profiles_import_whole(ground_truth: Path) -> None:
    found = import_any_profiles(ground_truth / "ispass26" / "perf", model_configs([BUNDLED]))
    assert not found.left_out
    assert [profile.meta.model for profile in found.profiles] == [
        "meta-llama/Llama-3.1-8B",
        "microsoft/Phi-mini-MoE-instruct",
    ]
    for profile in found.profiles:
        assert sorted(profile.tables) == [1, 2]
        for tables in profile.tables.values():
            assert all(len(curve.x) == 2048 for curve in tables.dense.values())
            assert (tables.moe is not None) == ("Phi" in profile.meta.model)
            AttentionTable(tables.attention)


@pytest.mark.ground_truth
def test_the_files_themselves_say_what_their_keys_are_of(ground_truth: Path) -> None:
    """A chunk of as many keys as tokens is the chunk of layers.csv; more requests than keys take next to no time."""
    import pandas as pd

    for folder in sorted((ground_truth / "ispass26" / "perf").glob("*/*/*/tp*")):
        layers, rows = pd.read_csv(folder / "layers.csv"), pd.read_csv(folder / "attention.csv")
        lone = layers[layers.layer_name == "attn"].set_index("input")["latency(ns)"]
        alone = rows[rows.is_prefill & (rows.prefill_chunk_size == rows.kv_cache_size)]
        ratio = alone["time_stats.attn_prefill.median"] * 1e6 / lone[alone.prefill_chunk_size].to_numpy()
        assert 0.9 < ratio.median() < 1.5
        decodes = rows[~rows.is_prefill & (rows.batch_size == 128)]
        few, enough = (decodes[decodes.kv_cache_size == keys]["time_stats.attn_decode.median"] for keys in (96, 128))
        assert few.max() * 10 < enough.min()
