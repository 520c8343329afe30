"""The engine's steps (one forward pass each), as columns: one numpy array per fact, one entry per step.

Columns and not objects, because the simulator produces whole runs of steps in one sweep and calibration reads them
in bulk. `Batches` is the optional detail: which requests were in each step, with how many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Step:
    """One step, for a reader who wants one: see `Steps` for the meaning of each field."""

    instance: int
    scheduled_s: float
    end_s: float
    n_requests: int
    n_prefill_tokens: int
    n_decode_tokens: int
    n_preempted: int
    n_running: int
    n_waiting: int
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class Batches:
    """Which requests each step computed, ragged: step i owns entries `offsets[i]:offsets[i + 1]`.

    Attributes:
        offsets: [n_steps + 1] first entry of each step.
        request: [n_entries] index of the request in the capture's outcomes.
        new_tokens: [n_entries] tokens computed for it in this step.
        computed_tokens: [n_entries] tokens whose KV existed before this step (`num_computed_tokens`).
    """

    offsets: Ints
    request: Ints
    new_tokens: Ints
    computed_tokens: Ints


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps of a capture, ordered by end and then by instance. Every column is [n_steps].

    Attributes:
        instance: index of the engine instance.
        scheduled_s: when the scheduler began to plan it.
        end_s: when its output was handed back to the scheduler.
        n_requests: requests in the batch.
        n_prefill_tokens: tokens of requests that computed more than one, or an unfinished prompt.
        n_decode_tokens: tokens of requests that computed one, to produce the next.
        n_preempted: requests preempted while it was planned.
        n_running: requests in the running queue once it was planned.
        n_waiting: requests in the waiting queue once it was planned.
        kv_blocks: KV blocks in use once it was planned.
        kv_cached: KV blocks that nobody uses and whose content can still be found; None when not recorded.
        batches: the requests of each step, where recorded.
    """

    instance: Ints
    scheduled_s: Floats
    end_s: Floats
    n_requests: Ints
    n_prefill_tokens: Ints
    n_decode_tokens: Ints
    n_preempted: Ints
    n_running: Ints
    n_waiting: Ints
    kv_blocks: Ints
    kv_cached: Ints | None = None
    batches: Batches | None = None

    def __len__(self) -> int:
        return len(self.end_s)

    def __getitem__(self, index: int) -> Step:
        return Step(**{name: getattr(self, name)[index].item() for name in STEP_COLUMNS})

    def duration_s(self) -> Floats:
        """Time each step took, [n_steps] seconds: until its end, from its planning or from the end of the step
        before it on its instance, whichever came last. With two steps in flight the second waits for the first.
        """
        start_s = self.scheduled_s.copy()
        for instance in np.unique(self.instance):
            own = np.flatnonzero(self.instance == instance)
            start_s[own[1:]] = np.maximum(start_s[own[1:]], self.end_s[own[:-1]])
        return self.end_s - start_s


STEP_COLUMNS = tuple(field.name for field in fields(Steps) if field.name not in ("kv_cached", "batches"))
_FLOAT_COLUMNS = {"scheduled_s", "end_s"}


def merged_steps(each: Sequence[Steps]) -> Steps:
    """Steps of several instances as one table, ordered by end and then by instance.

    Batches are kept where all have them.
    """
    n_steps = sum(map(len, each))
    space = np.empty(n_steps)  # of one column, since new memory costs more than what is done with it

    def together(parts: Sequence[Any]) -> Any:
        return np.concatenate(parts, out=space.view(parts[0].dtype))

    instance = together([steps.instance for steps in each])
    in_turn = (instance[1:] >= instance[:-1]).all()
    end_s = np.concatenate([steps.end_s for steps in each])
    # Instance by instance, each in order of end: runs that a stable sort merges, with ties as they stand.
    order = end_s.argsort(kind="stable") if in_turn else np.lexsort((instance, end_s))
    columns = {name: together([getattr(steps, name) for steps in each]).take(order) for name in STEP_COLUMNS}
    cached = [steps.kv_cached for steps in each if steps.kv_cached is not None]
    kv_cached = together(cached).take(order) if len(cached) == len(each) else None
    batches = [steps.batches for steps in each if steps.batches is not None]
    merged = _merged_batches(batches, order) if len(batches) == len(each) else None
    return Steps(**columns, kv_cached=kv_cached, batches=merged)


def _merged_batches(each: Sequence[Batches], order: Ints) -> Batches:
    counts = np.concatenate([np.diff(batches.offsets) for batches in each])
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    offsets = np.concatenate([[0], np.cumsum(counts[order])]).astype(np.int64)
    entries = np.repeat(first[order] - offsets[:-1], counts[order]) + np.arange(offsets[-1])
    columns = {
        name: np.concatenate([getattr(batches, name) for batches in each])[entries]
        for name in ("request", "new_tokens", "computed_tokens")
    }
    return Batches(offsets, **columns)


def steps_from_columns(columns: dict[str, Any], batches: Batches | None = None) -> Steps:
    """Steps from one sequence per column of `Step`. Raises InputError when a column is missing or of another length."""
    missing = [name for name in STEP_COLUMNS if name not in columns]
    if missing:
        raise InputError("is missing", field=missing[0], accepted=", ".join(STEP_COLUMNS))
    arrays: dict[str, Any] = {
        name: np.asarray(columns[name], dtype=np.float64 if name in _FLOAT_COLUMNS else np.int64)
        for name in STEP_COLUMNS
    }
    if columns.get("kv_cached") is not None:
        arrays["kv_cached"] = np.asarray(columns["kv_cached"], dtype=np.int64)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError("step columns differ in length", found=lengths)
    return Steps(**arrays, batches=batches)
