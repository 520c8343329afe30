"""Why a capture's times part from its twin's, by the records that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.explain import Cause, explain
from calibrate.fit_requests import request_equations
from calibrate.fit_steps import held_in, step_equations
from calibrate.parameters import Basis, array_of, within
from calibrate.pricing import Priced, floors
from calibrate.sensitivity import sensitivity
from calibrate.served import Served
from traces.capture import Capture
from traces.metrics import defined, requests
from traces.outcome import Outcome, Status

CAPACITY_TOLERANCE = 0.9
"""KV use that stays below this share of the twin's blocks while requests lack blocks means that there are fewer."""

CALIBRATE_AGAIN = "nothing: calibrate again; the engine, its driver or its host changed"

RE_PROFILE = {
    "operators": "the whole profile, once the device's clock, heat and neighbours are ruled out",
    "dense": "the token-wise operators (dense.csv)",
    "attention": "attention (attention.csv)",
    "moe": "the experts (moe.csv)",
    "communication": "the collectives",
    "per_request": "logits and sampler (per_request.csv)",
    "padding": "nothing: state the engine's cudagraph_capture_sizes",
    "front_end_s": "nothing: calibrate again; the server in front of the engine changed",
    "front_end_token_s": "nothing: calibrate again; the server in front of the engine changed",
    "num_gpu_blocks": "nothing: state num_gpu_blocks as the engine reports it",
    "kv_transfer_s": "nothing: calibrate again; the connector between prefill and decode, or its network, changed",
    "kv_transfer": "the bandwidth between prefill and decode instances, and who else uses it",
}
"""What to measure again when a part moved; `CALIBRATE_AGAIN` for any other."""


def step_causes(
    priced: Sequence[Priced], basis: Basis, values: Mapping[str, float], *, asynchronous: bool
) -> list[Cause]:
    """Which parameters would have to change for a capture's steps, of each instance, to be as priced."""
    equations = step_equations(priced, basis, asynchronous=asynchronous)
    parameters = within(basis.parameters, floors(priced))
    took_s = float(sum(part.cycle_s.sum() for part in priced))
    return explain(equations, parameters, values, held_in(asynchronous=asynchronous), took_s)


def request_causes(
    outcomes: Sequence[Outcome], served: Served, basis: Basis, values: Mapping[str, float], *, asynchronous: bool
) -> list[Cause]:
    """The same for requests in order of arrival, whose steps are known from their simulation only; to first order."""
    changes = basis.changes(values)
    rows = sensitivity(served, basis, changes, asynchronous=asynchronous)
    now = array_of(basis.with_front_end, values)
    lines = request_equations(outcomes, served, rows, now)
    parameters = within(basis.with_front_end, floors(served.priced))
    measured_s = float((lines.target - lines.design @ now + lines.scale).sum())
    return explain(lambda _: lines, parameters, values, held_in(asynchronous=asynchronous), measured_s)


def capacity_causes(measured: Capture, simulated: Capture | None, num_gpu_blocks: int) -> list[Cause]:
    """The KV capacity, where the records of one instance contradict the twin's `num_gpu_blocks`.

    A step that preempts, or that leaves requests waiting while seats and token budget are left, had no block to give:
    the most that were ever in use are then nearly all there are. Without step records, requests that wait longer than
    the twin's while fewer tokens are held tell the same, and the ratio of the two how many blocks there are.
    """
    in_use, most = _most_in_use(measured), num_gpu_blocks - 1
    if in_use is not None:
        blocks, short = in_use
        wrong, change = blocks > most or (short and blocks < CAPACITY_TOLERANCE * most), float(blocks - most)
    else:
        ratio = None if simulated is None else _held_while_waiting(measured, simulated)
        wrong, change = ratio is not None, most * ((ratio or 1.0) - 1)
    return [Cause("num_gpu_blocks", float(num_gpu_blocks), change, None, 0.0, 0.0)] if wrong else []


def _most_in_use(measured: Capture) -> tuple[int, bool] | None:
    """Most KV blocks that steps had in use, and whether any step lacked one; None without step records."""
    steps, options = measured.steps, measured.meta.engine_options
    if steps is None or not len(steps) or len(np.unique(steps.instance)) > 1:
        return None
    seats, budget = (options.get(name) for name in ("max_num_seqs", "max_num_batched_tokens"))
    short = steps.n_preempted > 0
    if seats is not None and budget is not None:
        tokens = steps.n_prefill_tokens + steps.n_decode_tokens
        short = short | ((steps.n_waiting > 0) & (steps.n_running < seats) & (tokens < budget))
    return int(steps.kv_blocks.max()), bool(short.any())


def _held_while_waiting(measured: Capture, simulated: Capture) -> float | None:
    """Most tokens held over the twin's, where they are clearly fewer and requests wait longer than its; else None."""
    both = []
    for capture in (measured, simulated):
        held, queue_s = _most_held(capture.outcomes), defined(requests(capture.outcomes).queue_s)
        if not held or not len(queue_s):
            return None
        both.append((held, float(queue_s.mean())))
    (held, wait_s), (twins_held, twins_wait_s) = both
    return held / twins_held if held < CAPACITY_TOLERANCE * twins_held and wait_s > twins_wait_s else None


def _most_held(outcomes: Sequence[Outcome]) -> float:
    """Most tokens that finished requests held at once: each its prompt and, while it decodes, more of its answer."""
    stamps = [
        (o.scheduled_s, o.first_token_s, o.finish_s, o.prompt_tokens, o.output_tokens)
        for o in outcomes
        if o.status is Status.FINISHED and None not in (o.scheduled_s, o.first_token_s, o.finish_s)
    ]
    if not stamps:
        return 0.0
    scheduled_s, first_s, finish_s, prompt, output = np.array(stamps, dtype=np.float64).T
    most = 0.0
    for at_s in np.unique(finish_s):
        done = np.clip((at_s - first_s) / np.maximum(finish_s - first_s, 1e-9), 0.0, 1.0)
        inside = (scheduled_s <= at_s) & (at_s <= finish_s)
        most = max(most, float((prompt + done * output)[inside].sum()))
    return most
