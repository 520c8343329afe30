"""The step-time model composed of measured operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from profiles.attention import AttentionTable
from profiles.compiled import compiled_attention
from profiles.flash_attention import FlashAttention2, UnequalDecodes
from profiles.interpolation import interpolate
from profiles.profile import Curve, OperatorTables, Profile
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.steps.experts import ExpertTimes
from simulator.steps.layer_attention import LayerAttention
from simulator.steps.partition import ALONE, Communication, Partition, stage_layers
from simulator.steps.step_time import OperatorTimes, Overhead, StepCost
from traces.errors import ProfileError
from traces.steps import Floats, Ints


class OperatorModel:
    """Steps composed of measured operators: what runs once, what runs per layer, what runs per request.

    A transformer's layers are alike, so that one layer's operators are measured and counted `num_layers` times.
    Token-wise operators see the step's tokens, padded to the next captured CUDA graph size where there is one;
    attention sees the batch itself; the logits and the sampler see one row per request (vLLM 0.19
    `v1/worker/gpu_model_runner.py`: `logits_indices` has one entry per request, unfinished chunks included).

    Attributes:
        overhead: what a step takes beside its operators.
        stage_layers: layers of each pipeline stage.
        reads_batches: whether it looks at each request's history.
    """

    def __init__(
        self,
        profile: Profile,
        options: EngineOptions,
        *,
        num_layers: int,
        partition: Partition = ALONE,
        talk: Communication | None = None,
        experts: ExpertTimes | None = None,
        overhead: Overhead | None = None,
        kernel: FlashAttention2 | None = None,
    ) -> None:
        """Compile the tables.

        Args:
            profile: of the device and the model.
            options: of the engine.
            num_layers: of the model.
            partition: how it is spread over devices.
            talk: what the devices take to communicate; None: nothing, or it is within what was measured.
            experts: time of one layer's experts; needed where the profile's composition has them.
            overhead: what a step takes beside its operators.
            kernel: of the engine's attention, where it is known; None: what unequal decodes cost is the profile's say.

        Raises:
            ProfileError: the profile lacks an operator or the parallel degree.
        """
        degree = partition.tensor_parallel_size
        if degree not in profile.tables:
            degrees = ", ".join(str(degree) for degree in sorted(profile.tables))
            raise ProfileError(file=profile.path, field="tp", found=degree, accepted=f"a measured degree: {degrees}")
        tables = profile.tables[degree]
        composition = profile.meta.composition
        in_layers, once = Counter(composition.per_layer), Counter(composition.once)
        has_experts = bool(in_layers.pop("moe", 0))
        if has_experts and experts is None:
            raise ProfileError(
                "needs the time of experts", file=profile.path, field="composition.per_layer", found="moe"
            )
        self._experts = experts if has_experts else None
        self._num_layers = num_layers
        self._has_attention = bool(in_layers.pop("attention", 0))
        self._attention = _attention(tables, kernel)
        self.reads_batches = self._attention.reads_batches
        most = options.max_num_batched_tokens
        layers = Counter({name: count * num_layers for name, count in in_layers.items()})
        layers_s, largest = compiled(layers, tables.dense, most)
        once_s, self._largest_tokens = compiled(once, tables.dense, most)
        self._largest_tokens = min(self._largest_tokens, largest)
        per_request = Counter(composition.per_request)
        requests_s, self._largest_requests = compiled(per_request, tables.per_request, options.max_num_seqs)
        # Plain numbers: a step reads one of each, which is no work for numpy.
        self._once_s: list[float] = once_s.tolist()
        self._tokens_s: list[float] = (layers_s + once_s).tolist()
        self._requests_s: list[float] = requests_s.tolist()
        self._padded: list[int] = _padding(options.capture_sizes(), most).tolist()
        self._largest_graph = max(options.capture_sizes(), default=0)
        self.overhead = overhead or Overhead()
        self._talk = talk
        # vLLM 0.32 v1/worker/gpu_worker.py: `execute_dummy_batch` is of `uniform_decode_query_len` tokens.
        drafter = options.speculative_config
        self._dummy_tokens = 1 if drafter is None else 1 + drafter.num_speculative_tokens
        self.stage_layers = stage_layers(num_layers, partition.pipeline_parallel_size)
        self._partition = partition
        self._outside: Counter[str] = Counter()
        self._steps = 0

    def price(self, plan: StepPlan, attending: StepPlan | None = None) -> StepCost:
        """Seconds of each repeat of the plan, [repeat].

        Args:
            plan: the batch.
            attending: what of it has its attention computed on the device, other ranks' parts alongside; None: all.
        """
        attending = attending or plan
        each = (attending, *attending.alongside)
        decodes = 0 if any(one.chunks for one in each) else self._padded[max([one.n_decode for one in each])]
        attention_s = self._attention.time_s(attending, plan.repeat, max(decodes, attending.n_decode))
        for other in attending.alongside:
            # Ranks that step together wait for each other in every layer.
            other_s = self._attention.time_s(other, plan.repeat, max(decodes, other.n_decode))
            attention_s = np.maximum(attention_s, other_s)
        n_tokens, n_requests = plan.n_tokens, plan.n_requests
        for other in plan.alongside:
            n_tokens, n_requests = max(n_tokens, other.n_tokens), max(n_requests, other.n_requests)
        attention_s = attention_s * (self._num_layers if self._has_attention else 0)
        padded = self._padded[n_tokens]
        dense_s, bare_s = self._tokens_s[padded], self._tokens_s[n_tokens]
        per_request_s = self._requests_s[n_requests]
        device_s = attention_s + (dense_s + per_request_s + self.overhead.device_step_s)
        moe_s: float | Floats = 0.0
        talk_s, entering = 0.0, 0
        if self._experts is not None:
            entering = self._tokens_of_experts(plan)
            moe_s = self._experts.layers_s(entering, plan.first_step, plan.repeat)
            device_s = device_s + moe_s
        if self._talk is not None:
            talk_s = self._talk_s(self._talk, padded, entering, n_requests)
            device_s = device_s + talk_s
        host_s = self.overhead.host_step_s + self.overhead.host_request_s * n_requests
        each_s = _each(attention_s, plan.repeat)
        operators = OperatorTimes(dense_s, dense_s - bare_s, each_s, per_request_s, moe_s, talk_s)
        cost = StepCost(_each(device_s, plan.repeat), _each(host_s, plan.repeat), operators)
        if len(self.stage_layers) == 1:
            return cost
        return replace(cost, stages=self._stages(float(cost.device_s[0]), padded, n_requests))

    def _talk_s(self, talk: Communication, padded: int, entering: int, n_requests: int) -> float:
        """What the devices take to communicate in a step."""
        in_layer_s = talk.layer_s.item(padded) + talk.experts_s.item(entering)
        talk_s = self._num_layers * in_layer_s + talk.once_s.item(padded)
        return talk_s + (talk.request_s.item(n_requests) + (len(self.stage_layers) - 1) * talk.stage_s.item(padded))

    def _tokens_of_experts(self, plan: StepPlan) -> int:
        """Tokens that enter a layer's experts, of all ranks; one without requests computes a dummy decode.

        Ranks pad to the largest where all of them run a CUDA graph, and else each for itself
        (vLLM 0.32 `v1/worker/dp_utils.py::coordinate_batch_across_dp`); then to equal shares where devices split them.
        """
        tokens = [plan.n_tokens, *(other.n_tokens for other in plan.alongside)]
        ranks, entering = self._partition.data_parallel_size, self._partition.entering
        tokens += [self._dummy_tokens] * (ranks - len(tokens))
        largest = max(tokens)
        if largest <= self._largest_graph:
            return entering(self._padded[largest]) * ranks
        return sum(entering(self._padded[n]) for n in tokens)

    def _stages(self, device_s: float, padded: int, n_requests: int) -> tuple[float, ...]:
        """Share of a step that each pipeline stage takes: its layers, and at the ends what runs once."""
        first_s, sent_s = self._once_s[padded], 0.0
        last_s = self._requests_s[n_requests] + self.overhead.device_step_s
        if self._talk is not None:
            first_s, sent_s = first_s + self._talk.once_s[padded], self._talk.stage_s[padded]
            last_s += self._talk.request_s[n_requests]
        in_layers_s = device_s - first_s - last_s - (len(self.stage_layers) - 1) * sent_s
        stages_s = [in_layers_s * layers / self._num_layers + sent_s for layers in self.stage_layers]
        stages_s[0] += first_s - sent_s
        stages_s[-1] += last_s
        return tuple(float(stage_s / device_s) for stage_s in stages_s)

    def count(self, plan: StepPlan, times: int, attending: StepPlan | None = None) -> None:
        """Count `times` steps of this plan, and what of them is beyond the measured range; `attending` as `price`."""
        self._steps += times
        attending = attending or plan
        tokens, history, decodes, decode_history = self._attention.table.largest
        beyond, longest = set(), 0
        for one in (plan, *plan.alongside):
            if one.n_tokens > self._largest_tokens:
                beyond.add("tokens per step")
            if one.n_requests > self._largest_requests:
                beyond.add("requests per step")
        for one in (attending, *attending.alongside):
            if one.n_prefill_tokens > tokens:
                beyond.add("attention: prefill tokens")
            if one.n_decode > decodes:
                beyond.add("attention: decodes")
            for chunk in one.chunks:
                if chunk.computed_tokens > history:
                    beyond.add("attention: prefill history")
            longest = max(longest, one.decode_kv_max)
        for what in beyond:
            self._outside[what] += times
        # Histories grow by a token with each step.
        left = int(decode_history) - longest
        if left < times - 1:
            self._outside["attention: decode history"] += min(times, times - 1 - left)
        if self._experts is not None:
            self._experts.count(self._tokens_of_experts(plan), times)

    def notes(self) -> tuple[str, ...]:
        """What of the profile was not measured, and how many steps were priced beyond its range, by axis."""
        outside = [
            f"{count} of {self._steps} steps priced beyond the profile's measured range: {what}"
            for what, count in sorted(self._outside.items())
        ]
        if filled := self._attention.table.filled_corners:
            outside.append(f"{filled} corners of the profile's mixed attention grid were filled from their neighbours")
        return tuple(outside) + (self._experts.notes() if self._experts is not None else ())


def _attention(tables: OperatorTables, kernel: FlashAttention2 | None) -> LayerAttention:
    """One layer's, with what the profile says of unequal decodes, or what the kernel makes of them."""
    if kernel is None:
        table = AttentionTable(compiled_attention(tables.attention, tables.skew))
        return LayerAttention(table, None)
    table = AttentionTable(compiled_attention(tables.attention))
    return LayerAttention(table, UnequalDecodes(kernel, table))


