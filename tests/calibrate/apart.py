"""Captures of prefill and decode apart with a known residual of their KV transfers, as if measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from calibrate.kv_transfer import kv_residual_of
from calibrate.subject import Subject
from harness.calibrate import subject_of
from harness.demo import BUNDLED
from harness.descriptions.scenario import read_scenario
from simulator.front_end import simulate_behind
from simulator.steps.correction import CorrectedModel
from tests.calibrate.synthetic import TRUTH, WAY, Noisy
from traces.transfers import KVTransfers

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "prefill_decode.yaml"

SENT = {"kv_transfer_s": 3e-4, "kv_transfer": 1.3}
"""What a healthy pair's transfers are beside what their link says."""

HALVED = {"kv_transfer_s": SENT["kv_transfer_s"] + 2e-3, "kv_transfer": 2 * SENT["kv_transfer"]}
"""The planted fault: 2 ms more each, and half the bandwidth."""


SAME = (
    "engine.num_gpu_blocks=1024",
    "engine.max_model_len=4096",
    *(f"cluster.instances.{i}.engine={{max_num_seqs: 32}}" for i in range(2)),
)
"""Options as the capture has them that lends its requests."""


@cache
def pair() -> Subject:
    """A prefill and a decode engine with 1 GB/s between them, and their uncorrected twin."""
    return subject_of(read_scenario(EXAMPLE, SAME), BUNDLED / "captures" / "light-1")


def measured_apart(
    subject: Subject,
    values: Mapping[str, float] = SENT,
    *,
    seed: int,
    spread: float = 0.05,
    outliers: int = 0,
    looks_s: float | None = None,
) -> Subject:
    """The subject with a synthetic capture.

    Args:
        subject: the pair.
        values: of its transfers' parameters; its steps and its front end are those of `synthetic`.
        seed: of all noise.
        spread: of each transfer's time, relative.
        outliers: transfers that took a hundred times as long.
        looks_s: the engine looks for what has come so often; None: it sees each arrive.
    """
    rng = np.random.default_rng(seed)
    engines = tuple(
        replace(engine, step_time=Noisy(CorrectedModel(engine.step_time, TRUTH), seed + i, 0.03))
        for i, engine in enumerate(subject.cluster.engines)
    )
    real = replace(subject.cluster, engines=engines, kv_residual=kv_residual_of(values))
    capture = simulate_behind(WAY, subject.trace, real, record_batches=True, fast_forward=False).capture
    assert capture.transfers is not None
    transfers = _as_seen(capture.transfers, rng, spread, outliers, looks_s)
    meta = msgspec.structs.replace(capture.meta, kind="measured", num_gpu_blocks=None)
    capture = replace(capture, meta=meta, transfers=transfers)
    return replace(subject, name=f"apart-{seed}", measured=capture)


def without_transfers(subject: Subject) -> Subject:
    """The same without a record of its transfers."""
    return replace(subject, measured=replace(subject.measured, transfers=None))


def _as_seen(
    sent: KVTransfers, rng: np.random.Generator, spread: float, outliers: int, looks_s: float | None
) -> KVTransfers:
    took_s = (sent.end_s - sent.start_s) * np.exp(rng.normal(0.0, spread, len(sent)))
    took_s[rng.choice(len(sent), outliers, replace=False)] *= 100
    if looks_s is None:
        return replace(sent, under_way_s=sent.start_s + took_s, end_s=sent.start_s + took_s)
    # The engine looks by its own clock, whenever a transfer began.
    last_s = np.floor((sent.start_s + took_s) / looks_s) * looks_s
    return replace(sent, under_way_s=np.maximum(sent.start_s, last_s), end_s=last_s + looks_s)
