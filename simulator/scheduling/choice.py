"""What an engine asks of its scheduler: the seam between our own and vLLM's, and the choice of one of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

from simulator.kv.kv_cache import BlockHash
from simulator.scheduling.lockstep_scheduler import LockstepScheduler
from simulator.scheduling.oracle import Oracle
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.request import Request
from simulator.scheduling.spec import SchedulerSpec
from simulator.scheduling.speculation import Speculation
from simulator.scheduling.speculative_scheduler import SpeculativeScheduler
from traces.errors import InputError
from traces.steps import Ints
from traces.trace import TraceRow

SchedulerKind = Literal["native", "vllm"]
"""Our own scheduler, by the rules of a vLLM version; or the installed vLLM's, by its own."""


class RequestScheduler(Protocol):
    """Plans steps and takes in what they bring. Two steps may be under way: outputs come in the order of the plans."""

    @property
    def waiting(self) -> Sequence[Request]:
        """Requests to be admitted, the next one first."""
        ...

    @property
    def running(self) -> Sequence[Request]:
        """Requests holding KV blocks, in order of admission."""
        ...

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no request holds."""
        ...

    @property
    def num_cached_free(self) -> int | None:
        """Free blocks that hold content still; None when not known."""
        ...

    @property
    def speculation(self) -> Speculation | None:
        """What was drafted and accepted; None: nothing is drafted."""
        ...

    def cached_blocks(self, hashes: Sequence[BlockHash], most: int | None = None) -> int:
        """How many blocks of these hashes, from the first on, are in the prefix cache; of the first `most` only."""
        ...

    def add_request(self, row: TraceRow, index: int, hashes: tuple[BlockHash, ...], now_s: float) -> Request:
        """Queue a request; one that can never be served comes back REJECTED, with the reason."""
        ...

    def schedule(self, now_s: float) -> StepPlan | None:
        """Plan the next step and take the blocks it needs; None when no request can compute anything now."""
        ...

    def repeat(self, plan: StepPlan, times: int) -> tuple[Ints, Ints]:
        """Run a plan so often, twice or more and at most `plan.repeat` times.

        Returns the KV blocks in use, and the free ones that hold content still, at each, [times].
        """
        ...

    def finish(self, last_step: int, end_s: float, stopped: Collection[Request] = ()) -> list[Request]:
        """Take in the output of all steps up to `last_step`. Returns the requests that are finished.

        Args:
            last_step: number of the step.
            end_s: when it ended.
            stopped: requests that end with their token of this output, before they reach their length.
        """
        ...

    def abort(self, request: Request, now_s: float) -> None:
        """End a request from outside: its client went away."""
        ...

    def forget(self) -> None:
        """Lose what is cached; no request may hold blocks."""
        ...


def new_scheduler(kind: SchedulerKind, spec: SchedulerSpec) -> RequestScheduler:
    """A scheduler with empty queues and an empty KV cache.

    Raises EngineError when vLLM's is asked for, and vllm is not installed or refuses the options; InputError for
    pipeline stages or a user's own rules behind it.
    """
    match kind:
        case "vllm":
            if spec.stages > 1 or spec.order is not None or spec.eviction is not None:
                is_pipeline = spec.stages > 1
                what = "pipeline_parallel_size above 1" if is_pipeline else "an order or an eviction rule of one's own"
                raise InputError(field="scheduler", found=kind, accepted=f"native with {what}")
            return Oracle(spec)
        case "native":
            return LockstepScheduler(spec) if spec.options.speculative_config is None else SpeculativeScheduler(spec)
