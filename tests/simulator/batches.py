"""Batches with requests in them, for what looks at each request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.scheduling.plan import StepPlan, plan_of
from simulator.scheduling.request import Request
from traces.trace import TraceRow


def request(index: int, prompt_tokens: int) -> Request:
    """A request with a prompt of so many tokens."""
    row = TraceRow(request_id=str(index), arrival_s=0.0, prompt_tokens=prompt_tokens, output_tokens=1000)
    return Request(row, index, prompt_tokens + 1000, [], prompt_tokens)


def batch(entries: Sequence[tuple[int, int, int]], *, repeat: int = 1) -> StepPlan:
    """A plan of (prompt tokens, new tokens, computed tokens) for each request, numbered from 0."""
    return plan_of(
        [request(i, prompt) for i, (prompt, _, _) in enumerate(entries)],
        np.array([new for _, new, _ in entries], dtype=np.int64),
        np.array([computed for _, _, computed in entries], dtype=np.int64),
        first_step=0,
        repeat=repeat,
    )


def decodes(*histories: int, repeat: int = 1) -> StepPlan:
    """A plan in which requests decode, each with a prompt as long as its history."""
    return batch([(tokens, 1, tokens) for tokens in histories], repeat=repeat)
