"""Profiles in LLMServingSim's older format (2025; its ISPASS 2026 artifact, `<hardware>/<org>/<model>/tp<N>/`) to ours.

A folder tp<N> holds layers.csv (nanoseconds by layer and tokens; see `LAYERS`), attention.csv and predictions
(`profiles.llmservingsim_attention`). The file names neither device nor model: the folders do. Each time is one call of
one layer's module, on one of `tp` devices: Hugging Face's modules in PyTorch, run eagerly, median of a number of calls
that no file records (its profiler's default is 30), of float16 on GPUs.

A layer of experts stands there as its parts: `gate`, and `expert.w1`, `expert.w3`, `act_fn`, `expert.w2` of one whole
expert by the tokens that it computes. The table of experts is composed of them (`_moe`): Hugging Face's code, and so
its profiler, runs one expert after the other. Experts are whole at every degree; so are they in its simulator.

An engine runs something else where Hugging Face's module is several kernels. Where its kernels are known (`_engine_of`:
devices of FlashAttention 2, a described model), the profile is the engine's: norms, rotary embedding and activation are
one pass over memory each, as vLLM fuses them, the sampler is added, and decodes attend as its kernel does
(`profiles.flash_attention`). It also says what the host takes (`HOST_STEP_S`), since nothing else stands for it.
Elsewhere, and where it is asked for, it is the published one: times of Hugging Face's modules, and predictions whose
factor was fitted to whole runs and so makes up for all of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profiles.catalog import BUNDLED, known_device
from profiles.csv_table import read_csv
from profiles.device import DeviceSpec
from profiles.flash_attention import FlashAttention2, flash_attention_2
from profiles.interpolation import interpolate
from profiles.llmservingsim_attention import read_attention
from profiles.model import ModelSpec, model_of
from profiles.operators import Elementwise, Operators
from profiles.profile import Composition, Curve, MoeRows, OperatorTables, Profile, ProfileMeta, StatedOverhead
from traces.errors import InputError, ProfileError, nearest
from traces.steps import Floats

ONCE = ("embedding", "final_layernorm")
PER_REQUEST = ("lm_head",)
ATTENTION = ("input_layernorm", "q_proj", "k_proj", "v_proj", "rope", "attention", "o_proj", "post_layernorm")
DENSE = ("gate_proj", "up_proj", "act_fn", "down_proj")
EXPERT = ("expert.w1", "expert.w3", "act_fn", "expert.w2")
LAYERS = {*ONCE, *PER_REQUEST, *ATTENTION, *DENSE, *EXPERT, "attn", "gate"} - {"attention"}
"""All names of layers.csv; `attn` is the attention of one prompt without history."""

FUSED = {
    "input_layernorm": "layernorm",
    "post_layernorm": "layernorm",
    "final_layernorm": "final_layernorm",
    "rope": "rotary_emb",
    "act_fn": "act_fn",
    "sampler": "sampler",
}
"""Layers that are one kernel in vLLM, and the sampler; what `profiles.operators` calls them."""

HOST_STEP_S = 1.8e-3
"""What the host takes between two steps of a synchronous engine.

