"""Records power into a journal at a fixed rate, one thread for each sensor, so that a slow one holds up no other.

The schedule is the monotonic clock's, from one beginning for all sensors: a sample that is late shifts no other, and
the turns that a slow reading misses are not made up for. `collectors.power.power_file` reads the journal back.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from collectors.journal import Journal, say
from collectors.power import rapl
from collectors.power.power_file import PowerRecording, read_power
from collectors.power.reading import Component, Measured, Sensor
from collectors.power.records import SCHEMA, Sample, SensorFacts
from collectors.power.sensors import close_all, open_sensors
from collectors.power.session import alone, boot_id, check_goes_on
from traces.errors import CollectorError, InputError

RATE_HZ = 10.0
"""Ten in each second, the window that captures' series are compared over (traces.windows.grid_over)."""

MAX_RATE_HZ = 1000.0
"""No sensor here is renewed more often: RAPL's counters are, about once a millisecond."""


@dataclass(slots=True)
class Progress:
    """How far one sensor is; written by its thread alone.

    Attributes:
        n_readings: tries so far.
        n_failed: how many of them brought nothing of some component.
        watts: of the gauges at the latest, all components together; None: none has one, or it failed.
    """

    n_readings: int = 0
    n_failed: int = 0
    watts: float | None = None


def record_power(
    out: Path,
    sensors: Sequence[str] = ("auto",),
    *,
    rate_hz: float = RATE_HZ,
    for_s: float | None = None,
    stop: threading.Event | None = None,
    report: Callable[[str], None] = say,
    rapl_root: Path = rapl.ROOT,
    nvml: Any = None,
) -> PowerRecording:
    """Record power into `out` until `for_s` seconds are over or `stop` is set, and read back what the file holds.

    Args:
        out: a new file, or a recording of this host to go on with.
        sensors: as `--sensor` takes them, see `collectors.power.sensors`.
        rate_hz: samples per second of each sensor; one that is slower is read as often as it answers.
        for_s: seconds to record; None: until `stop`.
        stop: set it to end the recording.
        report: takes a line for a person.
        rapl_root: where the kernel's powercap tree is.
        nvml: in place of the module `pynvml`.

    Raises:
        InputError: an option is wrong, or the file holds something else.
        CollectorError: a sensor is not there, or the file cannot be written.
    """
    if not 0 < rate_hz <= MAX_RATE_HZ:
        raise InputError(field="--rate-hz", found=rate_hz, accepted=f"above 0, at most {MAX_RATE_HZ:g}")
    opened = open_sensors(sensors, report, rapl_root=rapl_root, nvml=nvml)
    try:
        facts = [SensorFacts(name=one.name, components=one.components) for one in opened]
        with alone(out):
            if check_goes_on(out, rate_hz, facts):
                report(f"{out}: goes on behind what is there")
            with Journal(out, SCHEMA, report, rate_hz=rate_hz, boot_id=boot_id(), sensors=facts) as journal:
                for one in facts:
                    report(f"recording {one.name}: {', '.join(_called(component) for component in one.components)}")
                Recorder(opened, journal, rate_hz, report).run(for_s, threading.Event() if stop is None else stop)
    finally:
        close_all(opened)
    return read_power(out)


