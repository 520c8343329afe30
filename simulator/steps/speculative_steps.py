"""What steps take where tokens are drafted: drafts are verified beside the last tokens, and new ones are drafted.

Dense operators compute all tokens of a step, drafted ones too, padded as any others. Logits and sampler have a row for
each token that is verified. Of attention two times are known, and both are bounds from below: a request with k drafts
has to read its KV once, as a decode does; and it computes as many pairs as a chunk of 1 + k tokens. A step takes the
longer of the two, which is the one or the other with all requests alike (a kernel that reads KV once for all queries of
a request, as FlashAttention with packed queries does, takes no longer than that on an idle device).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from profiles.model import ModelSpec
from profiles.profile import Profile
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan, plan_of
from simulator.scheduling.speculation import SpeculativeConfig
from simulator.steps.operator_model import OperatorModel, compiled
from simulator.steps.partition import Partition, communication
from simulator.steps.step_time import StepCost
from traces.steps import Floats, Ints


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Logits and sampler by rows, for 0 rows and more.

    Attributes:
        time_s: [most + 1] of the operators.
        talk_s: [most + 1] until the devices that share the logits have gathered them.
        largest: most rows that were measured.
    """

    time_s: Floats
    talk_s: Floats
    largest: float


def row_times(profile: Profile, model: ModelSpec, partition: Partition, options: EngineOptions) -> RowTimes:
    """Rows up to all seats with whole drafts: between measured points linear, beyond them as from the last two."""
    assert options.speculative_config is not None
    most = options.max_num_seqs * (1 + options.speculative_config.num_speculative_tokens)
    curves = profile.tables[partition.tensor_parallel_size].per_request
    total, largest = compiled(Counter(profile.meta.composition.per_request), curves, most)
    talk = communication(partition, model, options.dtype, max_tokens=0, max_requests=most)
    return RowTimes(total, talk.request_s, largest)


class DraftModel:
    """A model that drafts a token in each pass: the first over all tokens of the step, the others over one a request.

    vLLM 0.32 `v1/spec_decode/draft_model.py` and `llm_base_proposer.py`: in the first pass each request has one token
    more than in the model's own step; every pass ends with logits of one row a request. Passes are one after another,
    and behind the model's step.

    Attributes:
        model: of its passes.
        name: of the model.
        num_passes: in a step.
    """

    def __init__(self, model: OperatorModel, name: str, num_passes: int) -> None:
        self.model = model
        self.name = name
        self.num_passes = num_passes
        self.total_s = 0.0
        # The plan that was priced last: it is counted next.
        self._last: tuple[StepPlan, list[StepPlan], float] | None = None

    def plans(self, plan: StepPlan) -> list[StepPlan]:
        """The first pass of a step, and the others as one that is repeated."""
        assert plan.drafts is not None
        decodes = (plan.new_tokens == 1) | (plan.drafts > 0)
        first = _pass(plan, plan.new_tokens + 1, plan.computed_tokens, np.where(decodes, plan.new_tokens, 0))
        if self.num_passes == 1:
            return [first]
        ones, behind = np.ones_like(plan.new_tokens), plan.computed_tokens + plan.new_tokens + 1
        return [first, _pass(plan, ones, behind, np.zeros_like(ones), repeat=self.num_passes - 1)]

    def step_s(self, plan: StepPlan) -> float:
        """Seconds of all passes."""
        return self._priced(plan)[1]

    def count(self, plan: StepPlan, times: int) -> None:
        """Take note that a step of this plan was run so many times."""
        passes, step_s = self._priced(plan)
        for each in passes:
            self.model.count(each, times * each.repeat)
        self.total_s += times * step_s

    def _priced(self, plan: StepPlan) -> tuple[list[StepPlan], float]:
        """The passes of a step, and their seconds."""
        if self._last is None or self._last[0] is not plan:
            passes = self.plans(plan)
            costs = [bounded(self.model, each) for each in passes]
            self._last = plan, passes, float(sum(cost.device_s.sum() + cost.host_s.sum() for cost in costs))
        return self._last[1], self._last[2]

    def notes(self) -> list[str]:
        """What its passes took."""
        said = f"drafting by {self.name}, {self.num_passes} passes a step, takes {self.total_s:.3f} s in all"
        return [said, *(f"drafter: {note}" for note in self.model.notes())]


