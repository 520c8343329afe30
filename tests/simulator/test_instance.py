"""One engine in time: what the whole runs of test_simulate do not reach."""

from __future__ import annotations

import pytest

from simulator.instance import Instance
from simulator.rank import Arrival, Rank
from simulator.scheduling.lockstep_scheduler import LockstepScheduler
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.spec import SchedulerSpec
from tests.engines import LinearStepTime, trace
from traces.errors import EngineError


def test_a_stuck_simulation_names_who_waits_for_what() -> None:
    """Blocks that nobody will give back: a leak, planted."""
    scheduler = LockstepScheduler(SchedulerSpec(EngineOptions(), num_gpu_blocks=11, max_model_len=100))
    scheduler.kv_cache.allocate(9)
    rank = Rank(scheduler, 3, max_num_seqs=64, num_blocks=10, block_size=16)
    instance = Instance([rank], LinearStepTime(), steps_in_flight=1)
    rank.submit(Arrival(0.5, trace((0.5, 40, 5)).rows[0], 0, ()))
    while instance.step():
        pass
    stuck = r"stuck at 0.500 s: request '0' waits with 40 tokens on instance 3, 1 KV blocks are free"
    with pytest.raises(EngineError, match=stuck):
        instance.check_done()
