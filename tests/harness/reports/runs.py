"""Runs and validations to make pages of, without a server or a file."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from calibrate.calibration import Calibration, FittedOn, FittedParameter, Residuals
from calibrate.parameters import RESIDUAL, names_of
from harness.reports.validation_page import Compared
from harness.scoring.compare import compare
from simulator.simulate import simulate
from tests.engines import LinearStepTime, engine, trace
from traces.capture import Capture, Series


def run(n_requests: int = 60, step_s: float = 0.01, *, kind: str = "simulated") -> Capture:
    """A run that waits, decodes and preempts a little."""
    rows = [(0.02 * i, 20 + 13 * i % 200, 2 + 7 * i % 30) for i in range(n_requests)]
    made = engine(LinearStepTime(step_s, 1e-5), num_gpu_blocks=200, max_num_seqs=16, max_num_batched_tokens=256)
    capture = simulate(trace(*rows), made, record_batches=True).capture
    meta = msgspec.structs.replace(
        capture.meta, kind=kind, notes=("a <note> & its sign",), provenance={"trace": "sha256:0"}
    )
    return replace(capture, meta=meta)


def compared(n_requests: int = 60) -> Compared:
    """A twin that is a little too fast, beside what it is the twin of."""
    measured, simulated = run(n_requests, 0.0105, kind="measured"), run(n_requests)
    measured = replace(measured, series={"power_w": Series(*_power(measured))})
    result = compare(measured, simulated)
    result |= {"notes": ["nothing was fitted"], "provenance": {"trace": "sha256:0", "capture": "sha256:1"}}
    return Compared(result, measured, simulated)


def _power(capture: Capture) -> tuple:  # type: ignore[type-arg]
    assert capture.steps is not None
    return capture.steps.end_s, 100.0 + capture.steps.n_running


def calibration() -> Calibration:
    """One parameter that the data tell, and others that they do not."""
    names = names_of(RESIDUAL.with_front_end)
    return Calibration(
        kind="steps",
        model="model",
        device="device",
        engine=None,
        async_scheduling=False,
        fit_on="first:0.33",
        fitted_on=(FittedOn("monday", "sha256:1", 20, 100, 0.0, 9.0),),
        ranges={"tokens per step": (1.0, 256.0)},
        parameters={
            **{name: FittedParameter(0.0, None, "1", 0.0, 1.0, identified=False, note="no data") for name in names},
            "dense": FittedParameter(1.1, 0.01, "1", 1.0, 0.2, identified=True),
        },
        covariance_of=("dense",),
        covariance=((1e-4,),),
        front_end_spread_s=None,
        residuals={"steps": Residuals(100, 0.001, (-0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1), 0.01)},
        versions={"servetwin": "0"},
    )
