"""Measure the operator profile of a model with vLLM's own kernels, on the device at hand, within a time budget.

Runs inside the engine's environment, with servetwin on its path:

    PYTHONPATH=. .venv-engine/bin/python -m collectors.operators --model DIR --model-name NAME --out DIR --budget-s 170

The whole grid of shots is measured several times over, so that a disturbance meets few samples of any one shot. A
sample is an operator's mean over the layers of one step, so that operators add up to their step; a time is the median
of its samples. Models are vLLM's Llama-like ones: those whose modules `collectors.worker` knows by name.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from collectors.host import cpu_name
from collectors.shots import Limits, Shot, estimate_s, plan_shots
from profiles.model import ModelSpec, model_of
from profiles.profile import (
    AttentionRows,
    Composition,
    Curve,
    OperatorTables,
    Profile,
    ProfileMeta,
    StepRows,
    write_profile,
)
from traces.decoding import decode_json, read_bytes
from traces.errors import CollectorError, InputError, ServetwinError

COMPOSITION = Composition(
    once=("embedding", "final_layernorm"),
    per_layer=(
        "layernorm",
        "qkv_proj",
        "rotary_emb",
        "attention",
        "o_proj",
        "layernorm",
        "gate_up_proj",
        "act_fn",
        "down_proj",
    ),
    per_request=("lm_head", "sampler"),
)
"""Operators of vLLM's Llama (0.32 `model_executor/models/llama.py`), in order."""

FEWEST_PASSES, MOST_PASSES = 3, 15
WARM_UP_PASSES = 0.5
"""What the warm-ups of the first pass take: one run beside the two of a visit."""

DTYPE = "bfloat16"


@dataclass(slots=True)
class Samples:
    """What the worker measured of one shot, in microseconds: one number per step, for an operator its layers' mean."""

    step_us: list[float] = field(default_factory=list)
    instrumented_us: list[float] = field(default_factory=list)
    operator_us: dict[str, list[float]] = field(default_factory=dict)

    def add(self, answer: dict[str, Any]) -> None:
        """Take in an answer of `collectors.worker.OperatorTimer.time_shot`."""
        self.step_us.append(answer["step_us"])
        self.instrumented_us.append(answer["instrumented_us"])
        for operator, values in answer["operators"].items():
            self.operator_us.setdefault(operator, []).append(statistics.fmean(values))


@dataclass(frozen=True, slots=True)
class Plan:
    """The shots, how often the whole grid is measured, and what a pass is estimated to take.

    Attributes:
        every: 1 for the whole grid, n when only every n-th value of its axes fits in the budget.
    """

    shots: list[Shot]
    passes: int
    pass_s: float
    every: int

    @property
    def estimated_s(self) -> float:
        """Seconds for all passes."""
        return (self.passes + WARM_UP_PASSES) * self.pass_s


def plan_within(budget_s: float, limits: Limits, measure: Callable[[Shot], float]) -> Plan:
    """The densest grid that can be measured `FEWEST_PASSES` times within the budget, and as often as is left.

    Args:
        budget_s: seconds for all passes; a few probes come on top.
        limits: how far the grid reaches.
        measure: measures a shot once and returns the seconds it took.

    Raises:
        InputError: when even the sparsest grid takes longer.
    """
    shots = plan_shots(limits)
    cost_s = dict(zip(shots, estimate_s(shots, measure), strict=True))
    for every in range(1, 7):
        kept = plan_shots(limits, every)
        pass_s = sum(cost_s[shot] for shot in kept)
        if (passes := int(budget_s / pass_s - WARM_UP_PASSES)) >= FEWEST_PASSES:
            return Plan(kept, min(passes, MOST_PASSES), pass_s, every)
    needed_s = (FEWEST_PASSES + WARM_UP_PASSES) * pass_s
    raise InputError(field="budget_s", found=budget_s, accepted=f"at least {needed_s:.1f} s here")


