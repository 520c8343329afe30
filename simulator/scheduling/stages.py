"""Which requests of a pipeline wait for a token that passes through its stages.

Where the next steps are planned when outputs have come, a request waits for its own. Where they are planned ahead (vLLM
0.32 v1/core/sched/async_scheduler.py: `decode_stagger`, `next_decode_eligible_step`), it waits for as many plannings as
there are stages: then every stage knows its token. Plannings that plan nothing count as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from simulator.scheduling.request import Request


class Stages:
    """The stages that the steps of one scheduler pass through.

    Attributes:
        is_pipeline: whether there are several.
        plans_ahead: whether there are, and steps are planned ahead of outputs.
    """

    def __init__(self, count: int, *, asynchronous: bool) -> None:
        self.is_pipeline = count > 1
        self.plans_ahead = self.is_pipeline and asynchronous
        self._count = count
        self._current_step = 0

    def begin_planning(self) -> None:
        """A step is to be planned."""
        self._current_step += 1

    def note(self, request: Request, step: int) -> None:
        """A request computes something in a step, which may bring it a token."""
        request.last_computed_step = step
        if request.last_step == step:
            self.note_token(request)

    def note_token(self, request: Request) -> None:
        """The step that is being planned brings a request a token."""
        request.next_decode_eligible_step = self._current_step + self._count

    def hold(self, request: Request, finished_step: int) -> bool:
        """Whether a request must wait, the output of all steps up to one being there."""
        if self.plans_ahead:
            return self._current_step < request.next_decode_eligible_step
        return self.is_pipeline and request.last_step > finished_step

    def come_nearer(self, running: Iterable[Request]) -> bool:
        """Whether plannings that plan nothing bring a running request nearer to its next token."""
        return self.plans_ahead and any(
            self._current_step < request.next_decode_eligible_step and request.num_tokens < request.target_tokens
            for request in running
        )
