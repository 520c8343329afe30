"""KV that another engine computed, as vLLM's scheduler and ours come by it: the same events behind either.

vLLM's asks a connector, which here says what NixlConnector does of a prompt that another engine computed: all of it can
be loaded, asynchronously, once (vLLM 0.32 `kv_connector/v1/nixl/scheduler.py::get_num_new_matched_tokens`).
"""

from __future__ import annotations

from typing import Any, Protocol

from simulator.scheduling.oracle import Oracle
from simulator.scheduling.request import PromptKV, Request
from simulator.scheduling.scheduler import Scheduler


class Elsewhere(Protocol):
    """The KV of requests whose prompts another engine has computed."""

    def expect(self, request: Request) -> None:
        """A request's prompt was computed elsewhere."""
        ...

    def take_reserved(self) -> list[Request]:
        """Requests for which blocks were taken since this was last asked, in order."""
        ...

    def receive(self, request: Request) -> None:
        """Its KV has come."""
        ...


class OfOurs:
    """Behind our scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def expect(self, request: Request) -> None:
        request.kv = PromptKV.ELSEWHERE

    def take_reserved(self) -> list[Request]:
        return self._scheduler.incoming.take_reserved()

    def receive(self, request: Request) -> None:
        self._scheduler.receive(request)


class OfVllm:
    """Behind vLLM's scheduler: its connector."""

    supports_divergent_local_hybrid_hits = False
    requires_kv_delivery = False

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        oracle.scheduler.connector = self
        self._expected: dict[str, Request] = {}
        self._reserved: list[Request] = []

    def expect(self, request: Request) -> None:
        self._expected[request.row.request_id] = request

    def take_reserved(self) -> list[Request]:
        reserved, self._reserved = self._reserved, []
        return reserved

    def receive(self, request: Request) -> None:
        from vllm.v1.outputs import KVConnectorOutput

        came = KVConnectorOutput(finished_recving={request.row.request_id})
        self._oracle.scheduler._update_from_kv_xfer_finished(came)

    # -- what vLLM's scheduler asks of a connector ---------------------------------------------------------------

    def get_num_new_matched_tokens(self, theirs: Any, num_computed_tokens: int) -> tuple[int, bool]:
        if theirs.request_id not in self._expected:
            return 0, False
        return theirs.num_prompt_tokens - num_computed_tokens, True

    def update_state_after_alloc(self, theirs: Any, _: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            self._reserved.append(self._expected.pop(theirs.request_id))

    def has_pending_block_frees(self) -> bool:
        return False

    def get_loaded_kv_cache_group_ids(self, _: Any) -> tuple[int, ...]:
        return ()

    def build_connector_meta(self, _: Any) -> None:
        return None

    def on_new_request(self, _: Any) -> None:
        pass

    def update_connector_output(self, _: Any) -> None:
        pass

    def request_finished(self, *_: Any) -> tuple[bool, None]:
        return False, None

    def take_events(self) -> tuple[()]:
        return ()

    def get_kv_connector_stats(self) -> None:
        return None
