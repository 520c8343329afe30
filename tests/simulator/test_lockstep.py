"""Requests in lockstep: sums that never have to be brought up to date."""

from __future__ import annotations

import pytest

from simulator.scheduling.lockstep import Lockstep
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.request import Request
from simulator.scheduling.spec import SchedulerSpec
from traces.trace import TraceRow


def running(computed: int, output: int, admission: int) -> Request:
    """A request that has computed so much, and is due its second token."""
    row = TraceRow(request_id=str(admission), arrival_s=0.0, prompt_tokens=computed, output_tokens=output)
    request = SchedulerSpec(EngineOptions(block_size=4), 101, 1000).new_request(row, admission, (), 0.0)
    request.admission, request.num_computed_tokens, request.num_tokens = admission, computed, computed + 1
    return request


@pytest.fixture
def both() -> tuple[Lockstep, Request, Request]:
    lockstep, long, short = Lockstep(4), running(10, 9, 0), running(3, 3, 1)
    lockstep.join(long, 5)
    lockstep.join(short, 6)
    return lockstep, long, short


def test_histories_grow_with_the_step(both: tuple[Lockstep, Request, Request]) -> None:
    lockstep, _, _ = both
    assert [(lockstep.kv_sum(step), lockstep.kv_max(step)) for step in (6, 7)] == [(11 + 3, 11), (12 + 4, 12)]


def test_a_request_needs_a_block_where_its_last_one_is_full(both: tuple[Lockstep, Request, Request]) -> None:
    lockstep, _, _ = both
    assert [lockstep.new_blocks(step) for step in (6, 7, 8, 11)] == [0, 2, 0, 2]
    assert lockstep.growth(6, 6).tolist() == [0, 2, 2, 2, 2, 4]


def test_a_batch_stands_in_order_of_admission() -> None:
    """Whenever each joined; others stand where they were admitted, and who has left stands nowhere."""
    lockstep, requests = Lockstep(4), [running(10 * i, 5 + i, i) for i in range(1, 6)]
    for i in (3, 0, 2):
        lockstep.join(requests[i], 7)
    batch, tokens, before = lockstep.batch(8, {requests[4]: 16, requests[1]: 2})
    assert batch == requests
    assert tokens.tolist() == [1, 2, 1, 1, 16]
    assert before.tolist() == [11, 20, 31, 41, 50]
    assert lockstep.retire(13, 13) == [requests[0]]
    batch, tokens, before = lockstep.batch(13, {})
    assert (batch, tokens.tolist(), before.tolist()) == ([requests[2], requests[3]], [1, 1], [36, 46])
    lockstep.disband(13, 13)
    assert [len(column) for column in lockstep.batch(13, {})] == [0, 0, 0]


def test_growth_is_told_as_far_as_it_is_asked(both: tuple[Lockstep, Request, Request]) -> None:
    lockstep, _, _ = both
    for step, steps in ((6, 3), (1001, 40), (3, 0), (10**6 + 1, 700)):
        assert lockstep.growth(step, steps).tolist() == [
            sum(lockstep.new_blocks(step + j) for j in range(i + 1)) for i in range(steps)
        ]


def test_who_ends_is_brought_up_to_date(both: tuple[Lockstep, Request, Request]) -> None:
    lockstep, long, short = both
    assert lockstep.first_end == 7
    assert lockstep.retire(7, 0) == []
    assert lockstep.retire(8, 8) == [short]
    assert (short.num_computed_tokens, short.num_tokens, short.last_step, short.num_blocks) == (5, 6, 7, 2)
    assert (len(lockstep), lockstep.kv_sum(8), lockstep.kv_max(8), lockstep.first_end) == (1, 13, 13, 12)
    lockstep.disband(9, 9)
    assert (long.num_computed_tokens, long.num_cached_tokens, len(lockstep)) == (14, 14, 0)
    assert (lockstep.kv_max(9), lockstep.new_blocks(9)) == (0, 0)
