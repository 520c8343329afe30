"""RAPL: energy counters of CPU packages and their memory, from the kernel's powercap tree (the same path on AMD).

A counter (uJ) starts again from 0 at `max_energy_range_uj` (kernel documentation, power/powercap); it is unwrapped
here, which is right as long as it is read at least once per wrap: about 20 minutes at 200 W on most processors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collectors.power.reading import Component, Measured, Reading
from traces.errors import CollectorError

ROOT = Path("/sys/class/powercap")


@dataclass(slots=True)
class _Zone:
    """A counter, and what is needed to unwrap it."""

    energy_uj: Path
    range_uj: int
    last_uj: int = 0
    wrapped_uj: int = 0

    def joules(self) -> float:
        """Read the counter, without its wraps."""
        now_uj = _number(self.energy_uj)
        self.wrapped_uj += self.range_uj if now_uj < self.last_uj else 0
        self.last_uj = now_uj
        return (self.wrapped_uj + now_uj) / 1e6


class RaplSensor:
    """Packages and their DRAM. Left out: core and uncore, which are parts of a package, and psys, which holds it."""

    name = "rapl"

    def __init__(self, root: Path = ROOT) -> None:
        """Find the counters under `root`. Raises CollectorError where there are none, or they may not be read."""
        self._zones: dict[Component, _Zone] = {}
        for folder in sorted(root.glob("intel-rapl:*")):
            component = _component(folder)
            if component is not None:
                self._zones[component] = zone = _Zone(folder / "energy_uj", _number(folder / "max_energy_range_uj"))
                zone.joules()
        if not self._zones:
            raise CollectorError(f"no package or dram among {root}/intel-rapl:*")

    @property
    def components(self) -> tuple[Component, ...]:
        """As package-0 and dram-0."""
        return tuple(self._zones)

    def read(self) -> Reading:
        """Read every counter."""
        return {component.name: _measured(zone) for component, zone in self._zones.items()}

    def close(self) -> None:
        """Nothing is held open."""


def _component(folder: Path) -> Component | None:
    """What a zone measures; None for those left out."""
    name = _text(folder / "name")
    if name.startswith("package"):
        return Component(name=name, kind="cpu")
    if name == "dram":  # a zone inside its package's: intel-rapl:0:1 in intel-rapl:0
        package = _text(folder.with_name(folder.name.rpartition(":")[0]) / "name")
        return Component(name=package.replace("package", "dram", 1), kind="dram")
    return None


def _measured(zone: _Zone) -> Measured:
    try:
        return Measured(joules=zone.joules())
    except CollectorError as error:
        return Measured(error=str(error))


def _number(file: Path) -> int:
    text = _text(file)
    if not text.isdecimal():
        raise CollectorError(f"{file}: holds {text!r} and no number")
    return int(text)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except PermissionError:
        way = "run as root, or let root run chmod a+r on it"
        raise CollectorError(f"{file}: no permission to read it; {way}") from None
    except OSError as error:
        raise CollectorError(f"{file}: cannot be read ({error.strerror})") from None
