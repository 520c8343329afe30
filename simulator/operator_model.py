"""The step-time model composed of measured operators."""

from __future__ import annotations

from collections import Counter

import numpy as np

from profiles.attention import AttentionTable
from profiles.interpolation import interpolate
from profiles.profile import Curve, Profile
from simulator.options import EngineOptions
from simulator.plan import StepPlan
from simulator.step_time import Overhead, StepCost
from traces.errors import ProfileError
from traces.steps import Floats, Ints


class OperatorModel:
    """Steps composed of measured operators: what runs once, what runs per layer, what runs per request.

    A transformer's layers are alike, so that one layer's operators are measured and counted `num_layers` times.
    Token-wise operators see the step's tokens, padded to the next captured CUDA graph size where there is one;
    attention sees the batch itself; the logits and the sampler see one row per request (vLLM 0.19
    `v1/worker/gpu_model_runner.py`: `logits_indices` has one entry per request, unfinished chunks included).
    """

    def __init__(
        self,
        profile: Profile,
        options: EngineOptions,
        *,
        num_layers: int,
        tensor_parallel_size: int = 1,
        overhead: Overhead | None = None,
    ) -> None:
        """Compile the tables. Raises ProfileError when the profile lacks an operator or the parallel degree."""
        if tensor_parallel_size not in profile.tables:
            degrees = ", ".join(str(degree) for degree in sorted(profile.tables))
            raise ProfileError(
                file=profile.path, field="tp", found=tensor_parallel_size, accepted=f"a measured degree: {degrees}"
            )
        tables = profile.tables[tensor_parallel_size]
        composition = profile.meta.composition
        if "moe" in composition.per_layer:
            raise ProfileError(
                "mixture-of-experts models need expert routing, which this version does not model",
                file=profile.path,
                field="composition.per_layer",
                found="moe",
            )
        counts: Counter[str] = Counter()
        for name in composition.per_layer:
            counts[name] += num_layers
        for name in composition.once:
            counts[name] += 1
        self._num_layers = counts.pop("attention", 0)
        self._attention = AttentionTable(tables.attention, tables.skew)
        self._tokens_s, self._largest_tokens = _compiled(counts, tables.dense, options.max_num_batched_tokens)
        per_request = Counter(composition.per_request)
        self._requests_s, self._largest_requests = _compiled(per_request, tables.per_request, options.max_num_seqs)
        self._padded = _padding(options.capture_sizes(), options.max_num_batched_tokens)
        self._overhead = overhead or Overhead()
        self._outside: Counter[str] = Counter()
        self._steps = 0

    def price(self, plan: StepPlan) -> StepCost:
        """Seconds of each repeat of the plan, [repeat]."""
        repeats = np.arange(plan.repeat)
        device_s = self._attention_s(plan, repeats) * self._num_layers
        device_s += (
            self._tokens_s[self._padded[plan.n_tokens]]
            + self._requests_s[plan.n_requests]
            + self._overhead.device_step_s
        )
        host_s = self._overhead.host_step_s + self._overhead.host_request_s * plan.n_requests
        return StepCost(device_s, np.full(plan.repeat, host_s))

    def _attention_s(self, plan: StepPlan, repeats: Ints) -> Floats:
        """One layer's attention, [repeat]."""
        if not plan.n_decode:
            return np.array([self._attention.prefill_s(plan.chunks)])
        mean_kv = (plan.decode_kv_sum + repeats * plan.n_decode) / plan.n_decode
        max_kv = (plan.decode_kv_max + repeats).astype(np.float64)
        if not plan.chunks:
            return self._attention.decode_s(plan.n_decode, mean_kv, max_kv)
        return np.array([self._attention.mixed_s(plan.chunks, plan.n_decode, mean_kv[0], max_kv[0])])

    def count(self, plan: StepPlan, times: int) -> None:
        """Count `times` steps of this plan, and what of them lies outside the measured range."""
        self._steps += times
        tokens, history, decodes, decode_history = self._attention.largest
        beyond = {
            "tokens per step": plan.n_tokens > self._largest_tokens,
            "requests per step": plan.n_requests > self._largest_requests,
            "attention: prefill tokens": plan.n_prefill_tokens > tokens,
            "attention: prefill history": any(chunk.computed_tokens > history for chunk in plan.chunks),
            "attention: decodes": plan.n_decode > decodes,
            "attention: decode history": plan.decode_kv_max > decode_history,
        }
        for what, is_beyond in beyond.items():
            if is_beyond:
                self._outside[what] += times

    def notes(self) -> tuple[str, ...]:
        """What of the profile was not measured, and how many steps were priced beyond its range, by axis."""
        outside = [
            f"{count} of {self._steps} steps priced beyond the profile's measured range: {what}"
            for what, count in sorted(self._outside.items())
        ]
        if filled := self._attention.filled_corners:
            outside.append(f"{filled} corners of the profile's mixed attention grid were filled from their neighbours")
        return tuple(outside)


def _compiled(counts: Counter[str], curves: dict[str, Curve], largest: int) -> tuple[Floats, float]:
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
