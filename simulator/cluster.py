"""What serves a trace: engines, the links between them, and what happens to them; `simulator.service` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from simulator.engine import Engine
from simulator.fleet import AfterFailure, Autoscaling, Failure
from simulator.handover import Handover
from simulator.instance import Instance
from simulator.kv.tiers import KVTierFile
from simulator.kv_transfer import NO_RESIDUAL, KVResidual, KVTransfer
from simulator.network.topology import Topology
from simulator.rank import Rank
from simulator.sessions import Think


class Serving(Protocol):
    """A cluster while it serves, as far as a display of progress looks at it; as `simulator.service.Service`."""

    arrivals_s: list[float]
    instances: list[Instance]
    ranks: list[Rank]
    handover: Handover | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What serves a trace.

    Attributes:
        engines: at least one; all of role `both`, or some of `prefill` and some of `decode`.
        routing: by which rule a request's rank is chosen: a name of `simulator.routing`, or a class as `module:Class`.
        routing_options: of the router, by name.
        seed: of whatever is drawn.
        topology: links between devices; needed where KV is sent from prefill to decode engines.
        kv_transfer: how it is sent.
        kv_residual: what a calibration found of that.
        deadline_s: from a request's arrival until its client gives it up; None: never.
        concurrency: seats of a closed loop, which send their next request when their last has ended; None: open loop.
        think_s: from a seat's last end to its next request, on the average.
        think: whether that is always the same or drawn.
        failures: of engines.
        after_failure: what becomes of an answer whose engine fails.
        autoscaling: of the engines; None: all are in use all the time.
        kv_tiers: behind the engines' prefix caches, the nearest first; not behind those of decode engines.
        watch: told of the service before it runs, for a display of progress; it changes nothing.
    """

    engines: tuple[Engine, ...]
    routing: str = "round_robin"
    routing_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    topology: Topology | None = None
    kv_transfer: KVTransfer = field(default_factory=KVTransfer)
    kv_residual: KVResidual = NO_RESIDUAL
    deadline_s: float | None = None
    concurrency: int | None = None
    think_s: float = 0.0
    think: Think = "constant"
    failures: tuple[Failure, ...] = ()
    after_failure: AfterFailure = "start_over"
    autoscaling: Autoscaling | None = None
    kv_tiers: tuple[KVTierFile, ...] = ()
    watch: Callable[[Serving], None] | None = field(default=None, compare=False, repr=False)

    @property
    def is_disaggregated(self) -> bool:
        """Whether prompts and answers are computed by different engines."""
        return any(engine.role != "both" for engine in self.engines)
