"""LLMServingSim's bundles: what is imported, what is noted, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles.llmservingsim import LAYERS, import_profiles
from tests.profiles.bundles import SKEW, write_bundle
from traces.errors import InputError, ProfileError


def test_a_variant_becomes_a_profile(tmp_path: Path) -> None:
    (profile,) = import_profiles(write_bundle(tmp_path / "bf16", tps=(1, 2)))
    meta = profile.meta
    assert (meta.device, meta.model, meta.dtype, meta.kv_cache_dtype) == ("TESTGPU", "test/tiny", "bfloat16", "auto")
    assert (meta.engine, meta.recorded_at) == ("vllm 0.19.0", "2026-04-24")
    assert meta.composition.per_layer.count("layernorm") == 2
    assert meta.composition.per_layer.index("rotary_emb") < meta.composition.per_layer.index("attention")
    assert sorted(profile.tables) == [1, 2]
    assert profile.tables[2].per_request["lm_head"].time_s.tolist() == pytest.approx([20e-6, 27e-6])
    assert profile.tables[1].attention.prefill_tokens.tolist() == [16, 16, 64, 64, 0, 0, 0, 0, 16, 16]


def test_missing_corners_are_counted(tmp_path: Path) -> None:
    (profile,) = import_profiles(write_bundle(tmp_path / "bf16"))
    (note,) = [note for note in profile.meta.notes if note.startswith("tp 1: attention points measured")]
    assert note.endswith("prefill alone 4 of 4, decode alone 4 of 4, both 2 of 16")


def test_skew_is_imported_and_what_was_derived_from_it_is_not(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bf16")
    without = import_profiles(folder)[0].meta.notes
    assert not any("skew_fit" in note for note in without)
    assert any("tp 1: no skew.csv" in note for note in without)
    (folder / "tp1" / "skew.csv").write_text(SKEW)
    (folder / "tp1" / "skew_fit.csv").write_text("anything")
    (profile,) = import_profiles(folder)
    skew = profile.tables[1].skew
    assert skew is not None
    assert (skew.n_decode[0], skew.n_long[0], skew.short_kv_tokens[0], skew.long_kv_tokens[0]) == (2, 1, 128, 512)
    assert (skew.uniform_mean_s[0], skew.uniform_max_s[0], skew.time_s[0]) == pytest.approx((46.5e-6, 50.1e-6, 47.3e-6))
    assert any("skew_fit.csv" in note for note in profile.meta.notes)
    assert not any("tp 1: no skew.csv" in note for note in profile.meta.notes)


def test_experts_measured_on_one_rank_serve_every_degree_and_that_is_said(tmp_path: Path) -> None:
    (profile,) = import_profiles(write_bundle(tmp_path / "bf16", architecture="mixtral", tps=(1, 2)))
    assert profile.meta.composition.per_layer[-1] == "moe"
    for tables in profile.tables.values():
        assert tables.moe is not None
        assert tables.moe.n_experts.tolist() == [2, 8]
    assert "tp 2: expert times are those of tp 1" in profile.meta.notes


def test_a_known_model_brings_its_config(tmp_path: Path) -> None:
    (known,) = import_profiles(write_bundle(tmp_path / "a", model="meta-llama/Llama-3.1-8B"))
    (unknown,) = import_profiles(write_bundle(tmp_path / "b"))
    (told,) = import_profiles(tmp_path / "b", {"test/tiny": {"hidden_size": 8}})
    assert known.meta.model_config is not None
    assert known.meta.model_config["hidden_size"] == 4096
    assert unknown.meta.model_config is None
    assert any("no config.json" in note for note in unknown.meta.notes)
    assert told.meta.model_config == {"hidden_size": 8}


@pytest.mark.parametrize(
    ("variant", "types"),
    [
        ("fp16", ("float16", "auto")),
        ("fp8", ("fp8", "auto")),
        ("bf16-kvfp8", ("bfloat16", "fp8")),
    ],
)
def test_the_variant_names_the_types(tmp_path: Path, variant: str, types: tuple[str, str]) -> None:
    (profile,) = import_profiles(write_bundle(tmp_path / "v", variant=variant))
    assert (profile.meta.dtype, profile.meta.kv_cache_dtype) == types


def test_an_import_of_a_tree_finds_every_variant(tmp_path: Path) -> None:
    write_bundle(tmp_path / "hw" / "a" / "bf16")
    write_bundle(tmp_path / "hw" / "b" / "bf16", variant="fp8")
    assert [profile.meta.dtype for profile in import_profiles(tmp_path)] == ["bfloat16", "fp8"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("meta.yaml", "llama", "lama", r"meta.yaml.*field 'architecture': found 'lama'.*'llama'"),
        ("meta.yaml", "bf16", "int3", r"meta.yaml.*field 'variant': found 'int3'"),
        ("meta.yaml", "hardware", "hard", r"meta.yaml.*field 'hardware'"),
        ("tp1/dense.csv", ",64,10", ",64,-1", r"dense.csv:3: field 'time_us': found -1"),
        ("tp1/dense.csv", "act_fn", "act", r"dense.csv:\d+: field 'layer': found 'act'"),
        ("tp1/attention.csv", "16,64,0,0", "16,0,0,0", r"attention.csv:3: .*is measured twice"),
        ("tp1/per_sequence.csv", "sequences", "tokens", r"per_sequence.csv:1: field 'sequences': is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    path = write_bundle(tmp_path / "bf16") / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        import_profiles(tmp_path)


def test_an_operator_without_rows_is_named(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bf16")
    (folder / "meta.yaml").write_text((folder / "meta.yaml").read_text().replace("llama", "qwen3"))
    with pytest.raises(ProfileError, match=r"dense.csv.*no rows of operator 'qk_norm'"):
        import_profiles(folder)


def test_a_folder_without_profiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no LLMServingSim profile"):
        import_profiles(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        import_profiles(tmp_path / "nowhere")
    (write_bundle(tmp_path / "bf16") / "tp1").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds no tensor-parallel degree"):
        import_profiles(tmp_path)


@pytest.mark.ground_truth
def test_measured_bundles_import_whole(ground_truth: Path) -> None:
    profiles = {p.meta.model: p for p in import_profiles(ground_truth / "vllm-0.19" / "perf")}
    n_dense = {"meta-llama/Llama-3.1-8B": 1368, "Qwen/Qwen3-30B-A3B-Instruct-2507": 1064}
    assert profiles.keys() == n_dense.keys()
    for model, profile in profiles.items():
        assert profile.meta.model_config is not None
        assert sorted(profile.tables) == [1, 2]
        for tables in profile.tables.values():
            assert len(tables.attention.time_s) == 19364
            assert sum(len(curve.x) for curve in tables.dense.values()) == n_dense[model]
            assert tables.skew is not None
            assert len(tables.skew.time_s) == 13009
    moe = profiles["Qwen/Qwen3-30B-A3B-Instruct-2507"].tables[1].moe
    assert moe is not None
    assert len(moe.time_s) == 50


@pytest.mark.ground_truth
def test_layers_are_those_of_its_catalogue(ground_truth: Path) -> None:
    import yaml

    for name, layers in LAYERS.items():
        sequence = yaml.safe_load((ground_truth / f"vllm-0.19/architectures/{name}.yaml").read_text())["sequence"]
        parts = [operator for part in ("pre_attn", "post_attn", "mlp_dense", "mlp_moe") for operator in sequence[part]]
        assert list(layers) == parts
