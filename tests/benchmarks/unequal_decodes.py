"""Print how well the kernel's thread blocks say what unequal decodes take, beside batches that were measured.

    .venv/bin/python -m tests.benchmarks.unequal_decodes

LLMServingSim's `skew.csv` has batches of two histories beside equal ones of their mean and of the longest. Only their
ratios count: the table is in other units than its attention.csv (three times).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.terminal.console import console, table
from profiles.attention import AttentionTable, Chunk
from profiles.catalog import BUNDLED, find_device, model_configs
from profiles.flash_attention import UnequalDecodes, flash_attention_2
from profiles.llmservingsim import import_profiles
from profiles.model import model_of
from tests.measured import GROUND_TRUTH
from traces.steps import Floats

MODELS = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B-Instruct-2507")
EVERY = 5
"""Of the batches beside a prompt, which are many."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of batches, [n]: as the blocks say, and as if all histories were their mean."""

    modelled: Floats
    equal: Floats


def unequal_errors(folder: Path, device: str, model: str, tp: int) -> tuple[Errors, Errors]:
    """Of a model's skewed batches: decodes alone whose histories are not split, and decodes beside a prompt."""
    profile = next(one for one in import_profiles(folder / device) if one.meta.model == model)
    tables = profile.tables[tp]
    spec = model_of(model_configs([BUNDLED])[model], model)
    kernel = flash_attention_2(find_device(device, [BUNDLED]), spec, tp, "bfloat16")
    rows, attention = tables.skew, AttentionTable(tables.attention)
    assert kernel is not None
    assert rows is not None
    unequal = UnequalDecodes(kernel, attention)
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for i in range(len(rows.time_s)):
        n, mean, tokens = int(rows.n_decode[i]), float(rows.mean_kv_tokens[i]), int(rows.prefill_tokens[i])
        if (not tokens and kernel.splits(n)) or (tokens and i % EVERY):
            continue
        histories = np.full(n, rows.short_kv_tokens[i])
        histories[: int(rows.n_long[i])] = rows.long_kv_tokens[i]
        if tokens:
            chunks = [Chunk(tokens, int(rows.prefill_kv_tokens[i]))]
            equal_s = attention.mixed_s(chunks, n, mean, mean)
            modelled_s = equal_s + unequal.beside_s(chunks, histories, equal_s)
        else:
            equal_s = attention.decode_once_s(n, mean, mean)
            modelled_s = equal_s + unequal.alone_s(histories)
        measured_s = equal_s * float(rows.time_s[i] / rows.uniform_mean_s[i])
        found[tokens > 0].append((modelled_s / measured_s - 1, equal_s / measured_s - 1))
    alone, beside = (np.array(found[one]) for one in (False, True))
    return Errors(*alone.T), Errors(*beside.T)


def main() -> int:
    """Print the table; 1 where there is nothing to compare with."""
    folder = GROUND_TRUTH / "vllm-0.19" / "perf"
    if not folder.is_dir():
        print(f"no measured batches at {folder}", file=sys.stderr)
        return 1
    columns = ["batches", "n", "mean error", "bias", "as if equal: mean error", "bias"]
    rows = []
    for model in MODELS:
        for tp in (1, 2):
            for what, errors in zip(("alone", "beside"), unequal_errors(folder, "RTXPRO6000", model, tp), strict=True):
                parts = [f"{x:.1%}" for e in (errors.modelled, errors.equal) for x in (np.abs(e).mean(), e.mean())]
                rows.append([f"{model}, tp {tp}, {what}", str(len(errors.equal)), *parts])
    console().print(table("Decodes of two histories on an RTX PRO 6000", columns, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
