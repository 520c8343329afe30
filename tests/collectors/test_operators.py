from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.operators import (
    COMPOSITION,
    FEWEST_PASSES,
    MOST_PASSES,
    Plan,
    Samples,
    measure_within,
    plan_within,
    tables_of,
)
from collectors.shots import Limits, Shot, estimate_s, plan_shots
from profiles.attention import AttentionTable
from profiles.profile import Profile, ProfileMeta, read_profile, write_profile
from traces.errors import CollectorError, InputError

LIMITS = Limits(max_tokens=512, max_requests=32, max_kv_tokens=2048, block_size=32, kv_blocks=2112)


def step_s(shot: Shot) -> float:
    """A made-up device: a constant, per token, per pair, per token of history."""
    pairs = shot.prefill_tokens * (shot.prefill_kv_tokens + shot.prefill_tokens / 2)
    return 5e-3 + 3e-4 * shot.n_tokens + 1e-7 * pairs + 4e-7 * shot.n_decode * shot.decode_kv_tokens


def answer(shot: Shot, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What the worker says of a shot: two layers; operator times tell their sizes."""
    times = {name: [float(shot.n_tokens)] * 2 for name in COMPOSITION.dense()}
    times["rotary_emb"] = [7.0, 7.0]
    times["attention"] = [step_s(shot) * 1e6] * 2
    times["self_attn"] = [2 * shot.n_tokens + values + 9.0 for values in times["attention"]]
    times |= {name: [10.0 * shot.n_requests] for name in COMPOSITION.per_request}
    kept = {name: values for name, values in times.items() if name not in without}
    return {"step_us": step_s(shot) * 1e6, "instrumented_us": step_s(shot) * 1.1e6, "operators": kept}


def samples_of(shots: list[Shot], **options: Any) -> dict[Shot, Samples]:
    samples = {shot: Samples() for shot in shots}
    for shot, one in samples.items():
        one.add(answer(shot, **options))
    return samples


def test_a_shot_counts_its_batch() -> None:
    shot = Shot(prefill_tokens=33, prefill_kv_tokens=64, n_decode=2, decode_kv_tokens=32)
    assert shot.requests() == [[33, 64], [1, 32], [1, 32]]
    assert (shot.n_tokens, shot.n_requests, shot.kv_blocks(32)) == (35, 3, 4 + 2 + 2)


@given(
    max_tokens=st.integers(1, 5000),
    max_requests=st.integers(1, 300),
    max_kv=st.integers(16, 20_000),
    kv_blocks=st.integers(40, 10_000),
    every=st.integers(1, 6),
)
@settings(max_examples=50, deadline=None)
def test_shots_are_distinct_and_within_the_limits(
    max_tokens: int, max_requests: int, max_kv: int, kv_blocks: int, every: int
) -> None:
    limits = Limits(max_tokens, max_requests, max_kv, 32, kv_blocks)
    shots = plan_shots(limits, every)
    assert len(set(shots)) == len(shots)
    for shot in shots:
        assert shot.n_tokens >= 1
        assert shot.prefill_tokens <= max_tokens
        assert shot.n_requests <= max_requests
        assert max(shot.prefill_kv_tokens, shot.decode_kv_tokens) <= max_kv
        assert shot.kv_blocks(32) <= kv_blocks


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_grid_reaches_its_ends_however_sparse(every: int) -> None:
    shots = plan_shots(LIMITS, every)
    assert {Shot(1, 0, 0, 0), Shot(512, 0, 0, 0), Shot(1, 128, 0, 0), Shot(512, 2048, 0, 0)} <= set(shots)
    assert {Shot(0, 0, 1, 16), Shot(0, 0, 32, 2048), Shot(512, 512, 31, 1024)} <= set(shots)


def test_the_mixed_grid_has_no_missing_corner() -> None:
    shots = plan_shots(LIMITS)
    assert AttentionTable(tables_of(samples_of(shots)).attention).filled_corners == 0


def test_the_estimate_is_exact_for_a_device_that_is_linear() -> None:
    shots = plan_shots(LIMITS)
    asked: list[Shot] = []

    def measure(shot: Shot) -> float:
        asked.append(shot)
        return step_s(shot)

    assert np.allclose(estimate_s(shots, measure), [step_s(shot) for shot in shots])
    assert len(asked) <= 6


def test_a_plan_spends_the_budget_and_no_more() -> None:
    whole_s = sum(map(step_s, plan_shots(LIMITS)))
    plan = plan_within(4.2 * whole_s, LIMITS, step_s)
    assert (plan.every, plan.passes) == (1, 3)
    assert plan_within(1e6, LIMITS, step_s).passes == MOST_PASSES


def test_a_plan_over_the_budget_is_thinned() -> None:
    whole_s = sum(map(step_s, plan_shots(LIMITS)))
    plan = plan_within(whole_s, LIMITS, step_s)
    assert plan.every > 1
    assert plan.passes >= FEWEST_PASSES
    assert plan.estimated_s <= whole_s


def test_a_budget_below_the_sparsest_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"budget_s.*found 0.01.*at least"):
        plan_within(0.01, LIMITS, step_s)


def test_measuring_stops_when_the_device_is_slower_than_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    shots = [Shot(1, 0, 0, 0), Shot(0, 0, 1, 16)]
    now_s = 0.0

    def fire(shot: Shot, warm_ups: int) -> dict[str, Any]:
        nonlocal now_s
        now_s += 1.0 + warm_ups
        return answer(shot)

    samples = measure_within(11.0, Plan(shots, passes=6, pass_s=1.0, every=1), fire, clock=lambda: now_s)
    assert [len(one.step_us) for one in samples.values()] == [4, 4]
    assert "4 passes of 6" in capsys.readouterr().err


def test_a_pass_disturbed_by_another_process_leaves_the_median_alone() -> None:
    shot = Shot(16, 0, 0, 0)
    quiet, disturbed = answer(shot), answer(shot)
    disturbed["operators"]["qkv_proj"] = [1e6, 1e6]
    samples = Samples()
    for one in (quiet, disturbed, quiet):
        samples.add(one)
    assert tables_of({shot: samples}).dense["qkv_proj"].time_s == pytest.approx([16e-6])


def test_a_sample_is_the_mean_of_a_steps_layers() -> None:
    shot = Shot(16, 0, 0, 0)
    uneven = answer(shot)
    uneven["operators"]["qkv_proj"] = [10.0, 12.0, 35.0]
    samples = Samples()
    samples.add(uneven)
    assert tables_of({shot: samples}).dense["qkv_proj"].time_s == pytest.approx([19e-6])


def test_shots_of_equal_size_share_a_point() -> None:
    tables = tables_of(samples_of([Shot(8, 0, 0, 0), Shot(0, 0, 8, 64), Shot(0, 0, 8, 16), Shot(7, 0, 1, 16)]))
    assert tables.dense["o_proj"].x.tolist() == [8]
    assert tables.per_request["lm_head"].x.tolist() == [1, 2, 8]
    assert tables.per_request["lm_head"].time_s == pytest.approx([10e-6, 20e-6, 80e-6])
    assert len(tables.attention.time_s) == 4


def test_a_rotary_embedding_without_a_hook_is_told_by_difference() -> None:
    tables = tables_of(samples_of([Shot(8, 0, 0, 0)], without=frozenset({"rotary_emb"})))
    assert tables.dense["rotary_emb"].time_s == pytest.approx([9e-6])


def test_an_operator_that_no_module_showed_is_an_error() -> None:
    with pytest.raises(CollectorError, match="sampler"):
        tables_of(samples_of([Shot(8, 0, 0, 0)], without=frozenset({"sampler"})))


def test_what_was_measured_is_read_back_from_its_folder(tmp_path: Any) -> None:
    tables = tables_of(samples_of(plan_shots(LIMITS, 3)))
    meta = ProfileMeta(
        device="d", model="m", dtype="bfloat16", source="s", method="t", composition=COMPOSITION, measured={}
    )
    write_profile(Profile(meta, {1: tables}), tmp_path / "profile")
    read = read_profile(tmp_path / "profile").tables[1]
    for column, values in dataclasses.asdict(tables.attention).items():
        assert getattr(read.attention, column) == pytest.approx(values)
    assert read.steps is not None
    assert read.steps.step_s == pytest.approx(tables.steps.step_s if tables.steps else None)
    assert read.per_request.keys() == {"lm_head", "sampler"}
