"""From prefill to decode: the KV of a prompt on its way from the engine that computed it to the one that goes on.

Either of two ways. At the end, as vLLM's NixlConnector (0.32 `distributed/kv_transfer/kv_connector/v1/nixl/`): the
prefill engine computes the prompt and one token, and keeps the blocks; the decode engine reserves its own as soon as it
has a seat and room, and reads the KV that it has not cached itself. The prefill engine's blocks are free when all is
read, so that a decode engine without room holds up the prefill engine too. Or layer by layer, as its P2pNcclConnector
pushes (`p2p_nccl_connector.py`): each layer's KV leaves when it is computed, into memory of the decode engine that is
not counted here; nothing waits for a reservation, and nothing that is cached there is left out.

Either way the decode engine computes the prompt's last token again and goes on from there. KV that is lost on the way
is computed again by the decode engine (vLLM's `kv_load_failure_policy: recompute`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np

from simulator.network import Network
from simulator.plan import StepPlan
from simulator.rank import Rank
from simulator.request import Request
from simulator.scheduler import Scheduler
from simulator.topology import Place, Topology
from traces.steps import Floats


class KVTransfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How KV goes from prefill to decode engines.

    Attributes:
        when: all of it when the decode engine asks for it, or each layer's as it is computed.
        failure_probability: that the KV of a prompt is lost on the way.
    """

    when: Literal["at_end", "layer_by_layer"] = "at_end"
    failure_probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


@dataclass(slots=True, eq=False)
class Prompt:
    """The KV of one prompt, from one rank's devices to another's.

    Attributes:
        index: of the request in the trace.
        source: the rank that computes it.
        target: the rank that goes on; None until it is chosen.
        prompt: the request at the source, once it has ended there.
        answer: the request at the target, once blocks are reserved there.
        is_sent: whether all of it has been put on its way.
        parts_left: transfers between two devices that are under way.
    """

    index: int
    source: Rank
    target: Rank | None
    prompt: Request | None = None
    answer: Request | None = None
    is_sent: bool = False
    parts_left: int = 0

    @property
    def has_arrived(self) -> bool:
        """Whether nothing is under way or still to be sent."""
        return self.is_sent and not self.parts_left