class Recorder:
    """Samples sensors into a journal.

    Attributes:
        progress: by name of the sensor.
    """

    def __init__(
        self, sensors: Sequence[Sensor], journal: Journal, rate_hz: float, report: Callable[[str], None] = say
    ) -> None:
        self.progress = {sensor.name: Progress() for sensor in sensors}
        self._sensors = sensors
        self._journal = journal
        self._rate_hz = rate_hz
        self._report = report
        self._over = threading.Event()
        self._broken: list[BaseException] = []

    def run(self, for_s: float | None, stop: threading.Event) -> None:
        """Sample until `for_s` seconds are over or `stop` is set. Closes the sensors. Raises what a thread raised."""
        begin_s = time.monotonic()
        threads = [
            threading.Thread(target=self._guarded, args=(sensor, begin_s, stop), name=f"power {sensor.name}")
            for sensor in self._sensors
        ]
        for thread in threads:
            thread.start()
        try:
            self._wait(begin_s, for_s, stop)
        finally:
            self._over.set()
            close_all(self._sensors)
            for thread in threads:
                thread.join()
        if self._broken:
            raise self._broken[0]

    def _wait(self, begin_s: float, for_s: float | None, stop: threading.Event) -> None:
        """Wait for the end; on a terminal, with a line of progress."""
        shown = sys.stderr.isatty()
        while not stop.is_set():
            elapsed_s = time.monotonic() - begin_s
            left_s = math.inf if for_s is None else for_s - elapsed_s
            if left_s <= 0:
                break
            if shown:
                print(f"\r\033[K{self._line(elapsed_s, for_s)}", end="", file=sys.stderr, flush=True)
            stop.wait(min(1.0, left_s))
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _line(self, elapsed_s: float, for_s: float | None) -> str:
        found = [f"{elapsed_s:.0f} s" if for_s is None else f"{elapsed_s:.0f} of {for_s:.0f} s"]
        for name, progress in self.progress.items():
            watts = "" if progress.watts is None else f" {progress.watts:.1f} W"
            failed = f" ({progress.n_failed} failed)" if progress.n_failed else ""
            found.append(f"{name}{watts}, {progress.n_readings} readings{failed}")
        return ", ".join(found)

    def _guarded(self, sensor: Sensor, begin_s: float, stop: threading.Event) -> None:
        """Sample one sensor; an error that no sensor should raise ends the recording and is raised there."""
        try:
            self._sample(sensor, begin_s)
        except BaseException as error:
            self._broken.append(error)
            stop.set()

    def _sample(self, sensor: Sensor, begin_s: float) -> None:
        turn, failing = 0, False
        while not self._over.wait(max(0.0, begin_s + turn / self._rate_hz - time.monotonic())):
            error = self._read(sensor)
            if (error is not None) != failing:
                failing = error is not None
                self._report(f"{sensor.name}: {f'no reading ({error}); trying on' if failing else 'reads again'}")
            turn = next_turn(turn, time.monotonic() - begin_s, self._rate_hz)

    def _read(self, sensor: Sensor) -> str | None:
        """Read once, append what came, and return what was wrong with it."""
        begin_ns = time.monotonic_ns()
        try:
            reading = sensor.read()
        except CollectorError as trouble:
            if self._over.is_set():  # cut off by the end: no failure of the sensor
                return None
            reading = {component.name: Measured(error=str(trouble)) for component in sensor.components}
        time_ns = (begin_ns + time.monotonic_ns()) // 2
        for name, one in reading.items():
            self._journal.append(
                Sample(
                    time_ns=time_ns,
                    sensor=sensor.name,
                    component=name,
                    watts=one.watts,
                    joules=one.joules,
                    error=one.error,
                )
            )
        error = next((one.error for one in reading.values() if one.error is not None), None)
        watts = [one.watts for one in reading.values() if one.watts is not None]
        progress = self.progress[sensor.name]
        progress.n_readings += 1
        progress.n_failed += error is not None
        progress.watts = sum(watts) if watts else None
        return error


def next_turn(turn: int, elapsed_s: float, rate_hz: float) -> int:
    """Number of the turn after this one that is still to come; those that passed meanwhile are left out."""
    return max(turn + 1, math.floor(elapsed_s * rate_hz) + 1)


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the second of them acts as it would without this. Main thread only."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def interrupted(number: int, frame: FrameType | None) -> None:
        restore()
        stop.set()

    for number in before:
        signal.signal(number, interrupted)
    try:
        yield stop
    finally:
        restore()


def _called(component: Component) -> str:
    return component.name if component.device is None else f"{component.name} ({component.device})"