def measure_within(
    budget_s: float,
    plan: Plan,
    fire: Callable[[Shot, int], dict[str, Any]],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Shot, Samples]:
    """Run the plan's passes; after the fewest, one that would not end within the budget is left out.

    Args:
        budget_s: seconds for all passes.
        plan: what to measure.
        fire: measures a shot after so many warm-ups; in the first pass one, which makes the kernels of its size ready.
        clock: seconds.
    """
    samples = {shot: Samples() for shot in plan.shots}
    begun_s = clock()
    last_s = 0.0
    for done in range(plan.passes):
        pass_begun_s = clock()
        if done >= FEWEST_PASSES and pass_begun_s - begun_s + last_s > budget_s:
            _say(f"slower than estimated: {done} passes of {plan.passes}")
            break
        for shot in plan.shots:
            samples[shot].add(fire(shot, int(done == 0)))
        last_s = clock() - pass_begun_s
    return samples


def tables_of(samples: dict[Shot, Samples]) -> OperatorTables:
    """The tables of a profile: medians of all samples of a point, whichever shots they came with.

    Raises CollectorError when an operator of the composition was not seen.
    """
    tokens, requests = [shot.n_tokens for shot in samples], [shot.n_requests for shot in samples]
    operators = {shot: _operators_us(one) for shot, one in samples.items()}
    axes = {
        name: np.array([getattr(shot, name) for shot in samples], dtype=np.float64)
        for name in ("prefill_tokens", "prefill_kv_tokens", "n_decode", "decode_kv_tokens")
    }
    return OperatorTables(
        dense={
            name: _curve(tokens, [times[name] for times in operators.values()]) for name in sorted(COMPOSITION.dense())
        },
        per_request={
            name: _curve(requests, [times[name] for times in operators.values()]) for name in COMPOSITION.per_request
        },
        attention=AttentionRows(**axes, time_s=_medians_s([times["attention"] for times in operators.values()])),
        steps=StepRows(
            **axes,
            n_requests=np.array(requests, dtype=np.float64),
            step_s=_medians_s([one.step_us for one in samples.values()]),
            instrumented_s=_medians_s([one.instrumented_us for one in samples.values()]),
            repeats=np.array([len(one.step_us) for one in samples.values()], dtype=np.float64),
        ),
    )


def _operators_us(samples: Samples) -> dict[str, list[float]]:
    """Samples of every operator of the composition; the rotary embedding by difference where no hook saw it."""
    seen = dict(samples.operator_us)
    if "rotary_emb" not in seen and "self_attn" in seen:
        parts = zip(*(seen[name] for name in ("self_attn", "qkv_proj", "attention", "o_proj")), strict=True)
        seen["rotary_emb"] = [whole - qkv - attention - o for whole, qkv, attention, o in parts]
    wanted = {*COMPOSITION.dense(), "attention", *COMPOSITION.per_request}
    if missing := sorted(wanted - seen.keys()):
        raise CollectorError(f"no module of the model was seen to be: {', '.join(missing)}; see collectors.worker")
    return seen


def _curve(sizes: Sequence[int], samples_us: Sequence[list[float]]) -> Curve:
    """Medians by size."""
    by_size: dict[int, list[float]] = {}
    for size, values in zip(sizes, samples_us, strict=True):
        by_size.setdefault(size, []).extend(values)
    x = sorted(by_size)
    return Curve(np.array(x, dtype=np.float64), _medians_s([by_size[size] for size in x]))


def _medians_s(samples_us: Sequence[list[float]]) -> Any:
    return np.array([statistics.median(values) for values in samples_us]) * 1e-6


