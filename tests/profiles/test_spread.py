"""How sure a time is, and where it is least so."""

from __future__ import annotations

import math

import numpy as np
import pytest

from profiles.profile import NO_OPERATORS, AttentionRows, Curve, OperatorTables, StepRows
from profiles.spread import relative_spread, worst_spreads


def test_the_spread_is_that_of_a_normal_distribution() -> None:
    samples = np.random.default_rng(0).normal(100.0, 5.0, 20_000)
    assert relative_spread(list(samples)) == pytest.approx(0.05, rel=0.03)


def test_a_disturbed_sample_does_not_show_and_one_sample_has_no_spread() -> None:
    assert relative_spread([10.0, 10.0, 10.0, 900.0]) == 0
    assert math.isnan(relative_spread([10.0]))


def test_the_worst_point_of_each_operator_is_named() -> None:
    ones = np.ones(2)
    rows = AttentionRows(np.array([64.0, 0.0]), 0 * ones, np.array([0.0, 8.0]), np.array([0.0, 16.0]), ones)
    steps = StepRows(rows.prefill_tokens, 0 * ones, rows.n_decode, rows.decode_kv_tokens, ones, ones, None, 5 * ones)
    tables = OperatorTables(
        dense={"qkv_proj": Curve(np.array([1.0, 8.0]), ones, np.array([0.3, np.nan]), np.array([6.0, 6.0]))},
        per_request={"sampler": Curve(np.array([1.0]), ones[:1])},
        attention=AttentionRows(*(getattr(rows, name) for name in rows.__slots__[:5]), np.array([0.01, 0.03])),
        steps=steps,
    )
    assert worst_spreads(tables) == [
        "qkv_proj: median 30.0%, worst 30.0% at 1 tokens (n 6)",
        "attention: median 2.0%, worst 3.0% at n_decode 8, decode_kv_tokens 16",
    ]
    assert worst_spreads(OperatorTables(**NO_OPERATORS, steps=steps)) == []
