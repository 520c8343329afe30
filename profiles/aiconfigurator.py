"""Profiles from the tables of aiconfigurator-core (Apache-2.0): silicon times of vLLM's operators on datacentre GPUs.

How operators make up a step is its own description of a model, of 0.12 `sdk/models/llama.py::LLAMAModel` or, with
experts, `sdk/models/moe.py::MOEModel`, built from our dimensions; operators are priced one by one, at the sizes that
were collected. It has no norm before the output head, no sampler and nothing of the host. Experts are one operator of
all of them, by tokens, with a distribution of tokens over experts that was drawn when it was measured. Its `add_norm`,
`act_gate` and `embedding` are formulas of bandwidth and a constant, not silicon; a chunk's history is a formula over
silicon rows without one; decodes are smoothed over neighbouring histories, by up to 4 %. Mixed batches are prefill and
decode apart, as in its `mixed_step`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from profiles.aiconfigurator_tables import (
    BACKEND,
    COMMUNICATION,
    PACKAGE,
    Answer,
    Experts,
    Operator,
    Tables,
    core_version,
    has_system,
    systems,
)
from profiles.attention import AttentionTable, Chunk
from profiles.device import DeviceSpec
from profiles.interpolation import interpolate
from profiles.model import ModelSpec
from profiles.priced import attention_rows, with_digest
from profiles.profile import AttentionRows, Composition, Curve, OperatorTables, Profile, ProfileMeta
from traces.errors import InputError
from traces.steps import Ints

GEMMS = {"bfloat16": ("bfloat16",), "fp8": ("fp8", "fp8_block"), "nvfp4": ("nvfp4",)}
"""Its names of matrix products by the engine's dtype, the usual one first."""

PREFILL, DECODE = "attention of prompts", "attention of decodes"

EXPERTS = "experts"
"""Our name of its operator `moe`, a time by tokens; `moe` of a composition is a table of its own."""

DISTRIBUTION = "power_law_1.2"
"""Of tokens over experts; the one that its `MOEModel` takes."""

OF_TENSOR_PARALLELISM = ("all_reduce", "all_gather")
"""Collectives of devices that share layers."""

_MOST_REQUESTS = 2048

KV_DTYPES = {"auto": "bfloat16", "bfloat16": "bfloat16", "fp8": "fp8"}


def system_of(device: DeviceSpec) -> str:
    """Its name of a device, which stands among the device's aliases. Raises InputError when it has none."""
    for name in (device.name, *device.aliases):
        if has_system(name):
            return name
    message, there = f"aiconfigurator-core has no tables of {device.name}", ", ".join(systems())
    raise InputError(message, field="device", accepted=f"a device with one of {there} among its aliases")


def aiconfigurator_profile(
    system: str,
    model: ModelSpec,
    dtype: str,
    kv_cache_dtype: str,
    degrees: Sequence[int],
    *,
    device: str,
    version: str | None = None,
    gemm: str | None = None,
    distribution: str | None = None,
    expert_parallel: bool = False,
) -> Profile:
    """A profile of a model on one system.

    Args:
        system: the package's name of the device.
        model: its dimensions.
        dtype, kv_cache_dtype: the engine's types.
        degrees: tensor-parallel degrees.
        device: our name of it.
        version: vLLM's version that was measured; None: the system's current one.
        gemm: how weights are quantized, of the names in `GEMMS`; None: the first of the dtype.
        distribution: of tokens over experts, by its name; None: `DISTRIBUTION`, or of a dense model none.
        expert_parallel: whole experts on each device, in place of a part of every one.

    Raises:
        InputError: the package lacks the system, the version, the type, the degree, or such experts.
        EngineError: the extra is not installed.
    """
    if distribution is not None and not model.num_experts:
        message, accepted = "has no effect", f"nothing: {model.name} has no experts"
        raise InputError(message, field="distribution", found=distribution, accepted=accepted)
    tables = Tables(system, version)
    gemm, kv = _types(tables, dtype, kv_cache_dtype, gemm)
    law = distribution or DISTRIBUTION
    coverage = _Coverage()
    by_degree, notes = {}, []
    for tp in degrees:
        composition, by_degree[tp] = _Degree(
            tables, model, tp, gemm, kv, _experts(model, law, tp, expert_parallel), coverage
        ).priced()
        notes.append(_shares(model, tp, composition, by_degree[tp], coverage))
    several = [tp for tp in degrees if tp > 1]
    collectives = _collectives(tables, several, coverage, OF_TENSOR_PARALLELISM, field="tensor_parallel_size")
    meta = ProfileMeta(
        device=device,
        model=model.name,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        engine=f"{BACKEND} {tables.version}",
        source=f"{PACKAGE} {core_version()}",
        method="collected and published with the package, which says neither statistic nor spread",
        composition=composition,
        notes=(
            f"operators of aiconfigurator-core {core_version()}, {system}, {BACKEND} {tables.version}, matrix products "
            f"in {gemm}, keys and values in {kv}; composed as its sdk/models/{_module(model)} does; "
            "no sampler, no host",
            *_experts_notes(model, law, expert_parallel),
            *coverage.notes(),
            *notes,
            *tables.warnings,
        ),
        measured={"license": "Apache-2.0", "system": system, "gemm": gemm}
        | ({"distribution": law, "expert_parallel": expert_parallel} if model.num_experts else {}),
    )
    return with_digest(Profile(meta, by_degree, collectives=collectives or None))