The artifact has one log of its server (`evaluation/artifacts/figure_6/raw_data/vllm_pulse_power_tp1.txt`: vLLM 0.11.1,
an A6000, Llama-3.1-8B, eager, a line a second). In the 13 seconds that begin and end with as many requests, 2 to 10 of
them, a step takes 23.8 to 25.0 ms, of which this profile's operators are 22.6 to 23.2: 1.2 to 2.1 ms are left, 1.8 in
the median. Another host will differ.
"""
HOST_SOURCE = "vLLM 0.11.1 without asynchronous scheduling: the log of LLMServingSim's power run beside the operators"

OPTIONAL = ("rope", "act_fn")
"""Left out by its TPU profiler, where the compiler fuses them into attention and into a projection."""

_COLUMNS = ("layer_name", "input", "kv_cache", "latency(ns)")


def has_profile(folder: Path) -> bool:
    """Whether a folder is one degree of such a profile."""
    file = folder / "layers.csv"
    if not (file.is_file() and folder.name.startswith("tp") and folder.name[2:].isdigit()):
        return False
    with file.open("rb") as stream:
        return b"layer_name" in stream.readline()


@dataclass(frozen=True, slots=True)
class Imported:
    """Profiles, and in words the folders that hold too little for one."""

    profiles: list[Profile]
    left_out: list[str]


def import_profiles(source: Path, configs: dict[str, dict[str, Any]], *, as_published: bool = False) -> Imported:
    """Every profile at, below or right above `source`: one degree's folder, a model's, or a tree of them.

    Args:
        source: the folder.
        configs: Hugging Face configs by model name; a model of experts needs its own.
        as_published: Hugging Face's modules and predictions also where the engine's kernels are known.

    Raises:
        InputError: nothing is there, or a file is wrong, with file, line and field.
    """
    degrees: dict[Path, list[Path]] = {}
    for file in sorted(source.resolve().rglob("layers.csv")):
        if has_profile(file.parent):
            degrees.setdefault(file.parent.parent, []).append(file.parent)
    if not degrees:
        accepted = "folders <hardware>/<org>/<model>/tp<N> with a layers.csv, at or below it"
        raise InputError("holds no older LLMServingSim profile", file=source, accepted=accepted)
    imported = Imported([], [])
    first_error: ProfileError | None = None
    for model, folders in degrees.items():
        profile, errors = _import_model(model, folders, configs, as_published)
        imported.left_out.extend(str(error) for error in errors)
        first_error = first_error or next(iter(errors), None)
        if profile is not None:
            imported.profiles.append(profile)
    if not imported.profiles and first_error is not None:
        raise first_error
    return imported


def _import_model(
    model: Path, folders: list[Path], configs: dict[str, dict[str, Any]], as_published: bool
) -> tuple[Profile | None, list[ProfileError]]:
    """One model's profile of the degrees that are whole, and why the others are not."""
    device, name = model.parents[1].name, f"{model.parent.name}/{model.name}"
    config = configs.get(name)
    tables: dict[int, OperatorTables] = {}
    notes = list(_NOTES)
    errors: list[ProfileError] = []
    composition = None
    engine = None if as_published or config is None else _engine_of(device, config, name)
    for folder in sorted(folders, key=lambda one: int(one.name[2:])):
        tp = int(folder.name[2:])
        try:
            tables[tp], own, said = _degree(folder, tp, name, config, engine)
        except ProfileError as error:
            errors.append(error)
            notes.append(f"tp {tp} was left out: it {error}".replace(f"{folder}: ", ""))
            continue
        notes += said
        if composition not in (None, own):
            accepted = f"those of {folders[0].name}"
            raise InputError("has other layers", file=folder / "layers.csv", field="layer_name", accepted=accepted)
        composition = own
    if composition is None:
        return None, errors
    if config is None:
        notes.append("no config.json at hand for this model when it was imported")
    dtype = (config or {}).get("dtype") or (config or {}).get("torch_dtype") or "bfloat16"
    meta = ProfileMeta(
        device=device,
        model=name,
        dtype=dtype,
        source="LLMServingSim profiler of 2025",
        method="one module's calls in PyTorch's profiler, median",
        model_config=config,
        composition=composition,
        notes=(*notes, *((_ADD_UP,) if engine is None else engine.notes())),
        overhead=None if engine is None else StatedOverhead(host_step_s=HOST_STEP_S, source=HOST_SOURCE),
    )
    return Profile(meta, tables, path=model), errors


_NOTES = (
    "Hugging Face's modules ran eagerly, one layer on one device; the norms and the rotary embedding are several "
    "kernels each there, and one in vLLM",
    "16-bit types are taken to cost the same: on GPUs its profiler timed float16",
)
_ADD_UP = "no sampler, and no batch of prefill and decode together, was measured: they add up"


