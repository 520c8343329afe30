"""A scenario of any length to a simulated capture: read, served and written piece by piece.

The capture has no steps, and so no series of the engines' state; everything else is what `simulate.py` writes.
Memory holds the requests in flight, of each finished one the six numbers that its percentiles take, and the arrival and
the end of each.
"""

from __future__ import annotations

import gzip
import shutil
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.deploy.asked import located
from harness.deploy.deployment import Deployment, with_run_notes
from harness.deploy.power import device_figures
from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import Scenario, load_key, read_scenario
from harness.descriptions.written import written
from harness.running.arrivals import arrival_figures
from harness.terminal.progress import StreamWatch
from simulator.front_end import DIRECT
from simulator.stream import Stream
from traces.capture import OutcomeWriter, new_folder
from traces.errors import InputError
from traces.formats import TraceStream
from traces.load import Load, LoadStream
from traces.metrics import LATENCIES, STAGES, samples
from traces.outcome import Outcome, Status
from traces.statistics import QUANTILES, STATISTICS, enough, statistic
from traces.steps import Floats, Ints
from traces.trace import TraceRow, header_bytes, row_bytes

EXACT_GAPS = 1 << 24
"""Gaps between tokens that are kept for exact percentiles; of more, there are counts by length."""

_SHORTEST_S, _STEP, _N_BINS = 1e-7, 1e-3, 24_000
"""Bins of gaps: from 0.1 microseconds to 45 minutes, each 0.1 % longer than the one before."""


