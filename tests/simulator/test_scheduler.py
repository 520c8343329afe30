"""vLLM V1's rules, one story each."""

from __future__ import annotations

from simulator.scheduling.lockstep_scheduler import LockstepScheduler
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.request import Request, RequestStatus
from simulator.scheduling.rules import REFERENCE, rules_of
from simulator.scheduling.scheduler import Scheduler
from simulator.scheduling.spec import SchedulerSpec
from traces.trace import TraceRow


def scheduler(num_gpu_blocks: int = 101, version: tuple[int, int] = REFERENCE, **options: object) -> Scheduler:
    chosen = EngineOptions(**{"async_scheduling": False, "max_num_batched_tokens": 64, **options})  # type: ignore[arg-type]
    return LockstepScheduler(SchedulerSpec(chosen, num_gpu_blocks, max_model_len=1000, rules=rules_of(version)))


def add(
    scheduler: Scheduler, *lengths: tuple[int, int], hashes: tuple[int, ...] = (), priority: int = 0
) -> list[Request]:
    added = []
    for prompt, output in lengths:
        index = len(scheduler.waiting) + len(scheduler.running)
        row = TraceRow(
            request_id=str(index), arrival_s=index, prompt_tokens=prompt, output_tokens=output, priority=priority
        )
        added.append(scheduler.add_request(row, index, hashes, 0.0))
    return added


def batch(plan: StepPlan | None) -> dict[str, int]:
    """Tokens by request, in order."""
    assert plan is not None
    return {request.row.request_id: int(n) for request, n in zip(plan.requests, plan.new_tokens, strict=True)}


def step(scheduler: Scheduler) -> dict[str, int]:
    plan = scheduler.schedule(0.0)
    scheduler.finish(plan.first_step if plan else -1, 0.0)
    return batch(plan)


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    engine = scheduler()
    add(engine, (150, 3))
    assert [step(engine) for _ in range(4)] == [{"0": 64}, {"0": 64}, {"0": 22}, {"0": 1}]


def test_running_requests_come_first_and_the_rest_of_the_budget_goes_to_the_waiting() -> None:
    engine = scheduler()
    add(engine, (10, 5))
    step(engine)
    add(engine, (100, 5))
    assert step(engine) == {"0": 1, "1": 63}


def test_seats_limit_the_running_queue() -> None:
    engine = scheduler(max_num_seqs=2)
    add(engine, (5, 5), (5, 5), (5, 5))
    assert step(engine) == {"0": 5, "1": 5}
    assert len(engine.waiting) == 1


def test_a_request_is_admitted_only_when_its_whole_prompt_fits() -> None:
    engine = scheduler(num_gpu_blocks=9)
    add(engine, (80, 2), (64, 2))
    assert step(engine) == {"0": 64}
    assert step(engine) == {"0": 16}
    engine = scheduler(num_gpu_blocks=9, scheduler_reserve_full_isl=False)
    add(engine, (80, 2), (64, 2))
    step(engine)
    assert step(engine) == {"0": 16, "1": 48}


def test_the_request_admitted_last_gives_up_its_blocks() -> None:
    engine = scheduler(num_gpu_blocks=5, max_num_batched_tokens=256)
    add(engine, (31, 30), (31, 30))
    assert step(engine) == {"0": 31, "1": 31}
    assert step(engine) == {"0": 1, "1": 1}
    plan = engine.schedule(0.0)
    assert batch(plan) == {"0": 1}
    assert plan is not None
    assert plan.n_preempted == 1
    (victim,) = engine.waiting
    assert (victim.row.request_id, victim.status, victim.num_preemptions) == ("1", RequestStatus.PREEMPTED, 1)


def test_a_threshold_holds_back_long_prompts_only_when_there_are_others() -> None:
    engine = scheduler(long_prefill_token_threshold=20)
    add(engine, (50, 2))
    assert step(engine) == {"0": 50}
    engine = scheduler(long_prefill_token_threshold=20)
    add(engine, (50, 2), (50, 2))
    assert step(engine) == {"0": 20, "1": 20}


def test_a_prefix_is_found_in_the_step_that_computes_it() -> None:
    engine = scheduler(max_num_batched_tokens=256)
    add(engine, (40, 2), (40, 2), hashes=(1, 2))
    assert step(engine) == {"0": 40, "1": 8}


def test_the_last_prompt_token_is_always_computed() -> None:
    engine = scheduler(max_num_batched_tokens=256)
    add(engine, (32, 2), (32, 2), hashes=(1, 2))
    assert step(engine) == {"0": 32, "1": 16}


def test_what_can_never_fit_is_rejected_with_its_reason() -> None:
    engine = scheduler(num_gpu_blocks=5)
    add(engine, (100, 10))
    assert not engine.waiting
    row = TraceRow(request_id="x", arrival_s=0, prompt_tokens=1000, output_tokens=1)
    request = scheduler().add_request(row, 0, (), 0.0)
    assert request.status is RequestStatus.REJECTED
    assert request.reason == "prompt of 1000 tokens, max_model_len is 1000"


def test_a_plan_repeats_until_a_request_finishes() -> None:
    engine = scheduler()
    add(engine, (10, 9), (10, 20))
    step(engine)
    plan = engine.schedule(0.0)
    assert plan is not None
    assert plan.repeat == 8


def test_a_plan_repeats_until_blocks_run_out() -> None:
    engine = scheduler(num_gpu_blocks=4)
    add(engine, (16, 20), (14, 20))
    step(engine)
    plan = engine.schedule(0.0)
    assert plan is not None
    # Request 0 took the third block for its 17th token; request 1 would need a fourth for its own.
    assert plan.repeat == 2


