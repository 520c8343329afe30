"""An operator profile: what each operator of one model costs on one device, measured.

One whose composition names no operator holds whole steps alone. How a profile lies on disk, `profile_folder` knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from traces.steps import Floats

PROFILE_SCHEMA = "servetwin.profile/1"


class Composition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How operators make up a step; an operator that runs twice is named twice.

    Attributes:
        once: run once a step, over its tokens.
        per_layer: run in each layer; `attention` and `moe` have tables of their own, the others are token-wise.
        per_request: run once a step, over one row per request.
    """

    once: tuple[str, ...]
    per_layer: tuple[str, ...]
    per_request: tuple[str, ...]

    def dense(self) -> set[str]:
        """The token-wise operators."""
        return {*self.once, *self.per_layer} - {"attention", "moe"}

    def tables(self) -> set[str]:
        """The tables that a profile of these operators must have; whole steps when there are no operators."""
        needed: set[str] = {name for name in self.per_layer if name in ("attention", "moe")}
        if self.dense():
            needed.add("dense")
        if self.per_request:
            needed.add("per_request")
        return needed or {"steps"}


class StatedOverhead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a step takes beside its operators, where no whole steps were measured with them but something else says so.

    Attributes:
        host_step_s: on the host, once per step; hidden where the next step is planned while one runs.
        source: where it is from.
    """

    host_step_s: Annotated[float, msgspec.Meta(ge=0)]
    source: Annotated[str, msgspec.Meta(min_length=1)]


class ProfileMeta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured, where and how.

    Attributes:
        device: name of the device, as a cluster description spells it.
        model: name of the model.
        dtype: type of weights and activations.
        kv_cache_dtype: type of the KV cache; auto: as dtype.
        engine: engine and version whose operators these are; None when not recorded.
        source: who measured it.
        recorded_at: ISO date; None when not recorded.
        method: how a time was taken, and what it is (mean, median) of how many.
        model_config: the model's Hugging Face config.json; None when not at hand.
        composition: how operators make up a step.
        notes: what a reader should know.
        measured: further facts of the measurement.
        overhead: of a step, which whole steps measured with the profile replace; None: nothing is known.
    """

    schema_version: str = PROFILE_SCHEMA
    device: str
    model: str
    dtype: str
    kv_cache_dtype: str = "auto"
    engine: str | None = None
    source: str
    recorded_at: str | None = None
    method: str
    model_config: dict[str, Any] | None = None
    composition: Composition
    notes: tuple[str, ...] = ()
    measured: dict[str, Any] = {}
    overhead: StatedOverhead | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Time of one operator by size: x [k] ascending tokens, requests or bytes, time_s [k], and how sure it is, [k].

    Attributes:
        spread: relative; NaN where it was not taken, None where nowhere.
        n: samples; the same.
    """

    x: Floats
    time_s: Floats
    spread: Floats | None = None
    n: Floats | None = None


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """One layer's attention, [n] each: a prefill chunk with its history beside decodes of equal history; 0 is none.

    Where `n_chunks` says so, several chunks, each of so many tokens and so much history, and no decodes.
    """

    prefill_tokens: Floats
    prefill_kv_tokens: Floats
    n_decode: Floats
    decode_kv_tokens: Floats
    time_s: Floats
    spread: Floats | None = None
    n: Floats | None = None
    n_chunks: Floats | None = None


@dataclass(frozen=True, slots=True)
class MoeRows:
    """One layer's experts, [n] each: by tokens and by how many experts they reach."""

    n_tokens: Floats
    n_experts: Floats
    time_s: Floats
    spread: Floats | None = None
    n: Floats | None = None


@dataclass(frozen=True, slots=True)
class SkewRows:
    """Decode batches of two history lengths, [n] each, beside the uniform batches of mean and of longest history."""

    n_decode: Floats
    n_long: Floats
    prefill_tokens: Floats
    prefill_kv_tokens: Floats
    short_kv_tokens: Floats
    long_kv_tokens: Floats
    mean_kv_tokens: Floats
    uniform_mean_s: Floats
    uniform_max_s: Floats
    time_s: Floats
    spread: Floats | None = None
    n: Floats | None = None


@dataclass(frozen=True, slots=True)
class StepRows:
    """Whole steps, [n] each: the batch as in `AttentionRows`, its requests, the time of the un-instrumented step.

    `instrumented_s` is the step with timers, None where there were none; `repeats` is the number of samples.
    """

    prefill_tokens: Floats
    prefill_kv_tokens: Floats
    n_decode: Floats
    decode_kv_tokens: Floats
    n_requests: Floats
    step_s: Floats
    instrumented_s: Floats | None
    repeats: Floats
    spread: Floats | None = None


@dataclass(frozen=True, slots=True)
class OperatorTables:
    """All that was measured at one tensor-parallel degree; a profile of whole steps has no curves and no attention."""

    dense: dict[str, Curve]
    per_request: dict[str, Curve]
    attention: AttentionRows
    moe: MoeRows | None = None
    skew: SkewRows | None = None
    steps: StepRows | None = None


NO_OPERATORS: dict[str, Any] = {"dense": {}, "per_request": {}, "attention": AttentionRows(*np.zeros((5, 0)))}
"""Of a profile that holds whole steps alone."""


@dataclass(frozen=True, slots=True)
class Profile:
    """An operator profile as read: its description, its tables by tensor-parallel degree, digest and folder.

    `collectives` are curves over bytes by operation and number of ranks; None where they were not measured.
    """

    meta: ProfileMeta
    tables: dict[int, OperatorTables]
    sha256: str = ""
    path: Path = field(default_factory=Path)
    collectives: dict[str, dict[int, Curve]] | None = None


COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
"""Operations that `Profile.collectives` may have; bytes are the larger of a rank's two buffers, in and out (as
nccl-tests count).
"""
