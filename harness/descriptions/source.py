"""Where the times of a model's operators are from: measured profiles, or a source that a description asks for by name.

Nothing stands in for anything else: without a `source` there must be a measured profile, and a source that lacks the
device, the model or a type is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from profiles.catalog import find_device, find_model, find_profile
from profiles.model import ModelSpec, model_of
from profiles.profile import Profile
from simulator.scheduling.options import EngineOptions

SourceKind = Literal["measured", "aiconfigurator", "roofline", "external"]
"""A measured profile; the tables of aiconfigurator-core, an extra; a bound from the device's datasheet; a simulator."""


class Aiconfigurator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of aiconfigurator's tables is read (`profiles.aiconfigurator`).

    Attributes:
        system: its name of the device; None: the one that the device's description has among its aliases.
        version: vLLM's version that was measured; None: its current one for the system.
        gemm: its name of how weights are quantized; None: as the engine's dtype says.
        distribution: its name of how tokens were spread over experts; None: as its own models have it.
    """

    system: str | None = None
    version: str | None = None
    gemm: str | None = None
    distribution: str | None = None


class External(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user's own simulator of operators (`profiles.external`).

    Attributes:
        command: program and arguments; a path in it is relative to the description's file.
        timeout_s: for all shapes of one call.
        cache: folder in which answers are kept; None: in the user's cache folder.
        depends_on: further files whose contents its answers depend on.
    """

    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    cache: str | None = None
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A source, and the section of its name that stands beside it; None: no such section."""

    kind: SourceKind = "measured"
    aiconfigurator: Aiconfigurator | None = None
    external: External | None = None

    def fault(self) -> tuple[str, str] | None:
        """The section that is wrong, and in which way; None: none is."""
        for name in ("aiconfigurator", "external"):
            if getattr(self, name) is not None and self.kind != name:
                return name, f"has no effect with source {self.kind}"
        return ("external", "is missing: its command") if self.kind == "external" and self.external is None else None


def model_from(profile: Profile, name: str, folders: Sequence[Path]) -> ModelSpec:
    """A model's dimensions: those that its profile was measured with, else the catalogue's."""
    if profile.meta.model_config is not None:
        return model_of(profile.meta.model_config, name, profile.path / "profile.json")
    return find_model(name, folders)


def profile_from(
    source: Source,
    device: str,
    model: str,
    options: EngineOptions,
    tensor_parallel_size: int,
    folders: Sequence[Path],
    relative_to: Path,
    *,
    expert_parallel: bool = False,
) -> Profile:
    """The profile of a device and a model from a source, at one tensor-parallel degree. Raises InputError, EngineError.

    Args:
        source: which.
        device, model: their names in the catalogue.
        options: of the engine: its types.
        tensor_parallel_size: the degree that will be simulated; a measured profile has all of its own.
        folders: where profiles, models and devices are looked up.
        relative_to: folder that paths of the source are relative to.
        expert_parallel: whole experts on each device, for sources that measured that apart.
    """
    types = options.dtype, options.kv_cache_dtype
    if source.kind == "measured":
        return find_profile(device, model, *types, folders)
    spec, degrees = find_model(model, folders), (tensor_parallel_size,)
    if source.kind == "aiconfigurator":
        from profiles.aiconfigurator import aiconfigurator_profile, system_of

        said = source.aiconfigurator or Aiconfigurator()
        system = said.system or system_of(find_device(device, folders))
        return aiconfigurator_profile(
            system,
            spec,
            *types,
            degrees,
            device=device,
            version=said.version,
            gemm=said.gemm,
            distribution=said.distribution,
            expert_parallel=expert_parallel,
        )
    if source.external is not None:
        from profiles.external import Simulator, external_profile

        asked = source.external
        simulator = Simulator(asked.command, asked.timeout_s, asked.cache, asked.depends_on, relative_to)
        return external_profile(simulator, device, spec, *types, degrees)
    from profiles.roofline import roofline_profile

    return roofline_profile(find_device(device, folders), spec, *types, degrees)


def source_notes(source: Source, profile: Profile) -> tuple[str, ...]:
    """What a reader of results should know of operators that were not measured for this model on this device."""
    return () if source.kind == "measured" else profile.meta.notes
