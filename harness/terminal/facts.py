"""Traces, profiles and captures in a few facts, for the terminal and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.terminal.console import print_facts, print_json
from harness.terminal.summary import print_summary
from profiles.catalog import find_device, find_model, model_configs, with_bundled
from profiles.formats import import_any_profiles
from profiles.profile import AttentionRows, Curve, Profile
from profiles.profile_folder import write_profile
from profiles.spread import worst_spreads
from traces.capture import Capture, new_folder
from traces.metrics import summary
from traces.trace import Trace


def trace_facts(trace: Trace) -> dict[str, Any]:
    """A trace in a few facts."""
    prompts = np.array([row.prompt_tokens for row in trace.rows])
    outputs = np.array([row.output_tokens for row in trace.rows])
    span_s = trace.rows[-1].arrival_s - trace.rows[0].arrival_s
    hashes = [hash_ for row in trace.rows for hash_ in row.block_hashes or ()]
    return {
        "source": trace.source,
        "sha256": trace.sha256,
        "requests": len(trace),
        "span_s": span_s,
        "requests_per_s": (len(trace) - 1) / span_s if span_s > 0 else None,
        "prompt_tokens": int(prompts.sum()),
        "prompt_tokens_mean_max": [float(prompts.mean()), int(prompts.max())],
        "output_tokens": int(outputs.sum()),
        "output_tokens_mean_max": [float(outputs.mean()), int(outputs.max())],
        "hash_block_size": trace.hash_block_size,
        "blocks_seen_before": (len(hashes) - len(set(hashes))) / len(hashes) if hashes else None,
        "notes": list(trace.notes),
    }


def import_profiles_to(
    source: Path,
    out: Path,
    format: str | None = None,
    left_out: list[str] | None = None,
    network: Path | None = None,
    folders: Sequence[Path] = (),
) -> list[Path]:
    """Import every profile at or below `source` into a new folder, as device/model/dtype. Returns their places.

    `left_out` takes in, in words, the folders that hold too little for a profile; `network` is a folder of Vidur's with
    times between devices; `folders` are looked in first for models' configs.
    """
    imported = import_any_profiles(source, model_configs(with_bundled(folders)), format, network)
    if left_out is not None:
        left_out.extend(imported.left_out)
    places = []
    with new_folder(out) as folder:
        for profile in imported.profiles:
            meta = profile.meta
            kv = "" if meta.kv_cache_dtype == "auto" else f"-kv-{meta.kv_cache_dtype}"
            place = Path(meta.device) / meta.model / f"{meta.dtype}{kv}"
            write_profile(profile, folder / place)
            places.append(out / place)
    return places


def import_tables_to(
    system: str, model: str, dtype: str, kv_cache_dtype: str, degrees: Sequence[int], folders: Sequence[Path], out: Path
) -> Path:
    """Write aiconfigurator's tables of one system as a profile of a model. Raises InputError, EngineError.

    Args:
        system: aiconfigurator's name of a device, which a device of the catalogue has among its aliases.
        model: its name in the catalogue.
        dtype, kv_cache_dtype: the engine's types.
        degrees: tensor-parallel degrees.
        folders: where models and devices are looked up before the bundled ones.
        out: the folder to write.
    """
    from profiles.aiconfigurator import aiconfigurator_profile

    everywhere = with_bundled(folders)
    device, spec = find_device(system, everywhere), find_model(model, everywhere)
    write_profile(aiconfigurator_profile(system, spec, dtype, kv_cache_dtype, degrees, device=device.name), out)
    return out


def profile_facts(profile: Profile) -> dict[str, Any]:
    """A profile in a few facts."""
    meta = profile.meta
    facts: dict[str, Any] = {
        "device": meta.device,
        "model": meta.model,
        "dtype": meta.dtype,
        "kv_cache_dtype": meta.kv_cache_dtype,
        "engine": meta.engine,
        "source": meta.source,
        "recorded_at": meta.recorded_at,
        "method": meta.method,
        "sha256": profile.sha256,
    }
    for tp, tables in sorted(profile.tables.items()):
        rows = tables.attention
        facts[f"tp {tp}"] = [
            *(f"{name}: {_range(curve)} tokens" for name, curve in tables.dense.items()),
            *(f"{name}: {_range(curve)} requests" for name, curve in tables.per_request.items()),
            *([_attention_range(rows)] if len(rows.time_s) else []),
            *([f"moe: {len(tables.moe.time_s)} points"] if tables.moe is not None else []),
            *([f"skew: {len(tables.skew.time_s)} points"] if tables.skew is not None else []),
            *([f"whole steps: {len(tables.steps.step_s)} points"] if tables.steps is not None else []),
        ]
        if spreads := worst_spreads(tables):
            facts[f"tp {tp}: spread of the samples"] = spreads
    for op, by_ranks in (profile.collectives or {}).items():
        facts[op] = [f"{ranks} ranks: {_range(c)} bytes" for ranks, c in by_ranks.items()]
    facts["notes"] = list(meta.notes)
    return facts


def _attention_range(rows: AttentionRows) -> str:
    history = max(rows.prefill_kv_tokens.max(), rows.decode_kv_tokens.max())
    return (
        f"attention: {len(rows.time_s)} points, prefill to {rows.prefill_tokens.max():.0f} tokens, history to "
        f"{history:.0f}, {rows.n_decode.max():.0f} decodes"
    )


def _range(curve: Curve) -> str:
    """How many points a table has, and up to where."""
    return f"{len(curve.x)} points to {curve.x[-1]:.0f}"


def capture_facts(capture: Capture) -> dict[str, Any]:
    """What ran, in a few facts."""
    meta = capture.meta
    options = [f"{name} {value}" for name, value in meta.engine_options.items()]
    return {
        "kind": meta.kind,
        "engine": meta.engine,
        "model": meta.model,
        "device": meta.device,
        "recorded_at": meta.recorded_at,
        "num_gpu_blocks": meta.num_gpu_blocks,
        "engine_options": options,
        "steps_recorded": None if capture.steps is None else len(capture.steps),
        "series": [
            f"{name}: {len(series.time_s)} points to {series.time_s[-1]:.0f} s, mean {series.value.mean():.6g}"
            for name, series in sorted(capture.series.items())
            if len(series.time_s)
        ],
        "clock": meta.clock,
        "reasons_not_to_score": list(meta.reasons),
        "notes": list(meta.notes),
    }


def print_capture(capture: Capture, *, as_json: bool) -> None:
    """Print what ran and its figures."""
    facts, figures = capture_facts(capture), summary(capture)
    if as_json:
        print_json({**facts, **figures})
        return
    print_facts(facts)
    print_summary(figures)
