"""What a power cap costs: how much longer steps take under it, as somebody measured.

A CSV file, `power_fraction,prefill_slowdown,decode_slowdown`: the cap as a share of the device's rated power,
ascending, and the time of steps that compute prompts, and of steps that only decode, over that without a cap.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.decoding import read_columns
from traces.errors import InputError
from traces.steps import Floats

COLUMNS = ("power_fraction", "prefill_slowdown", "decode_slowdown")


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Time under one cap over that without."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class CapTable:
    """Measured slowdowns, [n] each; `fraction` ascends."""

    path: Path
    fraction: Floats
    prefill: Floats
    decode: Floats

    def measured(self) -> str:
        """The shares of the rated power that were measured, in words."""
        return f"{self.fraction[0]:g} to {self.fraction[-1]:g}, as {self.path.name} measured,"

    def slowdown(self, fraction: float) -> Slowdown | None:
        """Linear between what was measured; None for a cap that was not."""
        if not self.fraction[0] <= fraction <= self.fraction[-1]:
            return None
        factors = (float(np.interp(fraction, self.fraction, column)) for column in (self.prefill, self.decode))
        return Slowdown(*factors)


def read_cap_table(path: Path) -> CapTable:
    """A table of slowdowns. Raises InputError with file, line and field, and for one in which a cap makes faster."""
    columns = read_columns(path, COLUMNS)
    if not len(columns["power_fraction"]):
        raise InputError("holds no rows", file=path)
    for name in COLUMNS[1:]:
        if (columns[name] < 1).any():
            accepted = "1 or more: a cap makes nothing faster"
            raise InputError(file=path, field=name, found=float(columns[name].min()), accepted=accepted)
    return CapTable(path, *(columns[name] for name in COLUMNS))
