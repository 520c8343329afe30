"""Reads a journal of scrapes: what was counted between the first and the last, and the values over time.

A counter that fell, or a process that started later than the one before, is a restart: the server counts from 0 again,
and what it counts is added to what it had counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from collectors.journal import read_journal
from collectors.server.engine_info import EngineInfo
from collectors.server.metric_names import BY_NAME, WHOLE_SERVER
from collectors.server.scrape import Described, MetricsHeader, Scrape, Told
from traces.capture import Series
from traces.decoding import decode_json
from traces.errors import CollectorError, nearest
from traces.steps import Floats, Ints

STATES = {"n_running": "num_requests_running", "n_waiting": "num_requests_waiting", "kv_usage": "kv_cache_usage_perc"}
RATES = {"output_tokens_per_s": "generation_tokens", "prompt_tokens_per_s": "prompt_tokens"}


@dataclass(frozen=True, slots=True)
class Scrapes:
    """What the scrapes of one recording brought.

    Attributes:
        every_s: the period they were to have; 0: one before a run and one after it.
        wall_minus_monotonic_s: between the host's two clocks.
        server: vllm, sglang or tgi; None when no scrape succeeded.
        model: as the server names it.
        engines: labels of its engines, ascending; a server that labels none has the one engine "0".
        info: by engine, what the metrics say of its KV cache (block_size, num_gpu_blocks ...).
        told: what the server told of itself last; None when it was not asked.
        time_s: [n] when scrapes succeeded, on the monotonic clock.
        notes: what failed, was skipped, was added across restarts, or has no name of ours.
    """

    every_s: float
    wall_minus_monotonic_s: float
    server: str | None
    model: str | None
    engines: tuple[str, ...]
    info: dict[str, dict[str, str]]
    told: EngineInfo | None
    time_s: Floats
    notes: tuple[str, ...]
    _values: dict[str, dict[str, Floats]]

    def delta(self, name: str, engine: str | None = None) -> float | None:
        """What a counter counted from the first scrape to the last, added up across restarts of the server.

        None when the server does not count it, or fewer than two scrapes succeeded. `request_success.length` is the
        part of `request_success` that ended so.

        Args:
            name: of the counter.
            engine: label of one engine; None: all of them.
        """
        if _metric_kind(name) != "counter":
            raise ValueError(f"{name} is not a counter")
        _, values = self.series(name, engine)
        return float(values[-1] - values[0]) if len(values) > 1 else None

    def series(self, name: str, engine: str | None = None) -> tuple[Floats, Floats]:
        """A value at each scrape that brought it: ([n] seconds of the monotonic clock, [n] values).

        A counter's values start from 0 and go on across restarts. Amounts of several engines add up; of ratios it is
        the mean.
        """
        kind = _metric_kind(name)
        by_engine = self._values.get(name, {})
        parts = list(by_engine.values()) if engine is None else [by_engine[engine]] if engine in by_engine else []
        if not parts:
            return np.empty(0), np.empty(0)
        together = np.sum(parts, axis=0) / (len(parts) if kind == "ratio" else 1)
        brought = ~np.isnan(together)
        return self.time_s[brought], together[brought]

    def engine_options(self) -> dict[str, Any]:
        """Options of the engine by vLLM's names: as the server told them, else what its metrics say of the KV cache."""
        if self.told is not None and self.told.options:
            return dict(self.told.options)
        info = self.info.get(self.engines[0], {}) if self.engines else {}
        read: dict[str, Callable[[str], Any]] = {
            "block_size": int,
            "gpu_memory_utilization": float,
            "enable_prefix_caching": lambda text: text == "True",
        }
        options = {name: as_type(info[name]) for name, as_type in read.items() if info.get(name, "None") != "None"}
        return {**options, "kv_cache_dtype": info["cache_dtype"]} if "cache_dtype" in info else options

    def num_gpu_blocks(self) -> int | None:
        """KV blocks of each engine, the null block included; None when not told, or not the same for all."""
        counts = {info["num_gpu_blocks"] for info in self.info.values() if "num_gpu_blocks" in info} - {"None"}
        if not counts:
            return None if self.told is None else self.told.num_gpu_blocks
        return int(counts.pop()) if len(counts) == 1 else None


