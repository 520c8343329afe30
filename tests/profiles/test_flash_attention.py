"""Decodes under FlashAttention 2: packed alone, apart beside a prompt; and an engine's profile made of an older one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiles.attention import AttentionTable, Chunk
from profiles.catalog import BUNDLED, find_device, model_configs
from profiles.csv_table import read_csv
from profiles.flash_attention import (
    PACKED_READING,
    PACKED_S,
    DecodeTimes,
    FlashAttention2,
    UnequalDecodes,
    fit_apart,
    flash_attention_2,
    with_decodes,
)
from profiles.formats import import_any_profiles
from profiles.llmservingsim_artifact import HOST_STEP_S
from profiles.model import ModelSpec, model_of
from profiles.profile import AttentionRows
from simulator.steps.profile_overhead import profile_overhead
from tests.benchmarks.unequal_decodes import unequal_errors
from tests.profiles.older_bundles import LENGTHS, LLAMA, prefill_us, write_degree, write_lines, write_predictions
from traces.errors import ProfileError
from traces.steps import Floats

KERNEL = FlashAttention2(
    heads=32, group=4, key_bytes=4096, bytes_per_s=1e12, multiprocessors=80, packs=True, slots=80, key_s=25e-9
)
TIMES = DecodeTimes(KERNEL, request_s=1e-6, key_s=5e-9)
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 128256,
}


LLAMA_8B = model_of({**CONFIG, "num_hidden_layers": 32}, "meta-llama/Llama-3.1-8B")


def kernel_of(device: str, model: ModelSpec = LLAMA_8B, tp: int = 1, dtype: str = "bfloat16") -> FlashAttention2 | None:
    return flash_attention_2(find_device(device, [BUNDLED]), model, tp, dtype)


@pytest.mark.parametrize("device", ["H100", "H200", "B200", "MI300X", "TPU-v6e"])
def test_other_devices_have_another_kernel(device: str) -> None:
    assert kernel_of(device) is None


def test_keys_of_8_bits_are_not_its() -> None:
    assert kernel_of("RTXPRO6000") is not None
    assert kernel_of("RTXPRO6000", dtype="fp8") is None


@pytest.mark.parametrize(
    ("device", "slots", "unsplit"), [("RTXPRO6000", 188, 38), ("A6000", 84, 17), ("A100-80GB", 216, 22)]
)
def test_blocks_at_once_and_requests_from_which_histories_are_not_split(device: str, slots: int, unsplit: int) -> None:
    """80 KiB of shared memory a block: one of an A6000's multiprocessors has room for one, one of an A100 for two."""
    kernel = kernel_of(device)
    assert kernel is not None
    assert kernel.slots == slots
    assert kernel.splits(unsplit - 1)
    assert not kernel.splits(unsplit)


def test_with_a_share_of_the_heads_more_requests_are_split() -> None:
    half = kernel_of("RTXPRO6000", tp=2)
    assert half is not None
    assert (half.heads, half.splits(75), half.splits(76)) == (16, True, False)


def test_a_sliding_window_splits_nothing() -> None:
    kernel = kernel_of("A6000", model_of({**CONFIG, "sliding_window": 2047}, "window"))
    assert kernel is not None
    assert not kernel.packs
    assert not kernel.splits(1)
    off = model_of({**CONFIG, "sliding_window": 2047, "use_sliding_window": False}, "off")
    assert not off.has_sliding_window


def unequal_decodes() -> UnequalDecodes:
    none = np.zeros(6)
    n, history = np.repeat([1.0, 256.0], 3), np.tile([0.0, 1023.0, 4095.0], 2)
    rows = AttentionRows(none, none, n, history, TIMES.packed_s(n, history))
    prompts = AttentionRows(np.array([64.0, 512.0]), none[:2], none[:2], none[:2], np.array([20e-6, 80e-6]))
    joined = [np.concatenate([getattr(prompts, name), getattr(rows, name)]) for name in AttentionRows.__slots__[:5]]
    return UnequalDecodes(KERNEL, AttentionTable(AttentionRows(*joined)))


