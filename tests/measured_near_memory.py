"""LLMServingSim's ISPASS 2026 artifact, figure 10: an A6000 alone, with memory that computes, and with halves in turn.

Nothing was measured: the other side is LLMServingSim's own simulation. 256 requests of 128 and 512 tokens at about 10 a
second, in no more than one batch; KV blocks as many as it counts (40 GiB less weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.running.simulate import simulate_scenario
from harness.terminal.facts import import_profiles_to
from tests.measured import GROUND_TRUTH

CASES = {
    "gpu-only": ("gpu_only_config", "gpu_only_b256", ()),
    "pim": ("pim_config", "pim_b256", ("attention=near_memory",)),
    "pim-sbi": ("pim_config", "pim_sbi_b256", ("attention=interleaved",)),
}
"""By its name there: the cluster, its throughput file, and what stands in for its command line's switches."""

COMPONENTS = {
    "Others": "base",
    "GPU": "devices",
    "CPU": "host",
    "Memory": "dram",
    "Link": "links",
    "NIC": "nic",
    "Storage": "storage",
}
"""Its names of components, and ours."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A run's length, energy by component, and output tokens per second over the run."""

    duration_s: float
    energy_j: dict[str, float]
    output_tokens_per_s: float

    @property
    def total_j(self) -> float:
        return sum(self.energy_j.values())


def peer(case: str) -> Figures:
    """What LLMServingSim simulated; its base node draws 219 W all the time, which tells how long."""
    folder = GROUND_TRUTH / "ispass26" / "pim" / "peer_llmservingsim"
    header, *rows = (line.split("\t") for line in (folder / "component_energy.tsv").read_text().splitlines())
    energy_j = {COMPONENTS[row[0]]: float(row[header.index(case)]) for row in rows}
    duration_s = energy_j["base"] / 219
    return Figures(duration_s, energy_j, 256 * 512 / duration_s)


def simulated(case: str, work: Path) -> Figures:
    """The same from the same files."""
    artifact = GROUND_TRUTH / "ispass26"
    if not (work / "profiles").exists():
        import_profiles_to(artifact / "perf", work / "profiles", "llmservingsim-older-published")
    cluster, _, overrides = CASES[case]
    (work / f"{case}.yaml").write_text(
        f"trace: {artifact / 'dataset' / 'fixed_in128_out512_req256_rate10.jsonl'}\n"
        f"cluster: {artifact / 'pim' / 'config' / f'{cluster}.json'}\n"
        f"profiles: [profiles, {GROUND_TRUTH / 'vllm-0.19' / 'pim'}]\nengine_version: '0.19'\n"
        "engine: {max_num_seqs: 256, max_num_batched_tokens: 2048, enforce_eager: true, async_scheduling: false, "
        "enable_prefix_caching: false, max_model_len: 131072, num_gpu_blocks: 12800}\n"
    )
    _, figures = simulate_scenario(work / f"{case}.yaml", overrides)
    energy = figures["energy"]
    assert energy["unknown"] == []
    energy_j = {name: part["total_j"] for name, part in energy["components"].items()}
    return Figures(energy["window_s"], energy_j, 256 * 512 / energy["window_s"])
