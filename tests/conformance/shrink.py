"""Make a scenario in which two schedulers differ as small as it can be: it is to be read by a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

from msgspec.structs import replace

from simulator.scheduling.options import EngineOptions
from tests.conformance.scenario import Arrival, Scenario

SIMPLEST_OPTIONS = EngineOptions(async_scheduling=False, max_num_seqs=1, max_num_batched_tokens=1)
SIMPLEST_ARRIVAL = Arrival(tick=0, prompt=1, output=1)
FEWEST_BLOCKS = 2

Toward = Callable[[Any, Any], Any]
"""A value that is nearer to the second one than the first one is; the first one itself when there is none."""


def smallest(scenario: Scenario, differs: Callable[[Scenario], bool]) -> Scenario:
    """Simplify one thing after another as long as the schedulers still differ, until nothing can be simplified."""
    before = None
    while scenario != before:
        before = scenario
        for simplified in _simplifications(scenario):
            while (simpler := simplified(scenario)) != scenario and differs(simpler):
                scenario = simpler
    return scenario


def _simplifications(scenario: Scenario) -> Iterator[Callable[[Scenario], Scenario]]:
    """All that can be tried, the greatest first; each returns the same scenario where it has nothing to simplify."""
    n = len(scenario.arrivals)
    size = n // 2
    while size:
        for first in range(n - size, -1, -size):
            yield partial(_without, first=first, size=size)
        size //= 2
    for name, toward in product(EngineOptions.__struct_fields__, TOWARD):
        yield partial(_with_option, name=name, toward=toward)
    for toward in TOWARD:
        yield partial(_with_blocks, toward=toward)
    for i, name, toward in product(range(n), Arrival.__struct_fields__, TOWARD):
        yield partial(_with_arrival, i=i, name=name, toward=toward)


def _itself(value: Any, simplest: Any) -> Any:
    return simplest


def _half_way(value: Any, simplest: Any) -> Any:
    """Of numbers and of hashes."""
    if isinstance(value, tuple):
        return value[: len(value) // 2]
    return (value + simplest) // 2 if _are_numbers(value, simplest) else value


def _by_one(value: Any, simplest: Any) -> Any:
    """Of numbers and of hashes."""
    if isinstance(value, tuple):
        return value[:-1]
    return value - (value > simplest) if _are_numbers(value, simplest) else value


def _are_numbers(*values: Any) -> bool:
    return all(type(value) is int for value in values)


TOWARD: tuple[Toward, ...] = (_itself, _half_way, _by_one)


def _without(scenario: Scenario, first: int, size: int) -> Scenario:
    arrivals = scenario.arrivals[:first] + scenario.arrivals[first + size :]
    return replace(scenario, arrivals=arrivals) if arrivals else scenario


def _with_option(scenario: Scenario, name: str, toward: Toward) -> Scenario:
    value = toward(getattr(scenario.options, name), getattr(SIMPLEST_OPTIONS, name))
    return replace(scenario, options=replace(scenario.options, **{name: value}))


def _with_blocks(scenario: Scenario, toward: Toward) -> Scenario:
    return replace(scenario, num_gpu_blocks=toward(scenario.num_gpu_blocks, FEWEST_BLOCKS))


def _with_arrival(scenario: Scenario, i: int, name: str, toward: Toward) -> Scenario:
    if i >= len(scenario.arrivals):
        return scenario
    arrivals = list(scenario.arrivals)
    value = toward(getattr(arrivals[i], name), getattr(SIMPLEST_ARRIVAL, name))
    arrivals[i] = replace(arrivals[i], **{name: value})
    return replace(scenario, arrivals=tuple(arrivals))
