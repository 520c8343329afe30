"""How an engine's model is spread over its devices, and its experts over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.deploy.collectives import collectives_among, described
from harness.descriptions.cluster import ExpertsFile, InstanceSpec
from profiles.model import ModelSpec, compute_dtype
from profiles.profile import Profile
from simulator.network.collectives import CollectiveTimes, Hop, at_once
from simulator.network.topology import Place, Topology
from simulator.scheduling.options import EngineOptions
from simulator.steps.experts import ExpertTimes, placement_of
from simulator.steps.gates import new_gate
from simulator.steps.partition import ALONE, Communication, Partition, communication, expert_groups
from traces.errors import InputError, ProfileError

ROUTER = "gate"
"""The operator of profiles that measured the router apart from the experts (`profiles/llmservingsim_artifact.py`)."""


def partition_of(
    spec: InstanceSpec,
    model: ModelSpec,
    profile: Profile,
    places: Sequence[Place],
    topology: Topology | None,
    folders: Sequence[Path],
    *,
    split: bool = False,
) -> Partition:
    """The partition that a description asks for.

    Args:
        spec: the engine's parallel sizes.
        model: its dimensions.
        profile: of its device.
        places: its devices, rank by rank and within a rank stage by stage.
        topology: links between them; None: not described.
        folders: where devices are looked up.
        split: the devices of a rank split its tokens before the experts (`use_sequence_parallel_moe`).

    Raises:
        InputError: sizes that vLLM refuses together, or devices whose links are not described.
    """
    check_degrees(spec, model)
    if model.num_experts and _are_by_tokens(profile):
        _check_by_tokens(spec, profile)
    tensor, pipeline = spec.tensor_parallel_size, spec.pipeline_parallel_size
    ranks = spec.data_parallel_size if model.num_experts else 1
    if tensor == 1 and spec.collectives.disable_custom_all_reduce:
        message, accepted = "has no effect", "false where devices share no layer"
        raise InputError(message, field="collectives.disable_custom_all_reduce", found=True, accepted=accepted)
    if tensor == pipeline == ranks == 1:
        return ALONE
    of_ranks = _shares_of_layers(places, tensor, pipeline)
    if split and ROUTER in profile.meta.composition.per_layer:
        message = "was measured for all tokens of a rank, of which each device has a share"
        raise ProfileError(message, file=profile.path, field="composition.per_layer", found=ROUTER)

    def among(groups: Sequence[Sequence[Place]], *, sums: bool) -> CollectiveTimes:
        return collectives_among(groups, spec, profile, topology, folders, sums=sums)

    return Partition(
        tensor,
        pipeline,
        ranks,
        spec.enable_expert_parallel,
        among(of_ranks, sums=True) if tensor > 1 else None,
        among(expert_groups(of_ranks, split=split), sums=False) if ranks > 1 else None,
        _next_stage(places, tensor, pipeline, topology) if pipeline > 1 else None,
        split,
    )


def drafter_partition(
    spec: InstanceSpec, profile: Profile, places: Sequence[Place], topology: Topology | None, folders: Sequence[Path]
) -> Partition:
    """The partition of a model that drafts, over the devices that share each of the engine's layers."""
    tensor = spec.tensor_parallel_size
    if tensor == 1:
        return ALONE
    groups = _shares_of_layers(places, tensor, spec.pipeline_parallel_size)
    return Partition(tensor, tensor=collectives_among(groups, spec, profile, topology, folders, sums=True))


