"""Print how many times longer measured steps take than the roofline of the same device says, by regime.

    .venv/bin/python tests/benchmarks/roofline.py

Both sides are steps composed of operators, without a host; the measured profiles are those of ../shared/ground-truth.
Beside them the tables of aiconfigurator-core, where that extra is installed, on the same device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from harness.terminal.console import console, table
from profiles.aiconfigurator import aiconfigurator_profile, system_of
from profiles.attention import Chunk
from profiles.catalog import BUNDLED, find_device, find_model, model_configs
from profiles.formats import import_any_profiles
from profiles.model import ModelSpec
from profiles.profile import Profile
from profiles.roofline import roofline_profile
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.steps.experts import ExpertTimes, placement_of
from simulator.steps.gates import new_gate
from simulator.steps.operator_model import OperatorModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, `tests` is not on the path
from tests.measured import GROUND_TRUTH

PROFILES = {
    "RTXPRO6000 Llama-3.1-8B": ("vllm-0.19/perf/RTXPRO6000", "RTXPRO6000", "meta-llama/Llama-3.1-8B"),
    "RTXPRO6000 Qwen3-30B-A3B": ("vllm-0.19/perf/RTXPRO6000", "RTXPRO6000", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
    "A6000 Llama-3.1-8B": ("ispass26/perf", "A6000", "meta-llama/Llama-3.1-8B"),
}
"""Measured profiles of devices whose datasheet is in the catalogue, at one device."""


DEVICES_OF_TABLES = ("RTXPRO6000", "L40S", "A100-80GB", "H100", "H200", "B200")


@dataclass(frozen=True, slots=True)
class Regime:
    """A batch: a prefill chunk with its history, and decodes of equal history."""

    name: str
    chunk: Chunk | None
    n_decode: int
    history: int


REGIMES = (
    Regime("prompt of 2,048", Chunk(2048, 0), 0, 0),
    Regime("chunk of 512 after 8,192", Chunk(512, 8192), 0, 0),
    Regime("1 decode at 1,024", None, 1, 1024),
    Regime("32 decodes at 1,024", None, 32, 1024),
    Regime("128 decodes at 1,024", None, 128, 1024),
    Regime("8 decodes at 16,384", None, 8, 16384),
    Regime("chunk of 1,024 beside 64 decodes", Chunk(1024, 0), 64, 1024),
)


def factors(name: str, root: Path = GROUND_TRUTH) -> dict[str, float]:
    """Measured over roofline, by regime, for one of `PROFILES`."""
    folder, device, model_name = PROFILES[name]
    (measured,) = (one for one in _imported(root / folder) if one.meta.model == model_name)
    return dict(_ratios(measured, find_model(model_name, [BUNDLED]), device))


def _imported(folder: Path) -> list[Profile]:
    return import_any_profiles(folder, model_configs([BUNDLED])).profiles


def _ratios(profile: Profile, model: ModelSpec, device: str) -> Iterator[tuple[str, float]]:
    bound = roofline_profile(find_device(device, [BUNDLED]), model, "bfloat16")
    for regime in REGIMES:
        yield regime.name, step_s(profile, model, regime) / step_s(bound, model, regime)


def step_s(profile: Profile, model: ModelSpec, regime: Regime) -> float:
    """Seconds of a step of one device, operators alone."""
    options = EngineOptions(max_num_seqs=256, max_num_batched_tokens=4096, enforce_eager=True)
    (step,) = (
        OperatorModel(profile, options, num_layers=model.num_layers, experts=_experts(profile, model))
        .price(_plan(regime))
        .device_s
    )
    return float(step)


def _experts(profile: Profile, model: ModelSpec) -> ExpertTimes | None:
    rows = profile.tables[1].moe
    if rows is None:
        return None
    gate = new_gate("uniform", model.num_experts, model.num_experts_per_tok)
    whole = placement_of("linear", model.num_experts, 1, redundant=0)
    return ExpertTimes(rows, gate, whole, num_layers=model.num_layers, parts=1, mode="expected", seed=0)


def _plan(regime: Regime) -> StepPlan:
    chunks, n = [regime.chunk] if regime.chunk else [], regime.n_decode
    return StepPlan(
        first_step=0,
        repeat=1,
        requests=[],
        new_tokens=np.zeros(0, dtype=np.int64),
        computed_tokens=np.zeros(0, dtype=np.int64),
        n_requests=n + len(chunks),
        chunks=chunks,
        n_prefill_tokens=sum(chunk.new_tokens for chunk in chunks),
        n_decode=n,
        decode_kv_sum=n * regime.history,
        decode_kv_max=regime.history,
        n_preempted=0,
        n_running=0,
        n_waiting=0,
        kv_blocks=0,
    )


def main() -> None:
    """Print the table."""
    columns = {name: factors(name) for name in PROFILES}
    model = find_model("meta-llama/Llama-3.1-8B", [BUNDLED])
    for device in DEVICES_OF_TABLES if find_spec("aiconfigurator_core") else ():
        system = system_of(find_device(device, [BUNDLED]))
        tables = aiconfigurator_profile(system, model, "bfloat16", "auto", (1,), device=device)
        columns[f"aiconfigurator's {device}"] = dict(_ratios(tables, model, device))
    rows = [(regime.name, *(f"{column[regime.name]:.2f}" for column in columns.values())) for regime in REGIMES]
    console().print(table("Times the roofline", ["step", *columns], rows))


if __name__ == "__main__":
    main()
