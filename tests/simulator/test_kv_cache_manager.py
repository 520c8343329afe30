"""The blocks of requests: what each finds, holds, lets others find, and gives back. Blocks here have 4 tokens."""

from __future__ import annotations

import pytest

from simulator.kv.kv_cache import n_blocks
from simulator.scheduling.kv_cache_manager import KVCacheManager
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.request import Request, RequestStatus
from simulator.scheduling.spec import SchedulerSpec
from tests.simulator.test_speculation import drafter
from traces.trace import TraceRow


def spec(**options: object) -> SchedulerSpec:
    return SchedulerSpec(EngineOptions(block_size=4, **options), num_gpu_blocks=11, max_model_len=100)  # type: ignore[arg-type]


def waiting(made: SchedulerSpec, index: int, *hashes: int) -> Request:
    """A request of 10 tokens and one more."""
    row = TraceRow(request_id=str(index), arrival_s=0.0, prompt_tokens=10, output_tokens=1)
    return made.new_request(row, index, hashes, 0.0)


def running(manager: KVCacheManager, made: SchedulerSpec, index: int, *hashes: int, n_computed: int = 10) -> Request:
    """A request that has found what it can, and computes its prompt so far."""
    request = waiting(made, index, *hashes)
    found = manager.find(request)
    manager.hold(request, found, manager.blocks_of(10) - n_blocks(found))
    request.status = RequestStatus.RUNNING
    request.num_cached_tokens = n_computed
    manager.begin_sharing(request)
    return request


def test_what_one_computes_the_next_finds() -> None:
    manager = KVCacheManager(made := spec())
    running(manager, made, 0, 1, 2)
    second = running(manager, made, 1, 1, 2)
    assert (second.num_shared_blocks, second.num_blocks) == (2, 3)
    assert manager.kv_cache.in_use == 3 + 1
    assert not manager.sharing  # all that can be found is


def test_blocks_that_are_not_computed_cannot_be_found() -> None:
    manager = KVCacheManager(made := spec())
    first = running(manager, made, 0, 1, 2, n_computed=7)
    assert (first.num_shared_blocks, manager.sharing) == (1, [first])
    manager.share({first: 3}, cached_step=5)  # in lockstep it has computed its offset and the steps until then
    assert (first.num_shared_blocks, manager.sharing) == (2, [])


@pytest.mark.parametrize(("drops", "expected"), [(False, 2), (True, 1)])
def test_a_drafter_has_the_last_block_of_a_hit_computed_again(drops: bool, expected: int) -> None:
    config = drafter(1, 1, method="eagle", disable_eagle_block_drop=not drops)
    manager = KVCacheManager(made := spec(speculative_config=config))
    running(manager, made, 0, 1, 2)
    assert n_blocks(manager.find(waiting(made, 1, 1, 2))) == expected


def test_one_that_starts_over_finds_what_was_its_own() -> None:
    manager = KVCacheManager(made := spec())
    request = running(manager, made, 7)
    manager.make_own_findable(request)
    manager.free(request)
    assert (manager.kv_cache.in_use, n_blocks(manager.find(request))) == (0, 2)


def test_blocks_are_kept_for_another_engine_until_it_has_read_them() -> None:
    manager = KVCacheManager(made := spec())
    request = running(manager, made, 0, 1, 2)
    request.kept, request.num_tokens = True, request.target_tokens
    manager.free(request)
    assert (manager.keeps(request), manager.kv_cache.in_use) == (True, 3)
    manager.release(request)
    assert (manager.keeps(request), manager.kv_cache.in_use) == (False, 0)


def test_blocks_whose_content_does_not_come_hold_nothing() -> None:
    manager = KVCacheManager(made := spec())
    request = waiting(made, 0, 1, 2)
    manager.hold(request, manager.find(request), 3)
    manager.free_unfilled(request)
    assert (manager.kv_cache.in_use, manager.kv_cache.num_cached_free) == (0, 0)
    assert not manager.find(request)
