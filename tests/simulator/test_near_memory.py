"""Attention in a memory that computes: placement, growth, halves in turn, against sums and schedules made by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.llmservingsim import import_profiles
from profiles.model import ModelSpec
from profiles.near_memory import AttentionRate
from profiles.profile import Profile
from simulator.scheduling.options import EngineOptions
from simulator.scheduling.plan import StepPlan
from simulator.steps.near_memory import NearLayer, NearMemory, halves, part_of
from simulator.steps.near_memory_steps import NearMemoryModel, in_turn_s
from simulator.steps.operator_model import OperatorModel
from simulator.steps.partition import Partition
from tests.profiles.bundles import write_bundle
from tests.simulator.batches import batch, decodes, request
from traces.steps import Floats

US = 1e-6
LAYERS = 3


def memory(**changes: object) -> NearMemory:
    """Eight channels, two for a request; 4 µs a request and 0.02 µs a token on one of them; 10 bytes/µs to it."""
    facts: dict[str, object] = {
        "n_channels": 8,
        "group_channels": 2,
        "request_s": 4 * US,
        "token_s": 0.02 * US,
        "decode_bytes": 20.0,
        "token_bytes": 5.0,
        "bytes_per_s": 10 / US,
        "latency_s": 0.5 * US,
        "num_layers": LAYERS,
    }
    return NearMemory(**{**facts, **changes})  # type: ignore[arg-type]


def layer_s(near: NearMemory, plan: StepPlan) -> Floats:
    """One layer of the batch near memory, [repeat]."""
    return near.layers([plan], np.arange(plan.repeat))[0].alone_s


def one_s(*tokens: int) -> float:
    """A group's time for decodes with so much history."""
    return sum(4 + 0.02 * n for n in tokens) / 2 * US


def way_s(n_decodes: int, n_tokens: int = 0) -> float:
    return (2 * 0.5 + (20 * n_decodes + 5 * n_tokens) / 10) * US


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return import_profiles(write_bundle(tmp_path / "bundle"))[0]


def device(profile: Profile) -> OperatorModel:
    options = EngineOptions(enforce_eager=True, max_num_seqs=64, max_num_batched_tokens=128)
    return OperatorModel(profile, options, num_layers=LAYERS)


# -- one layer near memory ---------------------------------------------------------------------------------------------


def test_a_decode_takes_the_way_and_its_groups_time() -> None:
    assert layer_s(memory(), decodes(100))[0] == pytest.approx(way_s(1) + one_s(100))


def test_the_slowest_group_counts_and_grows_by_a_token_for_each_of_its_requests() -> None:
    # Four groups: five requests, of which the two shortest share one.
    seconds = layer_s(memory(), decodes(400, 300, 200, 60, 50, repeat=4))
    grown = [max(one_s(400 + k), one_s(60 + k, 50 + k)) for k in range(4)]
    assert seconds == pytest.approx([way_s(5) + time_s for time_s in grown])


def test_a_group_of_many_short_requests_overtakes_one_of_a_long_one() -> None:
    near = memory(n_channels=4, request_s=0.0)
    seconds = layer_s(near, decodes(100, 45, 45, repeat=40))
    assert seconds[0] == pytest.approx(way_s(3) + 0.02 * 100 / 2 * US)
    assert seconds[-1] == pytest.approx(way_s(3) + 0.02 * (90 + 2 * 39) / 2 * US)


def test_prompts_only_send_their_keys_and_values() -> None:
    assert layer_s(memory(), batch([(64, 64, 0)]))[0] == pytest.approx(way_s(0, 64))


def test_short_prompts_stay_on_the_device_for_good() -> None:
    near = memory(min_prompt_tokens=100)
    plan = batch([(99, 1, 500), (100, 1, 100), (99, 40, 0), (100, 40, 0)])
    assert near.takes(plan).tolist() == [False, True, False, False]
    assert layer_s(near, plan)[0] == pytest.approx(way_s(1, 40) + one_s(100))
    assert layer_s(near, decodes(99, repeat=3)).tolist() == [0, 0, 0]


def test_requests_are_balanced_by_their_prompts_or_stay_where_they_were_written() -> None:
    requests = [request(i, tokens) for i, tokens in enumerate((10, 50, 20, 40, 30))]
    (balanced,) = memory(n_channels=4).groups_of(requests)
    assert balanced.tolist() == [0, 0, 0, 1, 1]  # 50 and 20, 40 and 30, then 10 to the first of two equal ones
    (fixed,) = memory(n_channels=4, placing="fixed").groups_of(requests)
    assert fixed.tolist() == [0, 1, 0, 1, 0]


