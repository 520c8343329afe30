"""How many devices the points of a study use: what they cost hangs on it, and whether they are compared fairly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

COLUMN, COUNT = "devices", "n_devices"
"""The column in words, and the figure of summary.json."""


def devices_text(figures: Mapping[str, Any]) -> str:
    """A point's devices, as `2 H100, 4 A100-80GB`."""
    return ", ".join(f"{one['count']} {one['device']}" for one in figures["devices"])


def device_cell(record: Mapping[str, Any]) -> Callable[[int | None], str] | None:
    """What tables show of a point of study.json by its number, or of no point: names only where points' differ.

    None: there is no need of a column. All points use the same devices (`device_lines` says which), how many is an
    objective or constrained and has one, or the study was written by a version that did not keep them.
    """
    known = _known(record)
    texts = {i: devices_text(figures) for i, figures in known.items()}
    if len({tuple(one["device"] for one in figures["devices"]) for figures in known.values()}) < 2:
        if COUNT in (*record["objectives"], *record["constraints"]):
            return None
        texts = {i: str(figures[COUNT]) for i, figures in known.items()}
    return None if len(set(texts.values())) < 2 else lambda point: texts.get(point, "–")


def device_lines(record: Mapping[str, Any]) -> list[str]:
    """The devices of all points, in a line; nothing where they differ."""
    texts = {devices_text(figures) for figures in _known(record).values()}
    return [f"devices of all points: {text}" for text in texts] if len(texts) == 1 else []


def _known(record: Mapping[str, Any]) -> dict[int | None, Mapping[str, Any]]:
    """Figures of the points whose devices are known, by their numbers."""
    found = {i: point.get("figures") for i, point in enumerate(record["points"])}
    return {i: figures for i, figures in found.items() if figures is not None and COLUMN in figures}