def read_scrapes(path: Path) -> Scrapes:
    """Read a journal of scrapes, whole or cut off. Raises InputError, or CollectorError when it has no header."""
    header: MetricsHeader | None = None
    tries: list[Scrape] = []
    described: list[Described] = []
    told: list[EngineInfo] = []
    for number, line in read_journal(path):
        match decode_json(line, MetricsHeader | Scrape | Described | Told, file=path, line=number):  # type: ignore[arg-type]
            case MetricsHeader() as record:
                header = header or record
            case Scrape() as record:
                tries.append(record)
            case Described() as record:
                described.append(record)
            case Told() as record:
                told.append(record.told)
    if header is None:
        raise CollectorError(f"{path}: holds no header")
    done = [scrape for scrape in tries if scrape.error is None]
    restarts = _restarts(done)
    values, engines = _arrays(done, restarts)
    last = described[-1] if described else None
    info = {} if last is None else _by_engine(last.info, engines)
    return Scrapes(
        every_s=header.every_s,
        wall_minus_monotonic_s=(header.wall_ns - header.monotonic_ns) / 1e9,
        server=None if last is None else last.server,
        model=None if last is None else last.model,
        engines=engines,
        info=info,
        told=told[-1] if told else None,
        time_s=np.array([scrape.time_s for scrape in done]),
        notes=(*_notes_on_scrapes(tries), *_notes_on_restarts(done, restarts), *_notes_on_server(described, told)),
        _values=values,
    )


def series_of(scrapes: Scrapes, origin_s: float) -> dict[str, Series]:
    """The scrapes as series of a capture, named as `traces.series` names its own.

    They stand at the ends of windows of the scrapes' period, the first of which begins with the first scrape. A rate is
    counted from one end to the next, between scrapes in proportion; a state is that of the scrape at the window's end.
    A window is left out where no scrape is within half a period of its ends, or, for the hit rate, where no prompt was
    looked up.

    SGLang and TGI count tokens when a request is over, from which no rate over a second can be told.

    Args:
        scrapes: of one recording.
        origin_s: second 0 of the capture on the monotonic clock.
    """
    every_s = scrapes.every_s
    if len(scrapes.time_s) < 2 or not every_s:
        return {}
    n = math.floor((scrapes.time_s[-1] - scrapes.time_s[0]) / every_s + 0.1)
    ends_s = scrapes.time_s[0] + every_s * np.arange(n + 1)
    there = _nearest(scrapes.time_s, ends_s, every_s / 2) >= 0
    windows = there[1:] & there[:-1]
    time_s = (ends_s[1:] - origin_s)[windows]

    def counted(name: str) -> Floats | None:
        at_s, values = scrapes.series(name)
        return np.diff(np.interp(ends_s, at_s, values))[windows] if len(values) else None

    found: dict[str, Series] = {}
    for ours, name in STATES.items():
        at_s, values = scrapes.series(name)
        index = _nearest(at_s, ends_s[1:], every_s / 2)
        found[ours] = Series((ends_s[1:] - origin_s)[index >= 0], values[index[index >= 0]])
    if scrapes.server == "vllm":
        for ours, name in RATES.items():
            if (tokens := counted(name)) is not None:
                found[ours] = Series(time_s, tokens / every_s)
        queries, hits = counted("prefix_cache_queries"), counted("prefix_cache_hits")
        if queries is not None and hits is not None:
            found["prefix_hit_rate"] = Series(time_s[queries > 0], hits[queries > 0] / queries[queries > 0])
    return {name: series for name, series in found.items() if len(series.time_s)}


def _nearest(time_s: Floats, at_s: Floats, within_s: float) -> Ints:
    """Index of the nearest of `time_s` [n], ascending, to each of `at_s` [m]; -1 where none is near enough."""
    if not len(time_s):
        return np.full(len(at_s), -1)
    after = np.searchsorted(time_s, at_s).clip(max=len(time_s) - 1)
    before = (after - 1).clip(min=0)
    index = np.where(at_s - time_s[before] < time_s[after] - at_s, before, after)
    return np.where(np.abs(time_s[index] - at_s) <= within_s, index, -1)


def _metric_kind(name: str) -> str:
    metric = BY_NAME.get(name.split(".")[0])
    if metric is None:
        raise ValueError(f"{name} is not scraped; {nearest(name, BY_NAME)}")
    return metric.kind


