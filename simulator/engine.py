"""What one simulated engine is made of, and which options go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.kv.host_link import HostLink
from simulator.network.topology import Place
from simulator.rank import Rank
from simulator.scheduling.choice import SchedulerKind, new_scheduler
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.policies import new_eviction, new_order
from simulator.scheduling.rules import OPTIONS_SINCE, REFERENCE_RULES, Rules
from simulator.scheduling.spec import SchedulerSpec
from simulator.scheduling.speculation import check_speculation
from simulator.steps.contention import Exchange
from simulator.steps.step_time import StepTimeModel
from simulator.steps.weight_offload import WeightOffload
from traces.errors import InputError

Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine of a cluster.

    Attributes:
        model: name of the model, for the record.
        device: name of the device, for the record.
        options: the engine's options.
        num_gpu_blocks: its KV blocks, the null block included.
        max_model_len: most tokens of a request.
        step_time: how long its steps take.
        scheduler: our own scheduler, or the installed vLLM's.
        rules: of the vLLM version that our own scheduler follows.
        ranks: data-parallel ranks that step together, each with its own requests and KV cache.
        pipeline_parallel_size: stages, each with some of the layers, and as many batches under way.
        role: what it does of a request: all, its prompt, or its answer.
        places: its devices, rank by rank, where it matters which they are.
        kv_bytes_per_token: keys and values of one token, over all layers, a drafter's own among them.
        kv_copies: how many devices of a rank keep each of them, on the average: above 1 where a layer has fewer heads
            of them than devices share it.
        weight_bytes: of one device; None when it is not known or devices hold different shares.
        kv_block_bytes: of one KV block on one device; None likewise.
        num_layers: of the model, where KV leaves layer by layer.
        exchanges: what its devices send each other, where KV may share their links.
        scheduling_order: a user's own order of requests, as `module:Class`; None: the scheduling policy's.
        cache_eviction: a user's own rule of what the prefix cache evicts, as `module:Class`; None: vLLM's.
        host_link: of each of its devices, where tiers' KV or weights cross it; None: not said.
        offload: weights that come over it in every step, in `step_time` already; None: none do.
        seed: decides which drafted tokens are accepted, where the options have a drafter.
    """

    model: str
    device: str
    options: EngineOptions
    num_gpu_blocks: int
    max_model_len: int
    step_time: StepTimeModel
    scheduler: SchedulerKind = "native"
    rules: Rules = REFERENCE_RULES
    ranks: int = 1
    pipeline_parallel_size: int = 1
    role: Role = "both"
    places: tuple[Place, ...] = ()
    kv_bytes_per_token: float = 0.0
    kv_copies: float = 1.0
    weight_bytes: int | None = None
    kv_block_bytes: int | None = None
    num_layers: int = 1
    exchanges: tuple[Exchange, ...] = ()
    scheduling_order: str | None = None
    cache_eviction: str | None = None
    host_link: HostLink | None = None
    offload: WeightOffload | None = None
    seed: int = 0

    @property
    def kept_kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values on all devices of a rank, those included that several keep."""
        return self.kv_bytes_per_token * self.kv_copies

    @property
    def steps_in_flight(self) -> int:
        """Steps planned and not ended, at most: one for each pipeline stage, one more with asynchronous scheduling.

        vLLM 0.32 `config/vllm.py::max_concurrent_batches`.
        """
        return self.pipeline_parallel_size + self.options.async_scheduling

    @property
    def decode_stagger(self) -> int:
        """Plannings from one token of a request to the next (vLLM 0.32 `async_scheduler.py`, same name)."""
        return self.pipeline_parallel_size if self.options.async_scheduling else 1

    @property
    def has_own_rules(self) -> bool:
        """Whether a user's own order or eviction rule is in it."""
        return self.scheduling_order is not None or self.cache_eviction is not None

    def rank_places(self, rank: int) -> tuple[Place, ...]:
        """Devices of one of its ranks, counted from 0; none where they are not said."""
        each = len(self.places) // self.ranks
        return self.places[rank * each : (rank + 1) * each]

    def new_rank(self, number: int, *, blocks_per_hash: int = 1, names_batches: bool = True) -> Rank:
        """One of its ranks, empty.

        Args:
            number: its place among all ranks of the cluster.
            blocks_per_hash: KV blocks that each hash of a request stands for.
            names_batches: whether plans say which requests are in them; vLLM's scheduler always does.

        Raises:
            EngineError: vLLM's scheduler is asked for and cannot be had.
        """
        spec = SchedulerSpec(
            self.options,
            self.num_gpu_blocks,
            self.max_model_len,
            self.rules,
            self.pipeline_parallel_size,
            order=None if self.scheduling_order is None else new_order(self.scheduling_order),
            eviction=None if self.cache_eviction is None else new_eviction(self.cache_eviction),
            blocks_per_hash=blocks_per_hash,
            names_batches=names_batches,
            seed=self.seed,
        )
        return Rank(
            new_scheduler(self.scheduler, spec),
            number,
            max_num_seqs=self.options.max_num_seqs,
            num_blocks=spec.num_blocks,
            block_size=self.options.block_size,
            keeps_batches=names_batches,
        )


def check_engine(engine: Engine) -> None:
    """Raise InputError, with the field, for options that contradict each other, or are not modelled together."""
    check_options(engine.options, engine.max_model_len, engine.rules)
    drafts = engine.options.speculative_config is not None
    if drafts and engine.pipeline_parallel_size > 1 and not engine.options.async_scheduling:
        message = "is not modelled where tokens are drafted (engine.speculative_config) without asynchronous scheduling"
        field = "instances.pipeline_parallel_size"
        raise InputError(message, field=field, found=engine.pipeline_parallel_size, accepted="1, or async_scheduling")


def check_options(options: EngineOptions, max_model_len: int, rules: Rules) -> None:
    """Refuse what vLLM refuses at start (vLLM 0.32 `config/scheduler.py::SchedulerConfig.verify_max_model_len`).

    Raises InputError with the field, and for options that the version whose rules are followed does not have.
    """
    if not options.enable_chunked_prefill and options.max_num_batched_tokens < max_model_len:
        raise InputError(
            field="engine.max_num_batched_tokens",
            found=options.max_num_batched_tokens,
            accepted=f"at least max_model_len {max_model_len} when enable_chunked_prefill is false",
        )
    if options.max_num_active_seqs is not None and options.max_num_active_seqs > options.max_num_seqs:
        raise InputError(
            field="engine.max_num_active_seqs",
            found=options.max_num_active_seqs,
            accepted=f"at most max_num_seqs {options.max_num_seqs}",
        )
    if options.long_prefill_token_threshold > max_model_len:
        raise InputError(
            field="engine.long_prefill_token_threshold",
            found=options.long_prefill_token_threshold,
            accepted=f"at most max_model_len {max_model_len}",
        )
    if options.max_num_batched_tokens < options.max_num_seqs:
        raise InputError(
            field="engine.max_num_batched_tokens",
            found=options.max_num_batched_tokens,
            accepted=f"at least max_num_seqs {options.max_num_seqs}",
        )
    check_speculation(
        options.speculative_config,
        asynchronous=options.async_scheduling,
        threshold=options.long_prefill_token_threshold,
        budget=options.max_num_batched_tokens,
    )
    for name, since in OPTIONS_SINCE.items():
        if rules.version < since and getattr(options, name) != getattr(EngineOptions(), name):
            raise InputError(
                f"needs vLLM {since[0]}.{since[1]}, and the rules followed are those of {rules.name}",
                field=f"engine.{name}",
                found=getattr(options, name),
            )
