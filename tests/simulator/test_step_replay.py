"""Recorded steps of a real engine, planned again: no step may differ."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from harness.demo import BUNDLED
from simulator.simulate import simulate
from simulator.step_replay import replay_steps
from tests.engines import engine, trace
from traces.capture import Capture, read_capture
from traces.errors import InputError

CAPTURES = sorted((BUNDLED / "captures").glob("*-?"))


def test_there_are_captures() -> None:
    assert len(CAPTURES) == 6


@pytest.mark.parametrize("folder", CAPTURES, ids=lambda folder: folder.name)
def test_every_step_of_a_real_engine_is_planned_alike(folder) -> None:  # type: ignore[no-untyped-def]
    capture = read_capture(folder)
    followed = replay_steps(capture)
    assert followed.divergence is None
    assert capture.steps is not None
    assert followed.n_steps == len(capture.steps) > 100
    assert followed.n_preempted == capture.steps.n_preempted.sum()


def simulated() -> Capture:
    rows = [(0.01 * i, 20 + 7 * i % 90, 5 + 3 * i % 40) for i in range(30)]
    return simulate(trace(*rows), engine(num_gpu_blocks=40, max_model_len=400), record_batches=True).capture


def with_option(capture: Capture, **options: object) -> Capture:
    meta = capture.meta
    changed = {**meta.engine_options, "max_model_len": 400, **options}
    return dataclasses.replace(capture, meta=type(meta)(**{**_fields(meta), "engine_options": changed}))


def _fields(meta: object) -> dict[str, object]:
    return {name: getattr(meta, name) for name in meta.__struct_fields__}  # type: ignore[attr-defined]


def test_our_own_steps_are_followed() -> None:
    assert replay_steps(with_option(simulated())).divergence is None


def test_another_rule_is_found_where_it_first_tells() -> None:
    divergence = replay_steps(with_option(simulated(), max_num_seqs=2)).divergence
    assert divergence is not None
    assert len(divergence.recorded) == 3
    assert len(divergence.planned) == 2


def test_a_capture_without_batches_cannot_be_followed() -> None:
    capture = with_option(simulated())
    assert capture.steps is not None
    bare = dataclasses.replace(capture, steps=dataclasses.replace(capture.steps, batches=None))
    with pytest.raises(InputError, match="which requests were in each step"):
        replay_steps(bare)
    assert np.all(capture.steps.n_requests > 0)