def _module(model: ModelSpec) -> str:
    return "moe.py" if model.num_experts else "llama.py"


def _experts(model: ModelSpec, distribution: str, tp: int, expert_parallel: bool) -> Experts | None:
    """How experts are spread over `tp` devices; None: there are none."""
    if not model.num_experts:
        return None
    return Experts(distribution, 1, tp) if expert_parallel else Experts(distribution, tp, 1)


def _experts_notes(model: ModelSpec, distribution: str, expert_parallel: bool) -> tuple[str, ...]:
    if not model.num_experts:
        return ()
    said = f"experts: {model.num_experts}, {model.num_experts_per_tok} for each token, chosen as {distribution} when "
    said += "they were measured: one time by tokens, whatever the gate; "
    return (said + ("whole ones on each device" if expert_parallel else "each is split over the devices"),)


def _types(tables: Tables, dtype: str, kv_cache_dtype: str, gemm: str | None) -> tuple[str, str]:
    """Its names of the types of matrix products and of keys and values. Raises InputError for what it lacks."""
    if dtype not in GEMMS:
        raise InputError(field="dtype", found=dtype, accepted=f"collected by aiconfigurator: {', '.join(GEMMS)}")
    if kv_cache_dtype not in KV_DTYPES:
        raise InputError(field="kv_cache_dtype", found=kv_cache_dtype, accepted=", ".join(KV_DTYPES))
    name, collected = gemm or GEMMS[dtype][0], tables.names("gemm_perf", "gemm_dtype")
    if name not in GEMMS[dtype] or name not in collected:
        usable = ", ".join(one for one in GEMMS[dtype] if one in collected) or f"none for dtype {dtype}"
        raise InputError(f"was not collected on {tables.system}", field="gemm", found=name, accepted=usable)
    kv = KV_DTYPES[kv_cache_dtype]
    if kv not in (there := tables.names("generation_attention_perf", "kv_cache_dtype")):
        raise InputError(
            f"was not collected on {tables.system}", field="kv_cache_dtype", found=kv, accepted=", ".join(there)
        )
    return name, kv


@dataclass(slots=True)
class _Coverage:
    """How far the package's measurements carry.

    Attributes:
        points: how many points of each operator are from each source, by source and operator.
        between: sizes of weights that it did not collect, and interpolates.
        outside: those beyond the largest that it collected.
        files: of collectives.
    """

    points: dict[str, Counter[str]] = field(default_factory=dict)
    between: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)

    def counted(self, name: str, answer: Answer) -> float:
        """Take note of a point of an operator. Returns its time, in seconds."""
        self.points.setdefault(answer.source, Counter())[name] += 1
        return answer.time_s

    def source_of(self, name: str) -> str:
        """Where most points of an operator are from."""
        return max(self.points, key=lambda source: self.points[source][name])

    def notes(self) -> tuple[str, ...]:
        """The same in words."""
        said = [
            f"{source} {sum(names.values())} ({', '.join(sorted(names))})"
            for source, names in sorted(self.points.items(), reverse=True)
        ]
        notes = ["points of the tables by source: " + "; ".join(said)]
        for what, sizes in (
            ("between collected sizes, interpolated by aiconfigurator", self.between),
            ("outside of the tables, extrapolated by aiconfigurator", self.outside),
        ):
            notes += [f"{what}: {'; '.join(sorted(sizes))}"] if sizes else []
        return (*notes, *self.files)


