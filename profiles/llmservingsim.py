"""Profiles of LLMServingSim (2.0, `profiler/perf/<hardware>/<model>/<variant>/`) to our own.

One variant folder holds `meta.yaml` and one folder per tensor-parallel degree with dense.csv, per_sequence.csv,
attention.csv, and where they apply moe.csv and skew.csv. Its times are microseconds of eager CUDA kernels, means over
`measurement_iterations`, of one layer of the model, cut to what one of `tp` devices holds. Its skew_fit.csv is derived
from skew.csv and is not read. Operators that its catalogue marks `tp_stable` are in every degree's tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from profiles.catalog import BUNDLED, model_configs
from profiles.csv_table import read_csv
from profiles.profile import AttentionRows, Composition, MoeRows, OperatorTables, Profile, ProfileMeta, SkewRows
from profiles.profile_folder import curves_of
from traces.decoding import decode_yaml
from traces.errors import InputError, nearest
from traces.steps import Floats

_LLAMA = (
    "layernorm",
    "qkv_proj",
    "rotary_emb",
    "attention",
    "o_proj",
    "layernorm",
    "gate_up_proj",
    "act_fn",
    "down_proj",
)
_MOE = ("layernorm", "qkv_proj", "rotary_emb", "attention", "o_proj", "layernorm", "moe")

LAYERS = {
    "llama": _LLAMA,
    "qwen3": (*_LLAMA[:2], "qk_norm", *_LLAMA[2:]),
    "mixtral": _MOE,
    "phimoe": _MOE,
    "qwen3_moe": (*_MOE[:2], "qk_norm", *_MOE[2:]),
}
"""Operators of one layer by architecture, in order (LLMServingSim 2.0 `profiler/models/*.yaml`, `sequence`)."""

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "fp8"}


class _Meta(msgspec.Struct):
    """What is used of meta.yaml; it holds more."""

    vllm_version: str
    hardware: str
    architecture: str
    model: str
    variant: str
    measurement_iterations: int
    gpu: str | None = None
    cuda_version: str | None = None
    profiled_at: str | None = None
    engine_effective: dict[str, Any] = {}


def import_profiles(source: Path, configs: dict[str, dict[str, Any]] | None = None) -> list[Profile]:
    """Every profile at or below `source`: a variant folder, or a tree of them.

    Args:
        source: a folder that holds a meta.yaml, or folders that do.
        configs: Hugging Face configs by model name, put into the profiles they fit; None: the bundled catalogue's.

    Raises:
        InputError: nothing is there, or a file is wrong, with file, line and field.
    """
    if not source.exists():
        raise InputError("no such folder", file=source)
    metas = sorted(source.rglob("meta.yaml")) if source.is_dir() else []
    if not metas:
        raise InputError(
            "holds no LLMServingSim profile", file=source, accepted="a folder with a meta.yaml at or below it"
        )
    known = model_configs([BUNDLED]) if configs is None else configs
    return [_import_variant(meta.parent, known) for meta in metas]


def _import_variant(folder: Path, configs: dict[str, dict[str, Any]]) -> Profile:
    file = folder / "meta.yaml"
    meta = decode_yaml(file, _Meta)
    if meta.architecture not in LAYERS:
        accepted = nearest(meta.architecture, LAYERS)
        raise InputError(file=file, field="architecture", found=meta.architecture, accepted=accepted)
    layers = LAYERS[meta.architecture]
    degrees = sorted(int(path.name[2:]) for path in folder.glob("tp*") if path.is_dir() and path.name[2:].isdigit())
    if not degrees:
        raise InputError("holds no tensor-parallel degree", file=folder, accepted="folders tp1, tp2, ...")
    composition = Composition(("embedding", "final_layernorm"), layers, ("lm_head", "sampler"))
    notes = ["kernels ran eagerly, one layer on one device; a server may run them compiled, in CUDA graphs"]
    if any((folder / f"tp{tp}" / "skew_fit.csv").exists() for tp in degrees):
        notes.append("skew_fit.csv, which is derived from skew.csv, was not imported")
    tables = {tp: _tables(folder, tp, composition, notes) for tp in degrees}
    even = "no skew.csv: decodes of uneven histories are taken to cost what even ones do"
    notes += [f"tp {tp}: {even}" for tp, table in tables.items() if table.skew is None]
    notes += [f"tp {tp}: {_coverage(table.attention)}" for tp, table in tables.items()]
    config = configs.get(meta.model)
    if config is None:
        notes.append("no config.json at hand for this model when it was imported")
    return Profile(
        ProfileMeta(
            device=meta.hardware,
            model=meta.model,
            dtype=_variant_dtype(meta, file),
            kv_cache_dtype="fp8" if meta.variant.endswith("-kvfp8") else "auto",
            engine=f"vllm {meta.vllm_version}",
            source="LLMServingSim 2.0 profiler",
            recorded_at=None if meta.profiled_at is None else meta.profiled_at[:10],
            method=f"CUDA kernel time, mean of {meta.measurement_iterations}",
            model_config=config,
            composition=composition,
            notes=tuple(notes),
            measured={"gpu": meta.gpu, "cuda_version": meta.cuda_version, "engine": meta.engine_effective},
        ),
        tables,
        path=folder,
    )


def _variant_dtype(meta: _Meta, file: Path) -> str:
    name = meta.variant.removesuffix("-kvfp8")
    if name not in _DTYPES:
        raise InputError(file=file, field="variant", found=meta.variant, accepted=nearest(name, _DTYPES))
    return _DTYPES[name]


def _tables(folder: Path, tp: int, composition: Composition, notes: list[str]) -> OperatorTables:
    at = folder / f"tp{tp}"
    dense = read_csv(at / "dense.csv", ("layer", "tokens", "time_us"))
    per_request = read_csv(at / "per_sequence.csv", ("layer", "sequences", "time_us"))
    skew_file = at / "skew.csv"
    return OperatorTables(
        dense=curves_of(dense, "layer", "tokens", composition.dense()),
        per_request=curves_of(per_request, "layer", "sequences", set(composition.per_request)),
        attention=_attention(at / "attention.csv"),
        moe=_moe(folder, tp, notes) if "moe" in composition.per_layer else None,
        skew=_skew(skew_file) if skew_file.exists() else None,
    )


def _attention(file: Path) -> AttentionRows:
    points = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    table = read_csv(file, (*points, "time_us"))
    table.check_unique(points)
    prefill, history, n_decode, kv = (table.numbers(name) for name in points)
    return AttentionRows(prefill, history, n_decode, kv, table.numbers("time_us", above_0=True) * 1e-6)


def _coverage(rows: AttentionRows) -> str:
    """How much of the grid that its axes span was measured: corners that did not fit in memory are missing."""

    def n_values(values: Floats, where: npt.NDArray[np.bool_]) -> int:
        return len(np.unique(values[where]))

    chunk, batch = rows.prefill_tokens > 0, rows.n_decode > 0
    prefills = n_values(rows.prefill_tokens, chunk) * n_values(rows.prefill_kv_tokens, chunk)
    decodes = n_values(rows.n_decode, batch) * n_values(rows.decode_kv_tokens, batch)
    parts = [("prefill alone", chunk & ~batch, prefills), ("decode alone", batch & ~chunk, decodes)]
    if np.any(chunk & batch):
        parts.append(("both", chunk & batch, prefills * decodes))
    found = [f"{name} {np.count_nonzero(own)} of {n_points}" for name, own, n_points in parts]
    return f"attention points measured, of those its axes span: {', '.join(found)}"


def _moe(folder: Path, tp: int, notes: list[str]) -> MoeRows:
    """Expert times; those of a single rank (tp1) serve every degree, as in LLMServingSim."""
    file = folder / f"tp{tp}" / "moe.csv"
    if not file.exists():
        file = folder / "tp1" / "moe.csv"
        notes.append(f"tp {tp}: expert times are those of tp 1")
    points = ("tokens", "activated_experts")
    table = read_csv(file, (*points, "time_us"))
    table.check_unique(points)
    n_tokens, n_experts = (table.numbers(name) for name in points)
    return MoeRows(n_tokens, n_experts, table.numbers("time_us", above_0=True) * 1e-6)


def _skew(file: Path) -> SkewRows:
    points = ("n", "nb", "pc", "kp", "kvs", "kv_big", "kv_mean")
    times = ("t_mean_us", "t_max_us", "t_skew_us")
    table = read_csv(file, (*points, *times), others=True)
    return SkewRows(
        *(table.numbers(name) for name in points), *(table.numbers(name, above_0=True) * 1e-6 for name in times)
    )
