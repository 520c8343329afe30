"""Small engines and traces for the tests of the simulator."""

from __future__ import annotations

import numpy as np

from simulator.engine import Engine
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.steps.step_time import StepCost
from traces.trace import Trace, TraceRow


class LinearStepTime:
    """A step-time model with a closed form: a constant, plus so much per token and per token of decode history."""

    reads_batches = False

    def __init__(
        self, step_s: float = 0.01, token_s: float = 0.0, kv_token_s: float = 0.0, host_s: float = 0.0
    ) -> None:
        self._step_s = step_s
        self._token_s = token_s
        self._kv_token_s = kv_token_s
        self._host_s = host_s

    def price(self, plan: StepPlan) -> StepCost:
        history = plan.decode_kv_sum + np.arange(plan.repeat) * plan.n_decode
        device_s = self._step_s + self._token_s * plan.n_tokens + self._kv_token_s * history
        return StepCost(np.asarray(device_s, dtype=np.float64), np.full(plan.repeat, self._host_s))

    def count(self, plan: StepPlan, times: int) -> None:
        """Counts nothing."""

    def notes(self) -> tuple[str, ...]:
        return ()


def engine(
    step_time: LinearStepTime | None = None, *, num_gpu_blocks: int = 1000, max_model_len: int = 4096, **options: object
) -> Engine:
    """An engine with synchronous scheduling unless told otherwise."""
    chosen = EngineOptions(**{"async_scheduling": False, "max_num_seqs": 64, **options})  # type: ignore[arg-type]
    return Engine("model", "device", chosen, num_gpu_blocks, max_model_len, step_time or LinearStepTime())


def trace(*rows: tuple[float, int, int], hashes: list[tuple[int, ...]] | None = None, size: int | None = None) -> Trace:
    """A trace of (arrival_s, prompt_tokens, output_tokens) rows."""
    made = tuple(
        TraceRow(
            request_id=str(i),
            arrival_s=arrival_s,
            prompt_tokens=prompt,
            output_tokens=output,
            block_hashes=None if hashes is None else hashes[i],
        )
        for i, (arrival_s, prompt, output) in enumerate(rows)
    )
    return Trace(made, size, "test", "sha256:0")
