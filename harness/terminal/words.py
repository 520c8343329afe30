"""How metrics are called, and how figures are written, in tables, sentences and reports."""

from __future__ import annotations

LABELS = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2el_s": "E2EL",
    "queue_s": "queue time",
    "prefill_s": "prefill time",
    "decode_s": "decode time",
    "output_tokens_per_s": "output tokens/s",
    "power_w": "power",
    "power_w.devices": "power of devices",
    "kv_usage": "KV use",
    "prefix_hit_rate": "prefix hit rate",
    "duration_s": "duration",
}
"""How metrics are called in tables and reports."""


def seconds(value: float | None) -> str:
    """A duration with the unit that suits it."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if abs(value) * scale >= 1:
            return f"{value * scale:.4g} {unit}"
    return f"{value:.3g} s"


def percent(value: float | None) -> str:
    """A signed relative error in percent."""
    return "–" if value is None else f"{value:+.1%}"


def interval(ci95: list[float] | None) -> str:
    """A 95 % interval of a relative error."""
    return "–" if ci95 is None else f"[{ci95[0]:+.1%}, {ci95[1]:+.1%}]"
