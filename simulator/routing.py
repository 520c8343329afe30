"""Which instance serves a request: the router in front of several.

A router is asked once per request, when it arrives, and answers with a place in the list of instances. What it may
look at is `InstanceState`. One that looks at nothing (`reads_state` is False) deals the requests the same way whatever
the instances do, so that they can be dealt before anything runs.

Load is a number of requests. Where instances have unequal `max_num_seqs`, it is taken by seat, so that half of a large
instance and half of a small one are equally full; for equal ones that changes no choice.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, Protocol

import numpy as np

from simulator.scheduling.rules import REFERENCE
from simulator.user_class import load_class
from simulator.vllm_dp import Report, VllmBalancer
from traces.errors import InputError, nearest
from traces.trace import TraceRow

Reads = Literal["queues", "cache"]
"""What a router looks at: how many requests wait and run, or besides what is in the prefix caches."""


class InstanceState(Protocol):
    """What a router can know of an instance."""

    @property
    def number(self) -> int:
        """Its own number, which it keeps when others go; no part of what it is doing."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """Most requests that it runs at once."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""
        ...

    @property
    def n_waiting(self) -> int:
        """Requests that were sent to it and are not running."""
        ...

    @property
    def n_running(self) -> int:
        """Requests that hold KV blocks."""
        ...

    @property
    def kv_usage(self) -> float:
        """Share of its KV blocks that requests hold."""
        ...

    def cached_blocks(self, hashes: Sequence[int]) -> int:
        """How many of these blocks, from the first on, are in its prefix cache."""
        ...

    def take_reports(self) -> list[Report]:
        """What vLLM's engine could have told of itself since this was last asked."""
        ...


class Router(Protocol):
    """Chooses an instance for each request."""

    @property
    def reads_state(self) -> bool:
        """Whether a choice depends on what instances are doing."""
        ...

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """The place in `instances` of the one that serves the request.

        Args:
            row: the request.
            hashes: identity of its full KV blocks, the prompt's first; () when it is not known.
            instances: those to choose from, in order of their numbers.
            now_s: when it arrives; never earlier than at the call before.
        """
        ...


def new_router(
    name: str,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    version: tuple[int, int] = REFERENCE,
    steps_together: bool = False,
) -> Router:
    """A router that has seen no request yet.

    Args:
        name: of `ROUTERS`, or a class of the user's own as `module:Class`; it is called with the keyword `seed` and
            the options, and what it makes must be a `Router`.
        seed: of whatever is drawn.
        options: further arguments, by the names that the router's class has for them.
        version: of vLLM, whose own router may be asked for.
        steps_together: whether the instances step together.

    Raises:
        InputError: the name, the class or an option is unknown, or the class makes no router.
    """
    given = dict(options or {})
    if ":" in name:
        return _Checked(name, _made(load_class(name, field="routing"), name, {"seed": seed, **given}))
    if name not in ROUTERS:
        accepted = f"{nearest(name, ROUTERS)}, or a class as module:Class"
        raise InputError("is unknown", field="routing", found=name, accepted=accepted)
    make = ROUTERS[name]
    parameters = set(inspect.signature(make).parameters)
    facts = {"seed": seed, "version": version, "steps_together": steps_together}
    known = parameters - set(facts)
    for option, value in given.items():
        if option not in known:
            raise InputError("is unknown", field=f"routing.{option}", accepted=nearest(option, known))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(field=f"routing.{option}", found=value, accepted="a finite number, 0 or above")
    return make(**{name: fact for name, fact in facts.items() if name in parameters}, **given)


def reads(router: Router) -> Reads | None:
    """What of the instances a router looks at where it says so; None: anything that `InstanceState` has.

    One of the user's own is not asked: it sees all instances brought to the moment of every arrival.
    """
    return getattr(router, "reads", None)


def _made(make: Callable[..., Any], name: str, arguments: dict[str, Any]) -> Router:
    """What the user's class makes, once it is seen to be a router."""
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        accepted = f"a class that can be called with {', '.join(arguments)}"
        raise InputError(f"cannot be called ({error})", field="routing", found=name, accepted=accepted) from None
    router = make(**arguments)
    if not callable(getattr(router, "choose", None)) or not isinstance(getattr(router, "reads_state", None), bool):
        accepted = "a class with reads_state, True or False, and choose(row, hashes, instances, now_s)"
        raise InputError("is no router", field="routing", found=name, accepted=accepted)
    made: Router = router
    return made


class _Checked:
    """A user's router; a choice that is none of the instances is an error, and not another instance."""

    def __init__(self, name: str, router: Router) -> None:
        self.reads_state = router.reads_state
        self._name = name
        self._router = router

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """Its choice. Raises InputError."""
        chosen = self._router.choose(row, hashes, instances, now_s)
        if not isinstance(chosen, int | np.integer) or not 0 <= chosen < len(instances):
            accepted = f"a whole number from 0 to {len(instances) - 1}"
            what = f"{self._name} chose for request {row.request_id!r}"
            raise InputError(what, field="routing", found=chosen, accepted=accepted)
        return int(chosen)


