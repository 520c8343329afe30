"""The steps of all engines, as columns, of the requests that a capture holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from collectors.engine.step_file import RecordedStep, Recording
from traces.steps import Batches, Steps, steps_from_columns


def steps_of(recordings: Sequence[Recording], ids: Mapping[str, int], origin_s: float) -> Steps:
    """The steps in which a request of the capture took part, with those requests."""
    kept = sorted(_kept(recordings, ids), key=lambda entry: (entry[1].output_ns, entry[0]))
    decodes = [_decodes(step) for _, step, _ in kept]
    columns = {
        "instance": [instance for instance, _, _ in kept],
        "scheduled_s": [step.schedule_begin_ns / 1e9 - origin_s for _, step, _ in kept],
        "end_s": [step.output_ns / 1e9 - origin_s for _, step, _ in kept],
        "n_requests": [len(step.requests) for _, step, _ in kept],
        "n_prefill_tokens": [
            sum(n for _, n, _ in step.requests) - count for (_, step, _), count in zip(kept, decodes, strict=True)
        ],
        "n_decode_tokens": decodes,
        "n_preempted": [len(step.preempted) for _, step, _ in kept],
        "n_running": [step.n_running for _, step, _ in kept],
        "n_waiting": [step.n_waiting for _, step, _ in kept],
        "kv_blocks": [step.kv_blocks for _, step, _ in kept],
    }
    flat = np.array([entry for _, _, entries in kept for entry in entries], dtype=np.int64).reshape(-1, 3)
    offsets = np.concatenate([[0], np.cumsum([len(entries) for _, _, entries in kept])]).astype(np.int64)
    return steps_from_columns(columns, Batches(offsets, flat[:, 0], flat[:, 1], flat[:, 2]))


def _kept(
    recordings: Sequence[Recording], ids: Mapping[str, int]
) -> Iterator[tuple[int, RecordedStep, list[tuple[int, int, int]]]]:
    """Instance, step and its entries (outcome, new tokens, computed tokens) of the steps with a request of ours."""
    for instance, recording in enumerate(recordings):
        named = {request.id: ids[name] for name, request in recording.requests.items() if name in ids}
        for step in recording.steps:
            if entries := [(named[rid], new, done) for rid, new, done in step.requests if rid in named]:
                yield instance, step, entries


def _decodes(step: RecordedStep) -> int:
    """Requests of a step that computed one token to produce the next; one token of an unfinished prompt is none."""
    brought = {engine_id for engine_id, _ in step.tokens}
    return sum(new == 1 and engine_id in brought for engine_id, new, _ in step.requests)
