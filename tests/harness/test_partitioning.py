"""Ranks of several devices that share experts: which of them split tokens, and what that changes in a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from harness.deploy.collectives import collectives_among
from harness.deploy.deployment import deploy
from harness.deploy.partitioning import partition_of
from harness.descriptions.cluster import InstanceSpec
from harness.descriptions.scenario import read_scenario
from profiles.catalog import BUNDLED
from profiles.llmservingsim import import_profiles
from profiles.model import ModelSpec
from simulator.engine import Engine
from simulator.network.topology import FabricFile, NodeFile, Place, Topology, TopologyFile
from tests.harness.scenarios import EXAMPLES, example
from tests.harness.test_cluster import own
from tests.pages import shown_and_printed
from tests.profiles.bundles import write_bundle
from tests.simulator.plans import decode_plan
from traces.errors import InputError, ProfileError

NAME = "tensor_parallel_experts"
LAYERS = 48
SPLIT = "experts: the devices of a rank split its tokens before them, as vLLM's use_sequence_parallel_moe"


def engine(*overrides: str) -> Engine:
    """The example's engine: two ranks of two devices."""
    return deploy(read_scenario(EXAMPLES / f"{NAME}.yaml", overrides)).engine


def step_s(*overrides: str, n_requests: int = 8) -> float:
    """A step in which one rank decodes and the other computes a dummy batch."""
    return float(engine(*overrides).step_time.price(decode_plan(n_requests, 100)).device_s[0])


def latencies(*overrides: str) -> float:
    """How many times the latency of a link a step takes."""
    longer_s = step_s(*overrides, "cluster.fabric.latency_s=6.0e-6") - step_s(*overrides)
    return longer_s / 1e-6


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("experts.md", tmp_path)
    assert printed == shown


def test_split_tokens_take_an_all_gather_behind_and_a_longer_ring() -> None:
    """Behind attention 2; around the experts 3 and 3 among four devices; behind them 1, the all-gather of two.

    Not split: 2, 1 and 1 among two devices, and 2. With either the embedding's all-reduce, and the logits.
    """
    assert latencies() == pytest.approx(LAYERS * (2 + 3 + 3 + 1) + 2 + 1)
    assert latencies("engine_version='0.10'") == pytest.approx(LAYERS * (2 + 1 + 1 + 2) + 2 + 1)


@pytest.mark.parametrize(
    "overrides",
    [
        ("engine_version='0.10'",),
        ("cluster.instances.0.enable_expert_parallel=false",),
        ("cluster.instances.0.tensor_parallel_size=1",),
        ("cluster.instances.0.data_parallel_size=1",),
    ],
)
def test_what_does_not_split_tokens_says_nothing_of_it(overrides: tuple[str, ...]) -> None:
    assert SPLIT in deploy(read_scenario(EXAMPLES / f"{NAME}.yaml")).notes
    assert SPLIT not in deploy(read_scenario(EXAMPLES / f"{NAME}.yaml", overrides)).notes


def test_mixtral_does_the_same_in_every_version() -> None:
    mixtral = "cluster.instances.0.model=mistralai/Mixtral-8x7B-v0.1"
    assert step_s(mixtral) == step_s(mixtral, "engine_version='0.10'")
    assert latencies(mixtral) == pytest.approx(32 * (2 + 1 + 1 + 2) + 2 + 1)


def test_tokens_that_fill_no_share_are_padded() -> None:
    """Without CUDA graphs a rank of 3 tokens hands on 4, and its dummy neighbour 2: as many as of 4 and 2."""
    eager = "engine.enforce_eager=true"
    moe_s = {}
    for n_requests in (3, 4):
        operators = engine(eager).step_time.price(decode_plan(n_requests, 100)).operators
        assert operators is not None
        moe_s[n_requests] = operators.moe_s
    assert moe_s[3] == moe_s[4]


