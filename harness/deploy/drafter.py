"""The model that drafts for an engine, priced by a profile of its own on as many devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.deploy.partitioning import drafter_partition, talk_of
from harness.descriptions.cluster import InstanceSpec
from harness.descriptions.source import model_from, profile_from
from simulator.network.topology import Place, Topology
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.speculation import FIELD, SpeculativeConfig
from simulator.steps.operator_model import OperatorModel
from simulator.steps.profile_overhead import profile_overhead
from simulator.steps.speculative_steps import DraftModel
from traces.errors import InputError


def drafter_of(
    config: SpeculativeConfig,
    spec: InstanceSpec,
    options: EngineOptions,
    folders: Sequence[Path],
    places: Sequence[Place],
    topology: Topology | None,
) -> DraftModel | None:
    """The passes of a step; None where what they take is stated.

    Its tensor-parallel degree is the engine's, as vLLM has it (0.32 `v1/spec_decode/draft_model.py`:
    `_raise_if_draft_tp_mismatch`). Raises InputError for what cannot be priced.

    Args:
        config: which model, and how many tokens it drafts.
        spec: the engine's device, where its profiles are from, and its parallel sizes.
        options: of the engine.
        folders: where profiles and models are looked up.
        places: the engine's devices, rank by rank.
        topology: links between them; None: not described.
    """
    if config.model is None:
        return None
    degree = spec.tensor_parallel_size
    relative_to = spec.document.path.parent
    profile = profile_from(spec.source, spec.device, config.model, options, degree, folders, relative_to)
    model = model_from(profile, config.model, folders)
    if model.num_experts:
        field = f"{FIELD}.model"
        raise InputError("is a mixture of experts", field=field, found=config.model, accepted="a dense model")
    partition = drafter_partition(profile, degree, places, topology)
    passes = OperatorModel(
        profile,
        options,
        num_layers=model.num_layers,
        partition=partition,
        talk=talk_of(partition, model, options),
        overhead=profile_overhead(profile, model.num_layers, degree),
    )
    return DraftModel(passes, config.model, config.num_speculative_tokens)