def test_each_part_of_a_batch_is_balanced_on_top_of_those_before() -> None:
    long, short = [request(0, 50), request(1, 40)], [request(2, 30), request(3, 20)]
    placed = memory(n_channels=4).groups_of(long, short)
    assert [groups.tolist() for groups in placed] == [[0, 1], [1, 0]]


# -- halves in turn ----------------------------------------------------------------------------------------------------


def test_halves_have_as_many_tokens_each() -> None:
    first, second = halves(decodes(400, 300, 200, 100))
    assert (first.tolist(), second.tolist()) == ([True, False, True, False], [False, True, False, True])
    first, _ = halves(batch([(9, 1, 9), (64, 60, 0), (8, 1, 8)]))
    assert first.tolist() == [False, True, False]


def by_hand(device_s: list[float], near_s: list[list[float]], way_s: float, layers: int) -> float:
    """The end of the last of all jobs, each after those before it on its unit and in its half."""
    free: dict[str, float] = {}
    back = [0.0, 0.0]
    for _layer in range(layers):
        for half in (0, 1):
            left = max(free.get("device", 0.0), back[half]) + device_s[half]
            free["device"] = back[half] = left
            for group, own_s in enumerate(near_s[half]):
                if own_s:
                    free[f"group {group}"] = max(free.get(f"group {group}", 0.0), left) + own_s
                    back[half] = max(back[half], free[f"group {group}"])
            back[half] += way_s
    return max(back)


length = st.sampled_from([0.5, 1.0, 2.0, 3.5])
near_lengths = st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), min_size=3, max_size=3)


@given(st.lists(length, min_size=2, max_size=2), st.tuples(near_lengths, near_lengths), length, st.integers(1, 6))
def test_halves_in_turn_are_the_schedule_made_by_hand(
    device_s: list[float], near_s: tuple[list[float], list[float]], way_s: float, layers: int
) -> None:
    near = [NearLayer(way_s, np.array(groups)[:, None]) for groups in near_s]
    turns_s = in_turn_s([np.array([one]) for one in device_s], near, layers)[0]
    assert turns_s == pytest.approx(by_hand(device_s, list(near_s), way_s, layers))
    busiest = max(first + second for first, second in zip(*near_s, strict=True))
    assert turns_s >= layers * max(sum(device_s), busiest) - 1e-12
    assert turns_s <= layers * (sum(device_s) + sum(max(own) for own in near_s) + 2 * way_s) + 1e-12


def test_alike_halves_hide_the_shorter_of_the_two() -> None:
    """The device is never idle between its first and last job when near memory takes no longer."""
    near = NearLayer(0.0, np.array([[1.5]]))
    turns_s = in_turn_s([np.array([2.0])] * 2, [near, near], 10)[0]
    assert turns_s == pytest.approx(10 * 4.0 + 1.5)


# -- whole steps -------------------------------------------------------------------------------------------------------


def test_a_decode_step_waits_for_near_memory_in_every_layer(profile: Profile) -> None:
    bare, near = device(profile), memory()
    plan = decodes(32, 16, repeat=3)
    cost = NearMemoryModel(bare, near).price(plan)
    without = bare.price(plan)
    assert without.operators is not None
    assert cost.operators is not None
    near_s = LAYERS * layer_s(near, plan)
    assert cost.operators.waiting_s == pytest.approx(near_s)
    assert cost.device_s == pytest.approx(without.device_s - without.operators.attention_s + near_s)


def test_prompts_on_the_device_hide_what_near_memory_takes(profile: Profile) -> None:
    bare = device(profile)
    plan = batch([(64, 64, 0), (16, 1, 16)])
    prompt_only = bare.price(plan, part_of(plan, np.array([True, False])))
    cost = NearMemoryModel(bare, memory()).price(plan)
    assert cost.device_s.tolist() == prompt_only.device_s.tolist()
    assert cost.operators is not None
    assert np.asarray(cost.operators.waiting_s).tolist() == [0.0]


def test_halves_read_every_weight_again_and_hide_what_near_memory_takes(profile: Profile) -> None:
    bare, plan = device(profile), decodes(*[32] * 16)

    def step_s(request_s: float, *, interleaves: bool) -> float:
        near = memory(request_s=request_s, token_s=1e-12, latency_s=0.0, bytes_per_s=1e12, interleaves=interleaves)
        return float(NearMemoryModel(bare, near).price(plan).device_s[0])

    assert step_s(1e-9, interleaves=True) > step_s(1e-9, interleaves=False)
    assert step_s(40 * US, interleaves=True) < step_s(40 * US, interleaves=False)


