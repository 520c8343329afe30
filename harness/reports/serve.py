"""A capture as vLLM's Prometheus metrics: served as if it were running now, or as one file with times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from harness.files import new_file
from harness.reports.vllm_metrics import VllmMetrics
from traces.capture import Capture
from traces.errors import CollectorError, InputError


class Replayed(Collector):
    """A run's metrics as they stand at the run's own time, which follows a clock."""

    def __init__(self, metrics: VllmMetrics, clock_s: Callable[[], float], speed: float) -> None:
        """Begin second 0 now."""
        self._metrics = metrics
        self._clock_s = clock_s
        self._speed = speed
        self._begun_s = clock_s()

    @property
    def end_s(self) -> float:
        """When the run is over."""
        return self._metrics.end_s

    @property
    def time_s(self) -> float:
        """Seconds of the run that are over."""
        return (self._clock_s() - self._begun_s) * self._speed

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is depends on the capture."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Every metric as it stands now."""
        return self._metrics.at(self.time_s)


@dataclass(frozen=True, slots=True)
class Serving:
    """A run that is being served.

    Attributes:
        url: where its metrics are.
        replayed: how far it is.
    """

    url: str
    replayed: Replayed


@contextmanager
def serve(capture: Capture, *, port: int, host: str = "127.0.0.1", speed: float = 1.0) -> Iterator[Serving]:
    """Serve the capture's metrics for as long as the block runs; after the run's end they stay as they then are.

    Args:
        capture: the run, whose second 0 is now.
        port: 0 takes a free one.
        host: the address to listen at.
        speed: seconds of the run per second.

    Raises:
        InputError: the speed is not above 0.
        CollectorError: nothing can listen there.
    """
    if not 0 < speed < np.inf:
        raise InputError(field="--speed", found=speed, accepted="a number above 0")
    replayed = Replayed(VllmMetrics(capture), time.monotonic, speed)
    registry = CollectorRegistry()
    registry.register(replayed)
    try:
        server = ThreadingHTTPServer((host, port), partial(_Answer, registry))
    except OSError as error:
        raise CollectorError(f"cannot listen at {host}:{port} ({error.strerror or error})") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Serving(f"http://{host}:{server.server_port}/metrics", replayed)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    """Answers every scraper in Prometheus' text format.

    prometheus-client's own server answers a scraper that prefers OpenMetrics in that, with `_` for the colon of vLLM's
    names, which no dashboard knows.
    """

    def __init__(self, registry: CollectorRegistry, *args: Any) -> None:
        self._registry = registry
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer /metrics, and 404 to all else."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        text = generate_latest(self._registry)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def write_openmetrics(capture: Capture, out: Path, *, at: str, every_s: float = 15.0) -> int:
    """Write the whole run as a new file of OpenMetrics, which `promtool tsdb create-blocks-from openmetrics` reads.

    Args:
        capture: the run.
        out: the file; the same capture and time give the same bytes.
        at: when second 0 is, in ISO 8601; UTC where it says no zone.
        every_s: from one reading to the next.

    Returns how many readings it holds. Raises InputError when `at` is no time or `out` exists.
    """
    begin_s = _unix_s(at)
    metrics = VllmMetrics(capture)
    times_s = np.arange(int(np.ceil(metrics.end_s / every_s)) + 1) * every_s
    families: dict[str, Metric] = {}
    for time_s in times_s.tolist():
        for metric in metrics.at(time_s):
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples += [sample._replace(timestamp=begin_s + time_s) for sample in metric.samples]
    with new_file(out) as file:
        file.write_text("".join(map(_family_text, families.values())) + "# EOF\n", encoding="utf-8")
    return len(times_s)


def _family_text(family: Metric) -> str:
    """A family in OpenMetrics' text format, which wants the points of a metric together and in order of time.

    By hand: prometheus-client writes `_` for the colon of vLLM's names.
    """
    lines = [f"# HELP {family.name} {family.documentation}", f"# TYPE {family.name} {family.type}"]
    for sample in sorted(family.samples, key=_of_one_metric):
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(sample.labels.items()))
        lines.append(f"{sample.name}{{{labels}}} {sample.value!r} {sample.timestamp!r}")
    return "\n".join(lines) + "\n"


def _of_one_metric(sample: Sample) -> tuple[list[tuple[str, str]], float]:
    labels = sorted((name, value) for name, value in sample.labels.items() if name != "le")
    return labels, float(sample.timestamp or 0.0)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unix_s(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(field="--at", found=text, accepted="a time as 2026-01-31T12:00:00Z") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
