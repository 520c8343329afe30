"""Recordings of power with known answers, and hosts with fake sensors."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collectors.power.power_file import PowerRecording, read_power

ORIGIN_S = 1000.0
"""Of the monotonic clock in every file made here; the wall clock is 500 s ahead."""


def header(*components: str, rate_hz: float = 10.0, at_s: float = 0.0, kind: str = "gpu", **more: Any) -> str:
    return json.dumps(
        {
            "kind": "header",
            "schema": "servetwin.power/1",
            "wall_ns": round((ORIGIN_S + 500 + at_s) * 1e9),
            "monotonic_ns": round((ORIGIN_S + at_s) * 1e9),
            "rate_hz": rate_hz,
            "boot_id": "a start",
            "sensors": [{"name": "fake", "components": [{"name": name, "kind": kind} for name in components]}],
            **more,
        }
    )


def sample(at_s: float, component: str = "gpu0", **values: Any) -> str:
    time_ns = round((ORIGIN_S + at_s) * 1e9)
    return json.dumps({"kind": "sample", "time_ns": time_ns, "sensor": "fake", "component": component, **values})


def times(begin_s: float, end_s: float, every_s: float = 0.1) -> list[float]:
    """From the begin to the end, both included."""
    return [begin_s + i * every_s for i in range(round((end_s - begin_s) / every_s) + 1)]


def recorded(path: Path, *lines: str) -> PowerRecording:
    path.write_text("".join(f"{line}\n" for line in lines))
    return read_power(path)


def gauge(path: Path, at_s: Sequence[float], watts: Callable[[float], float], **options: Any) -> PowerRecording:
    """A recording of gpu0's gauge."""
    return recorded(path, header("gpu0", **options), *(sample(t, watts=watts(t)) for t in at_s))


def counter(path: Path, at_s: Sequence[float], joules: Callable[[float], float], **options: Any) -> PowerRecording:
    """A recording of gpu0's energy counter."""
    return recorded(path, header("gpu0", **options), *(sample(t, joules=joules(t)) for t in at_s))


def rapl_tree(root: Path, zones: Mapping[str, tuple[str, int]], range_uj: int = 1_000_000) -> Path:
    """A powercap tree: name and microjoules by zone, as `intel-rapl:0`."""
    for zone, (name, energy_uj) in zones.items():
        (root / zone).mkdir(parents=True, exist_ok=True)
        (root / zone / "name").write_text(f"{name}\n")
        (root / zone / "energy_uj").write_text(f"{energy_uj}\n")
        (root / zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return root


@dataclass(slots=True)
class FakeGpu:
    """A GPU of `FakeNvml`; a quantity that is None is not supported."""

    milliwatts: int | None = 250_000
    millijoules: int | None = 1_000_000
    lost: bool = False


class NVMLError(Exception):
    """As pynvml's."""


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
    """As pynvml's."""


@dataclass(slots=True)
class FakeNvml:
    """What the sensor uses of the module pynvml."""

    gpus: list[FakeGpu]
    n_open: int = 0
    NVMLError: type[Exception] = NVMLError
    NVMLError_NotSupported: type[Exception] = NVMLError_NotSupported

    def nvmlInit(self) -> None:  # noqa: N802
        self.n_open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.n_open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:  # noqa: N802
        return "Fake GPU"

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:  # noqa: N802
        return self._told(gpu, gpu.milliwatts)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:  # noqa: N802
        return self._told(gpu, gpu.millijoules)

    def _told(self, gpu: FakeGpu, value: int | None) -> int:
        if gpu.lost:
            raise NVMLError("GPU is lost")
        if value is None:
            raise NVMLError_NotSupported("Not Supported")
        return value


@dataclass(slots=True)
class FakeExporter:
    """What it answers, and with which status."""

    url: str = ""
    text: str = ""
    status: int = 200
    asked: list[str] = field(default_factory=list)


@contextmanager
def fake_exporter(text: str) -> Iterator[FakeExporter]:
    exporter = FakeExporter(text=text)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            exporter.asked.append(self.path)
            body = exporter.text.encode()
            self.send_response(exporter.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        exporter.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield exporter
        finally:
            server.shutdown()
            thread.join()