with TemporaryDirectory() as folder:
    DEVICE = device(import_profiles(write_bundle(Path(folder) / "bundle"))[0])

entries = st.lists(st.tuples(st.integers(1, 300), st.just(1), st.integers(1, 900)), min_size=1, max_size=12)


def grown(plan: StepPlan, by: int) -> StepPlan:
    return batch(
        [(r.row.prompt_tokens, 1, int(n) + by) for r, n in zip(plan.requests, plan.computed_tokens, strict=True)]
    )


@given(entries, st.integers(0, 200), st.booleans(), st.sampled_from(["balanced", "fixed"]))
def test_a_sweep_is_its_steps_one_by_one_to_the_last_bit(
    rows: list[tuple[int, int, int]],
    least: int,
    interleaves: bool,
    placing: str,
) -> None:
    near = memory(min_prompt_tokens=least, interleaves=interleaves, placing=placing)
    model = NearMemoryModel(DEVICE, near)
    sweep = model.price(batch(rows, repeat=7))
    assert sweep.operators is not None
    for k in range(7):
        one = model.price(grown(batch(rows), k))
        assert one.operators is not None
        assert one.device_s[0] == sweep.device_s[k]
        assert np.broadcast_to(one.operators.waiting_s, 1)[0] == np.broadcast_to(sweep.operators.waiting_s, 7)[k]


def test_notes_tell_how_many_steps_went_where(profile: Profile) -> None:
    model = NearMemoryModel(device(profile), memory(interleaves=True))
    model.count(decodes(16, 16), 3)
    model.count(batch([(64, 64, 0)]), 1)
    notes = model.notes()
    assert "attention near memory in 3 of 4 steps: 8 channels, 2 for a request, placed balanced" in notes
    assert "3 of 4 steps computed as two halves in turn" in notes


def test_channels_compute_as_long_as_all_their_requests_take() -> None:
    near = memory()
    busy_s = near.channel_s(np.array([2.0]), np.array([150.0]))
    assert busy_s[0] == pytest.approx(LAYERS * 2 * (one_s(100) + one_s(50)))


# -- beside stages and ranks -------------------------------------------------------------------------------------------


def test_ranks_that_step_together_wait_for_the_slowest_memory(profile: Profile) -> None:
    model = NearMemoryModel(device(profile), memory())
    short, long = decodes(16), decodes(16, 800)
    alone_s = [float(model.price(plan).device_s[0]) for plan in (short, long)]
    for first, second in ((short, long), (long, short)):
        cost = model.price(msgspec.structs.replace(first, alongside=(second,)))
        assert cost.device_s[0] == pytest.approx(max(alone_s))
    prompt = batch([(64, 64, 0)])
    beside = model.price(msgspec.structs.replace(long, alongside=(prompt,)))
    assert beside.operators is not None
    prompt_only, waits = model.model.price(prompt).operators, model.price(long).operators
    assert prompt_only is not None
    assert waits is not None
    hidden_s = np.asarray(waits.waiting_s)[0] - prompt_only.attention_s[0]
    assert np.asarray(beside.operators.waiting_s)[0] == pytest.approx(max(hidden_s, 0.0))


def test_each_stage_waits_in_its_own_layers(profile: Profile) -> None:
    stages = OperatorModel(profile, EngineOptions(max_num_seqs=16), num_layers=LAYERS, partition=Partition(1, 2))
    plan = decodes(32, 600)
    cost = NearMemoryModel(stages, memory()).price(plan)
    bare = stages.price(plan, part_of(plan, np.array([False, False])))
    assert cost.operators is not None
    waiting_s = float(np.asarray(cost.operators.waiting_s)[0])
    assert waiting_s > 0
    assert sum(cost.stages) == pytest.approx(1.0)
    took_s = [share * cost.device_s[0] for share in cost.stages]
    before_s = [share * bare.device_s[0] for share in bare.stages]
    for after, before, layers in zip(took_s, before_s, stages.stage_layers, strict=True):
        assert after - before == pytest.approx(waiting_s * layers / LAYERS)


def test_smaller_keys_and_values_are_read_in_less_time() -> None:
    rate = AttentionRate(request_s=4e-6, token_s=2e-8, num_heads=4, head_dim=16)
    model = ModelSpec("m", 2, 64, 128, 4, 2, 16, 100)
    wide, narrow = rate.scaled(model), rate.scaled(model, 1.0)
    assert (narrow.request_s, narrow.token_s) == (wide.request_s, pytest.approx(wide.token_s / 2))