@dataclass(frozen=True, slots=True)
class _Degree:
    """A model's operators at one tensor-parallel degree, priced where the package collected them.

    Attributes:
        tables: of the system.
        model: its dimensions.
        tp: the degree.
        gemm, kv: types, by the package's names.
        experts: how they are spread; None: there are none.
        coverage: takes in where the times are from.
    """

    tables: Tables
    model: ModelSpec
    tp: int
    gemm: str
    kv: str
    experts: Experts | None
    coverage: _Coverage

    def priced(self) -> tuple[Composition, OperatorTables]:
        """How operators make up a step, and their tables."""
        self.model.parameters(self.tp)  # raises for a degree that the model cannot be split by
        prefill, decode = self.tables.description(self.model, self.tp, self.gemm, self.kv, self.experts)
        token_wise = {one.name.removeprefix("context_"): one for one in prefill if one.kind not in COMMUNICATION}
        attention = token_wise.pop("attention"), next(one for one in decode if one.kind == "GenerationAttention")
        token_wise.pop("logits_gemm", None)
        head = next(one for one in decode if one.name == "generation_logits_gemm")
        tokens = self.tables.collected("gemm_perf", ["m"], gemm_dtype=self.gemm)[:, 0]
        sizes = dict.fromkeys(token_wise, tokens)
        if self.experts is not None:
            token_wise[EXPERTS] = token_wise.pop("moe")
            sizes[EXPERTS] = self._sizes_of(self.experts)
        dense = {name: self._curve(name, one, sizes[name]) for name, one in token_wise.items()}
        requests = {"logits_gemm": self._curve("logits_gemm", head, tokens[tokens <= _MOST_REQUESTS])}
        layers = [name for name, one in token_wise.items() if one.count == self.model.num_layers]
        layers.insert(layers.index("qkv_gemm") + 1, "attention")
        once = tuple(name for name in token_wise if name not in layers)
        composition = Composition(once, tuple(layers), ("logits_gemm",))
        return composition, OperatorTables(dense, requests, self._attention(*attention))

    def _curve(self, name: str, operator: Operator, tokens: Ints) -> Curve:
        if operator.kind == "Gemm":
            self._note_size(name, operator.fields)
        times = [self._time_s(name, operator, is_context=True, batch_size=1, s=int(n), x=int(n)) for n in tokens]
        return Curve(tokens.astype(np.float64), np.array(times))

    def _sizes_of(self, experts: Experts) -> Ints:
        """Tokens for which such experts were collected. Raises InputError when none were."""
        model = self.model
        sizes: dict[str, object] = {"hidden_size": model.hidden_size, "inter_size": model.intermediate_size}
        sizes |= {"num_experts": model.num_experts, "topk": model.num_experts_per_tok}
        spread = {"moe_tp_size": experts.tp, "moe_ep_size": experts.ep, "distribution": experts.distribution}
        tokens = self.tables.collected("moe_perf", ["num_tokens"], **sizes, **spread, moe_dtype=self.gemm)[:, 0]
        if len(tokens):
            return tokens
        message = f"experts of {model.name} were not collected on {self.tables.system}"
        columns = ["moe_tp_size", "moe_ep_size", "moe_dtype", "distribution"]
        there = "; ".join(_spread(*one) for one in self.tables.variants("moe_perf", columns, **sizes))
        found = _spread(experts.tp, experts.ep, self.gemm, experts.distribution)
        raise InputError(message, field="experts", found=found, accepted=there or "experts of another size")

    def _attention(self, prefill: Operator, decode: Operator) -> AttentionRows:
        """Chunks and decodes within what was collected of such heads."""
        heads = {"head_dim": self.model.head_dim, "window_size": 0, "kv_cache_dtype": self.kv}
        lengths = self.tables.collected("context_attention_perf", ["isl"], batch_size=1, **heads)[:, 0]
        steps = self.tables.collected("generation_attention_perf", ["batch_size", "step"], **heads)
        if not len(lengths) or not len(steps):
            found = f"heads of {self.model.head_dim}, keys and values in {self.kv}"
            raise InputError(f"was not collected on {self.tables.system}", field="model", found=found)
        pairs = product(lengths, [0, *lengths])
        chunks = [(int(n), int(history)) for n, history in pairs if n + history <= lengths[-1]]
        decodes = [(int(n), int(history)) for n, history in steps if n <= _MOST_REQUESTS]
        times = [
            self._time_s(PREFILL, prefill, is_context=True, batch_size=1, s=n, prefix=history) for n, history in chunks
        ]
        times += [self._time_s(DECODE, decode, is_context=False, batch_size=n, s=history + 1) for n, history in decodes]
        return attention_rows(chunks, decodes, np.array(times))

    def _time_s(self, name: str, operator: Operator, **shape: int | bool) -> float:
        return self.coverage.counted(name, self.tables.answer(operator, **shape))

    def _note_size(self, name: str, fields: dict[str, Any]) -> None:
        """Take note of weights of a size that was not collected."""
        there = self.tables.collected("gemm_perf", ["n", "k"], gemm_dtype=fields["quant_mode"])
        size = np.array([fields["n"], fields["k"]])
        largest = there.max(axis=0)
        if (size > largest).any():
            collected = f"collected to {largest[0]} by {largest[1]}"
            self.coverage.outside.add(f"{name} of {size[0]} by {size[1]}, {collected}")
        elif not (there == size).all(axis=1).any():
            self.coverage.between.add(f"{name} of {size[0]} by {size[1]}")


