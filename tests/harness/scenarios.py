"""A small scenario on disk, and a capture of it."""

from __future__ import annotations

from pathlib import Path

from harness.running.simulate import simulate_scenario
from profiles.llmservingsim import import_profiles
from profiles.profile_folder import write_profile
from tests.engines import trace
from tests.profiles.bundles import write_bundle
from traces.capture import Capture
from traces.trace import write_trace

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

CONFIG = """{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
"num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 4096}"""

SCENARIO = """\
trace: requests.jsonl
cluster:
  instances:
    - model: test/tiny
      device: TESTGPU
profiles: [profiles]
engine:
  max_num_seqs: 16
  max_num_batched_tokens: 256
  num_gpu_blocks: 200
"""


def write_scenario(folder: Path, n_requests: int = 40) -> Path:
    """A scenario with its trace, profile and model in `folder`. Returns its file."""
    (imported,) = import_profiles(write_bundle(folder / "bundle"))
    write_profile(imported, folder / "profiles" / "tiny")
    model = folder / "profiles" / "models" / "test" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text(CONFIG)
    rows = [(0.01 * i, 20 + 13 * i % 200, 2 + 7 * i % 30) for i in range(n_requests)]
    write_trace(trace(*rows), folder / "requests.jsonl")
    (folder / "scenario.yaml").write_text(SCENARIO)
    return folder / "scenario.yaml"


def example(name: str, *overrides: str) -> Capture:
    """An example of the documentation, simulated."""
    simulation, _ = simulate_scenario(EXAMPLES / f"{name}.yaml", overrides)
    return simulation.capture