class RoundRobin:
    """One after another, in turn."""

    reads_state = False

    def __init__(self) -> None:
        self._next = 0

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """The next in turn."""
        chosen = self._next % len(instances)
        self._next = chosen + 1
        return chosen


class Random:
    """Each with the same probability."""

    reads_state = False

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """Any of them."""
        return int(self._rng.integers(len(instances)))


def load(instance: InstanceState) -> float:
    """How loaded an instance is, by seat: a waiting request counts as four running ones.

    The weight is that of vLLM's own balancer (0.19 `v1/engine/core_client.py`,
    `DPLBAsyncMPClient.get_core_engine_for_request`), and taking it by seat is LLMServingSim's (`core/router.py`).
    """
    return (4 * instance.n_waiting + instance.n_running) / instance.max_num_seqs


class LeastLoaded:
    """The least loaded by `load`, as it is at this moment; among equals the next in turn after the last choice."""

    reads_state = True
    reads: Reads = "queues"

    def __init__(self) -> None:
        self._next = 0

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """The least loaded."""
        chosen = _least([load(instance) for instance in instances], self._next)
        self._next = chosen + 1
        return chosen


class PowerOfTwo:
    """Two at random, and of these the less loaded by `load` (Mitzenmacher, IEEE TPDS 12(10), 2001)."""

    reads_state = True
    reads: Reads = "queues"

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """The less loaded of two; of equals the one drawn first."""
        if len(instances) == 1:
            return 0
        one = int(self._rng.integers(len(instances)))
        other = int(self._rng.integers(len(instances) - 1))
        other += other >= one
        return other if load(instances[other]) < load(instances[one]) else one


class SessionAffinity:
    """All requests of a session on one instance, by the session's name; those without a session in turn.

    By rendezvous hashing (Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998): each instance
    draws from the session's name and its own number, and the highest wins, so that a session moves only when its own
    instance goes, or to a new one.
    """

    reads_state = False

    def __init__(self) -> None:
        self._others = RoundRobin()

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """The session's instance."""
        if row.session_id is None:
            return self._others.choose(row, hashes, instances, now_s)
        name = row.session_id.encode()
        drawn = [blake2b(b"%d:%b" % (instance.number, name), digest_size=8).digest() for instance in instances]
        return drawn.index(max(drawn))


class PrefixAware:
    """Where most of the prompt is cached, as long as the load is not too uneven.

    The rule and its defaults are SGLang's (gateway 0.3.1, policy `cache_aware`, which vLLM's router has too): when the
    busiest instance has more than `balance_abs_threshold` requests over the idlest and more than
    `balance_rel_threshold` times as many, the least loaded; else the one with the longest cached prefix, when that is
    more than `cache_threshold` of the prompt, and the less loaded of equals; else the least loaded. SGLang's router
    guesses what is cached from what it has sent; here it is known, as by KV events.
    """

    reads_state = True
    reads: Reads = "cache"

    def __init__(
        self, cache_threshold: float = 0.3, balance_abs_threshold: float = 64, balance_rel_threshold: float = 1.5
    ) -> None:
        self._cache_threshold = cache_threshold
        self._balance_abs_threshold = balance_abs_threshold
        self._balance_rel_threshold = balance_rel_threshold
        self._next = 0

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """The one with most of the prompt, or the least loaded."""
        cached = [0] * len(instances) if self._is_uneven(instances) else _cached_tokens(row, hashes, instances)
        most = max(cached)
        if most <= self._cache_threshold * row.prompt_tokens:
            most, cached = 0, [0] * len(instances)
        by_seat = [(i.n_waiting + i.n_running) / i.max_num_seqs for i in instances]
        scores = [score if tokens == most else math.inf for score, tokens in zip(by_seat, cached, strict=True)]
        chosen = _least(scores, self._next)
        self._next = chosen + 1
        return chosen

    def _is_uneven(self, instances: Sequence[InstanceState]) -> bool:
        loads = [instance.n_waiting + instance.n_running for instance in instances]
        least, most = min(loads), max(loads)
        return most - least > self._balance_abs_threshold and most > self._balance_rel_threshold * least


def _cached_tokens(row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState]) -> list[int]:
    """Tokens of the prompt that each instance has cached; the hashes go on into the answer."""
    if not hashes:
        return [0] * len(instances)
    of_prompt = {size: hashes[: row.prompt_tokens // size] for size in {instance.block_size for instance in instances}}
    return [instance.block_size * instance.cached_blocks(of_prompt[instance.block_size]) for instance in instances]


def _least(scores: Sequence[float], start: int) -> int:
    """Place of the least score; of equals the first at or after `start`, going round."""
    return min(range(len(scores)), key=lambda i: (scores[i], (i - start) % len(scores)))


ROUTERS: dict[str, Callable[..., Router]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_loaded": LeastLoaded,
    "power_of_two": PowerOfTwo,
    "vllm_dp": VllmBalancer,
    "session_affinity": SessionAffinity,
    "prefix_aware": PrefixAware,
}
"""Routers by name; docs/routing.md describes them."""
