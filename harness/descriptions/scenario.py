"""A scenario: which trace is served by what. One YAML file, typed and strict, with overrides from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from harness.cost import CostFile, SloFile
from harness.descriptions.memories import Attention, PrefixFile
from harness.descriptions.vllm_flags import check_engine_keys
from simulator.scheduling.choice import SchedulerKind
from simulator.scheduling.options import EngineOptions
from simulator.sessions import Think
from simulator.steps.step_time import Overhead
from traces.decoding import Document, read_document, yaml_value
from traces.errors import InputError
from traces.load import Load

Duration = Annotated[float, msgspec.Meta(ge=0, le=60)]
"""Seconds of a step beside its operators: above a minute the unit is wrong, and infinity is no time."""

Text = Annotated[str, msgspec.Meta(min_length=1)]

VLLMVersion = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+(\.\w+)*$")]
"""A version in quotes, such as "0.26" or "0.26.0": without them YAML reads a number, and 0.30 as 0.3."""


Routing = Text | dict[str, Any]
"""A router's name; or a mapping with its `name`, and its options beside it."""


class OverheadFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured time of a step beside its operators (`simulator.steps.step_time.Overhead`); it must name its source."""

    source: Text
    device_step_s: Duration = 0.0
    host_step_s: Duration = 0.0
    host_request_s: Duration = 0.0

    def overhead(self) -> Overhead:
        """The same for the step-time model."""
        return Overhead(self.device_step_s, self.host_step_s, self.host_request_s, self.source)


class ScenarioFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario as the user writes it. Paths are relative to the file.

    Attributes:
        trace: the requests, in any known format.
        load: which part of them is served, how fast they come, and how long they are; None: the trace as it is.
        cluster: what serves them: a file, or its content in place.
        profiles: folders in which profiles, models and devices are looked up before the bundled ones.
        calibration: file of a fitted residual, as `servetwin calibrate` writes it; None: none.
        engine: options of every engine, by vLLM's names.
        engine_version: vLLM's version whose rules the scheduler follows; None: the capture's, where there is one.
        scheduler: servetwin's own, or that of the vLLM installed beside it.
        routing: by which rule a request finds its engine, over the cluster description's.
        attention: where decodes attend, over the cluster description's: `device`, `near_memory` or `interleaved`.
        prefix: LLMServingSim's second tier of the prefix cache, which its cluster files leave to its command line.
        deadline_s: from a request's arrival until its client gives it up; None: never.
        concurrency: seats of a closed loop, each of which sends its next request when its last has ended; arrivals of
            the trace mean nothing then. None: open loop.
        think_s: from a seat's last end to its next request, on the average.
        think: whether that is always the same, or drawn from an exponential distribution.
        overhead: measured time of a step beside its operators; None: what the profile itself says.
        slo: the most a request's durations may be; None: no figure speaks of it.
        cost: prices of devices and energy; None: no figure speaks of cost.
        seed: of everything drawn at random.
    """

    trace: Text
    cluster: Text | dict[str, Any]
    load: Load | None = None
    profiles: tuple[str, ...] = ()
    calibration: Text | None = None
    engine: EngineOptions = EngineOptions()
    engine_version: VLLMVersion | None = None
    scheduler: SchedulerKind = "native"
    routing: Routing | None = None
    attention: Attention | None = None
    prefix: PrefixFile | None = None
    deadline_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    think_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    think: Think = "constant"
    overhead: OverheadFile | None = None
    slo: SloFile | None = None
    cost: CostFile | None = None
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario as it is run.

    Attributes:
        path: its file.
        requested: what the user asked for, overrides applied, otherwise verbatim.
        file: the same, typed.
        document: the file as it was read, with its lines.
    """

    path: Path
    requested: dict[str, Any]
    file: ScenarioFile
    document: Document

    @property
    def trace_path(self) -> Path:
        """Where the requests are."""
        return self.path.parent / self.file.trace

    @property
    def profile_folders(self) -> list[Path]:
        """Where profiles are looked up first."""
        return [self.path.parent / folder for folder in self.file.profiles]

    @property
    def calibration_path(self) -> Path | None:
        """Where the fitted residual is; None without one."""
        return None if self.file.calibration is None else self.path.parent / self.file.calibration

    @property
    def said_options(self) -> dict[str, Any]:
        """The engine options that the user wrote down; all others have their defaults."""
        return dict(self.requested.get("engine") or {})

    def place_of(self, name: str | None) -> tuple[Path, int | None]:
        """The file, and the line where a key such as `engine.block_size` stands, or stands in the cluster in place."""
        if not name:
            return self.path, None
        keys = name.split(".")
        if keys[0] not in self.file.__struct_fields__:
            keys = ["cluster", *keys]
        return self.path, self.document.error(keys).line


def read_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario, with `key.sub=value` overrides; values are YAML. Raises InputError with file, line and field."""
    document = read_document(path)
    for override in overrides:
        set_key(document.value, *_parsed(override), field="--set")
    return scenario_of(document)


