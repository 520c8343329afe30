"""A conformance scenario: a small engine, the requests it gets, and the same driver for vLLM's scheduler and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from simulator.scheduling.choice import RequestScheduler
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.request import Request
from simulator.scheduling.speculation import SpeculativeConfig
from tests.conformance.elsewhere import Elsewhere
from traces.trace import TraceRow

MOST_TICKS = 20_000
LONGEST = 360
"""Most tokens of a request, prompt and answer."""

Pick = Callable[[int, int], int]
"""Draws an integer from `low` to `high`, both included; the lower, the simpler the scenario that is drawn."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request of a scenario.

    Attributes:
        tick: when it arrives.
        prompt: its prompt's tokens.
        output: most tokens of its answer.
        hashes: of its first full blocks; equal ones are shared.
        priority: lower is served first, under the priority policy.
        stops_after: the answer's token that ends it early; None: none does. Where tokens are drafted, the first token
            of an output that comes when so many or more, less one, are there.
        aborted: tick at which its client goes away; None: it stays.
        aborted_under_way: whether that is while the step of that tick runs, or before it is planned.
        elsewhere: ticks that the KV of its prompt takes to come from another engine, once blocks are taken for it; 0:
            it comes before the next step is planned; None: the prompt is computed here.
    """

    tick: int
    prompt: int
    output: int
    hashes: tuple[int, ...] = ()
    priority: int = 0
    stops_after: int | None = None
    aborted: int | None = None
    aborted_under_way: bool = False
    elsewhere: int | None = None


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to an engine; a request's id is its place in `arrivals`."""

    options: EngineOptions
    num_gpu_blocks: int
    max_model_len: int
    arrivals: tuple[Arrival, ...]
    pipeline_parallel_size: int = 1


class State(msgspec.Struct, frozen=True, array_like=True):
    """What a scheduler decided in one tick, and how it stands afterwards.

    Attributes:
        batch: id, new tokens, tokens computed before, in order.
        preempted: ids of those that lost their blocks since the tick before, by id.
        running: ids in order.
        waiting: ids in order.
        free_blocks: KV blocks that nobody holds.
        finished: ids, sorted.
    """

    batch: tuple[tuple[str, int, int], ...]
    preempted: tuple[str, ...]
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    free_blocks: int
    finished: tuple[str, ...]


def states_of(scenario: Scenario, scheduler: RequestScheduler, elsewhere: Elsewhere | None = None) -> Iterator[State]:
    """Drive a scheduler through a scenario, tick by tick, until nothing is left or it is stuck.

    `elsewhere`: how it comes by KV of another engine; needed where the scenario has such.
    """
    last_tick = max(max(arrival.tick, arrival.aborted or 0) for arrival in scenario.arrivals)
    requests: dict[int, Request] = {}
    under_way, coming, n_idle = _UnderWay(scenario), _Coming(scenario, elsewhere), 0
    for tick in range(MOST_TICKS):
        preemptions = {index: request.num_preemptions for index, request in requests.items()}
        for index, arrival in enumerate(scenario.arrivals):
            if arrival.tick == tick:
                requests[index] = scheduler.add_request(_row(index, arrival), index, arrival.hashes, float(tick))
                coming.expect(requests[index])
        _abort(scenario, requests, scheduler, tick, under_way=False)
        coming.receive(tick)
        plan = scheduler.schedule(float(tick))
        coming.take_reserved(tick)
        n_idle = 0 if plan is not None or under_way.steps or coming.requests else n_idle + 1
        batch = () if plan is None else _batch(plan)
        under_way.add(plan, batch)
        _abort(scenario, requests, scheduler, tick, under_way=True)
        running = tuple(request.row.request_id for request in scheduler.running)
        waiting = tuple(request.row.request_id for request in scheduler.waiting)
        free_blocks = scheduler.num_free_blocks
        done = under_way.end_one(scheduler, tick, is_idle=plan is None)
        yield State(
            batch,
            tuple(r.row.request_id for i, r in requests.items() if r.num_preemptions > preemptions.get(i, 0)),
            running,
            waiting,
            free_blocks,
            tuple(sorted(request.row.request_id for request in done)),
        )
        if n_idle >= scenario.pipeline_parallel_size and tick >= last_tick:
            return


