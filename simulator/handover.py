"""From prefill to decode: the KV of a prompt on its way from the engine that computed it to the one that goes on.

Either of two ways. At the end, as vLLM's NixlConnector (0.32 `distributed/kv_transfer/kv_connector/v1/nixl/`): the
prefill engine computes the prompt and one token, and keeps the blocks; the decode engine reserves its own as soon as it
has a seat and room, and reads the KV that it has not cached itself. The prefill engine's blocks are free when all is
read, so that a decode engine without room holds up the prefill engine too. Or layer by layer, as vLLM's
P2pNcclConnector pushed before 0.32 (`p2p/p2p_nccl_connector.py`) and its MoRIIOConnector does in 0.32 when it writes
(`moriio/moriio_connector.py`, `_is_final_prefill_chunk`): with the last chunk of a prompt, each layer's KV of all of it
leaves when it is computed, into memory of the decode engine that is not counted here; nothing waits for a reservation,
and nothing that is cached there is left out.

Either way the decode engine computes the prompt's last token again and goes on from there. KV that is lost on the way,
or with the engine that keeps it, is computed again by the decode engine (vLLM's `kv_load_failure_policy: recompute`),
or the request is sent again through a prefill engine (`fail`, and a router that tries again).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulator.kv_transfer import NO_RESIDUAL, KVResidual, KVTransfer, blocks_of, paths_between, sent_blocks
from simulator.network.links import Link, Path
from simulator.network.topology import Place, Topology
from simulator.network.transfers import Network, Transfer
from simulator.rank import Part, Rank
from simulator.scheduling.plan import StepPlan
from simulator.scheduling.request import PromptKV, Request
from simulator.scheduling.scheduler import Scheduler
from traces.errors import InputError
from traces.steps import Floats
from traces.transfers import TRANSFER_COLUMNS, KVTransfers, transfers_from_columns


@dataclass(slots=True, eq=False)
class Prompt:
    """The KV of one prompt, from one rank's devices to another's.

    Attributes:
        index: of the request in the trace.
        source: the rank that computes it.
        target: the rank that goes on; None until it is chosen.
        prompt: the request at the source, once it has ended there.
        answer: the request at the target, once blocks are reserved there.
        ended: the request at the source, as soon as the source has computed it.
        is_sent: whether all of it has been put on its way.
        parts_left: transfers between two devices that are under way.
        n_bytes: what was sent of it up to now.
        start_s: when the first of that left or was asked for; infinite before.
        end_s: when the last that has arrived did.
    """

    index: int
    source: Rank
    target: Rank | None
    prompt: Request | None = None
    answer: Request | None = None
    ended: Request | None = None
    is_sent: bool = False
    parts_left: int = 0
    n_bytes: float = 0.0
    start_s: float = np.inf
    end_s: float = 0.0

    @property
    def has_arrived(self) -> bool:
        """Whether nothing is under way or still to be sent."""
        return self.is_sent and not self.parts_left


class Handover:
    """All KV on its way.

    Attributes:
        n_prompts: prompts whose KV was sent.
        n_lost: prompts whose KV was lost, on the way or with the engine that kept it.
        n_dropped: prompts whose KV was on its way when an engine at one end failed.
        policy: what becomes of requests whose KV is lost.
        network: the links that it is sent over, and what they carried.
    """

    def __init__(
        self,
        topology: Topology,
        places: dict[int, tuple[Place, ...]],
        kv_bytes_per_token: Mapping[int, float],
        settings: KVTransfer,
        *,
        num_layers: int = 1,
        seed: int = 0,
        network: Network | None = None,
        residual: KVResidual = NO_RESIDUAL,
    ) -> None:
        """Nothing is on its way. Raises InputError where no request could ever end.

        Args:
            topology: the links between devices.
            places: devices of each rank, by its number.
            kv_bytes_per_token: keys and values of one token over all layers, as a rank's devices keep them, by the
                rank's number. Each of the target's devices reads what it keeps (vLLM 0.32 `nixl/tp_mapping.py`).
            settings: how and how surely it is sent.
            num_layers: of the model: the first of them is computed before anything can leave.
            seed: of which prompts are lost.
            network: for its transfers; None: one of its own.
            residual: of a calibration. What scales the time of bytes also scales how long they take of their links, so
                that these are in use for as long, and record as much as they could have carried meanwhile.
        """
        if settings.kv_load_failure_policy == "fail" and settings.failure_probability == 1:
            accepted = "below 1 where requests are sent again until their KV comes (kv_load_failure_policy: fail)"
            raise InputError(field="kv_transfer.failure_probability", found=1, accepted=accepted)
        self.n_prompts = 0
        self.n_lost = 0
        self.n_dropped = 0
        self.policy = settings.kv_load_failure_policy
        self.is_layer_by_layer = settings.when == "layer_by_layer"
        self._topology = topology
        self._places = places
        self._kv_bytes_per_token = kv_bytes_per_token
        self._failure_probability = settings.failure_probability
        self._num_layers = num_layers
        self._seed = seed
        self._residual = residual
        self._sent: list[tuple[int, int, int, float, float, float, float]] = []
        self.network = network or Network()
        self._prompts: dict[int, Prompt] = {}
        self._started_bytes = 0.0
        # Transfers that were cancelled, which know what they had carried.
        self._cancelled: list[Transfer] = []
        # Requests whose KV was lost as their targets were told: to be sent again.
        self._failed: list[int] = []
        self._n_failed: Counter[int] = Counter()

    @property
    def may_fail(self) -> bool:
        """Whether a decode rank may find that a prompt's KV is lost, so that the request is sent again."""
        return self.policy == "fail" and self._failure_probability > 0

    @property
    def way_s(self) -> float:
        """How long a request takes from the engine that computed its prompt to the one that goes on."""
        return self._residual.handover_s

    @property
    def n_bytes(self) -> float:
        """Bytes that were sent, those of transfers that were dropped as far as they had come."""
        lost = sum(one.n_bytes - (one.carried_bytes or 0.0) for one in self._cancelled)
        return self._started_bytes - lost / self._residual.kv_transfer

    @property
    def n_dropped_bytes(self) -> float:
        """Of the bytes that were sent, those of transfers that were dropped."""
        return sum(one.carried_bytes or 0.0 for one in self._cancelled) / self._residual.kv_transfer

    @property
    def waiting(self) -> Prompt | None:
        """A prompt whose KV nobody has used yet; None when there is none."""
        return next(iter(self._prompts.values()), None)

    def transfers(self) -> KVTransfers:
        """Every prompt whose KV has arrived: as long as it took, and not when the engine that waits for it looked."""
        columns = np.array(self._sent, dtype=np.float64).reshape(-1, len(TRANSFER_COLUMNS)).T
        return transfers_from_columns(dict(zip(TRANSFER_COLUMNS, columns, strict=True)))

    def notes(self) -> list[str]:
        """What was sent, and what of it was lost."""
        sent = f"{self.n_bytes / 1e9:.3f} GB of KV of {self.n_prompts} prompts"
        notes = [f"{sent} sent from prefill to decode instances"]
        if self.n_lost:
            notes.append(f"KV of {self.n_lost} prompts was lost on the way, and computed again")
        if self.n_dropped:
            dropped = f"{self.n_dropped_bytes / 1e9:.3f} GB of it had been sent"
            notes.append(f"KV of {self.n_dropped} prompts was under way when an instance failed; {dropped}")
        return notes

    def next_event_s(self) -> float:
        """When something next changes; infinite when nothing is on its way."""
        return self.network.next_event_s()

    def links(self, sources: Collection[Rank], targets: Collection[Rank]) -> set[Link]:
        """Links that KV from any of these to any of those crosses."""
        return {link for a in sources for b in targets for path in self._paths(a, b) for link in path}

    def begin(self, index: int, source: Rank, target: Rank | None) -> None:
        """A request's prompt will be computed by one rank for another, which may not be chosen yet."""
        self._prompts[index] = Prompt(index, source, target)

    def target(self, index: int) -> Rank | None:
        """The rank that goes on with a request; None when it is not chosen."""
        return self._prompts[index].target

    def planned(self, plan: StepPlan, scheduled_s: Floats, end_s: Floats) -> None:
        """A prefill rank will run a plan: each prompt whose last chunk is in it leaves layer by layer.

        The link has it from the end of the first layer on, as much as it can carry; a layer's KV that is computed
        later than the link could carry it is not told apart.
        """
        from_s = float(scheduled_s[0] + (end_s[0] - scheduled_s[0]) / self._num_layers)
        for request, new, computed in zip(plan.requests, plan.new_tokens, plan.computed_tokens, strict=True):
            prompt = self._prompts.get(request.index)
            if prompt is not None and request.kept and int(computed) + int(new) >= request.row.prompt_tokens:
                self._send(prompt, blocks_of(request.row.prompt_tokens, prompt.source.block_size), from_s)

    def ended(self, request: Request) -> None:
        """A prefill rank will have computed a prompt when its step ends."""
        self._prompts[request.index].ended = request

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
            assert prompt.target is not None
            sizes = prompt.source.block_size, prompt.target.block_size
            self._send(prompt, sent_blocks(request.row.prompt_tokens, request.cached_tokens or 0, *sizes), now_s)
            prompt.is_sent = True
        elif prompt.has_arrived:
            self._use(prompt)

    def drop(self, request: Request) -> Rank | None:
        """A request has ended: nobody needs its prompt's KV. Returns the rank that is rid of it, if one kept it."""
        prompt = self._prompts.pop(request.index, None)
        if prompt is None:
            return None
        if prompt.prompt is None:
            # Given up while its token was under way.
            _free_kept(prompt.source, request)
            return None
        if prompt.answer is not None:
            return None
        if not prompt.has_arrived:
            _scheduler(prompt.source).release(prompt.prompt)
        return prompt.source

    def advance(self, now_s: float) -> list[Rank]:
        """Let time pass. Returns the ranks for which something has changed: blocks are free, or KV is there."""
        changed: list[Rank] = []
        for part in self.network.advance(now_s):
            prompt = _prompt(part)
            prompt.parts_left -= 1
            assert part.end_s is not None
            prompt.end_s = part.end_s
            if prompt.has_arrived:
                changed += self._arrived(prompt)
        return changed

    def settle(self, request: Request) -> list[Rank]:
        """What has changed at the end of a prompt whose KV had all left before, as `advance` tells."""
        prompt = self._prompts[request.index]
        return self._arrived(prompt) if prompt.has_arrived else []

    def take_failed(self) -> list[int]:
        """Requests whose KV was lost since this was last asked and that are to be sent again, by index."""
        failed, self._failed = self._failed, []
        return failed

    # -- engines that fail ---------------------------------------------------------------------------------------

    def source_fails(self, ranks: Collection[Rank], now_s: float) -> tuple[list[int], list[Rank]]:
        """Prefill ranks fail: what they compute and keep is lost.

        Returns the requests, by index, that are to be sent again, and the ranks that compute themselves what they
        waited for.
        """
        again, told = [], []
        self._cut([one for one in self.network.under_way.values() if _prompt(one).source in ranks], now_s)
        for prompt in [one for one in self._prompts.values() if one.source in ranks]:
            if prompt.prompt is None:
                again.append(prompt.index)
                self._drop(prompt)
            elif not prompt.has_arrived:
                self.n_lost += 1
                self._drop(prompt)
                assert prompt.target is not None
                if self.policy == "fail":
                    again.append(prompt.index)
                else:
                    _compute_there(prompt.target, prompt)
                    told.append(prompt.target)
        return again, told

    def target_fails(self, ranks: Collection[Rank], now_s: float) -> tuple[list[int], list[Rank]]:
        """Decode ranks fail: what is on its way to them is lost, and nobody keeps it.

        Returns the requests, by index, that are to be sent again, and the ranks that are rid of what they kept.
        """
        again, freed = [], []
        self._cut([one for one in self.network.under_way.values() if _prompt(one).target in ranks], now_s)
        for prompt in [one for one in self._prompts.values() if one.target in ranks]:
            again.append(prompt.index)
            self._drop(prompt)
            freed.append(prompt.source)
        return again, freed

    def _cut(self, transfers: Collection[Transfer], now_s: float) -> None:
        """Take transfers off their links."""
        for transfer in transfers:
            self.network.cancel(transfer, now_s)
        self._cancelled += transfers
        self.n_dropped += len({id(one.owner) for one in transfers})

    def _drop(self, prompt: Prompt) -> None:
        """Forget a prompt's KV, and free its blocks where it was computed."""
        del self._prompts[prompt.index]
        if prompt.ended is not None:
            _free_kept(prompt.source, prompt.ended)

    def _send(self, prompt: Prompt, n_blocks: int, start_s: float) -> None:
        """Each device sends its part of so many of the source's blocks to the one that needs it."""
        assert prompt.target is not None
        paths = self._paths(prompt.source, prompt.target)
        n_bytes = n_blocks * prompt.source.block_size * self._kv_bytes_per_token[prompt.target.number]
        told, each = self._residual, self._residual.kv_transfer * n_bytes / len(paths)
        for path in paths:
            self.network.start(path, each, start_s + told.kv_transfer_s, prompt)
        prompt.n_bytes += n_bytes
        prompt.start_s = min(prompt.start_s, start_s)
        prompt.parts_left += len(paths)
        self._started_bytes += n_bytes

    def _paths(self, source: Rank, target: Rank) -> list[Path]:
        """From each device of a rank to those of another."""
        return paths_between(self._topology, self._places[source.number], self._places[target.number])

    def _arrived(self, prompt: Prompt) -> list[Rank]:
        """All of a prompt's KV has arrived: its blocks are free at the source."""
        if prompt.prompt is None:
            return []
        self.n_prompts += 1
        if prompt.target is not None:
            numbers = (prompt.index, prompt.source.number, prompt.target.number)
            self._sent.append((*numbers, prompt.n_bytes, prompt.start_s, prompt.end_s, prompt.end_s))
        _free_kept(prompt.source, prompt.prompt)
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
            if self.policy == "fail":
                self._failed.append(prompt.index)
                self._n_failed[prompt.index] += 1
            else:
                _scheduler(prompt.target).lose(prompt.answer)
        else:
            _scheduler(prompt.target).receive(prompt.answer)

    def _draw(self, index: int) -> float:
        """A number from 0 to 1 of the request's own, and of each of its sendings, whatever happens before it."""
        sending = (self._n_failed[index],) if self._n_failed[index] else ()
        return float(np.random.default_rng((self._seed, index, *sending)).random())


def _scheduler(rank: Rank) -> Scheduler:
    assert isinstance(rank.scheduler, Scheduler)
    return rank.scheduler


def _free_kept(source: Rank, request: Request) -> None:
    """Free the blocks that a rank keeps for the decode rank of a request, if it still keeps any."""
    if _scheduler(source).keeps(request):
        _scheduler(source).release(request)


def _prompt(transfer: Transfer) -> Prompt:
    assert isinstance(transfer.owner, Prompt)
    return transfer.owner


def _compute_there(rank: Rank, prompt: Prompt) -> None:
    """A rank that waits for a prompt's KV, or soon will, computes it."""
    if prompt.answer is not None:
        if prompt.answer.is_open:
            _scheduler(rank).lose(prompt.answer)
        return
    for request in _scheduler(rank).waiting:
        if request.index == prompt.index:
            request.kv = PromptKV.COMPUTED_HERE
    for i, arrival in enumerate(rank.arrivals):
        if arrival.index == prompt.index:
            rank.arrivals[i] = replace(arrival, part=Part.WHOLE)
