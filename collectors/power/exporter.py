"""Power by a Prometheus exporter: NVIDIA's dcgm-exporter, or one for TPUs.

An exporter answers with what it measured last, however often it is asked. dcgm-exporter measures every 30 s unless it
is started with another `--collect-interval` (its pkg/cmd/app.go: 30000 ms).
"""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from collectors.power.reading import Component, Measured, Reading
from traces.errors import CollectorError, InputError

ANSWER_WITHIN_S = 5.0
"""An answer that takes longer has failed."""

DCGM_WATTS = "DCGM_FI_DEV_POWER_USAGE"
DCGM_MILLIJOULES = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"

BLANK = 2.0**47
"""DCGM's least mark for no value (dcgm_structs.h: DCGM_FP64_BLANK; those of integers are near 2^63), which older
exporters pass on. In millijoules it is 4 years at 1000 W."""

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # an exporter is not behind a proxy


class _Sample(NamedTuple):
    """A line of an exposition."""

    metric: str
    labels: dict[str, str]
    value: float


_Devices = dict[str, tuple[Component, list[_Sample]]]
"""By what tells a device from the others: what it is, and its samples."""


class ExporterSensor:
    """The devices whose power one exporter tells: those that it told when the sensor was opened."""

    def __init__(
        self, name: str, url: str, watts: str, millijoules: str | None, devices: Callable[[list[_Sample]], _Devices]
    ) -> None:
        """Ask the exporter what it has. Raises CollectorError when it does not answer or has no such metric.

        Args:
            name: of the sensor.
            url: where its metrics are.
            watts: name of the gauge.
            millijoules: name of the counter; None: there is none.
            devices: finds the devices in samples.
        """
        self.name = name
        self._url = url
        self._watts = watts
        self._millijoules = millijoules
        self._identify = devices
        self._devices = {device: component for device, (component, _) in devices(self._samples()).items()}
        if not self._devices:
            wanted = " or ".join(metric for metric in (watts, millijoules) if metric)
            raise CollectorError(f"{url} has no {wanted}{self._others()}")

    @property
    def components(self) -> tuple[Component, ...]:
        """As gpu0."""
        return tuple(self._devices.values())

    def read(self) -> Reading:
        """Ask once. Raises CollectorError when the exporter does not answer."""
        told = self._identify(self._samples())
        nothing: list[_Sample] = []
        return {
            component.name: self._measured(told[device][1] if device in told else nothing)
            for device, component in self._devices.items()
        }

    def close(self) -> None:
        """Nothing is held open."""

    def _measured(self, samples: list[_Sample]) -> Measured:
        watts, millijoules = _value(samples, self._watts), _value(samples, self._millijoules)
        if watts is None and millijoules is None:
            return Measured(error="the exporter tells no value of it")
        return Measured(watts, None if millijoules is None else millijoules / 1e3)

    def _samples(self) -> list[_Sample]:
        return list(_parse(_get(self._url), {self._watts, self._millijoules}))

    def _others(self) -> str:
        """The metrics that may have been meant."""
        names = {match[0] for match in re.finditer(r"^\w*power\w*", _get(self._url), re.IGNORECASE | re.MULTILINE)}
        return f"; it has {', '.join(sorted(names))}" if names else ""


def dcgm_sensor(url: str) -> ExporterSensor:
    """The GPUs of a dcgm-exporter. Raises InputError for an address that is none, CollectorError when it has none."""
    return ExporterSensor("dcgm", _address(url), DCGM_WATTS, DCGM_MILLIJOULES, _gpus)


def tpu_sensor(url: str) -> ExporterSensor:
    """The TPUs of an exporter that has a gauge of their power in watts, which is named behind a `#`.

    There is no name to assume: libtpu itself lists no power metric. Raises InputError or CollectorError likewise.
    """
    address, _, metric = url.partition("#")
    if not metric:
        accepted = "the address and the gauge's name, as http://127.0.0.1:8431/metrics#tpu_power_watts"
        raise InputError(field="--sensor", found=f"tpu={url}", accepted=accepted)
    return ExporterSensor("tpu", _address(address), metric, None, _tpus)


def _gpus(samples: list[_Sample]) -> _Devices:
    """GPUs by their index. One that several pods or MIG instances share has several lines, which say the same."""
    found: _Devices = {}
    for sample in samples:
        index, uuid = sample.labels.get("gpu"), sample.labels.get("UUID")
        if index is None:
            raise CollectorError(f"{sample.metric} has no label gpu, but {', '.join(sample.labels) or 'none'}")
        component = Component(name=f"gpu{index}", kind="gpu", device=sample.labels.get("modelName"))
        _, lines = found.setdefault(index, (component, []))
        if lines and lines[0].labels.get("UUID") != uuid:
            raise CollectorError(f"two GPUs of index {index}: record the exporter of each host by itself")
        lines.append(sample)
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _tpus(samples: list[_Sample]) -> _Devices:
    """TPUs by their labels, whatever these are called, and numbered in the order of them."""
    by_labels = {str(sorted(sample.labels.items())): sample for sample in samples}
    ordered = sorted(by_labels.items(), key=lambda item: _natural(item[0]))
    return {device: (Component(name=f"tpu{i}", kind="tpu"), [one]) for i, (device, one) in enumerate(ordered)}


def _value(samples: list[_Sample], metric: str | None) -> float | None:
    """The first value of a metric that is one."""
    told = (sample.value for sample in samples if sample.metric == metric)
    return next((value for value in told if 0 <= value < BLANK), None)


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts gpu2 before gpu10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _parse(text: str, metrics: set[str | None]) -> Iterator[_Sample]:
    """The samples of those metrics; the other lines of a long exposition are not looked at."""
    from prometheus_client.parser import text_string_to_metric_families

    names = tuple(name for name in metrics if name)
    lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(names))
    try:
        families = list(text_string_to_metric_families(lines))
    except ValueError as error:
        raise CollectorError(f"the exporter's answer is no exposition ({error})") from None
    for family in families:
        yield from (_Sample(one.name, one.labels, one.value) for one in family.samples if one.name in metrics)


def _get(url: str) -> str:
    try:
        with _OPENER.open(url, timeout=ANSWER_WITHIN_S) as answer:
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise CollectorError(f"{url}: HTTP {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise CollectorError(f"{url}: no answer ({said})") from None
    return body.decode(errors="replace")


def _address(url: str) -> str:
    """The address of the metrics; `/metrics` where no path is given. Raises InputError when it is none."""
    try:
        parts = urlsplit(url)
    except ValueError:  # an unclosed bracket
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise InputError(field="--sensor", found=url, accepted="the exporter's address, as http://127.0.0.1:9400")
    return url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/metrics"