def _spread(tp: int, ep: int, dtype: str, distribution: str) -> str:
    how = f"each over {tp} devices" if ep == 1 else f"in {ep} parts, each over {tp} devices"
    return f"{dtype} {how} as {distribution}"


@dataclass(frozen=True, slots=True)
class _Collective:
    """A collective as the package has it: which table, and which of its rows."""

    table: str
    of_type: dict[str, object]


_COLLECTIVES = {
    "all_reduce": _Collective("custom_allreduce_perf", {"allreduce_dtype": "bfloat16"}),
    "all_gather": _Collective("nccl_perf", {"op_name": "all_gather", "nccl_dtype": "half"}),
    "reduce_scatter": _Collective("nccl_perf", {"op_name": "reduce_scatter", "nccl_dtype": "half"}),
    "all_to_all": _Collective("nccl_perf", {"op_name": "alltoall", "nccl_dtype": "half"}),
}


def aiconfigurator_collectives(system: str, ranks: int) -> tuple[dict[str, dict[int, Curve]], str]:
    """What was measured between so many devices of one system, by name, and a line that says from which files.

    Raises InputError where the package has no such system or number, EngineError without the extra.
    """
    coverage = _Coverage()
    curves = _collectives(Tables(system), [ranks], coverage, _COLLECTIVES, field="collectives.source")
    return curves, f"collectives of {ranks} ranks as measured on {system}: {', '.join(coverage.files)}"


def _collectives(
    tables: Tables, degrees: Sequence[int], coverage: _Coverage, names: Iterable[str], *, field: str
) -> dict[str, dict[int, Curve]]:
    """Collectives at the sizes that were collected, by name and number of devices.

    Its message sizes are elements of two bytes, and for all-gather those that each rank ends up with.
    """
    curves: dict[str, dict[int, Curve]] = {}
    for name in names:
        one = _COLLECTIVES[name]
        for ranks in degrees:
            elements = tables.collected(one.table, ["message_size"], num_gpus=ranks, **one.of_type)[:, 0]
            if not len(elements):
                there = tables.collected(one.table, ["num_gpus"], **one.of_type)[:, 0]
                accepted = ", ".join(str(n) for n in there)
                message = f"{name} was not collected on {tables.system}"
                raise InputError(message, field=field, found=ranks, accepted=accepted)
            operator = tables.collective(name, ranks)
            answers = (tables.answer(operator, is_context=True, batch_size=1, s=1, x=int(n)) for n in elements)
            times = np.array([coverage.counted(name, answer) for answer in answers])
            curves.setdefault(name, {})[ranks] = Curve(elements.astype(np.float64) * 2, times)
        if degrees:
            coverage.files.append(f"{name} from aiconfigurator's {'/'.join(tables.file(one.table).parts[-3:-1])}")
    return curves


def _shares(model: ModelSpec, tp: int, composition: Composition, tables: OperatorTables, coverage: _Coverage) -> str:
    """Which part of the operators' time is from which source, in two usual steps."""
    attention = AttentionTable(tables.attention)
    decode_s = float(attention.decode_s(64, np.array([1024.0]), np.array([1024.0]))[0])
    said = []
    for what, tokens, requests, kind, attention_s in (
        ("64 decodes at 1,024 tokens", 64, 64, DECODE, decode_s),
        ("a prompt of 2,048 tokens", 2048, 1, PREFILL, attention.prefill_s([Chunk(2048, 0)])),
    ):
        by_source: dict[str, float] = {}
        runs = Counter(composition.once) + Counter(dict.fromkeys(composition.per_layer, model.num_layers))
        for name, count in runs.items():
            time_s = attention_s if name == "attention" else _at(tables.dense[name], tokens)
            source = coverage.source_of(kind if name == "attention" else name)
            by_source[source] = by_source.get(source, 0.0) + count * time_s
        head = coverage.source_of("logits_gemm")
        by_source[head] = by_source.get(head, 0.0) + _at(tables.per_request["logits_gemm"], requests)
        whole_s = sum(by_source.values())
        parts = [f"{by_source[source] / whole_s:.0%} {source}" for source in sorted(by_source, reverse=True)]
        said.append(f"of {what} {', '.join(parts)}")
    return f"time of operators by source, tp {tp}: " + "; ".join(said)


def _at(curve: Curve, size: int) -> float:
    return float(interpolate(curve.x, curve.time_s, np.array([float(size)]))[0])