def measure(options: argparse.Namespace) -> Profile:
    """Start the engine, measure within the budget, and return the profile. The engine has processes of its own."""
    import vllm

    config = decode_json(read_bytes(options.model / "config.json"), dict[str, Any], file=options.model / "config.json")
    model = model_of(config, options.model_name, options.model / "config.json")
    limits = _limits(options)
    engine = _engine(options.model, model, limits)

    def fire(shot: Shot, warm_ups: int) -> dict[str, Any]:
        (answer,) = engine.collective_rpc("time_shot", args=(shot.requests(), warm_ups))
        return dict(answer)

    def seconds(shot: Shot) -> float:
        fire(shot, 1)
        begun_s = time.perf_counter()
        fire(shot, 0)
        return time.perf_counter() - begun_s

    plan = plan_within(options.budget_s, limits, seconds)
    thinned = "" if plan.every == 1 else f", every {plan.every} values of each axis to fit the budget"
    _say(f"{len(plan.shots)} shots{thinned}; {plan.passes} passes, estimated {plan.estimated_s:.0f} s")
    begun_s = time.perf_counter()
    samples = measure_within(options.budget_s, plan, fire)
    took_s = time.perf_counter() - begun_s
    _say(f"took {took_s:.0f} s")
    (facts,) = engine.collective_rpc("worker_facts")
    meta = _meta(options, config, samples, {**facts, "vllm": vllm.__version__, "took_s": round(took_s, 1)})
    return Profile(meta, {1: tables_of(samples)})


def _limits(options: argparse.Namespace) -> Limits:
    return Limits(
        max_tokens=options.max_tokens,
        max_requests=options.max_requests,
        max_kv_tokens=options.max_kv,
        block_size=options.block_size,
        kv_blocks=-(-options.kv_cache_tokens // options.block_size),
    )


def _engine(path: Path, model: ModelSpec, limits: Limits) -> Any:
    """vLLM without weights, its caches and buffers as large as the largest shot: the longest chunk beside decodes."""
    import vllm

    block_bytes = limits.block_size * model.kv_bytes_per_token(DTYPE)
    return vllm.LLM(
        str(path),
        load_format="dummy",
        dtype=DTYPE,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=limits.max_kv_tokens + limits.max_tokens + 1,
        max_num_seqs=limits.max_requests,
        max_num_batched_tokens=limits.max_tokens + limits.max_requests,
        block_size=limits.block_size,
        kv_cache_memory_bytes=(limits.kv_blocks + 1) * block_bytes,  # one block is the null block
        worker_extension_cls="collectors.worker.OperatorTimer",
    )


def _meta(
    options: argparse.Namespace, config: dict[str, Any], samples: dict[Shot, Samples], facts: dict[str, Any]
) -> ProfileMeta:
    first = next(iter(samples.values()))
    hooked = bool(first.operator_us.get("rotary_emb"))
    timers = "events" if facts["device_type"] == "cuda" else "host timers"
    return ProfileMeta(
        device=options.device or cpu_name(),
        model=options.model_name,
        dtype=DTYPE,
        engine=f"vllm {facts['vllm']}",
        source="collectors.operators",
        recorded_at=datetime.date.today().isoformat(),
        method=f"{timers} around modules in eager steps; median over steps of the mean over layers",
        model_config=config,
        composition=COMPOSITION,
        notes=(
            "steps.csv holds the same batches without timers; what they take beside their operators is the host's time",
            "random weights; every request samples greedily",
        ),
        measured={
            "statistic": "median over steps of the mean over layers",
            "repeats": len(first.step_us),
            "n_shots": len(samples),
            "rotary_emb": "its own module" if hooked else "self-attention less qkv_proj, attention and o_proj",
            "sampler": "its own module",
            "block_size": options.block_size,
            "enforce_eager": True,
            **facts,
        },
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure what the command line names and write the profile folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder; its weights are not read")
    parser.add_argument("--model-name", required=True, help="the name scenarios will use")
    parser.add_argument("--device", help="the device's name in scenarios; default: this machine's CPU")
    parser.add_argument("--out", type=Path, required=True, help="profile folder to write, new or empty")
    parser.add_argument("--budget-s", type=float, default=170.0, help="seconds for all passes, the start not counted")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of the longest prefill chunk")
    parser.add_argument("--max-requests", type=int, default=32, help="requests in the largest batch")
    parser.add_argument("--max-kv", type=int, default=2048, help="tokens of the longest history")
    parser.add_argument("--kv-cache-tokens", type=int, default=67_584, help="batches that hold more are left out")
    parser.add_argument("--block-size", type=int, default=32)
    options = parser.parse_args()
    try:
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise InputError("already exists", file=options.out, accepted="a new or empty folder")
        write_profile(measure(options), options.out)
    except ServetwinError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
