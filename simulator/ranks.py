"""The ranks of a cluster: where they are, what each is told of a prefix, and their pools behind routers."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cluster import Cluster
from simulator.engine import Engine, Role
from simulator.kv.prefixes import Prefixes
from simulator.network.topology import Place
from simulator.rank import Rank
from simulator.routing import Router, new_router
from simulator.steps.step_time import reads_batches
from traces.trace import Trace, TraceRow


class Ranks:
    """All ranks of a cluster.

    Attributes:
        of_engines: those of each engine.
        all: in the order of the engines, each at its number.
        instance_of: the engine of each, by its number.
        places: devices of each, by its number.
    """

    def __init__(self, trace: Trace, cluster: Cluster, *, names_batches: bool) -> None:
        """Empty ranks. Raises InputError for hashes that cannot be brought to an engine's block size.

        Args:
            trace: the requests, for their prefixes; without rows, they are sent from outside.
            cluster: the engines.
            names_batches: keep which requests are in each step; without, engines still do who need it.
        """
        self.all: list[Rank] = []
        self.of_engines: list[list[Rank]] = []
        self.instance_of: dict[int, int] = {}
        self.places: dict[int, tuple[Place, ...]] = {}
        self._cluster = cluster
        self._prefixes = Prefixes(trace, is_whole=bool(trace.rows))
        # Those whose schedulers are told of shared prefixes only, and by the trace's own hashes.
        self._told_little: set[int] = set()
        for instance, engine in enumerate(cluster.engines):
            self._add(instance, engine, names_batches=names_batches)

    def _add(self, instance: int, engine: Engine, *, names_batches: bool) -> None:
        """The ranks of the next engine."""
        cluster = self._cluster
        # A user's own rules, tiers and vLLM's scheduler see every block.
        sees_all = engine.has_own_rules or engine.scheduler != "native" or cluster.kv_tiers or ":" in cluster.routing
        per_hash = 1 if sees_all else self._prefixes.blocks_per_hash(engine.options.block_size)
        sends_layers = engine.role == "prefill" and cluster.kv_transfer.when == "layer_by_layer"
        names_batches = names_batches or sends_layers or reads_batches(engine.step_time)
        first = len(self.all)
        for i, number in enumerate(range(first, first + engine.ranks)):
            self.all.append(engine.new_rank(number, blocks_per_hash=per_hash, names_batches=names_batches))
            self.instance_of[number] = instance
            self.places[number] = engine.rank_places(i)
            if not sees_all:
                self._told_little.add(number)
        self.of_engines.append(self.all[first:])

    def of(self, role: Role) -> list[Rank]:
        """The ranks of all engines of a role."""
        engines = zip(self._cluster.engines, self.of_engines, strict=True)
        return [rank for engine, own in engines if engine.role == role for rank in own]

    def pool(self, role: Role, seed: int) -> Pool:
        """The ranks of a role, behind a router of their own. Raises InputError for one that is unknown."""
        engines = self._cluster.engines
        router = new_router(
            self._cluster.routing,
            options=self._cluster.routing_options,
            version=engines[0].rules.version,
            steps_together=len(engines) == 1 and engines[0].ranks > 1,
            seed=seed,
        )
        return Pool(self.of(role), router, self._prefixes)

    def hashes(self, row: TraceRow, rank: Rank) -> tuple[int, ...]:
        """What a rank's scheduler is told of a row's blocks."""
        if rank.number in self._told_little:
            return self._prefixes.shared(row, rank.block_size)
        return tuple(self._prefixes.blocks(row, rank.block_size))


@dataclass(frozen=True, slots=True)
class Pool:
    """Ranks of one role, and the router before them, which is told all blocks of a row."""

    ranks: list[Rank]
    router: Router
    prefixes: Prefixes

    @property
    def has_alive(self) -> bool:
        """Whether any of them is in use."""
        return any(rank.alive for rank in self.ranks)

    @property
    def reads_state(self) -> bool:
        """Whether the choice depends on what engines are doing."""
        return self.router.reads_state and len(self.ranks) > 1

    def choose(self, row: TraceRow, now_s: float) -> Rank:
        """The rank that a request goes to, of those in use."""
        hashes = self.prefixes.blocks(row, self.ranks[0].block_size)
        alive = [rank for rank in self.ranks if rank.alive]
        return alive[self.router.choose(row, hashes, alive, now_s)] if len(alive) > 1 else alive[0]