@dataclass(frozen=True, slots=True)
class _Engine:
    """What is known of the engine that a profile is to stand for: its device and the model."""

    device: DeviceSpec
    bytes_per_s: float
    model: ModelSpec

    def kernel(self, tp: int) -> FlashAttention2 | None:
        """Its attention, on one of `tp` devices."""
        return flash_attention_2(self.device, self.model, tp, _DTYPE)

    def notes(self) -> tuple[str, ...]:
        """What a reader should know of it."""
        return (
            "norms, rotary embedding, activation and sampler are not the measured ones but vLLM's: one pass over "
            "memory each, at its peak, and no shorter than the shortest measured kernel",
            f"host: {HOST_STEP_S * 1e3:g} ms a step, of {HOST_SOURCE}",
        )


_DTYPE = "float16"


def _engine_of(device: str, config: dict[str, Any], name: str) -> _Engine | None:
    """None unless the device is described and vLLM takes FlashAttention 2 on it (capability 8 and 12)."""
    spec = known_device(device, [BUNDLED])
    model = model_of(config, name)
    if spec is None or spec.memory_bandwidth_bytes_per_s is None or flash_attention_2(spec, model, 1, _DTYPE) is None:
        return None
    return _Engine(spec, spec.memory_bandwidth_bytes_per_s, model)


def _fused(curves: dict[str, Curve], engine: _Engine, tp: int) -> None:
    """Put vLLM's kernels in the place of Hugging Face's several, and its sampler beside the output head."""
    operators = Operators(engine.model, tp, _DTYPE)
    shortest_s = min(float(curve.time_s.min()) for curve in curves.values())
    dense = {
        name: kind for name, kind in FUSED.items() if name in curves and not (name == "act_fn" and "gate" in curves)
    }
    for name, kind in (*dense.items(), ("sampler", "sampler")):
        x = curves[PER_REQUEST[0] if name == "sampler" else name].x
        shapes = [operators.token_wise(kind, int(n)) for n in x]
        n_bytes = np.array([one.read_bytes + one.write_bytes for one in shapes if isinstance(one, Elementwise)])
        curves[name] = Curve(x, np.maximum(shortest_s, n_bytes / engine.bytes_per_s))


def _degree(
    folder: Path, tp: int, name: str, config: dict[str, Any] | None, engine: _Engine | None
) -> tuple[OperatorTables, Composition, list[str]]:
    """One degree's tables, how they make up a step, and what to note."""
    file = folder / "layers.csv"
    curves, notes = _curves(file, tp)
    is_moe = "expert.w1" in curves
    layer = (*ATTENTION, *(("gate", "moe") if is_moe else DENSE))
    absent = [one for one in OPTIONAL if one in (*layer, *(EXPERT if is_moe else ())) and one not in curves]
    if absent:
        notes.append(f"layers.csv has no {' and no '.join(absent)}: fused into other layers, or not measured")
    per_request = PER_REQUEST if engine is None else (*PER_REQUEST, "sampler")
    composition = Composition(ONCE, tuple(one for one in layer if one not in absent), per_request)
    needed = {*composition.dense(), *PER_REQUEST, *(set(EXPERT) - set(absent) if is_moe else ())}
    for one in sorted(needed - set(curves)):
        raise InputError(f"has no rows of '{one}'", file=file, field="layer_name", accepted=", ".join(sorted(needed)))
    for one in sorted(set(curves) - needed - {"attn"}):
        message = f"has rows of '{one}' beside '{'expert.w1' if is_moe else 'gate_proj'}'"
        raise InputError(message, file=file, field="layer_name", accepted=", ".join(sorted(needed)))
    kernel = None
    if engine is not None:
        kernel = engine.kernel(tp)
        _fused(curves, engine, tp)
    attention, said = read_attention(folder, tp, curves.get("attn"), kernel)
    moe = None
    if is_moe:
        if config is None:
            accepted = f"its Hugging Face config as models/{name}.json in a folder that --profiles names"
            raise InputError("holds experts, and how many a token uses is not known", file=folder, accepted=accepted)
        spec = model_of(config, name)
        moe = _moe([curves[one] for one in EXPERT if one in curves], spec)
        notes.append(
            f"experts: {len(moe.time_s)} points composed of one expert's times, {spec.num_experts_per_tok} of "
            f"{spec.num_experts} per token, evenly spread, one after the other; each whole on its device"
        )
    tables = OperatorTables(
        dense={one: curves[one] for one in composition.dense()},
        per_request={one: curves[one] for one in per_request},
        attention=attention,
        moe=moe,
    )
    return tables, composition, [*(f"tp {tp}: {note}" for note in notes), *said]