def _each(seconds: float | Floats, repeat: int) -> Floats:
    """The same for each repeat, [repeat], unless there is one for each already."""
    if isinstance(seconds, np.ndarray):
        return seconds
    return np.array([seconds]) if repeat == 1 else np.full(repeat, seconds)


def compiled(counts: Counter[str], curves: dict[str, Curve], largest: int) -> tuple[Floats, float]:
    """Seconds of all counted operators together for 0..largest tokens (or requests), and the largest measured.

    Piecewise linear between measured points; none below the smallest; linear from the last two beyond the largest.
    """
    at = np.arange(largest + 1, dtype=np.float64)
    total = np.zeros(largest + 1)
    measured = np.inf
    for name, count in counts.items():
        curve = curves[name]
        total += count * interpolate(curve.x, curve.time_s, at)
        measured = min(measured, float(curve.x[-1]))
    total[0] = 0.0
    return total, measured


def _padding(sizes: tuple[int, ...], largest: int) -> Ints:
    """Tokens that a step of 0..largest tokens computes, padding to captured CUDA graph sizes included."""
    padded = np.arange(largest + 1)
    if sizes:
        graphs = np.asarray(sizes)
        inside = padded <= graphs[-1]
        padded[inside] = graphs[np.searchsorted(graphs, padded[inside])]
    return padded