def stream_scenario(
    scenario_path: Path, out: Path, overrides: Sequence[str] = (), watch: StreamWatch | None = None
) -> dict[str, Any]:
    """Simulate a scenario into the folder `out`, all of it or nothing. Returns the content of its summary.json.

    `watch` is told how far it is, after each piece. Raises InputError, also for what needs the whole trace or steps.
    """
    started = time.perf_counter()
    scenario = read_scenario(scenario_path, overrides)
    deployment = deploy_calibrated(scenario, None, scenario.calibration_path)
    _check(scenario, deployment)
    load = scenario.file.load or Load()
    loaded = time.perf_counter()
    read = TraceStream(scenario.trace_path)
    figures = Figures()
    with closing(iter(read)) as rows, new_folder(out) as folder, located(scenario):
        if (first := next(rows, None)) is None:
            raise InputError("holds no requests", file=scenario.trace_path, accepted="at least one request")
        stream = Stream(read.trace(), deployment.cluster)
        under = LoadStream(load, read.trace().hash_block_size, load_key)
        rows_file = folder / "rows.gz"
        kept = _kept(under.rows(chain([first], rows)), rows_file)
        with closing(kept), OutcomeWriter(folder / "outcomes.parquet") as outcomes:
            for piece in stream.serve(kept):
                outcomes.add(piece)
                figures.add(piece)
                if watch is not None:
                    watch(stream.n_served, stream.n_in_flight, stream.now_s, read.share_read)
        trace = under.trace(read.trace())
        with gzip.GzipFile(folder / "trace.jsonl.gz", "wb", mtime=0) as file:
            file.write(header_bytes(trace))
        with (folder / "trace.jsonl.gz").open("ab") as whole, rows_file.open("rb") as part:
            shutil.copyfileobj(part, whole)  # gzip files one behind another are one
        rows_file.unlink()
        meta = with_run_notes(stream.meta(trace), deployment)
        meta = msgspec.structs.replace(meta, notes=(*meta.notes, *figures.notes(), STREAMED))
        (folder / "meta.json").write_bytes(msgspec.json.format(msgspec.json.encode(meta), indent=1) + b"\n")
        summary = figures.summary() | device_figures(deployment.cluster.engines)
        summary |= {"energy": None, "slo": None, "cost": None}
        summary["speculation"] = None if stream.speculation is None else stream.speculation.figures()
        summary |= {"steps": stream.n_steps, "events": stream.n_sweeps, "most_in_flight": stream.most_in_flight}
        summary["scenario"] = written(scenario)
        ended = time.perf_counter()
        summary["wall_s"] = {"load": loaded - started, "simulate": ended - loaded, "total": ended - started}
        (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
    return summary


STREAMED = "streamed: steps, series and intervals were not kept"


def _check(scenario: Scenario, deployment: Deployment) -> None:
    """Raise InputError for what streaming cannot tell."""
    refused = {
        "slo": scenario.file.slo is not None,
        "cost": scenario.file.cost is not None,
        "power": deployment.power is not None,
        "calibration.front_end": deployment.front_end != DIRECT,
    }
    for field, is_there in refused.items():
        if is_there:
            accepted = "a simulation without --stream"
            raise InputError("is not told while streaming", file=scenario.path, field=field, accepted=accepted)
    for name in ("share", "request_rate"):
        if scenario.file.load is not None and getattr(scenario.file.load, name) is not None:
            message = "takes all requests at once, which cannot be streamed"
            raise scenario.document.error(["load", name], message, accepted="a simulation without --stream")


def _kept(rows: Iterable[TraceRow], file: Path) -> Generator[TraceRow]:
    """The rows, each written to a packed file as it passes."""
    with gzip.GzipFile(file, "wb", compresslevel=6, mtime=0) as packed:
        for row in rows:
            packed.write(row_bytes(row))
            yield row


class Figures:
    """What summary.json says, of outcomes that come in pieces and are not kept."""

    def __init__(self) -> None:
        self._status: Counter[Status] = Counter()
        self._totals: Counter[str] = Counter()
        self._values: dict[str, list[Floats]] = {name: [] for name in (*LATENCIES, *STAGES) if name != "itl_s"}
        self._gaps = Gaps()
        self._first_arrival_s, self._last_finish_s = np.inf, -np.inf
        self._arrivals_s: list[Floats] = []
        self._ends_s: list[Floats] = []

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Take in a piece."""
        if not outcomes:
            return
        self._status.update(outcome.status for outcome in outcomes)
        finished = [outcome for outcome in outcomes if outcome.status is Status.FINISHED]
        for name in ("prompt_tokens", "output_tokens", "cached_tokens", "num_preemptions"):
            self._totals[name] += sum(getattr(outcome, name) for outcome in finished)
        self._first_arrival_s = min(self._first_arrival_s, min(outcome.arrival_s for outcome in outcomes))
        self._last_finish_s = max([self._last_finish_s, *(o.finish_s for o in finished if o.finish_s is not None)])
        self._arrivals_s.append(np.array([outcome.arrival_s for outcome in outcomes], dtype=np.float64))
        self._ends_s.append(np.array([outcome.finish_s for outcome in outcomes], dtype=np.float64))  # None becomes NaN
        found = samples(outcomes)
        self._gaps.add(found.pop("itl_s"))
        for name, values in found.items():
            self._values[name].append(values)

    def notes(self) -> list[str]:
        """How percentiles were taken, where they are not exact."""
        return [] if self._gaps.are_exact else ["percentiles of itl_s are right to 0.1 %"]

    def summary(self) -> dict[str, Any]:
        """As `traces.metrics.summary`, with `arrival_figures`."""
        arrivals_s, ends_s = (np.concatenate([np.zeros(0), *parts]) for parts in (self._arrivals_s, self._ends_s))
        n_requests, n_finished = sum(self._status.values()), self._status[Status.FINISHED]
        values = {name: np.concatenate([np.zeros(0), *parts]) for name, parts in self._values.items()}
        latencies = {
            name: self._gaps.statistics()
            if name == "itl_s"
            else {key: statistic(values[name], key) for key in STATISTICS}
            for name in (*LATENCIES, *STAGES)
        }
        totals = self._totals
        return {
            "n_requests": n_requests,
            "n_finished": n_finished,
            "n_left_out": n_requests - n_finished,
            "requests": {each.value: self._status[each] for each in Status},
            "metrics": latencies | self._rates(n_finished),
            "prompt_tokens": totals["prompt_tokens"],
            "output_tokens": totals["output_tokens"],
            "cached_tokens": totals["cached_tokens"] if n_finished else None,
            "prefix_hit_rate": totals["cached_tokens"] / totals["prompt_tokens"] if n_finished else None,
            "num_preemptions": totals["num_preemptions"] if n_finished else None,
        } | arrival_figures(arrivals_s, ends_s)

    def _rates(self, n_finished: int) -> dict[str, float | None]:
        """As `traces.metrics.throughput`."""
        duration_s = self._last_finish_s - self._first_arrival_s
        known = n_finished > 0 and duration_s > 0
        output = self._totals["output_tokens"]
        amounts = {
            "requests_per_s": n_finished,
            "output_tokens_per_s": output,
            "total_tokens_per_s": output + self._totals["prompt_tokens"],
        }
        rates = {name: amount / duration_s if known else None for name, amount in amounts.items()}
        return {"duration_s": duration_s if known else None, **rates}


class Gaps:
    """Gaps between tokens: kept as long as they are few, and then counted by length.

    Attributes:
        are_exact: whether all are kept.
    """

    def __init__(self, most: int = EXACT_GAPS) -> None:
        self.are_exact = True
        self._most = most
        self._kept: list[Floats] = []
        self._n, self._sum_s = 0, 0.0
        self._counts = np.zeros(_N_BINS, dtype=np.int64)

    def add(self, gaps_s: Floats) -> None:
        """Take in more, [n]."""
        self._n += len(gaps_s)
        self._sum_s += float(gaps_s.sum())
        self._kept.append(gaps_s)
        if self._n > self._most:
            self.are_exact = False
            for kept in self._kept:
                self._counts += np.bincount(_bins(kept), minlength=_N_BINS)
            self._kept.clear()

    def statistics(self) -> dict[str, float | None]:
        """Mean and percentiles by name; None from too few."""
        if self.are_exact:
            values = np.concatenate([np.zeros(0), *self._kept])
            return {name: statistic(values, name) for name in STATISTICS}
        found = {name: self._quantile(q) if enough(self._n, name) else None for name, q in QUANTILES.items()}
        return {"mean": self._sum_s / self._n, **found}

    def _quantile(self, q: float) -> float:
        """The middle of the bin in which the quantile lies."""
        at = int(np.searchsorted(np.cumsum(self._counts), q * (self._n - 1), side="right"))
        return float(_SHORTEST_S * (1 + _STEP) ** (at + 0.5))


def _bins(gaps_s: Floats) -> Ints:
    shortest = np.maximum(gaps_s, _SHORTEST_S)
    bins: Ints = np.minimum(np.log(shortest / _SHORTEST_S) / np.log1p(_STEP), _N_BINS - 1).astype(np.int64)
    return bins
