"""Where a twin's error comes from: which stage, which part of a step, which kind of batch, which requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.causes import capacity_causes, request_causes, step_causes
from calibrate.explain import Cause
from calibrate.kv_transfer import Sent, transfer_causes
from calibrate.parameters import Basis
from calibrate.pricing import Priced
from calibrate.repricing import all_priced, has_batches
from calibrate.served import Served
from simulator.engine import Engine
from simulator.steps.correction import AXES, CorrectedModel
from traces.capture import Capture
from traces.metrics import requests
from traces.outcome import Outcome
from traces.steps import Floats, Ints, Mask

WORST = 10


@dataclass(frozen=True, slots=True)
class StageError:
    """A stage's part in the error of a metric's mean.

    Attributes:
        error_s: simulated - measured, mean over the requests.
        share: of the metric's measured mean; the stages' shares add up to the metric's error.
    """

    error_s: float
    share: float


@dataclass(frozen=True, slots=True)
class Group:
    """Recorded steps of one kind, priced at the batches that were recorded; or requests of one kind, while they decode.

    Attributes:
        label: what they have in common.
        n: how many.
        measured_s: their time.
        error: (simulated - measured) / measured of their total.
        share: the same over all groups' time: the shares add up to the whole error.
    """

    label: str
    n: int
    measured_s: float
    error: float
    share: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request's stamps in seconds after its arrival; None where not recorded."""

    queued_s: float | None
    scheduled_s: float | None
    first_token_s: float | None
    finish_s: float | None
    cached_tokens: int | None
    num_preemptions: int | None


@dataclass(frozen=True, slots=True)
class WorstRequest:
    """A request whose E2EL is far off.

    Attributes:
        request_id: which.
        arrival_s: when it arrived.
        prompt_tokens: length of its prompt.
        output_tokens: length of its answer.
        error: (simulated - measured) / measured of its E2EL.
        stage: the stage with the largest part of that.
        measured: what became of it.
        simulated: what became of its twin.
    """

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    error: float
    stage: str
    measured: Timeline
    simulated: Timeline


@dataclass(frozen=True, slots=True)
class Attribution:
    """Where the error comes from.

    Attributes:
        stages: by metric and stage; empty where stages were not recorded.
        causes: parameters that would have to change, the largest first: classes of operators, overheads, KV capacity;
            behind them those of KV transfers, whose shares are of the transfers' own time.
        causes_from: the records they were told from.
        steps: by what they are grouped by; empty without step records.
        decode: requests by how many were served beside them, and by their history, while they decoded.
        worst: the requests with the largest relative error of E2EL.
    """

    stages: dict[str, dict[str, StageError]]
    causes: list[Cause]
    causes_from: str
    steps: dict[str, list[Group]]
    decode: dict[str, list[Group]]
    worst: list[WorstRequest]


def attribute(
    measured: Capture,
    served: Served,
    scored: Sequence[str],
    engine: Engine,
    basis: Basis,
    values: Mapping[str, float],
    sent: Sent | None = None,
) -> Attribution:
    """Attribute a twin's error.

    Args:
        measured: the real run.
        served: the twin's.
        scored: ids of the requests that count.
        engine: one of the twin's, which are alike.
        basis: what the step-time model is corrected by.
        values: of its parameters and the front end's, by name.
        sent: the measured KV transfers of the requests that count; None where there are none.
    """
    simulated, asynchronous = served.capture, engine.options.async_scheduling
    wanted = set(scored)
    outcomes = sorted((o for o in measured.outcomes if o.request_id in wanted), key=lambda o: o.arrival_s)
    own = served.twins(outcomes)
    pairs = [(outcome, simulated.outcomes[i]) for outcome, i in zip(outcomes, own, strict=True)]
    recorded = has_batches(measured, engine)
    causes = capacity_causes(measured, simulated, engine.num_gpu_blocks)
    groups: dict[str, list[Group]] = {}
    if recorded:
        model = engine.step_time
        parts = all_priced(measured, model.model if isinstance(model, CorrectedModel) else model, basis)
        causes += step_causes(parts, basis, values, asynchronous=asynchronous)
        groups = step_groups(parts, basis, values, asynchronous=asynchronous)
    else:
        causes += request_causes(outcomes, served, basis, values, asynchronous=asynchronous)
    if sent is not None:
        causes += transfer_causes(sent, values)
    decode = _decode_groups(pairs, served, own)
    return Attribution(_stages(pairs), causes, "steps" if recorded else "requests", groups, decode, _worst(pairs))


def step_groups(
    parts: Sequence[Priced], basis: Basis, values: Mapping[str, float], *, asynchronous: bool
) -> dict[str, list[Group]]:
    """Recorded steps by kind, by requests, by tokens and by history, each with its part in the error."""
    changes = basis.changes(values)
    priced_s = np.concatenate([part.corrected_s(changes, asynchronous=asynchronous) for part in parts])
    cycle_s = np.concatenate([part.cycle_s for part in parts])
    tokens, prefill_tokens, n_requests, kv_tokens = np.concatenate([part.axes for part in parts]).T
    kinds = np.where(prefill_tokens == 0, 0, np.where(tokens > prefill_tokens, 2, 1))
    labels = ("decode only", "prefill only", "both")
    return {
        "kind": _groups([(labels[k], kinds == k) for k in range(3)], cycle_s, priced_s),
        "requests": _groups(_powers(n_requests), cycle_s, priced_s),
        "tokens": _groups(_powers(tokens), cycle_s, priced_s),
        "history per request": _groups(_powers(kv_tokens / np.maximum(n_requests, 1)), cycle_s, priced_s),
    }


