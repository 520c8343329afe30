"""The figures of runs that stand side by side, and which way everybody wants them.

Totals, of a run's energy or cost, are of what it served: they say neither better nor worse; what they are per token or
request does. Nor do rates of what was served, unless it is known that the same was offered: a smaller load is served
more slowly. And where requests came at times of their own and no engine is known to have fallen behind, they are what
was offered, lessened by how long the last answers took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.reports.differences import Better, Row
from harness.terminal.words import LABELS, seconds
from traces.metrics import LATENCIES, STAGES
from traces.outcome import Status

Figures = Mapping[str, Any]
"""What a run's summary.json says, or `traces.metrics.summary`."""


def _row(
    label: str,
    figures: Sequence[Figures],
    value: Callable[[Figures], float | None],
    text: Callable[[float], str] = "{:.4g}".format,
    better: Better | None = None,
    *,
    is_share: bool = False,
    unlike: Sequence[bool] = (),
) -> Row:
    return Row(label, [value(said) for said in figures], text, better, is_share, unlike)


def figure_at(*path: str) -> Callable[[Figures], float | None]:
    """The figure under these names; None where a run has none."""

    def value(said: Figures) -> float | None:
        found: Any = said
        for name in path:
            found = None if found is None else found.get(name)
        return None if found is None else float(found)

    return value


def _count(value: float) -> str:
    return str(int(value))


def _share(value: float) -> str:
    return f"{value:.1%}"


CLOSED = ("concurrency", "think_s", "think")
"""Keys of a scenario that decide when requests come that wait for answers."""


def load_of(said: Figures) -> str | None:
    """What a run was offered of its trace, in words: a rate, or what its scenario says of seats; None: not known.

    Measured captures do not say it: the same trace may have been sent at any speed, or by any number of seats.
    """
    if (offered := figure_at("requests_offered_per_s")(said)) is not None:
        return f"{offered:.6g} requests/s"
    scenario = said.get("scenario")
    return None if not scenario else ", ".join(f"{key} {scenario.get(key)}" for key in CLOSED)


def drains(said: Figures) -> bool:
    """Whether what a run served per second may be what it was offered, but for the drain at its end.

    That is where requests came at times of their own (an offered rate is known), all finished, and the run is not known
    to have fallen behind up to the last arrival (`arrival_figures`).
    """
    offered, steady = figure_at("requests_offered_per_s")(said), figure_at("in_system", "is_steady")(said)
    return offered is not None and steady != 0 and said["n_finished"] == said["n_requests"]


def _rates_unlike(figures: Sequence[Figures]) -> list[bool]:
    """Of each run, whether by their served rates neither it nor the first is better.

    So it is unless both are known to be offered the same, and where both may differ by their drains alone.
    """
    load, may_drain = load_of(figures[0]), drains(figures[0])
    return [load is None or load_of(said) != load or (may_drain and drains(said)) for said in figures]


def served_rows(figures: Sequence[Figures], *, alike: bool) -> list[Row]:
    """How many requests ended how, what was offered and served, and whether a queue grew.

    No rate is better where it is not known that both were offered the same, nor where none is known to have fallen
    behind: those `drains` may be all that differs. One that fell behind has a worse rate, and is told so.

    Args:
        figures: of the runs.
        alike: whether all served the same requests; what is served follows what is asked for.
    """
    more: Better | None = "more" if alike else None
    unlike = _rates_unlike(figures)
    others = [each.value for each in Status if each is not Status.FINISHED]
    ended = [_row(f"requests {name}", figures, figure_at("requests", name), _count, "less") for name in others]
    return [
        _row("requests", figures, figure_at("n_requests"), _count),
        _row("requests finished", figures, figure_at("n_finished"), _count),
        *(row for row in ended if any(row.values)),
        _row("requests/s offered", figures, figure_at("requests_offered_per_s")),
        _row("requests/s served", figures, figure_at("metrics", "requests_per_s"), better=more, unlike=unlike),
        _row("output tokens/s", figures, figure_at("metrics", "output_tokens_per_s"), better=more, unlike=unlike),
        _row("in the system halfway", figures, figure_at("in_system", "halfway"), _count),
        _row("in the system at the last arrival", figures, figure_at("in_system", "at_last_arrival"), _count),
    ]


