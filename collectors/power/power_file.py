"""Reads a recording of power: each component's power over time, on the host's monotonic clock.

A file that was recorded into several times has as many headers; between two sessions there is a gap. A log of
nvidia-smi or ipmitool (`traces.power_log`) is read as a recording on its own clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from collectors.journal import read_journal
from collectors.power.component_power import ComponentPower, Energy, Tries, component_power
from collectors.power.reading import Component, Kind
from collectors.power.records import SCHEMA, PowerHeader, Sample
from traces.decoding import decode_json, read_bytes
from traces.errors import CollectorError, InputError
from traces.power_log import PowerLog, power_log_tool, read_power_log

_DECODER: msgspec.json.Decoder[PowerHeader | Sample] = msgspec.json.Decoder(PowerHeader | Sample)


@dataclass(frozen=True, slots=True)
class ClockPair:
    """The host's two clocks at one moment, in seconds."""

    monotonic_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class PowerRecording:
    """What a recording of power holds.

    Attributes:
        rate_hz: samples per second that were asked for.
        clocks: at the begin of each session, ascending.
        components: by name, those of which there is at least one try.
        notes: what failed, and what was left out.
    """

    rate_hz: float
    clocks: tuple[ClockPair, ...]
    components: dict[str, ComponentPower]
    notes: tuple[str, ...]

    def monotonic_s(self, wall_s: float) -> float:
        """A moment of the wall clock (Unix) on the monotonic one, by the pair that was taken nearest to it."""
        pair = min(self.clocks, key=lambda one: abs(one.wall_s - wall_s))
        return wall_s - pair.wall_s + pair.monotonic_s


@dataclass(slots=True)
class _Collected:
    """The tries of one component while the file is read."""

    sensor: str
    component: Component
    time_ns: list[int] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    watts: list[float | None] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def tries(self) -> Tries:
        """The same as arrays."""
        return Tries(
            time_s=np.array(self.time_ns) / 1e9,
            session=np.array(self.session),
            watts=np.array(self.watts, dtype=np.float64),
            joules=np.array(self.joules, dtype=np.float64),
            failures=self.failures,
        )


def read_power(path: Path) -> PowerRecording:
    """Read a recording of power, whole or cut off, or a log of nvidia-smi or ipmitool.

    Raises:
        InputError: the file cannot be read, or a line is not what it should be.
        CollectorError: it has no header.
    """
    if path.is_file() and power_log_tool(read_bytes(path)) is not None:
        return _of_log(read_power_log(path))
    headers: list[PowerHeader] = []
    collected: dict[str, _Collected] = {}
    for number, line in read_journal(path):
        record = _decode(line, path, number)
        try:
            if isinstance(record, PowerHeader):
                _check_header(record, headers)
                headers.append(record)
                _open_session(record, collected)
            else:
                _add(record, collected, len(headers) - 1)
        except InputError as error:
            raise InputError(
                file=path, line=number, field=error.field, found=error.found, accepted=error.accepted
            ) from None
    if not headers:
        raise CollectorError(f"{path}: holds no header")
    rate_hz = headers[0].rate_hz
    components = {
        name: component_power(one.component, one.sensor, one.tries(), rate_hz)
        for name, one in collected.items()
        if one.time_ns
    }
    clocks = tuple(ClockPair(header.monotonic_ns / 1e9, header.wall_ns / 1e9) for header in headers)
    return PowerRecording(rate_hz, clocks, components, tuple(_notes(collected, components)))


def _of_log(log: PowerLog) -> PowerRecording:
    """A log as a recording; both clocks are the log's own, and the rate is that of most of its rows."""
    between_s = np.concatenate([np.diff(meter.time_s) for meter in log.meters])
    rate_hz = 1 / float(np.median(between_s)) if len(between_s) else 1.0
    components = {}
    for meter in log.meters:
        kind: Kind = "gpu" if log.tool == "nvidia-smi" else "server"
        n = len(meter.time_s)
        tries = Tries(meter.time_s, np.zeros(n, dtype=np.int64), meter.power_w, np.full(n, np.nan), meter.failures)
        component = Component(name=meter.name, kind=kind, device=meter.device)
        components[meter.name] = component_power(component, log.tool, tries, rate_hz)
    begin_s = min(float(meter.time_s[0]) for meter in log.meters)
    notes = (*log.notes, *_notes({}, components))
    return PowerRecording(rate_hz, (ClockPair(begin_s, begin_s),), components, notes)