def _decode_groups(pairs: list[tuple[Outcome, Outcome]], served: Served, own: Ints) -> dict[str, list[Group]]:
    """Decode times by the mean number of requests in the twin's steps meanwhile, and by the mean history."""
    before, after = requests([pair[0] for pair in pairs]), requests([pair[1] for pair in pairs])
    known = np.isfinite(before.decode_s) & np.isfinite(after.decode_s) & (before.decode_s > 0)
    if not known.any():
        return {}
    beside = np.zeros(len(pairs))
    for number, priced in enumerate(served.priced):
        total = np.concatenate([[0.0], np.cumsum(priced.axes[:, AXES.index("requests per step")])])
        for i in np.flatnonzero(known & (served.engine[own] == number)):
            twin = pairs[i][1]
            first, last = np.searchsorted(priced.end_s, np.array([twin.first_token_s, twin.finish_s], dtype=np.float64))
            beside[i] = (total[last + 1] - total[first + 1]) / max(last - first, 1)
    history = np.array([pair[0].prompt_tokens + pair[0].output_tokens / 2 for pair in pairs])
    return {
        "requests": _groups(_powers(beside[known]), before.decode_s[known], after.decode_s[known]),
        "history per request": _groups(_powers(history[known]), before.decode_s[known], after.decode_s[known]),
    }


def _powers(values: Floats | Ints) -> list[tuple[str, Mask]]:
    """Bins that double: 0, 1, 2-3, 4-7, ..."""
    exponent = np.where(values < 1, -1, np.floor(np.log2(np.maximum(values, 1)))).astype(np.int64)
    found = []
    for k in np.unique(exponent).tolist():
        low, high = (0, 0) if k < 0 else (2**k, 2 ** (k + 1) - 1)
        found.append((str(low) if low == high else f"{low} to {high}", exponent == k))
    return found


def _groups(masks: list[tuple[str, Mask]], measured_s: Floats, priced_s: Floats) -> list[Group]:
    total = float(measured_s.sum())
    groups = []
    for label, own in masks:
        if own.any():
            time_s, off_s = float(measured_s[own].sum()), float((priced_s - measured_s)[own].sum())
            groups.append(Group(label, int(own.sum()), time_s, off_s / time_s, off_s / total))
    return groups


_STAGES_OF = {
    "ttft_s": ("queue_s", "prefill_s"),
    "tpot_s": ("decode_s",),
    "e2el_s": ("queue_s", "prefill_s", "decode_s"),
}


def _stages(pairs: list[tuple[Outcome, Outcome]]) -> dict[str, dict[str, StageError]]:
    """Errors of means are additive: those of the stages add up to their metric's."""
    before, after = requests([pair[0] for pair in pairs]), requests([pair[1] for pair in pairs])
    gaps = np.array([pair[0].output_tokens - 1 for pair in pairs], dtype=np.float64)
    found: dict[str, dict[str, StageError]] = {}
    for metric, stages in _STAGES_OF.items():
        scale = np.where(gaps > 0, 1 / np.maximum(gaps, 1), np.nan) if metric == "tpot_s" else np.ones(len(pairs))
        whole = getattr(before, metric)
        offs = {stage: (getattr(after, stage) - getattr(before, stage)) * scale for stage in stages}
        known = np.isfinite(whole) & np.all([np.isfinite(off) for off in offs.values()], axis=0)
        if known.any():
            mean_s = float(whole[known].mean())
            means = {stage: float(off[known].mean()) for stage, off in offs.items()}
            found[metric] = {stage: StageError(off_s, off_s / mean_s) for stage, off_s in means.items()}
    return found


def _worst(pairs: list[tuple[Outcome, Outcome]]) -> list[WorstRequest]:
    before, after = requests([pair[0] for pair in pairs]), requests([pair[1] for pair in pairs])
    error = np.where(before.e2el_s > 0, after.e2el_s / before.e2el_s - 1, np.nan)
    order = [int(i) for i in np.argsort(-np.abs(error), kind="stable") if np.isfinite(error[i])]
    found = []
    for i in order[:WORST]:
        outcome, twin = pairs[i]
        offs = {stage: getattr(after, stage)[i] - getattr(before, stage)[i] for stage in _STAGES_OF["e2el_s"]}
        known = {stage: abs(off) for stage, off in offs.items() if np.isfinite(off)}
        stage = max(known, key=lambda name: known[name]) if known else "unknown"
        found.append(
            WorstRequest(
                outcome.request_id,
                outcome.arrival_s,
                outcome.prompt_tokens,
                outcome.output_tokens,
                float(error[i]),
                stage,
                _timeline(outcome),
                _timeline(twin),
            )
        )
    return found


def _timeline(outcome: Outcome) -> Timeline:
    def after(stamp_s: float | None) -> float | None:
        return None if stamp_s is None else stamp_s - outcome.arrival_s

    return Timeline(
        after(outcome.queued_s),
        after(outcome.scheduled_s),
        after(outcome.first_token_s),
        after(outcome.finish_s),
        outcome.cached_tokens,
        outcome.num_preemptions,
    )
