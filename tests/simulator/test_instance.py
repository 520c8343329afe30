"""One engine in time: what the whole runs of test_simulate do not reach."""

from __future__ import annotations

import pytest

from simulator.instance import Instance
from simulator.options import EngineOptions
from simulator.scheduler import Scheduler
from tests.engines import LinearStepTime, trace
from traces.errors import EngineError


def test_a_stuck_simulation_names_who_waits_for_what() -> None:
    """Blocks that nobody will give back: a leak, planted."""
    scheduler = Scheduler(EngineOptions(), num_gpu_blocks=11, max_model_len=100)
    scheduler.kv_cache.allocate(9)
    instance = Instance(scheduler, LinearStepTime(), async_scheduling=False)
    instance.submit(trace((0.5, 40, 5)).rows[0], 0, ())
    with pytest.raises(EngineError, match=r"stuck at 0.500 s: request '0' waits with 40 tokens, 1 KV blocks are free"):
        instance.run()