def scenario_of(document: Document) -> Scenario:
    """A scenario from its document, whatever was set in it since it was read. Raises InputError."""
    check_engine_keys(document, ["engine"], document.value.get("engine"))
    file = document.convert(ScenarioFile)
    check_routing(document, file.routing)
    if file.scheduler == "vllm" and file.engine_version is not None:
        raise document.error(["engine_version"], "has no effect with scheduler 'vllm': the installed version counts")
    scenario = Scenario(document.path, document.value, file, document)
    if file.load is not None:
        _check_load(scenario, file.load)
    return scenario


def load_key(name: str) -> str:
    """The key that holds a part of the load."""
    return f"load.{name}"


def _check_load(scenario: Scenario, load: Load) -> None:
    """Raise InputError for a load that no trace can come under, or that means nothing in a closed loop."""
    try:
        load.check(load_key)
    except InputError as error:
        file, line = scenario.place_of(error.field)
        raise InputError(str(error), file=file, line=line) from None
    for name in ("speed", "request_rate"):
        if scenario.file.concurrency is not None and getattr(load, name) is not None:
            accepted = "only without concurrency: in a closed loop requests come when others end"
            raise scenario.document.error(["load", name], accepted=accepted)


def check_routing(document: Document, routing: Routing | None) -> None:
    """Raise InputError where a router has options and no name."""
    if isinstance(routing, dict) and not isinstance(routing.get("name"), str):
        raise document.error(["routing", "name"], accepted="a router's name, its options beside it")


def _parsed(override: str) -> tuple[str, Any]:
    """Key and value of `key.sub=value`. Raises InputError."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(field="--set", found=override, accepted="key=value or key.sub=value")
    try:
        return key, yaml_value(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "no value can be told from it"
        raise InputError(f"is not YAML ({problem})", field=f"--set {key}", found=text) from None


def set_key(requested: dict[str, Any], key: str, value: Any, *, field: str) -> None:
    """Set one key of the mapping; a number in it is an item of a list, as in `cluster.instances.0.count`.

    Raises InputError, about `field` and the key, where the key leads through what is no mapping and no such list.
    """
    names = key.split(".")
    at: Any = requested
    for name, after in zip(names, [*names[1:], None], strict=True):
        place: str | int = name
        if isinstance(at, list):
            place = int(name) if name.isdecimal() else -1
            if not 0 <= place < len(at):
                accepted = f"an item of a list of {len(at)}, counted from 0"
                raise InputError(field=f"{field} {key}", found=name, accepted=accepted)
        if after is None:
            at[place] = value
            return
        inner = at.setdefault(place, {}) if isinstance(at, dict) else at[place]
        if not isinstance(inner, dict | list):
            raise InputError(field=f"{field} {key}", found=name, accepted="a key that holds a mapping")
        at[place] = at = copy(inner)  # an alias of YAML may have put the same mapping elsewhere, too
