"""vLLM V1's rules, one story each."""

from __future__ import annotations

from simulator.options import EngineOptions
from simulator.plan import StepPlan
from simulator.request import RequestStatus
from simulator.scheduler import Scheduler
from traces.trace import TraceRow


def scheduler(num_gpu_blocks: int = 101, **options: object) -> Scheduler:
    chosen = EngineOptions(**{"async_scheduling": False, "max_num_batched_tokens": 64, **options})  # type: ignore[arg-type]
    return Scheduler(chosen, num_gpu_blocks=num_gpu_blocks, max_model_len=1000)


def add(scheduler: Scheduler, *lengths: tuple[int, int], hashes: tuple[int, ...] = ()) -> None:
    for prompt, output in lengths:
        index = len(scheduler.waiting) + len(scheduler.running)
        row = TraceRow(request_id=str(index), arrival_s=0, prompt_tokens=prompt, output_tokens=output)
        scheduler.add_request(row, index, hashes, 0.0)


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