def power_facts(recording: PowerRecording) -> dict[str, Any]:
    """A recording in a few facts, of each component over the time that it was recorded; None: not measured."""
    components = {name: _facts(one) for name, one in recording.components.items()}
    return {"rate_hz": recording.rate_hz, "components": components, "notes": list(recording.notes)}


def _facts(one: ComponentPower) -> dict[str, Any]:
    energy = one.energy(one.begin_s, one.end_s) if one.begin_s < one.end_s else Energy(None, None, 0.0, "one sample")
    return {
        "kind": one.component.kind,
        "device": one.component.device,
        "sensor": one.sensor,
        "source": one.source,
        "mean_w": energy.mean_w,
        "max_w": float(one.power_w.max()) if len(one.power_w) else None,
        "energy_j": energy.energy_j,
        "reason": energy.reason,
        "duration_s": one.end_s - one.begin_s,
        "coverage": energy.coverage,
        "rate_hz": one.rate_hz,
        "period_s": one.period_s,
        "tries": one.n_tries,
        "failed": one.n_failed,
    }


def _decode(line: bytes, path: Path, number: int) -> PowerHeader | Sample:
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):  # once more as one of the two, for an error that names its fields
        if b'"header"' in line:
            return decode_json(line, PowerHeader, file=path, line=number)
        return decode_json(line, Sample, file=path, line=number)


def _check_header(header: PowerHeader, before: list[PowerHeader]) -> None:
    """Raise InputError when a header is of another kind of file, or of another host or start of it."""
    if header.schema != SCHEMA:
        raise InputError(field="schema", found=header.schema, accepted=SCHEMA)
    for name in ("rate_hz", "boot_id") if before else ():
        found, accepted = getattr(header, name), getattr(before[0], name)
        if found != accepted:
            raise InputError(field=name, found=found, accepted=f"{accepted!r}, as in the first header")


def _open_session(header: PowerHeader, collected: dict[str, _Collected]) -> None:
    for sensor in header.sensors:
        for component in sensor.components:
            own = collected.setdefault(component.name, _Collected(sensor.name, component))
            if (own.sensor, own.component.kind) != (sensor.name, component.kind):
                found, accepted = f"{component.name} of {sensor.name}", f"{component.name} of {own.sensor}, as before"
                raise InputError(field="sensors", found=found, accepted=accepted)


def _add(sample: Sample, collected: dict[str, _Collected], session: int) -> None:
    own = collected.get(sample.component)
    if own is None:
        accepted = "a component of a header above" if collected else "a header first"
        raise InputError(field="component", found=sample.component, accepted=accepted)
    if own.time_ns and sample.time_ns <= own.time_ns[-1]:
        raise InputError(field="time_ns", found=sample.time_ns, accepted=f"more than the one before, {own.time_ns[-1]}")
    own.time_ns.append(sample.time_ns)
    own.session.append(session)
    own.watts.append(sample.watts)
    own.joules.append(sample.joules)
    if sample.error is not None:
        own.failures[sample.error] += 1


def _notes(collected: dict[str, _Collected], components: dict[str, ComponentPower]) -> Iterator[str]:
    for name, own in collected.items():
        if not own.time_ns:
            yield f"{name}: no sample was taken"
    for name, one in components.items():
        if one.failures:
            worst, _ = Counter(one.failures).most_common(1)[0]
            yield f"{name}: {one.n_failed} of {one.n_tries} readings failed (mostly: {worst})"
        yield from one.notes
        gaps_s = one.covered.begin_s[1:] - one.covered.end_s[:-1]
        if (count := int((gaps_s > 0).sum())) > 0:
            yield f"{name}: not covered between samples: {gaps_s.sum():.3g} s, in {count} gap{'s' * (count > 1)}"