def check_degrees(spec: InstanceSpec, model: ModelSpec) -> None:
    """Refuse what vLLM refuses (0.32 `config/parallel.py`, `model_executor/layers/fused_moe/`). Raises InputError."""
    if spec.enable_expert_parallel and not model.num_experts:
        raise InputError(field="enable_expert_parallel", found=True, accepted=f"false: {model.name} has no experts")
    devices = spec.tensor_parallel_size * spec.data_parallel_size
    if spec.enable_expert_parallel and model.num_experts < devices:
        accepted = f"at most {model.num_experts} devices, one expert each"
        raise InputError(field="tensor_parallel_size", found=f"{devices} devices of experts", accepted=accepted)
    if spec.experts != ExpertsFile() and not model.num_experts:
        raise InputError("has no effect", field="experts", accepted=f"nothing: {model.name} has no experts")
    if spec.role != "both" and spec.data_parallel_size > 1 and model.num_experts:
        accepted = "1 where prefill and decode are apart, for a mixture of experts"
        raise InputError(field="data_parallel_size", found=spec.data_parallel_size, accepted=accepted)


def _are_by_tokens(profile: Profile) -> bool:
    """Whether a layer's experts are one operator of the profile, all of them together."""
    return "experts" in profile.meta.composition.per_layer


def _check_by_tokens(spec: InstanceSpec, profile: Profile) -> None:
    """Refuse what times by tokens cannot tell apart: other gates, other placements. Raises InputError."""
    message = f"has no effect: the experts of {profile.meta.source} were measured together, by tokens"
    if spec.experts != ExpertsFile():
        raise InputError(message, field="experts", accepted="no such section")
    if spec.enable_expert_parallel != (there := bool((profile.meta.measured or {}).get("expert_parallel"))):
        raise InputError(message, field="enable_expert_parallel", accepted=f"{str(there).lower()}, as they were")
    if spec.data_parallel_size > 1:
        raise InputError(message, field="data_parallel_size", accepted="1")


def talk_of(partition: Partition, model: ModelSpec, options: EngineOptions) -> Communication | None:
    """What the parts of a step take to talk; None when there is one device."""
    if partition is ALONE:
        return None
    return communication(
        partition,
        model,
        compute_dtype(options.dtype),
        max_tokens=options.max_num_batched_tokens,
        max_requests=options.max_num_seqs,
    )


def _shares_of_layers(places: Sequence[Place], tensor: int, pipeline: int) -> list[Sequence[Place]]:
    """Of each rank the devices that share the layers of its first stage; ranks step together."""
    return [places[i : i + tensor] for i in range(0, len(places), tensor * pipeline)]


def _next_stage(places: Sequence[Place], tensor: int, pipeline: int, topology: Topology | None) -> Hop:
    """From each device of a first stage to its like in the second, of all ranks at once."""
    links = described(topology)
    senders = [i + j for i in range(0, len(places), tensor * pipeline) for j in range(tensor)]
    return at_once([links.path(places[i], places[i + tensor]) for i in senders])


def experts_of(
    partition: Partition, model: ModelSpec, profile: Profile, settings: ExpertsFile, seed: int
) -> ExpertTimes | None:
    """Time of the experts of one layer; None for a dense model.

    With expert parallelism each device holds whole experts, else a part of every one: of those of all its ranks, as
    vLLM flattens tensor parallelism over data-parallel ranks (0.32 `fused_moe/config.py::FusedMoEParallelConfig.make`).
    Either is read from the table of whole experts. Of a profile in which they are one operator by tokens, `experts`,
    there is nothing to add. Raises ProfileError without either, InputError for settings that do not fit the model.
    """
    if not model.num_experts:
        return None
    if _are_by_tokens(profile):
        return None
    rows = next((tables.moe for _, tables in sorted(profile.tables.items()) if tables.moe is not None), None)
    if rows is None:
        message = "a mixture of experts needs the times of its experts"
        raise ProfileError(message, file=profile.path, accepted="a profile with moe.csv")
    devices = partition.tensor_parallel_size * partition.data_parallel_size
    ranks = devices if partition.enable_expert_parallel else 1
    return ExpertTimes(
        rows,
        new_gate(settings.gate, model.num_experts, model.num_experts_per_tok),
        placement_of(settings.placement, model.num_experts, ranks, redundant=settings.redundant),
        num_layers=model.num_layers,
        parts=devices // ranks,
        mode=settings.mode,
        seed=seed,
    )