def _restarts(done: Sequence[Scrape]) -> list[int]:
    """Indices of the scrapes before which the server had restarted: its process is another, or a counter fell."""
    restarts = []
    for i, (before, after) in enumerate(itertools.pairwise(done), start=1):
        fell = any(
            value < before.values.get(engine, {}).get(name, value) * (1 - 1e-9)  # sums may be rounded differently
            for engine, named in after.values.items()
            for name, value in named.items()
            if _metric_kind(name) == "counter"
        )
        if fell or before.process_start_s != after.process_start_s:
            restarts.append(i)
    return restarts


def _arrays(done: Sequence[Scrape], restarts: Sequence[int]) -> tuple[dict[str, dict[str, Floats]], tuple[str, ...]]:
    """Values by name and engine, [n] each, NaN where a scrape did not bring them; and the engines.

    A counter that a scrape does not bring stands at 0: servers show some only once they have counted something.
    """
    keys = {(name, engine) for scrape in done for engine, named in scrape.values.items() for name in named}
    labels = sorted({engine for _, engine in keys} - {WHOLE_SERVER}, key=lambda label: (len(label), label))
    alone = {} if labels else {WHOLE_SERVER: "0"}
    values: dict[str, dict[str, Floats]] = {}
    for name, engine in sorted(keys):
        raw = np.array([scrape.values.get(engine, {}).get(name, np.nan) for scrape in done])
        if _metric_kind(name) == "counter":
            raw = _counted(raw, restarts)
        values.setdefault(name, {})[alone.get(engine, engine)] = raw
    return values, tuple(labels or alone.values()) if done else ()


def _counted(raw: Floats, restarts: Sequence[int]) -> Floats:
    """What a counter has counted since its first value, [n]; after a restart it counts on from where it was."""
    total, before = 0.0, float(np.nan_to_num(raw[0]))
    counted = np.zeros(len(raw))
    for i in range(1, len(raw)):
        if i in restarts:
            before = 0.0
        if not np.isnan(raw[i]):
            total += raw[i] - before
            before = float(raw[i])
        counted[i] = total
    return counted


def _by_engine(info: Mapping[str, Mapping[str, str]], engines: Sequence[str]) -> dict[str, dict[str, str]]:
    """What is said of the whole server holds for each of its engines."""
    return {engine: {**info.get(WHOLE_SERVER, {}), **info.get(engine, {})} for engine in engines}


def _notes_on_scrapes(tries: Sequence[Scrape]) -> list[str]:
    failed = [scrape for scrape in tries if scrape.error is not None]
    skipped = sum(scrape.skipped for scrape in tries)
    notes = []
    if failed:
        notes.append(f"{len(failed)} of {len(tries)} scrapes of /metrics failed, the first with: {failed[0].error}")
    if skipped:
        slowest_s = max(scrape.end_ns - scrape.begin_ns for scrape in tries) / 1e9
        notes.append(f"{skipped} scrapes of /metrics were skipped, as others took up to {slowest_s:.1f} s")
    return notes


def _notes_on_restarts(done: Sequence[Scrape], restarts: Sequence[int]) -> list[str]:
    if not restarts:
        return []
    starts = [scrape.process_start_s for scrape in done if scrape.process_start_s is not None]
    if starts != sorted(starts):
        return [
            "the answers of /metrics came from several servers in turn, as behind a load balancer; what was counted "
            "between them means nothing"
        ]
    return [f"the server restarted {len(restarts)} times; what it counted after the last scrape before is lost"]


def _notes_on_server(described: Sequence[Described], told: Sequence[EngineInfo]) -> list[str]:
    notes = []
    unknown = sorted({name for record in described for name in record.unknown})
    if unknown:
        notes.append(f"not recorded of /metrics, as they have no name here: {', '.join(unknown)}")
    if len({msgspec.json.encode(record.info) for record in described if record.info}) > 1:
        notes.append(
            "the engines' KV caches were described differently in the course of the recording; the last counts"
        )
    known = [info for info in told if info.options]
    if any(info.options != known[-1].options for info in known):
        notes.append("the server came back with other options; the last ones count")
    if described and described[-1].server != "vllm":
        notes.append(
            f"{described[-1].server} counts tokens when a request is over: no series of tokens per second is kept"
        )
    return notes
