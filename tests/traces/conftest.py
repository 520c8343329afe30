"""Small captures to measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from traces.capture import Capture, CaptureMeta
from traces.outcome import Outcome, Status
from traces.steps import Steps
from traces.trace import Trace, TraceRow


@pytest.fixture(scope="session")
def served() -> Callable[..., Outcome]:
    """A finished request: arrived at 0, scheduled at 1, first token at 3, done at 7, five output tokens."""

    def make(request_id: str = "0", **changed: Any) -> Outcome:
        usual: dict[str, Any] = {
            "status": Status.FINISHED,
            "prompt_tokens": 10,
            "output_tokens": 5,
            "arrival_s": 0.0,
            "scheduled_s": 1.0,
            "first_token_s": 3.0,
            "finish_s": 7.0,
        }
        return Outcome(request_id=request_id, **{**usual, **changed})

    return make


@pytest.fixture(scope="session")
def captured() -> Callable[..., Capture]:
    """A capture of these outcomes, with the trace that they would be of."""

    def make(outcomes: Sequence[Outcome], steps: Steps | None = None, **changed: Any) -> Capture:
        rows = [
            TraceRow(
                request_id=o.request_id,
                arrival_s=o.arrival_s,
                prompt_tokens=o.prompt_tokens,
                output_tokens=max(o.output_tokens, 1),
            )
            for o in outcomes
        ]
        trace = Trace(tuple(rows), None, "test", "sha256:0")
        meta = CaptureMeta(kind="simulated", engine=None, model="tiny", device=None, clock="test", **changed)
        return Capture(meta, trace, tuple(outcomes), steps)

    return make
