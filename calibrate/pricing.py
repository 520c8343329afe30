"""Steps with a step-time model's prices: those of a simulation (`served.py`) or of a measured capture (`repricing.py`).

Runs of steps in which the same requests decode are priced in one sweep, as the simulator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.scheduling.plan import StepPlan
from simulator.steps.correction import AXES, Terms, axes, kv_tokens
from simulator.steps.step_time import StepCost
from traces.errors import InputError
from traces.steps import Floats, Ints, Mask


@dataclass(frozen=True, slots=True)
class Priced:
    """Steps of one engine with the model's prices; [n] or [n, k] each, in order of time.

    Attributes:
        end_s: when each ended.
        cycle_s: time each took, until its end, from the end of the one before, or from its planning after a pause.
        paused: whether the engine had nothing to do before it.
        device_s: the model's device time, uncorrected.
        host_s: the model's host time, uncorrected.
        on_device: [n, k] device time per unit of each parameter.
        on_host: [n, k] host time per unit of each parameter.
        axes: [n, 4] place of each on `simulator.steps.correction.AXES`.
    """

    end_s: Floats
    cycle_s: Floats
    paused: Mask
    device_s: Floats
    host_s: Floats
    on_device: Floats
    on_host: Floats
    axes: Ints

    def __len__(self) -> int:
        return len(self.cycle_s)

    def chosen(self, mask: Mask) -> Priced:
        """Some of the steps."""
        return Priced(*(getattr(self, name)[mask] for name in self.__slots__))

    def rows(self, changes: Floats, *, asynchronous: bool) -> tuple[Floats, Floats]:
        """Each step's time before any change, and per unit of each parameter's change, [n] and [n, k].

        Synchronous: host and device add up. Asynchronous: the host's work is hidden behind the step before, and only
        the longer of the two counts, except after a pause; which is longer is judged at `changes` [k].
        """
        both_s, both = self.device_s + self.host_s, self.on_device + self.on_host
        if not asynchronous:
            return both_s, both
        device_s, host_s = self.device_s + self.on_device @ changes, self.host_s + self.on_host @ changes
        hidden = ~self.paused & (device_s >= host_s)
        exposed = ~self.paused & (device_s < host_s)
        base_s = np.where(hidden, self.device_s, np.where(exposed, self.host_s, both_s))
        rows = np.where(hidden[:, None], self.on_device, np.where(exposed[:, None], self.on_host, both))
        return base_s, rows

    def corrected_s(self, changes: Floats, *, asynchronous: bool) -> Floats:
        """Each step's time with the parameters changed by `changes` [k], [n]."""
        base_s, rows = self.rows(changes, asynchronous=asynchronous)
        return np.asarray(base_s + rows @ changes)


def floors(parts: Sequence[Priced]) -> dict[str, float]:
    """How far below 0 the times of the residual can go: to where no host time, or a tenth of the device's, is left.

    The models' host time is linear in the requests of a step; the host's floors are its two coefficients, negated.
    """
    n_requests = np.concatenate([part.axes[:, AXES.index("requests per step")] for part in parts]).astype(np.float64)
    host_s = np.concatenate([part.host_s for part in parts])
    alike = n_requests.min() == n_requests.max()
    slope_s = 0.0 if alike else max(float(np.polyfit(n_requests, host_s, 1)[0]), 0.0)
    step_s = float((host_s - slope_s * n_requests).min())
    return {
        "device_step_s": -0.9 * min(float(part.device_s.min()) for part in parts),
        "host_step_s": -step_s if step_s > 1e-9 else 0.0,
        "host_request_s": -slope_s,
    }


class Columns:
    """Rows of `Priced` as they come."""

    def __init__(self, names: Sequence[str]) -> None:
        self._place = {name: i for i, name in enumerate(names)}
        self._parts: list[tuple[Floats, Floats, Floats, Floats, Ints]] = []

    def add(self, plan: StepPlan, times: int, bare: StepCost, on_device: Terms, on_host: Terms) -> None:
        """The first `times` repeats of a plan. Raises InputError for a pipeline, whose steps overlap."""
        if len(bare.stages) > 1:
            message = "a calibration of pipeline stages is not modelled in this version"
            raise InputError(message, field="pipeline_parallel_size", found=len(bare.stages), accepted="1")
        terms = [np.zeros((times, len(self._place))) for _ in range(2)]
        for columns, found in zip(terms, (on_device, on_host), strict=True):
            for name, value in found.items():
                if (at := self._place.get(name)) is not None:
                    columns[:, at] = value[:times] if isinstance(value, np.ndarray) else value
        place = np.tile(np.array(axes(plan), dtype=np.int64), (times, 1))
        place[:, -1] = kv_tokens(plan, times)
        self._parts.append((bare.device_s[:times], bare.host_s[:times], terms[0], terms[1], place))

    def priced(self, end_s: Floats, cycle_s: Floats, paused: Mask) -> Priced:
        """All of them, with their times, [n] each."""
        if not self._parts:
            no_terms, no_axes = np.zeros((0, len(self._place))), np.zeros((0, len(AXES)), dtype=np.int64)
            return Priced(end_s, cycle_s, paused, end_s, end_s, no_terms, no_terms, no_axes)
        return Priced(end_s, cycle_s, paused, *(np.concatenate(part) for part in zip(*self._parts, strict=True)))