def test_a_long_request_among_short_ones_is_waited_for_alone() -> None:
    """Eight heads of one request work on while 800 blocks are done; 40 keep this memory busy."""
    unequal = unequal_decodes()
    histories = np.full(100, 499.0)
    assert unequal.alone_s(histories) < 0.02 * TIMES.packed_s(*one(100, 499))[0]
    histories[50] = 3999.0
    keys_per_s = 8 * 100 * 4095 / (TIMES.packed_s(*one(100, 4095)) - TIMES.packed_s(*one(100, 0)))[0]
    assert 0.9 < unequal.alone_s(histories) / (3500 * (25e-9 - 8 / keys_per_s)) < 1.2


def test_equal_decodes_of_a_round_and_a_bit_cost_what_was_measured() -> None:
    """The second round is of 8 blocks, which leave this memory idle, whether they are equal or not."""
    unequal = unequal_decodes()
    assert unequal.alone_s(np.full(11, 999.0)) == pytest.approx(0, abs=1e-12)
    assert unequal.alone_s(np.array([*[999.0] * 10, 3999.0])) > 10e-6


def test_beside_a_prompt_equal_decodes_cost_nothing_more_and_unequal_ones_do() -> None:
    unequal, chunk = unequal_decodes(), [Chunk(512, 0)]
    histories = np.full(20, 1000.0)
    assert unequal.beside_s(chunk, histories, 1e-3) == 0
    histories[::2] += np.linspace(0, 3000, 10)
    assert unequal.beside_s(chunk, histories, 1e-3) > 10e-6


def one(n: float, history: float) -> tuple[Floats, Floats]:
    return np.array([n]), np.array([history])


def test_a_packed_batch_reads_each_key_once() -> None:
    read_s = 100 * 500 * 4096 / 1e12
    assert TIMES.packed_s(*one(100, 499))[0] == pytest.approx(PACKED_S + PACKED_READING * read_s)


@pytest.mark.parametrize(("n", "passes"), [(10, 1), (20, 1), (40, 2), (80, 4), (200, 4)])
def test_apart_heads_of_a_group_share_what_they_read_while_they_are_on_the_device_at_once(n: int, passes: int) -> None:
    slow = replace(TIMES, key_s=1e-12)
    read_s = passes * n * 8192 * 4096 / 1e12
    least_s = slow.packed_s(*one(n, 8191))[0]
    assert slow.apart_s(*one(n, 8191))[0] == pytest.approx(max(n * 1e-6 + read_s, least_s))


def test_apart_is_never_faster_than_packed_and_a_window_leaves_nothing_packed() -> None:
    n, history = (grid.ravel() for grid in np.meshgrid([1.0, 8, 64, 256], [0.0, 100, 1000, 10000]))
    assert np.all(TIMES.apart_s(n, history) >= TIMES.packed_s(n, history))
    assert np.array_equal(TIMES.alone_s(n, history), TIMES.packed_s(n, history))
    windowed = replace(TIMES, kernel=replace(KERNEL, packs=False))
    assert np.array_equal(windowed.alone_s(n, history), TIMES.apart_s(n, history))


def test_what_requests_and_keys_take_is_found_in_batches_that_fill_the_device() -> None:
    n = np.repeat([1.0, 8, 16, 128], 3)
    history = np.tile([15.0, 127, 1023], 4)
    time_s = np.where(n < 8, 1.0, 2e-6 * n + 7e-9 * n * (history + 1))
    times = fit_apart(KERNEL, n, history, time_s)
    assert times is not None
    assert (times.request_s, times.key_s) == (pytest.approx(2e-6), pytest.approx(7e-9))
    assert fit_apart(KERNEL, n[:3], history[:3], time_s[:3]) is None
    assert fit_apart(KERNEL, n, history, np.ones(12)) is None