class _UnderWay:
    """Steps whose output is still to come, with the requests that end with their token of it.

    In a pipeline plans of nothing are among them (vLLM 0.32 v1/engine/core.py: `step_with_batch_queue`).
    """

    def __init__(self, scenario: Scenario) -> None:
        self.steps: list[tuple[StepPlan | None, list[Request]]] = []
        self._scenario = scenario
        self._is_pipeline = scenario.pipeline_parallel_size > 1
        self._depth = scenario.pipeline_parallel_size + scenario.options.async_scheduling
        self._speculates = scenario.options.speculative_config is not None
        self._due = {str(index): arrival.prompt for index, arrival in enumerate(scenario.arrivals)}

    def add(self, plan: StepPlan | None, batch: tuple[tuple[str, int, int], ...]) -> None:
        if plan is not None:
            stopping = [] if self._speculates else _stopping(self._scenario, plan, batch, self._due)
            self.steps.append((plan, stopping))
        elif self._is_pipeline and self.steps:
            self.steps.append((None, []))

    def end_one(self, scheduler: RequestScheduler, tick: int, *, is_idle: bool) -> list[Request]:
        """Hand over the oldest output, if it is time for one. Returns the requests that are finished."""
        if not self.steps or (len(self.steps) < self._depth and (self._is_pipeline or not is_idle)):
            return []
        done: list[Request] = []
        ended, stopping = self.steps.pop(0)
        if ended is not None:
            if self._speculates:
                stopping = [request for request in ended.requests if _is_due_to_stop(self._scenario, request)]
            done = scheduler.finish(ended.first_step, float(tick), stopping)
        while self.steps and self.steps[0][0] is None:
            self.steps.pop(0)
        return done


class _Coming:
    """Requests whose KV is on its way, and the tick before which it is there."""

    def __init__(self, scenario: Scenario, elsewhere: Elsewhere | None) -> None:
        self.requests: list[tuple[int, Request]] = []
        self._scenario = scenario
        self._elsewhere = elsewhere

    def expect(self, request: Request) -> None:
        if self._scenario.arrivals[request.index].elsewhere is not None:
            assert self._elsewhere is not None
            self._elsewhere.expect(request)

    def receive(self, tick: int) -> None:
        for _, request in [one for one in self.requests if one[0] <= tick]:
            assert self._elsewhere is not None
            self._elsewhere.receive(request)
        self.requests = [one for one in self.requests if one[0] > tick]

    def take_reserved(self, tick: int) -> None:
        for request in [] if self._elsewhere is None else self._elsewhere.take_reserved():
            takes = self._scenario.arrivals[request.index].elsewhere
            assert takes is not None
            self.requests.append((tick + 1 + takes, request))


def cached_blocks(scenario: Scenario, scheduler: RequestScheduler) -> tuple[int, ...]:
    """How many blocks of each request's known hashes a scheduler would find, from the first on, [n_arrivals]."""
    return tuple(scheduler.cached_blocks(arrival.hashes) for arrival in scenario.arrivals)


def _batch(plan: StepPlan) -> tuple[tuple[str, int, int], ...]:
    columns = zip(plan.requests, plan.new_tokens.tolist(), plan.computed_tokens.tolist(), strict=True)
    return tuple((request.row.request_id, new, computed) for request, new, computed in columns)


def _stopping(
    scenario: Scenario, plan: StepPlan, batch: tuple[tuple[str, int, int], ...], due: dict[str, int]
) -> list[Request]:
    """Requests whose token of this step is the one that ends them; `due` counts the tokens planned so far."""
    stopping = []
    for request, (request_id, new, computed) in zip(plan.requests, batch, strict=True):
        if computed + new < due[request_id]:
            continue
        due[request_id] += 1
        arrival = scenario.arrivals[request.index]
        if due[request_id] - arrival.prompt == arrival.stops_after:
            stopping.append(request)
    return stopping


def _is_due_to_stop(scenario: Scenario, request: Request) -> bool:
    """Whether a request ends with the next token that comes, where it is not known beforehand when tokens do."""
    stops_after = scenario.arrivals[request.index].stops_after
    return stops_after is not None and request.num_tokens - request.row.prompt_tokens >= stops_after - 1


