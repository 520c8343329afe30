"""Engines that draft: the model that does, priced by a profile of its own; its KV; and what is not known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.deploy.partitioning import drafter_partition, talk_of
from harness.descriptions.cluster import InstanceSpec
from harness.descriptions.source import model_from, profile_from
from profiles.model import ModelSpec
from simulator.network.topology import Place, Topology
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.rules import REFERENCE, REFERENCE_RULES, Rules
from simulator.scheduling.speculation import FIELD, LOOKS_AHEAD, SpeculativeConfig
from simulator.steps.operator_model import OperatorModel
from simulator.steps.profile_overhead import profile_overhead
from simulator.steps.speculative_steps import DraftModel
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class Drafter:
    """A model that drafts: its passes in a step, and its dimensions."""

    passes: DraftModel
    model: ModelSpec


def drafter_of(
    config: SpeculativeConfig,
    spec: InstanceSpec,
    options: EngineOptions,
    folders: Sequence[Path],
    places: Sequence[Place],
    topology: Topology | None,
) -> Drafter | None:
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
    partition = drafter_partition(spec, profile, places, topology, folders)
    passes = OperatorModel(
        profile,
        options,
        num_layers=model.num_layers,
        partition=partition,
        talk=talk_of(partition, model, options),
        overhead=profile_overhead(profile, model.num_layers, degree),
    )
    return Drafter(DraftModel(passes, config.model, config.num_speculative_tokens), model)


def drafter_kv_bytes(
    config: SpeculativeConfig | None, drafter: Drafter | None, model: ModelSpec, dtype: str, tensor_parallel_size: int
) -> int | None:
    """Bytes of one token's keys and values on one device, in the drafter's own layers; None: not known, 0: none.

    vLLM's KV cache is that of all attention layers there are, the drafter's among them (0.32
    `v1/worker/gpu_model_runner.py::get_kv_cache_spec`), and so are the blocks that its NixlConnector sends and its
    OffloadingConnector keeps (`nixl/base_worker.py::register_kv_caches`, `offloading/config.py`:
    `worker_kv_bytes_per_block`). The head of EAGLE (`model_executor/models/llama_eagle.py`, `llama_eagle3.py`) and the
    module of MTP are taken as one layer more of the model's shape.

    Args:
        config: who drafts; None: nobody.
        drafter: the model that does; None: it is none by itself, or is not said.
        model: that is drafted for.
        dtype: of keys and values.
        tensor_parallel_size: devices that share each layer, of both.
    """
    if config is None or config.method not in LOOKS_AHEAD:
        return 0
    if config.method != "draft_model":
        return model.kv_bytes_per_token(dtype, tensor_parallel_size) // model.num_layers
    return None if drafter is None else drafter.model.kv_bytes_per_token(dtype, tensor_parallel_size)


def drafter_kv_notes(config: SpeculativeConfig | None, drafter: Drafter | None) -> list[str]:
    """What to say where KV is sent or kept elsewhere. Raises InputError where a drafter's is not known."""
    if config is None or config.method not in LOOKS_AHEAD:
        return []
    if config.method != "draft_model":
        return [f"KV that is sent or kept elsewhere has one layer more than the model's, of {config.method}'s drafter"]
    if drafter is None:
        accepted = "model in its place, where prefill and decode are apart or KV tiers are"
        message = "does not say how much KV the draft model has, which is sent and kept with the model's"
        raise InputError(message, field=f"{FIELD}.draft_s", found=config.draft_s, accepted=accepted)
    layers = drafter.model.num_layers
    return [f"KV that is sent or kept elsewhere has {layers} layers more than the model's, of {drafter.model.name}"]


def refuse_unknown_memory(options: EngineOptions) -> None:
    """Raise InputError where a drafter takes memory: how much is not known."""
    config = options.speculative_config
    if config is not None and config.method in LOOKS_AHEAD:
        raise InputError(
            "takes memory for the drafter, which is not predicted",
            field=f"{FIELD}.method",
            found=config.method,
            accepted="num_gpu_blocks stated with it, as the engine reports it at start",
        )


def speculation_notes(rules: Rules) -> list[str]:
    """What to say of a vLLM version for whose scheduling of drafts there is no proof."""
    if rules.version == REFERENCE:
        return []
    return [f"drafted tokens are scheduled by the rules of {REFERENCE_RULES.name}, all else by those of {rules.name}"]
