"""The figures that tolerances speak of, by name: `ttft.p99`, `e2el.mape`, `output_tokens_per_s`.

`mean` and percentiles compare distributions. `mape` is the mean |error|: by request where requests are paired, by
window where a series was measured. `output_tokens_per_s` and `duration` are one number for the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.scoring.compare import PAIRED, SERIES
from traces.errors import InputError, nearest
from traces.metrics import LATENCIES, STAGES
from traces.statistics import STATISTICS

WHOLE_RUN = {"output_tokens_per_s": "output_tokens_per_s", "duration": "duration_s"}
"""Figures that are one number for a run, and their names in validation.json."""

DISTRIBUTIONS = {name.removesuffix("_s"): name for name in (*LATENCIES, *STAGES)}
"""Metrics with a value per request (ITL: per token), and their names in validation.json."""

FIGURES = (
    *(f"{metric}.{statistic}" for metric in DISTRIBUTIONS for statistic in STATISTICS),
    *WHOLE_RUN,
    *(f"{name.removesuffix('_s')}.mape" for name in PAIRED),
    *(f"{name}.mape" for name in SERIES),
)
"""All that can be judged against a measured run."""

AT_ONCE = "at_once.duration"
"""Seconds that a scenario takes when all its requests are sent at once. No arrival falls between two steps then, so
that it moves as step times do: by 5 % where steps take 5 % longer."""

SIMULATED = (*(name for name in FIGURES if not name.endswith(".mape")), AT_ONCE)
"""All that can be compared with a baseline."""


CHANGING = tuple(name for name in SIMULATED if name != AT_ONCE)
"""All whose change can be judged against a measured change."""

OF_CHANGE = "change."
"""Before a figure: its change from another scenario, as in `--fail-on change.ttft.mean:10%`."""

SAID_OF_CHANGES = tuple(name for name in CHANGING if f"{name.partition('.')[0]}_s" not in STAGES)
"""Whose change is said though no tolerance names it. A stage must be named: it is often about 0 on one of the sides."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a validation.

    Attributes:
        measured: of the engine; None for a `mape`, which is an error by itself.
        simulated: of the twin; None likewise.
        error: (simulated - measured) / measured; None when the measured value is 0.
        ci95: 95 % interval of the error; None where there is none.
    """

    measured: float | None
    simulated: float | None
    error: float | None
    ci95: tuple[float, float] | None


def checked_figure(name: str, field: str) -> str:
    """The name as it is. Raises InputError for one that no figure has."""
    known = tuple(f"{OF_CHANGE}{one}" for one in CHANGING) if name.startswith(OF_CHANGE) else FIGURES
    if name not in known:
        raise InputError("is unknown", field=field, found=name, accepted=nearest(name, known))
    return name


def key_of(name: str) -> str:
    """A figure of `CHANGING` as `harness.scoring.change` calls it: `ttft_s.mean`, `duration_s`."""
    metric, _, statistic = name.partition(".")
    return f"{DISTRIBUTIONS[metric]}.{statistic}" if statistic else WHOLE_RUN[name]


def is_sampled(name: str) -> bool:
    """Whether the figure is drawn from requests, so that it has an interval once they are enough."""
    return name not in WHOLE_RUN and not name.endswith(".mape")


def is_time(name: str) -> bool:
    """Whether the figure is in seconds."""
    return is_sampled(name) or name in ("duration", AT_ONCE)


def more_is_better(name: str) -> bool:
    """Whether users want more of it; less of all others."""
    return name == "output_tokens_per_s"


def figure_of(result: dict[str, Any], name: str) -> Figure | None:
    """A figure of validation.json; None when it was not measured, or from too few samples."""
    metric, _, statistic = name.partition(".")
    if statistic == "mape":
        found = result["paired"].get(f"{metric}_s") or result["series"].get(metric)
        return None if found is None else Figure(None, None, found["mape"], None)
    if metric in WHOLE_RUN:
        found = result["metrics"][WHOLE_RUN[metric]]
    else:
        found = ({**result["metrics"], **result["stages"]}[DISTRIBUTIONS[metric]] or {}).get(statistic)
    if found is None:
        return None
    ci95 = found["ci95"]
    return Figure(found["measured"], found["simulated"], found["error"], None if ci95 is None else (ci95[0], ci95[1]))


def simulated_figures(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Every figure of one run, from a summary's metrics; None: too few samples."""
    figures = {
        f"{metric}.{statistic}": metrics[name][statistic]
        for metric, name in DISTRIBUTIONS.items()
        for statistic in STATISTICS
    }
    return figures | {name: metrics[key] for name, key in WHOLE_RUN.items()}
