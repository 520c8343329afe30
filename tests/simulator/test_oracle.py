"""vLLM's scheduler where vllm is not installed; where it is, tests/live has it judge ours."""

from __future__ import annotations

import importlib.util

import pytest

from simulator.scheduling.choice import RequestScheduler, new_scheduler
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.oracle import Oracle
from simulator.scheduling.spec import SchedulerSpec
from traces.errors import EngineError


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed here")
def test_without_vllm_it_is_said_what_to_do() -> None:
    with pytest.raises(EngineError, match=r"it is not installed there; pip install '\.\[vllm\]'.*scheduler 'native'"):
        Oracle(SchedulerSpec(EngineOptions(), 10, 100))
    assert EngineError.exit_code == 3


def test_our_own_scheduler_is_the_one_without_a_name() -> None:
    scheduler: RequestScheduler = new_scheduler("native", SchedulerSpec(EngineOptions(), 10, 100))
    assert scheduler.num_free_blocks == 9
    assert scheduler.schedule(0.0) is None