def test_with_two_steps_in_flight_a_seat_is_free_one_step_later() -> None:
    engine = scheduler(async_scheduling=True, max_num_seqs=1)
    add(engine, (5, 1), (5, 1))
    first = engine.schedule(0.0)
    assert batch(first) == {"0": 5}
    assert engine.schedule(0.0) is None
    engine.finish(0, 1.0)
    assert batch(engine.schedule(1.0)) == {"1": 5}


def test_up_to_vllm_0_30_the_threshold_binds_a_request_that_is_alone() -> None:
    engine = scheduler(version=(0, 30), long_prefill_token_threshold=20)
    add(engine, (50, 2))
    assert step(engine) == {"0": 20}


def test_an_adaptive_threshold_is_an_equal_share_where_that_is_more() -> None:
    engine = scheduler(long_prefill_token_threshold=20, long_prefill_token_threshold_adaptive=True)
    add(engine, (50, 2), (50, 2))
    assert step(engine) == {"0": 32, "1": 32}


def test_without_chunked_prefill_a_prompt_waits_for_room_for_all_of_it() -> None:
    engine = scheduler(enable_chunked_prefill=False)
    add(engine, (40, 3), (40, 3))
    assert [step(engine) for _ in range(2)] == [{"0": 40}, {"0": 1, "1": 40}]


def test_fewer_requests_can_be_active_than_there_are_seats() -> None:
    engine = scheduler(max_num_active_seqs=1)
    add(engine, (5, 2), (5, 2))
    assert [step(engine) for _ in range(3)] == [{"0": 5}, {"0": 1}, {"1": 5}]


def test_a_watermark_keeps_blocks_free_while_others_run() -> None:
    engine = scheduler(num_gpu_blocks=10, watermark=0.5)
    add(engine, (20, 3), (50, 2))
    assert step(engine) == {"0": 20}
    assert [step(engine) for _ in range(2)] == [{"0": 1}, {"0": 1}]
    assert step(engine) == {"1": 50}


def test_by_priority_the_lowest_number_is_admitted_first_and_then_who_came_first() -> None:
    engine = scheduler(max_num_seqs=1, scheduling_policy="priority")
    add(engine, (5, 1), priority=2)
    add(engine, (6, 1), (7, 1), priority=1)
    assert [request.row.request_id for request in engine.waiting] == ["1", "2", "0"]
    assert [step(engine) for _ in range(3)] == [{"1": 6}, {"2": 7}, {"0": 5}]


def test_by_priority_the_highest_number_gives_up_its_blocks() -> None:
    engine = scheduler(num_gpu_blocks=6, max_num_batched_tokens=256, scheduling_policy="priority")
    add(engine, (20, 30), priority=3)
    add(engine, (32, 30), priority=1)
    assert step(engine) == {"1": 32, "0": 20}
    assert step(engine) == {"1": 1, "0": 1}
    for _ in range(11):
        step(engine)
    assert [request.row.request_id for request in engine.running] == ["1", "0"]
    plan = engine.schedule(0.0)
    assert plan is not None
    assert (batch(plan), plan.n_preempted) == ({"1": 1}, 1)


def test_by_priority_a_request_that_preempts_itself_ends_the_step_up_to_vllm_0_32() -> None:
    """Request 1 has the highest number and needs a block that nobody has; request 2 behind it needs none."""
    for version, planned in (((0, 32), {"0": 1}), ((0, 33), {"0": 1, "2": 1})):
        engine = scheduler(num_gpu_blocks=5, version=version, scheduling_policy="priority")
        for prompt, priority in ((3, 1), (30, 5), (5, 1)):
            add(engine, (prompt, 20), priority=priority)
            step(engine)
        assert step(engine) == {"0": 1, "1": 1, "2": 1}
        plan = engine.schedule(0.0)
        assert plan is not None
        assert (batch(plan), plan.n_preempted) == (planned, 1)


def test_an_abort_gives_back_blocks_and_seat_and_drops_what_is_under_way() -> None:
    engine = scheduler(max_num_seqs=1)
    (gone, next_one) = add(engine, (40, 9), (5, 2))
    step(engine)
    plan = engine.schedule(1.0)
    assert batch(plan) == {"0": 1}
    engine.abort(gone, 1.5)
    assert engine.num_free_blocks == 100
    assert engine.finish(plan.first_step if plan else -1, 2.0) == []
    assert (gone.status, gone.finish_s, gone.num_tokens) == (RequestStatus.ABORTED, 1.5, 41)
    assert step(engine) == {"1": 5}
    engine.abort(next_one, 3.0)
    engine.abort(next_one, 4.0)
    assert next_one.finish_s == 3.0
    assert engine.schedule(5.0) is None


def test_an_abort_in_the_queue_lets_the_next_one_pass() -> None:
    engine = scheduler(max_num_seqs=1)
    _, gone, _ = add(engine, (5, 3), (5, 3), (6, 3))
    step(engine)
    engine.abort(gone, 1.0)
    assert [request.row.request_id for request in engine.waiting] == ["2"]


def test_an_answer_can_end_before_its_greatest_length() -> None:
    engine = scheduler(async_scheduling=True)
    (request,) = add(engine, (5, 9))
    for _ in range(2):
        engine.schedule(0.0)
    assert engine.finish(0, 1.0, stopped=[request]) == [request]
    assert (request.status, request.token_spans, request.num_tokens) == (RequestStatus.FINISHED, [(0, 0)], 6)
    assert engine.finish(1, 2.0) == []
    assert engine.num_free_blocks == 100