def counts_rows(figures: Sequence[Figures]) -> list[Row]:
    """What nobody decides by, and many ask for next."""
    return [
        _row("devices", figures, figure_at("n_devices"), _count),
        _row("duration", figures, figure_at("metrics", "duration_s"), seconds),
        _row("prompt tokens", figures, figure_at("prompt_tokens"), _count),
        _row("output tokens", figures, figure_at("output_tokens"), _count),
        _row("prefix hit rate", figures, figure_at("prefix_hit_rate"), _share, is_share=True),
        _row("preemptions", figures, figure_at("num_preemptions"), _count),
        _row("steps", figures, figure_at("steps"), _count),
        _row("acceptance length", figures, figure_at("speculation", "mean_acceptance_length")),
    ]


def _same_limits(figures: Sequence[Figures]) -> dict[str, float | None] | None:
    """The objective of all runs that have one; None: they have several, or none."""
    limits: list[dict[str, float | None]] = [said["slo"]["limits"] for said in figures if said.get("slo")]
    return limits[0] if limits and all(one == limits[0] for one in limits) else None


def slo_rows(figures: Sequence[Figures]) -> list[Row]:
    """Better and worse only against the same limits; by goodput only where `served_rows` says it of rates."""
    limits = _same_limits(figures)
    better: Better | None = "more" if limits else None
    known = {name: most for name, most in (limits or {}).items() if most is not None}
    unlike = _rates_unlike(figures)
    within = ", ".join(f"{LABELS[name]} within {seconds(most)}" for name, most in known.items())

    def share(said: Figures) -> float | None:
        met = figure_at("slo", "n_meeting")(said)
        return None if met is None or not said["n_requests"] else met / said["n_requests"]

    return [
        _row(f"met: {within or 'each its own limits'}", figures, share, _share, better, is_share=True),
        _row("goodput (requests/s)", figures, figure_at("slo", "goodput_per_s"), better=better, unlike=unlike),
    ]


def cost_rows(figures: Sequence[Figures]) -> list[Row]:
    """Better and worse only in the same money."""
    currencies = {said["cost"]["currency"] for said in figures if said.get("cost")}
    money = currencies.pop() if len(currencies) == 1 else None
    per = {
        "per million output tokens": "per_million_output_tokens",
        "per million tokens": "per_million_tokens",
        "per request": "per_request",
    }
    better: Better | None = "less" if money else None
    within: Better | None = better if _same_limits(figures) else None
    unit = f" ({money or 'each in its own currency'})"
    carbon = "carbon (kg CO2)"
    return [
        *(_row(f"cost {what}{unit}", figures, figure_at("cost", name), better=better) for what, name in per.items()),
        _row(f"cost per request within the SLO{unit}", figures, figure_at("cost", "per_slo_request"), better=within),
        _row(f"cost{unit}", figures, figure_at("cost", "total")),
        _row("device hours", figures, figure_at("cost", "device_hours")),
        _row(f"{carbon} per million tokens", figures, figure_at("cost", "carbon_kg_per_million_tokens"), better="less"),
        _row(carbon, figures, figure_at("cost", "carbon_kg")),
    ]


def energy_rows(figures: Sequence[Figures]) -> list[Row]:
    """Per what was served, then in all, and by what drew it."""
    parts = dict.fromkeys(
        name for said in figures if said.get("energy") for name in (said["energy"]["components"] or {})
    )
    per = {"J per output token": "j_per_output_token", "J per token": "j_per_token", "J per request": "j_per_request"}
    return [
        *(_row(what, figures, figure_at("energy", name), better="less") for what, name in per.items()),
        _row("energy (J)", figures, figure_at("energy", "total_j")),
        *(_row(f"of it {part} (J)", figures, figure_at("energy", "components", part, "total_j")) for part in parts),
        _row("mean power (W)", figures, figure_at("energy", "mean_w")),
    ]


def latency_rows(figures: Sequence[Figures], statistic: str) -> list[Row]:
    """Each latency and stage, by one statistic."""
    return [
        _row(LABELS[name], figures, figure_at("metrics", name, statistic), seconds, "less")
        for name in (*LATENCIES, *STAGES)
    ]
