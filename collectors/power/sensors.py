"""Which sensors to record: the words of `--sensor`, and what `auto` finds on this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from collectors.journal import say
from collectors.power import rapl
from collectors.power.command import command_sensor, ipmi_sensor
from collectors.power.exporter import dcgm_sensor, tpu_sensor
from collectors.power.nvml import NvmlSensor
from collectors.power.rapl import RaplSensor
from collectors.power.reading import Sensor
from traces.errors import CollectorError, InputError

ACCEPTED = "auto, nvml, rapl, ipmi, dcgm=URL, tpu=URL#METRIC or command=CMD"


def open_sensors(
    words: Sequence[str], report: Callable[[str], None] = say, *, rapl_root: Path = rapl.ROOT, nvml: Any = None
) -> list[Sensor]:
    """Open the sensors, each of which has then been read once.

    Args:
        words: as `--sensor` takes them. `auto` is every sensor of this host that is there: NVML, RAPL and IPMI.
        report: takes a line for a person on each that `auto` did not find.
        rapl_root: where the kernel's powercap tree is.
        nvml: in place of the module `pynvml`.

    Raises:
        InputError: a word is none of those, or two sensors give one component.
        CollectorError: a sensor that was named is not there, or `auto` finds none and no other was named.
    """
    local: dict[str, Callable[[], Sensor]] = {
        "nvml": lambda: NvmlSensor(nvml),
        "rapl": lambda: RaplSensor(rapl_root),
        "ipmi": ipmi_sensor,
    }
    opened: list[Sensor] = []
    missing: dict[str, str] = {}
    try:
        for word in dict.fromkeys(words):
            if word != "auto":
                opened.append(_named(word, local, 1 + sum(sensor.name.startswith("command") for sensor in opened)))
                _check_new(opened[-1], opened[:-1])
        for name in [name for name in local if "auto" in words and name not in words]:
            try:
                opened.append(_checked(local[name]()))
                _check_new(opened[-1], opened[:-1])
            except CollectorError as error:
                missing[name] = str(error)
            except InputError as error:
                opened.pop().close()
                missing[name] = str(error.found)
    except BaseException:
        close_all(opened)
        raise
    if not opened:
        looked = "; ".join(f"{name}: {trouble}" for name, trouble in missing.items())
        raise CollectorError(f"no power sensor is here. {looked or 'None was asked for'}")
    for name, trouble in missing.items():
        report(f"not recorded: {name} ({trouble})")
    return opened


def close_all(sensors: Sequence[Sensor]) -> None:
    """Close each of them."""
    for sensor in sensors:
        sensor.close()


def _named(word: str, local: dict[str, Callable[[], Sensor]], n_command: int) -> Sensor:
    """Open the sensor that a word names; its trouble is told with the word."""
    name, _, value = word.partition("=")
    try:
        match name:
            case "nvml" | "rapl" | "ipmi" if not value:
                return _checked(local[name]())
            case "dcgm" if value:
                return _checked(dcgm_sensor(value))
            case "tpu" if value:
                return _checked(tpu_sensor(value))
            case "command" if value:
                return _checked(command_sensor(value, "command" if n_command == 1 else f"command{n_command}"))
    except CollectorError as error:
        raise CollectorError(f"--sensor {word}: {error}") from None
    raise InputError(field="--sensor", found=word, accepted=ACCEPTED)


def _checked(sensor: Sensor) -> Sensor:
    """The sensor, once it has been read. Raises CollectorError with the trouble of the first component."""
    try:
        errors = {name: one.error for name, one in sensor.read().items()}
    except CollectorError:
        sensor.close()
        raise
    if all(errors.values()):
        sensor.close()
        raise CollectorError(f"{next(iter(errors))}: {next(iter(errors.values()))}")
    return sensor


def _check_new(sensor: Sensor, others: Sequence[Sensor]) -> None:
    """Raise InputError when another sensor gives a component of the same name."""
    own = {component.name for component in sensor.components}
    for other in others:
        if both := own & {component.name for component in other.components}:
            found, accepted = f"{other.name} gives {min(both)} too", "one of the two; a file for each"
            raise InputError(f"{sensor.name} cannot be told apart", field="--sensor", found=found, accepted=accepted)
