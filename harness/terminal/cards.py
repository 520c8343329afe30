"""Cards: a profile or a capture on one page, so that a reader knows what was measured before believing it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from harness.terminal.words import seconds
from profiles.catalog import BUNDLED
from profiles.profile import Profile
from profiles.spread import worst_spreads
from traces.capture import Capture
from traces.metrics import summary

HARNESS = Path(__file__).parents[1]
NOT_STATED = "not stated"


def profile_card(profile: Profile) -> str:
    """A profile's card, in Markdown."""
    meta = profile.meta
    spreads = [f"TP {tp}, {line}" for tp, tables in sorted(profile.tables.items()) for line in worst_spreads(tables)]
    facts = {
        "device": meta.device,
        "model": meta.model,
        "types": f"{meta.dtype}, KV cache {meta.kv_cache_dtype}",
        "engine": meta.engine,
        "measured by": meta.source,
        "date": meta.recorded_at,
        "method": meta.method,
        "tensor-parallel degrees": ", ".join(str(tp) for tp in sorted(profile.tables)),
        "licence": license_of(profile.path, meta.measured.get("license")),
        "hash": profile.sha256,
    }
    flags = {name: value for name, value in meta.measured.items() if name not in ("license",)}
    return _card(f"Profile: {meta.model} on {meta.device}", facts, flags, spreads or [NOT_STATED], meta.notes)


def capture_card(capture: Capture, folder: Path) -> str:
    """A capture's card, in Markdown."""
    meta, figures = capture.meta, summary(capture)
    facts = {
        "what": f"{meta.kind}, {figures['n_requests']} requests, {figures['n_finished']} finished",
        "device": meta.device,
        "model": meta.model,
        "engine": meta.engine,
        "date": meta.recorded_at,
        "KV blocks": meta.num_gpu_blocks,
        "steps recorded": None if capture.steps is None else len(capture.steps),
        "clock": meta.clock,
        "licence": license_of(folder, meta.provenance.get("license")),
        "hash": digest_of(folder),
    }
    spreads = [
        f"{name.removesuffix('_s')}: "
        + ", ".join(f"{which} {seconds(values[which])}" for which in ("mean", "p50", "p90"))
        for name, values in figures["metrics"].items()
        if isinstance(values, dict) and name.endswith("_s") and values.get("mean") is not None
    ]
    return _card(f"Capture: {folder.name}", facts, meta.engine_options, spreads, (*meta.reasons, *meta.notes))


def license_of(folder: Path, stated: str | None) -> str:
    """What its description states; for what lies in the package, the package's."""
    inside = any(folder.resolve().is_relative_to(ours.resolve()) for ours in (BUNDLED, HARNESS / "bundled"))
    return stated or ("Apache-2.0, as servetwin" if inside else NOT_STATED)


def digest_of(folder: Path) -> str:
    """Of the names and contents of its files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return "sha256:" + digest.hexdigest()


def _card(title: str, facts: dict[str, Any], flags: dict[str, Any], spreads: list[str], notes: tuple[str, ...]) -> str:
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {NOT_STATED if value in (None, '') else value} |" for name, value in facts.items()]
    for heading, entries in (
        ("Flags", [f"{name}: {_value(value)}" for name, value in flags.items()]),
        ("Spread", spreads),
        ("Notes", list(notes)),
    ):
        lines += ["", f"## {heading}", ""] + [f"- {entry}" for entry in entries or ["none"]]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