def _curves(file: Path, tp: int) -> tuple[dict[str, Curve], list[str]]:
    """Time by tokens of each layer of layers.csv, and what of the file was left out or put together."""
    table = read_csv(file, _COLUMNS, optional=("tp_size",), others=True)
    names = np.asarray(table.texts("layer_name"))
    for name in np.unique(names):
        if name not in LAYERS:
            row = int(np.flatnonzero(names == name)[0])
            raise table.error(row, "layer_name", found=str(name), accepted=nearest(str(name), LAYERS))
    if table.has("tp_size") and (wrong := table.numbers("tp_size") != tp).any():
        row = int(np.flatnonzero(wrong)[0])
        found = float(table.numbers("tp_size")[row])
        raise table.error(row, "tp_size", found=found, accepted=f"{tp}, as the folder's name says")
    tokens, time_s = table.numbers("input", above_0=True, whole=True), table.numbers("latency(ns)") * 1e-9
    notes = []
    kept = np.full(len(names), True)
    for what, left_out in (
        ("rows with a history (kv_cache above 0), of an older way to measure decodes,", table.numbers("kv_cache") > 0),
        ("rows of 0 ns, which is no time,", time_s == 0),
    ):
        if left_out.any():
            notes.append(f"layers.csv: {np.count_nonzero(left_out)} {what} left out")
            kept &= ~left_out
    curves = {}
    for name in np.unique(names[kept]):
        own = kept & (names == name)
        curves[str(name)] = _curve(tokens[own], time_s[own])
    again = int(np.count_nonzero(kept)) - sum(len(curve.x) for curve in curves.values())
    if again:
        notes.append(f"layers.csv: {again} rows repeat a point and count with their mean")
    return curves, notes


def _curve(tokens: Floats, time_s: Floats) -> Curve:
    x, group = np.unique(tokens, return_inverse=True)
    return Curve(x, np.bincount(group, weights=time_s) / np.bincount(group))


def _moe(parts: list[Curve], spec: ModelSpec) -> MoeRows:
    """One layer's experts by tokens and by how many experts they reach.

    Each of `n_experts` computes an even share of tokens * experts per token, one after the other; between measured
    numbers of tokens, linear. Points whose share lies beyond what was measured are not there.
    """
    largest = min(float(part.x[-1]) for part in parts)
    points = []
    for n_tokens in _token_grid(largest):
        pairs = n_tokens * spec.num_experts_per_tok
        points += [
            (n_tokens, n_experts, pairs / n_experts)
            for n_experts in range(1, min(spec.num_experts, pairs) + 1)
            if pairs / n_experts <= largest
        ]
    n_tokens, n_experts, share = np.array(points, dtype=np.float64).T
    one_s = np.sum([interpolate(part.x, part.time_s, share) for part in parts], axis=0)
    return MoeRows(n_tokens, n_experts, n_experts * one_s)


def _token_grid(largest: float) -> list[int]:
    """Powers of two and the middles between them, up to `largest`."""
    powers = [2**i for i in range(int(np.log2(largest)) + 1)]
    return sorted({*powers, *(3 * power // 2 for power in powers if power > 1 and 3 * power // 2 <= largest)})