def draw_scenario(pick: Pick) -> Scenario:
    """A scenario of an engine that is too small for its requests, from any source of integers."""
    size = (16, 32)[pick(0, 1)]
    seats = pick(1, 12)
    chunked = pick(0, 4) < 4
    options = EngineOptions(
        max_num_seqs=seats,
        max_num_batched_tokens=max(pick(16, 160), seats) if chunked else LONGEST + pick(0, 100),
        block_size=size,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=pick(0, 9) < 8,
        long_prefill_token_threshold=(0, 0, 10, 40)[pick(0, 3)],
        scheduling_policy="priority" if pick(0, 1) else "fcfs",
        scheduler_reserve_full_isl=pick(0, 9) < 7,
        async_scheduling=bool(pick(0, 1)),
    )
    arrivals = []
    tick = 0
    for index in range(pick(1, 36)):
        tick += pick(0, 6) if pick(0, 9) < 6 else 0
        arrivals.append(_draw_arrival(pick, index, tick, size))
    return Scenario(
        options=options,
        num_gpu_blocks=-(-LONGEST // size) + 1 + pick(0, 20),
        max_model_len=4096 if chunked else LONGEST,
        arrivals=tuple(arrivals),
    )


def draw_newer_options(pick: Pick, scenario: Scenario) -> Scenario:
    """The same with options that vLLM has since 0.24 and 0.31."""
    options = msgspec.structs.replace(
        scenario.options,
        watermark=(0.0, 0.0, 0.05, 0.2)[pick(0, 3)],
        max_num_active_seqs=pick(1, scenario.options.max_num_seqs) if pick(0, 1) else None,
        long_prefill_token_threshold_adaptive=bool(pick(0, 1)),
    )
    return msgspec.structs.replace(scenario, options=options)


def draw_drafter(pick: Pick, scenario: Scenario) -> Scenario:
    """The same with a drafter; sometimes the context ends where requests do."""
    options = scenario.options
    k = pick(1, 5)
    method = ("eagle", "draft_model", "mtp", "eagle3", "ngram")[pick(0, 3 + (not options.async_scheduling))]
    drafter = SpeculativeConfig(
        method=method,  # type: ignore[arg-type]
        num_speculative_tokens=k,
        acceptance_rates=tuple(sorted((pick(0, 10) / 10 for _ in range(k)), reverse=True)),
        draft_s=0.0,
        draft_rate=pick(2, 10) / 10 if method == "ngram" else None,
        disable_eagle_block_drop=method == "eagle" and pick(0, 2) == 2,
    )
    budget = max(options.max_num_batched_tokens, k + 2)
    is_short = not options.enable_chunked_prefill or pick(0, 1) == 1
    return msgspec.structs.replace(
        scenario,
        options=msgspec.structs.replace(options, speculative_config=drafter, max_num_batched_tokens=budget),
        max_model_len=LONGEST if is_short else scenario.max_model_len,
        num_gpu_blocks=scenario.num_gpu_blocks + (0 if is_short else 3),
    )


def draw_stages(pick: Pick, scenario: Scenario) -> Scenario:
    """The same in a pipeline; with drafts, planned ahead of its outputs."""
    options = scenario.options
    if options.speculative_config is not None and options.speculative_config.method != "ngram":
        options = msgspec.structs.replace(options, async_scheduling=True)
    is_one = options.speculative_config is not None and not options.async_scheduling
    return msgspec.structs.replace(scenario, options=options, pipeline_parallel_size=1 if is_one else pick(2, 4))


def draw_elsewhere(pick: Pick, scenario: Scenario) -> Scenario:
    """The same with prompts that another engine computed; their clients stay."""
    arrivals = []
    for arrival in scenario.arrivals:
        is_here = arrival.prompt < 2 or pick(0, 2) == 0
        later = msgspec.structs.replace(arrival, elsewhere=pick(0, 12), aborted=None)
        arrivals.append(arrival if is_here else later)
    return msgspec.structs.replace(scenario, arrivals=tuple(arrivals))


def _draw_arrival(pick: Pick, index: int, tick: int, size: int) -> Arrival:
    prompt = _draw_length(pick, size, 240)
    output = min(_draw_length(pick, size, 120), LONGEST - prompt)
    if pick(0, 9) == 9:
        prompt = LONGEST - output
    full = (prompt + output) // size
    group, shared, known = pick(1, 2), max(pick(0, full), pick(0, full)), pick(0, full)
    return Arrival(
        tick=tick,
        prompt=prompt,
        output=output,
        hashes=tuple(1000 * group + j if j < shared else 10**6 * (index + 1) + j for j in range(max(shared, known))),
        priority=pick(0, 3),
        stops_after=pick(1, output) if pick(0, 7) == 7 else None,
        aborted=tick + pick(0, 40) if pick(0, 5) == 5 else None,
        aborted_under_way=bool(pick(0, 1)),
    )


def _draw_length(pick: Pick, size: int, longest: int) -> int:
    """Any length, or one at the edge of a block, where most rules tell."""
    if pick(0, 1):
        return max(1, size * pick(0, longest // size) + pick(-1, 1))
    return pick(1, longest)


def _row(index: int, arrival: Arrival) -> TraceRow:
    return TraceRow(
        request_id=str(index),
        arrival_s=float(arrival.tick),
        prompt_tokens=arrival.prompt,
        output_tokens=arrival.output,
        priority=arrival.priority,
    )


def _abort(
    scenario: Scenario, requests: dict[int, Request], scheduler: RequestScheduler, tick: int, *, under_way: bool
) -> None:
    for index, arrival in enumerate(scenario.arrivals):
        if arrival.aborted == tick and arrival.aborted_under_way == under_way:
            scheduler.abort(requests[index], float(tick))
