"""What a step takes beside its operators, from whole steps that were measured with the profile."""

from __future__ import annotations

import numpy as np

from profiles.attention import Chunk
from profiles.profile import Profile, StepRows
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.steps.experts import ExpertTimes
from simulator.steps.operator_model import OperatorModel
from simulator.steps.partition import Partition
from simulator.steps.step_time import Overhead
from traces.steps import Floats


def profile_overhead(
    profile: Profile, num_layers: int, tensor_parallel_size: int = 1, experts: ExpertTimes | None = None
) -> Overhead:
    """The median of `whole step - composed operators`; what the profile states when it holds no whole steps, or none.

    `whole step = operators + device_step_s + host_request_s * requests`, by the Theil-Sen estimator (Sen, JASA 63,
    1968), so that disturbed shots have no say. It was measured with the profile, on no served request, and can be
    below zero where timing each operator slowed it down. Whole steps of a tensor-parallel rank are those of its share
    of the model on one device: nothing of them is communication.
    """
    tables = profile.tables.get(tensor_parallel_size)
    steps = None if tables is None else tables.steps
    if steps is None:
        stated = profile.meta.overhead
        return Overhead() if stated is None else Overhead(host_step_s=stated.host_step_s, source=stated.source)
    plans = [_plan(steps, i) for i in range(len(steps.step_s))]
    options = EngineOptions(
        max_num_seqs=max(plan.n_requests for plan in plans),
        max_num_batched_tokens=max(plan.n_tokens for plan in plans),
        enforce_eager=True,
    )
    partition = Partition(tensor_parallel_size)
    bare = OperatorModel(profile, options, num_layers=num_layers, partition=partition, experts=experts)
    residual_s = steps.step_s - np.array([bare.price(plan).device_s[0] for plan in plans])
    slope_s = theil_sen_slope(steps.n_requests, residual_s)
    step_s = float(np.median(residual_s - slope_s * steps.n_requests))
    source = f"{len(plans)} whole steps measured with the profile"
    return Overhead(device_step_s=step_s, host_request_s=slope_s, source=source)


def theil_sen_slope(x: Floats, y: Floats) -> float:
    """Median of the slopes between all two points of different x, [n] each; 0 where all have the same.

    `scipy.stats.theilslopes` says the same, and takes half a second to import: more than most runs take.
    """
    run = x[:, None] - x
    rise = (y[:, None] - y)[run > 0]
    return float(np.median(rise / run[run > 0])) if len(rise) else 0.0


def _plan(steps: StepRows, i: int) -> StepPlan:
    """One measured batch as a plan."""
    chunk = Chunk(int(steps.prefill_tokens[i]), int(steps.prefill_kv_tokens[i]))
    n_decode, kv = int(steps.n_decode[i]), int(steps.decode_kv_tokens[i])
    return StepPlan(
        first_step=0,
        repeat=1,
        requests=[],
        new_tokens=np.zeros(0, dtype=np.int64),
        computed_tokens=np.zeros(0, dtype=np.int64),
        n_requests=int(steps.n_requests[i]),
        chunks=[chunk] if chunk.new_tokens else [],
        n_prefill_tokens=chunk.new_tokens,
        n_decode=n_decode,
        decode_kv_sum=n_decode * kv,
        decode_kv_max=kv,
    )