def test_links_draw_for_what_split_tokens_send() -> None:
    """3 passes of a ring of two devices and 3 of 4 round the experts', or 4 and 2; and logits of 0.3 MB a request."""
    hidden, entering, logits = 2048 * 2, (2 * 2048 + 128) * 2, 151936 * 2
    for version, (behind, around) in {"0.32": (3, 3), "0.10": (4, 2)}.items():
        capture = example(NAME, f"engine_version='{version}'")
        steps = capture.steps
        assert steps is not None
        tokens = (steps.n_prefill_tokens + steps.n_decode_tokens).sum() * (
            (behind * LAYERS + 2) * hidden + LAYERS * around * entering
        )
        joules = (tokens + steps.n_running.sum() * logits) * 8 * 8e-12
        assert capture.series["power_w.links"].value.sum() == pytest.approx(joules, rel=1e-3)


def test_a_router_that_was_measured_for_all_tokens_is_refused_where_they_are_split(tmp_path: Path) -> None:
    (imported,) = import_profiles(write_bundle(tmp_path / "bundle"))
    composition = msgspec.structs.replace(imported.meta.composition, per_layer=("attention", "gate", "moe"))
    profile = replace(imported, meta=msgspec.structs.replace(imported.meta, composition=composition))
    read = own(tmp_path, "instances: [{model: m, device: d}]\n")
    sizes = {"tensor_parallel_size": 2, "data_parallel_size": 2, "enable_expert_parallel": True}
    spec = InstanceSpec("m", "d", {}, read.document, ("instances", 0), **sizes)  # type: ignore[arg-type]
    model = ModelSpec("m", 4, 64, 128, 4, 4, 16, 100, num_experts=8, num_experts_per_tok=2)
    places = [Place(0, i) for i in range(4)]
    links = Topology(TopologyFile((NodeFile(4, FabricFile("full_mesh", 1e9, 1e-6)),)))
    assert not partition_of(spec, model, profile, places, links, []).use_sequence_parallel_moe
    with pytest.raises(ProfileError, match=r"'composition.per_layer': was measured for all tokens of a rank"):
        partition_of(spec, model, profile, places, links, [], split=True)


def test_groups_that_talk_at_once_share_a_bus_whatever_its_kind(tmp_path: Path) -> None:
    (profile,) = import_profiles(write_bundle(tmp_path / "bundle"))
    read = own(tmp_path, "instances: [{model: m, device: d}]\n")
    spec = InstanceSpec("m", "H100-SXM", {}, read.document, ("instances", 0), tensor_parallel_size=2)
    pairs = [[Place(0, 0), Place(0, 1)], [Place(0, 2), Place(0, 3)]]
    for link in ("pcie", None):
        links = Topology(TopologyFile((NodeFile(4, FabricFile("bus", 1e9, 1e-6, link)),)))  # type: ignore[arg-type]
        alone, both = (
            collectives_among(groups, spec, profile, links, [BUNDLED], sums=True) for groups in (pairs[:1], pairs)
        )
        assert both.all_gather_s(1e9) == pytest.approx(2 * alone.all_gather_s(1e9), rel=1e-3)


def test_what_is_only_gathered_and_scattered_has_no_kernel_of_vllms() -> None:
    by_kind = ["cluster.fabric.link=nvlink"]
    tensor, data = (one for one in note_lines(*by_kind) if one.startswith("collectives of"))
    assert tensor.endswith("vLLM's kernel for sums below 8 MiB")
    assert data.endswith("from rank to rank")
    key = "cluster.instances.0"
    off = [f"{key}.collectives.disable_custom_all_reduce=true", f"{key}.tensor_parallel_size=1"]
    with pytest.raises(InputError, match=r"disable_custom_all_reduce': has no effect: .* share no layer"):
        engine(*by_kind, *off)


def note_lines(*overrides: str) -> tuple[str, ...]:
    return deploy(read_scenario(EXAMPLES / f"{NAME}.yaml", overrides)).notes