class SpeculativeModel:
    """A step-time model of an engine that drafts.

    Attributes:
        model: of steps without drafts.
        config: who drafts.
        drafter: its passes; None: what it takes is stated.
    """

    # Where tokens are drafted a scheduler always names its batches, so that they need not be kept for this.
    reads_batches = False

    def __init__(
        self, model: OperatorModel, config: SpeculativeConfig, rows: RowTimes, drafter: DraftModel | None = None
    ) -> None:
        self.model = model
        self.config = config
        self.drafter = drafter
        self._rows = rows
        self._steps = self._beyond = 0

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat of the plan, [repeat]; ranks that step together wait for the slowest of them."""
        cost = bounded(self.model, plan)
        times = cost.operators
        assert times is not None
        ranks = (plan, *plan.alongside)
        rows, requests = _rows(ranks), max([one.n_requests for one in ranks])
        rows_s = float(self._rows.time_s[rows] - self._rows.time_s[requests])
        talk_s = float(self._rows.talk_s[rows] - self._rows.talk_s[requests])
        operators = msgspec.structs.replace(
            times, per_request_s=times.per_request_s + rows_s, communication_s=times.communication_s + talk_s
        )
        stated_s = self.config.draft_s or 0.0
        draft_s = stated_s if self.drafter is None else max([self.drafter.step_s(one) for one in ranks])
        # Prompt lookup runs on the host, after the tokens of a step are known (vLLM 0.32 ngram_proposer.py).
        on_host_s = draft_s if self.config.method == "ngram" else 0.0
        behind_s = rows_s + talk_s + draft_s - on_host_s
        stages = _with_more_behind(cost.stages, float(cost.device_s[0]), behind_s)
        host_s = cost.host_s + on_host_s
        return replace(cost, device_s=cost.device_s + behind_s, host_s=host_s, operators=operators, stages=stages)

    def count(self, plan: StepPlan, times: int) -> None:
        """Take note that the plan was run so many times."""
        self.model.count(plan, times)
        ranks = (plan, *plan.alongside)
        if self.drafter is not None:
            self.drafter.count(max(ranks, key=self.drafter.step_s), times)
        self._steps += times
        has_drafts = any(one.n_draft_tokens for one in ranks)
        self._beyond += times * (has_drafts and _rows(ranks) > self._rows.largest)

    def notes(self) -> tuple[str, ...]:
        """The model's own, and what drafting was taken to cost."""
        if self.drafter is None:
            notes = [f"drafting by {self.config.method} takes {self.config.draft_s:g} s of each step, as stated"]
        else:
            notes = self.drafter.notes()
        if self._beyond:
            where = "tokens to verify per step (logits and sampler)"
            notes.append(f"{self._beyond} of {self._steps} steps priced beyond the profile's measured range: {where}")
        return (*self.model.notes(), *notes)


def _with_more_behind(stages: tuple[float, ...], device_s: float, behind_s: float) -> tuple[float, ...]:
    """Shares of pipeline stages where the last one, which verifies and drafts, takes so much longer."""
    if len(stages) == 1:
        return stages
    *others, last = (share * device_s for share in stages)
    return tuple(stage_s / (device_s + behind_s) for stage_s in (*others, last + behind_s))


def _rows(ranks: Sequence[StepPlan]) -> int:
    """Rows of logits and sampler on the rank that has most of them."""
    return max([one.n_requests + one.n_draft_tokens for one in ranks])


def bounded(model: OperatorModel, plan: StepPlan) -> StepCost:
    """Seconds of a plan: with its drafts attending as decodes, or as chunks, whichever takes longer."""
    cost = model.price(plan)
    if not any(one.n_draft_tokens for one in (plan, *plan.alongside)):
        return cost
    others = tuple(as_chunks(one) for one in plan.alongside)
    in_chunks = model.price(plan, attending=msgspec.structs.replace(as_chunks(plan), alongside=others))
    return cost if cost.device_s[0] >= in_chunks.device_s[0] else in_chunks


def as_chunks(plan: StepPlan) -> StepPlan:
    """The same batch with the requests that verify drafts as prefill chunks with their history."""
    return _pass(plan, plan.new_tokens, plan.computed_tokens, None, repeat=plan.repeat)


def _pass(plan: StepPlan, new_tokens: Ints, computed_tokens: Ints, drafts: Ints | None, *, repeat: int = 1) -> StepPlan:
    """The requests of a plan with other tokens."""
    return plan_of(
        plan.requests,
        new_tokens,
        computed_tokens,
        first_step=plan.first_step,
        repeat=repeat,
        drafts=drafts,
    )
