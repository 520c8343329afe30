"""The tables of a profile, from what was measured of its shots."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from collectors.operators.composition import STEPS_ALONE
from collectors.operators.samples import Answer, Parts, Samples, tables_of
from collectors.operators.shots import Limits, Shot, plan_shots
from profiles.attention import AttentionTable, Chunk
from profiles.profile import OperatorTables, Profile, ProfileMeta
from profiles.profile_folder import read_profile, write_profile
from profiles.spread import worst_spreads
from tests.collectors.operators.shot_answers import DENSE, LIMITS, MOE, answer, samples_of
from traces.errors import CollectorError

SHOT = Shot(16, 0, 0, 0)


def test_the_regular_grid_has_no_missing_corner() -> None:
    tables = tables_of(samples_of(plan_shots(LIMITS)), DENSE)
    assert AttentionTable(tables.attention, tables.skew).filled_corners == 0


def test_a_pass_disturbed_by_another_process_leaves_the_median_alone() -> None:
    quiet = answer(SHOT)
    disturbed = Answer(1e9, 1e9, dict.fromkeys(quiet.operators, 1e9))
    samples = Samples()
    for one in (quiet, disturbed, quiet):
        samples.add(one)
    curve = tables_of({SHOT: samples}, DENSE).dense["qkv_proj"]
    assert curve.time_s == pytest.approx([16e-6])
    assert curve.n is not None
    assert curve.n.tolist() == [3]
    assert curve.spread == pytest.approx([0.0])


def test_a_sample_is_what_an_operator_took_in_a_step_by_how_often_it_runs() -> None:
    """The norms run twice in each of two layers; queries and keys have a norm each, which is one operator."""
    samples = Samples()
    samples.add(Answer(1.0, 1.0, {**answer(SHOT, MOE).operators, "layernorm": 40.0, "qk_norm": 12.0}))
    tables = tables_of({SHOT: samples, Shot(4, 0, 0, 0, n_experts=4): samples}, MOE)
    assert tables.dense["layernorm"].time_s == pytest.approx([10e-6, 10e-6])
    assert tables.dense["qk_norm"].time_s == pytest.approx([6e-6, 6e-6])


def test_shots_of_equal_size_share_a_point() -> None:
    tables = tables_of(samples_of([Shot(8, 0, 0, 0), Shot(0, 0, 8, 64), Shot(0, 0, 8, 16), Shot(7, 0, 1, 16)]), DENSE)
    curve = tables.dense["o_proj"]
    assert curve.x.tolist() == [8]
    assert curve.n is not None
    assert curve.n.tolist() == [4]
    assert tables.per_request["lm_head"].x.tolist() == [1, 2, 8]
    assert tables.per_request["lm_head"].time_s == pytest.approx([10e-6, 20e-6, 80e-6])
    assert len(tables.attention.time_s) == 4


def test_a_rotary_embedding_without_a_timer_is_told_by_difference() -> None:
    tables = tables_of(samples_of([SHOT], without=["rotary_emb"]), DENSE)
    assert tables.dense["rotary_emb"].time_s == pytest.approx([9e-6])


def test_an_operator_that_no_module_showed_is_an_error() -> None:
    with pytest.raises(CollectorError, match=r"sampler.*--operators none"):
        tables_of(samples_of([SHOT], without=["sampler"]), DENSE)


def test_skewed_decodes_stand_beside_equal_ones_of_their_mean_and_of_the_longest() -> None:
    tables = tables_of(samples_of(plan_shots(LIMITS)), DENSE)
    skew = tables.skew
    assert skew is not None
    long_and_short = skew.n_long * skew.long_kv_tokens + (skew.n_decode - skew.n_long) * skew.short_kv_tokens
    assert np.abs(long_and_short / skew.n_decode - skew.mean_kv_tokens).max() <= 0.5
    assert (skew.uniform_mean_s < skew.uniform_max_s).all()
    table = AttentionTable(tables.attention, skew)  # a device that is linear in history has no skew
    history = np.array([300.0])
    assert table.decode_s(16, history, 4 * history) == pytest.approx(table.decode_s(16, history, history), rel=1e-3)


def test_several_chunks_tell_whether_a_device_computes_them_in_turn() -> None:
    """The made-up device takes a constant once, and no chunk waits for another."""
    tables = tables_of(samples_of(plan_shots(LIMITS)), DENSE)
    rows = tables.attention
    assert rows.n_chunks is not None
    assert set(rows.n_chunks.tolist()) == {1, 4}
    chunks = [Chunk(64, 512)] * 4
    shot = Shot(64, 512, 0, 0, n_chunks=4)
    together_s = AttentionTable(rows).prefill_s(chunks)
    assert together_s == pytest.approx(answer(shot).operators["attention"] * 1e-6 / 2, rel=0.01)


def test_experts_have_a_table_of_the_shots_that_forced_them() -> None:
    limits = dataclasses.replace(LIMITS, top_k=4, num_experts=16)
    tables = tables_of(samples_of(plan_shots(limits), MOE), MOE)
    assert tables.moe is not None
    points = zip(tables.moe.n_tokens.tolist(), tables.moe.n_experts.tolist(), strict=True)
    at = dict(zip(points, tables.moe.time_s, strict=True))
    assert at[64, 8] == pytest.approx(864e-6)
    assert {k for n, k in at if n == 1} == {4}
    assert {k for n, k in at if n == 4} == {4, 8, 16}
    assert "gate_up_proj" not in tables.dense


def test_whole_steps_alone_are_a_profile_too(tmp_path: Path) -> None:
    shots = plan_shots(LIMITS, 3, steps_only=True)
    assert all(shot.is_plain for shot in shots)
    samples = {shot: Samples(step_us=[1e3, 2e3, 3e3]) for shot in shots}
    read = written(tables_of(samples, Parts(STEPS_ALONE, 2)), Parts(STEPS_ALONE, 2), tmp_path)
    assert read.steps is not None
    assert read.steps.instrumented_s is None
    assert set(read.steps.step_s.tolist()) == {2e-3}
    assert len(read.attention.time_s) == 0
    assert worst_spreads(read)[0].startswith("whole steps: median 74.1%")


@pytest.mark.parametrize("parts", [DENSE, MOE], ids=["dense", "moe"])
def test_what_was_measured_is_read_back_from_its_folder(parts: Parts, tmp_path: Path) -> None:
    limits = dataclasses.replace(LIMITS, top_k=4, num_experts=16) if parts is MOE else LIMITS
    tables = tables_of(samples_of(plan_shots(limits, 2), parts, repeats=3), parts)
    read = written(tables, parts, tmp_path)
    for name in ("attention", "steps", "skew", *(["moe"] if parts is MOE else [])):
        for column, values in dataclasses.asdict(getattr(tables, name)).items():
            assert getattr(getattr(read, name), column) == pytest.approx(values, abs=1e-12), (name, column)
    assert read.per_request.keys() == {"lm_head", "sampler"}
    assert all(curve.n is not None for curve in read.dense.values())


def written(tables: OperatorTables, parts: Parts, folder: Path) -> OperatorTables:
    meta = ProfileMeta(
        device="d", model="m", dtype="bfloat16", source="s", method="t", composition=parts.composition, measured={}
    )
    write_profile(Profile(meta, {1: tables}), folder / "profile")
    return read_profile(folder / "profile").tables[1]


def test_a_batch_of_no_more_than_a_few_requests_has_no_skew() -> None:
    limits = Limits(max_tokens=64, max_requests=2, max_kv_tokens=128, block_size=32, kv_blocks=64)
    assert tables_of(samples_of(plan_shots(limits)), DENSE).skew is None
