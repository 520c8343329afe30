"""From prefill to decode: the KV of a prompt on its way from the engine that computed it to the one that goes on.

As with vLLM's NixlConnector (0.32 `distributed/kv_transfer/kv_connector/v1/nixl/`): the prefill engine computes the
prompt and one token, and keeps the blocks; the decode engine reserves its own as soon as it has a seat and room, reads
the KV it has not cached itself, computes the prompt's last token again and goes on from there. The prefill engine's
blocks are free when all is read, so that a decode engine without room holds up the prefill engine too.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.network import Network, Transfer
from simulator.rank import Rank
from simulator.request import Request
from simulator.scheduler import Scheduler
from simulator.topology import Place, Topology


@dataclass(slots=True, eq=False)
class KVTransfer:
    """The KV of one prompt, from one rank's devices to another's.

    Attributes:
        source: the rank that computed it, and its request there.
        target: the rank that goes on, and its request there.
        parts_left: transfers between two devices that are still under way.
    """

    source: tuple[Rank, Request]
    target: tuple[Rank, Request]
    parts_left: int = 0

    @property
    def sender(self) -> Scheduler:
        """Whose blocks it is read from."""
        assert isinstance(self.source[0].scheduler, Scheduler)
        return self.source[0].scheduler

    @property
    def receiver(self) -> Scheduler:
        """Whose blocks it is written to."""
        assert isinstance(self.target[0].scheduler, Scheduler)
        return self.target[0].scheduler


class Handover:
    """All KV on its way.

    Attributes:
        n_transfers: prompts whose KV was sent.
        n_bytes: of them all.
    """

    def __init__(self, topology: Topology, places: dict[int, tuple[Place, ...]], kv_bytes_per_token: float) -> None:
        """Nothing is on its way.

        Args:
            topology: the links between devices.
            places: devices of each rank, by its number.
            kv_bytes_per_token: keys and values of one token, over all layers and devices.
        """
        self.n_transfers = 0
        self.n_bytes = 0.0
        self._topology = topology
        self._places = places
        self._kv_bytes_per_token = kv_bytes_per_token
        self._network = Network()

    def next_event_s(self) -> float:
        """When something next changes; infinite when nothing is on its way."""
        return self._network.next_event_s()

    def start(self, source: tuple[Rank, Request], target: tuple[Rank, Request], now_s: float) -> None:
        """Send what the target has not cached of a prompt's KV: each device its part, to the one that needs it."""
        missing_tokens = target[1].row.prompt_tokens - (target[1].cached_tokens or 0)
        n_bytes = missing_tokens * self._kv_bytes_per_token
        transfer = KVTransfer(source, target)
        senders, receivers = self._places[source[0].number], self._places[target[0].number]
        # Every device holds an equal part of the KV; where one side has more devices, its parts are the smaller ones.
        parts = max(len(senders), len(receivers))
        for i in range(parts):
            path = self._topology.path(senders[i * len(senders) // parts], receivers[i * len(receivers) // parts])
            self._network.start(path, n_bytes / parts, now_s, transfer)
        transfer.parts_left = parts
        self.n_transfers += 1
        self.n_bytes += n_bytes

    def advance(self, now_s: float) -> list[KVTransfer]:
        """Let time pass. Returns what has arrived whole: its blocks are free on one side and usable on the other."""
        arrived = []
        for part in self._network.advance(now_s):
            transfer = _owner(part)
            transfer.parts_left -= 1
            if not transfer.parts_left:
                transfer.sender.release(transfer.source[1])
                transfer.receiver.receive(transfer.target[1])
                arrived.append(transfer)
        return arrived


def _owner(part: Transfer) -> KVTransfer:
    assert isinstance(part.owner, KVTransfer)
    return part.owner