class Handover:
    """All KV on its way.

    Attributes:
        n_prompts: prompts whose KV was sent.
        n_bytes: of them all.
        n_lost: of the prompts, those whose KV was lost.
        network: the links that it is sent over, and what they carried.
    """

    def __init__(
        self,
        topology: Topology,
        places: dict[int, tuple[Place, ...]],
        kv_bytes_per_token: float,
        settings: KVTransfer,
        *,
        num_layers: int = 1,
        seed: int = 0,
    ) -> None:
        """Nothing is on its way.

        Args:
            topology: the links between devices.
            places: devices of each rank, by its number.
            kv_bytes_per_token: keys and values of one token, over all layers and devices.
            settings: how and how surely it is sent.
            num_layers: of the model: the first of them is computed before anything can leave.
            seed: of which prompts are lost.
        """
        self.n_prompts = 0
        self.n_bytes = 0.0
        self.n_lost = 0
        self.is_layer_by_layer = settings.when == "layer_by_layer"
        self._topology = topology
        self._places = places
        self._kv_bytes_per_token = kv_bytes_per_token
        self._failure_probability = settings.failure_probability
        self._num_layers = num_layers
        self._seed = seed
        self.network = Network()
        self._prompts: dict[int, Prompt] = {}

    def next_event_s(self) -> float:
        """When something next changes; infinite when nothing is on its way."""
        return self.network.next_event_s()

    def begin(self, index: int, source: Rank, target: Rank | None) -> None:
        """A request's prompt will be computed by one rank for another, which may not be chosen yet."""
        self._prompts[index] = Prompt(index, source, target)

    def target(self, index: int) -> Rank | None:
        """The rank that goes on with a request; None when it is not chosen."""
        return self._prompts[index].target

    def planned(self, plan: StepPlan, scheduled_s: Floats, end_s: Floats) -> None:
        """A prefill rank will run a plan: what it computes of each prompt leaves layer by layer.

        The link has it from the end of the first layer on, as much as it can carry; a layer's KV that is computed
        later than the link could carry it is not told apart.
        """
        from_s = float(scheduled_s[0] + (end_s[0] - scheduled_s[0]) / self._num_layers)
        for request, new, computed in zip(plan.requests, plan.new_tokens, plan.computed_tokens, strict=True):
            prompt = self._prompts.get(request.index)
            if prompt is None or not request.kept:
                continue
            # What was found in the cache goes with the first chunk.
            first = computed == (request.cached_tokens or 0)
            self._send(prompt, int(new) + (int(computed) if first else 0), from_s)

    def computed(self, rank: Rank, request: Request, target: Rank) -> bool:
        """A prompt is computed, and `target` goes on with it. Returns whether its KV is there to be sent."""
        prompt = self._prompts[request.index]
        if not _scheduler(rank).keeps(request):
            # It lost its blocks while its token was under way.
            del self._prompts[request.index]
            return False
        prompt.prompt, prompt.target = request, target
        prompt.is_sent = self.is_layer_by_layer
        return True

    def reserved(self, request: Request, now_s: float) -> None:
        """The decode rank has reserved blocks for a prompt's KV."""
        prompt = self._prompts[request.index]
        prompt.answer = request
        if not self.is_layer_by_layer:
            self._send(prompt, request.row.prompt_tokens - (request.cached_tokens or 0), now_s)
            prompt.is_sent = True
        elif prompt.has_arrived:
            self._use(prompt)

    def drop(self, request: Request) -> Rank | None:
        """A request has ended: nobody needs its prompt's KV. Returns the rank that is rid of it, if one kept it."""
        prompt = self._prompts.pop(request.index, None)
        if prompt is None or prompt.prompt is None or prompt.answer is not None:
            return None
        if not prompt.has_arrived:
            _scheduler(prompt.source).release(prompt.prompt)
        return prompt.source

    def advance(self, now_s: float) -> list[Rank]:
        """Let time pass. Returns the ranks for which something has changed: blocks are free, or KV is there."""
        changed: list[Rank] = []
        for part in self.network.advance(now_s):
            prompt = part.owner
            assert isinstance(prompt, Prompt)
            prompt.parts_left -= 1
            if prompt.has_arrived:
                changed += self._arrived(prompt)
        return changed

    def settle(self, request: Request) -> list[Rank]:
        """What has changed at the end of a prompt whose KV had all left before, as `advance` tells."""
        prompt = self._prompts[request.index]
        return self._arrived(prompt) if prompt.has_arrived else []

    def _send(self, prompt: Prompt, n_tokens: int, start_s: float) -> None:
        """Each device sends its part to the one that needs it; the side with more devices has the smaller parts."""
        assert prompt.target is not None
        senders, receivers = self._places[prompt.source.number], self._places[prompt.target.number]
        parts = max(len(senders), len(receivers))
        n_bytes = n_tokens * self._kv_bytes_per_token
        for i in range(parts):
            path = self._topology.path(senders[i * len(senders) // parts], receivers[i * len(receivers) // parts])
            self.network.start(path, n_bytes / parts, start_s, prompt)
        prompt.parts_left += parts
        self.n_bytes += n_bytes

    def _arrived(self, prompt: Prompt) -> list[Rank]:
        """All of a prompt's KV has arrived: its blocks are free at the source."""
        if prompt.prompt is None:
            return []
        self.n_prompts += 1
        _scheduler(prompt.source).release(prompt.prompt)
        if prompt.answer is not None:
            self._use(prompt)
        return [prompt.source] if prompt.target is None else [prompt.source, prompt.target]

    def _use(self, prompt: Prompt) -> None:
        """The target goes on with what has arrived, or without it; not when its client has given up meanwhile."""
        self._prompts.pop(prompt.index, None)
        assert prompt.target is not None
        assert prompt.answer is not None
        if not prompt.answer.is_open:
            return
        if self._failure_probability and self._draw(prompt.index) < self._failure_probability:
            self.n_lost += 1
            _scheduler(prompt.target).lose(prompt.answer)
        else:
            _scheduler(prompt.target).receive(prompt.answer)

    def _draw(self, index: int) -> float:
        """A number from 0 to 1 of the request's own, whatever happens before it."""
        return float(np.random.default_rng((self._seed, index)).random())


def _scheduler(rank: Rank) -> Scheduler:
    assert isinstance(rank.scheduler, Scheduler)
    return rank.scheduler
