"""The small model: what vLLM and our own reader need of a model folder, and nothing to download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collectors.local.small_model import SIZES, VOCAB_SIZE, write_small_model
from profiles.model import read_model


@pytest.mark.parametrize(("size", "kv_bytes_per_token"), [("xs", 2 * 4 * 2 * 64 * 2), ("s", 2 * 8 * 4 * 64 * 2)])
def test_its_kv_is_what_the_recordings_size_their_cache_by(tmp_path: Path, size: str, kv_bytes_per_token: int) -> None:
    model = read_model(write_small_model(tmp_path, size) / "config.json")
    assert model.kv_bytes_per_token("bfloat16") == kv_bytes_per_token


@pytest.mark.parametrize("size", SIZES)
def test_its_heads_divide_its_width(tmp_path: Path, size: str) -> None:
    config = json.loads((write_small_model(tmp_path, size) / "config.json").read_text())
    assert config["num_attention_heads"] * config["head_dim"] == config["hidden_size"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


@pytest.mark.parametrize(("size", "experts"), [("xs", (0, 0)), ("mixtral-xs", (8, 2)), ("qwen3-moe-xs", (16, 4))])
def test_its_experts_are_read_as_they_were_meant(tmp_path: Path, size: str, experts: tuple[int, int]) -> None:
    model = read_model(write_small_model(tmp_path, size) / "config.json")
    assert (model.num_experts, model.num_experts_per_tok) == experts
    assert model.qk_norm == (size == "qwen3-moe-xs")


def test_its_tokenizer_has_one_word_for_each_token_id(tmp_path: Path) -> None:
    tokenizer = json.loads((write_small_model(tmp_path, "xs") / "tokenizer.json").read_text())
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(VOCAB_SIZE))


def test_it_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = write_small_model(tmp_path / "a", "s"), write_small_model(tmp_path / "b", "s")
    names = sorted(file.name for file in first.iterdir())
    assert names == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