def test_a_step_with_a_prompt_takes_its_own_time_and_that_of_decodes_apart() -> None:
    tokens, before = (grid.ravel() for grid in np.meshgrid([16.0, 2048], [0.0, 2048], indexing="ij"))
    none = np.zeros(len(tokens))
    chunks = AttentionRows(tokens, before, none, none, 1e-6 + tokens * (before + tokens / 2) * 1e-11)
    table = AttentionTable(with_decodes(chunks, TIMES))
    for n, history, chunk in ((64, 512, Chunk(256, 0)), (128, 1024, Chunk(16, 2048)), (100, 700, Chunk(2048, 0))):
        apart_s = TIMES.apart_s(*one(n, history))[0]
        mixed_s = table.mixed_s([chunk], n, history, history)
        assert mixed_s == pytest.approx(table.prefill_s([chunk]) + apart_s, rel=0.05)
        assert table.decode_once_s(n, history, history) == pytest.approx(TIMES.packed_s(*one(n, history))[0], rel=0.01)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A profile of a device that is described: decodes of 1 us a request and 20 ns a key."""
    model = tmp_path / "perf" / "A6000" / "org" / "tiny"
    folder = write_degree(model)
    batches = [(n, keys) for n in (1, 8, 32, 128) for keys in (256, 4096)]
    rows = [f",,,1,{(n + keys * 0.02) / 1000},0.001,1,{n},0,{keys},False" for n, keys in batches]
    text = (folder / "attention.csv").read_text().splitlines()
    write_lines(folder / "attention.csv", [text[0], *(line for line in text[1:] if line.endswith("True")), *rows])
    return model


def imported(model: Path, format: str | None = None, **changes: object) -> tuple[AttentionTable, dict[str, object]]:
    configs = {"org/tiny": {**CONFIG, **changes}}
    (profile,) = import_any_profiles(model, configs, format).profiles
    tables = profile.tables[1]
    facts = {
        "profile": profile,
        "notes": " ".join(profile.meta.notes),
        "per_request": profile.meta.composition.per_request,
        "dense": {name: dict(zip(curve.x, curve.time_s, strict=True)) for name, curve in tables.dense.items()},
        "host_step_s": profile_overhead(profile, 2).host_step_s,
    }
    return AttentionTable(tables.attention), facts


def test_an_older_profile_of_a_known_kernel_is_the_engine_s(older: Path) -> None:
    table, facts = imported(older)
    apart_s = 128e-6 + 128 * 512 * 20e-9
    mixed_s = table.mixed_s([Chunk(64, 0)], 128, 511, 511)
    assert mixed_s - table.prefill_s([Chunk(64, 0)]) == pytest.approx(
        max(apart_s, 128e-6 + 4 * 128 * 512 * 4096 / 768e9), rel=0.02
    )
    packed_s = PACKED_S + PACKED_READING * 128 * 512 * 4096 / 768e9
    assert table.decode_once_s(128, 511, 511) == pytest.approx(packed_s, rel=0.02)
    assert facts["host_step_s"] == HOST_STEP_S
    assert facts["per_request"] == ("lm_head", "sampler")
    assert "1.00 us a request and 20.0 ns a key" in str(facts["notes"])


def test_kernels_that_vllm_fuses_are_one_pass_over_memory(older: Path) -> None:
    _, facts = imported(older)
    dense = facts["dense"]
    assert isinstance(dense, dict)
    shortest_s = prefill_us(1, 1) * 1e-6
    for name, width in (("input_layernorm", 8 * 4096), ("rope", 4 * 5120), ("act_fn", 6 * 14336)):
        for n in LENGTHS:
            assert dense[name][n] == pytest.approx(max(shortest_s, n * width / 768e9), rel=1e-3)
    assert dense["q_proj"][64] == pytest.approx(16.4e-6)


def test_a_sliding_window_has_no_packed_decodes(older: Path) -> None:
    table, facts = imported(older, sliding_window=2047)
    mixed_s = table.mixed_s([Chunk(64, 0)], 128, 511, 511) - table.prefill_s([Chunk(64, 0)])
    assert table.decode_once_s(128, 511, 511) == pytest.approx(mixed_s, rel=0.02)
    assert "do so too, for the model's sliding window" in str(facts["notes"])


def test_the_published_profile_is_there_by_name(older: Path) -> None:
    write_predictions(older / "tp1")
    _, published = imported(older, "llmservingsim-older-published")
    assert published["host_step_s"] == 0
    assert published["per_request"] == ("lm_head",)
    assert "predictions of LLMServingSim beyond what was measured" in str(published["notes"])
    dense = published["dense"]
    assert isinstance(dense, dict)
    assert set(dense) == {*LLAMA} - {"attn", "lm_head"}
    assert dense["rope"][1] == pytest.approx(10.1e-6)


@pytest.mark.parametrize("device", ["H100", "B200", "MI300X", "TPU-v6e", "GPU1"])
def test_other_kernels_are_left_as_published(older: Path, device: str) -> None:
    model = older.parents[2] / device / "org" / "tiny"
    model.parent.mkdir(parents=True)
    older.rename(model)
    _, facts = imported(model)
    assert facts["host_step_s"] == 0
    assert facts["per_request"] == ("lm_head",)


def test_too_few_rows_to_fill_the_device_are_said(older: Path) -> None:
    file = older / "tp1" / "attention.csv"
    lines = [line for line in file.read_text().splitlines() if ",128,0," not in line and ",32,0," not in line]
    write_lines(file, [line for line in lines if ",8,0," not in line])
    with pytest.raises(ProfileError, match=r"too few decodes that fill the device.*llmservingsim-older-published"):
        import_any_profiles(older, {"org/tiny": CONFIG})


@pytest.mark.ground_truth
@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B-Instruct-2507"])
def test_the_kernels_of_an_rtx_pro_6000_are_of_that_kind(ground_truth: Path, model: str) -> None:
    """Packed batches as this says, in the median within 10 %; beside a prompt they take 1.2 to 3.5 times as long."""
    folder = ground_truth / "vllm-0.19" / "perf" / "RTXPRO6000" / model / "bf16" / "tp1"
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    table = read_csv(folder / "attention.csv", (*columns, "time_us"))
    rows = np.column_stack([table.numbers(name) for name in (*columns, "time_us")])
    time_s: dict[tuple[float, ...], float] = defaultdict(lambda: float("nan"))
    time_s.update({tuple(row[:4]): row[4] * 1e-6 for row in rows})
    config = model_configs([BUNDLED])[model]
    kernel = flash_attention_2(find_device("RTXPRO6000", [BUNDLED]), model_of(config, model), 1, "bfloat16")
    assert kernel is not None
    alone = rows[(rows[:, 0] == 0) & (rows[:, 2] >= 2) & (rows[:, 3] <= 4096)]
    assert len(alone) == 112
    error = DecodeTimes(kernel, 0.0, 0.0).packed_s(alone[:, 2], alone[:, 3]) / (alone[:, 4] * 1e-6) - 1
    assert np.median(np.abs(error)) < 0.1
    for n in (32.0, 64.0, 128.0):
        for history in (256.0, 512.0, 1024.0):
            beside_s = time_s[64.0, 0.0, n, history] - time_s[64.0, 0.0, 0.0, 0.0]
            assert 1.2 < beside_s / time_s[0.0, 0.0, n, history] < 3.5


@pytest.mark.ground_truth
@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B-Instruct-2507"])
@pytest.mark.parametrize("tp", [1, 2])
def test_unequal_decodes_of_an_rtx_pro_6000_take_as_long_as_was_measured(
    ground_truth: Path, model: str, tp: int
) -> None:
    """Against `skew.csv`, by what they take beside equal ones; of batches that are not split."""
    alone, beside = unequal_errors(ground_truth / "vllm-0.19" / "perf", "RTXPRO6000", model, tp)
    assert len(alone.modelled) >= 60
    assert np.abs(alone.modelled).mean() < 0.03 < 0.05 < np.abs(alone.equal).mean()
    assert np.abs(beside.modelled).mean() < 0.06 < np.abs(beside.equal).mean()
