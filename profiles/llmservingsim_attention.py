"""Attention as LLMServingSim's older profiler measured and predicted it (2025, `perf_models/.../tp<N>/`).

    attention.csv                            GPU: milliseconds, with spread; TPU: nanoseconds, as `p50_ns`
    predictions/attn_prefill_predictions.csv kv_cache_size, prefill_chunk_size, prediction in ns
    predictions/attn_decode_predictions.csv  batch_size, kv_cache_size, prediction in ns

What `kv_cache_size` counts is not said in the files. On GPUs its profiler (`llm_profile/profiler/attention/
attention_profiler.py`) hands `flash_attn_varlen_func` so many keys in all: a chunk's own among them, and those of a
decode batch divided evenly among its requests. The times agree: a chunk of as many keys as tokens takes what the chunk
without history takes in layers.csv, and a batch of more requests than keys next to nothing. Elsewhere the numbers
decide, see `_reading`. Either way the times are of one layer.

The predictions are a regression of the same file, read the other way (history of each request), and multiplied by a
factor that its authors chose (`predictor/main.py`, `--prefill-overhead`, `--decode-overhead`) and that no file records.
So what was measured goes first. Decode batches were measured up to a sum of keys only; beyond it stand the predictions,
if there are any, and no measured batch takes longer than a predicted one that contains it. A prefill chunk needs none:
its time is linear in its history.

Where the engine's kernel is known (`profiles.flash_attention`), predictions are not used. The profiler called it so
that each query head worked for itself: 1,024 keys of one request, 32 thread blocks on an A6000's 84 multiprocessors,
take 51 us, of each of two requests 53 us, of each of four 92 us. That is how vLLM's decodes run beside a prompt, and
not how they run alone, and no one factor makes the one into the other: the published 3.5 of Llama-3.1-8B, which is
packed when it decodes alone, is 12 for Phi-mini-MoE, which has a sliding window and never is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from profiles.csv_table import CsvTable, read_csv
from profiles.flash_attention import FlashAttention2, fit_apart, with_decodes
from profiles.profile import AttentionRows, Curve
from traces.errors import InputError, ProfileError
from traces.steps import Floats

PREDICTIONS = {"prefill": "attn_prefill_predictions.csv", "decode": "attn_decode_predictions.csv"}
_SHAPE = ("batch_size", "prefill_chunk_size", "kv_cache_size")


@dataclass(frozen=True, slots=True)
class _Points:
    """Times at sizes, [n]: chunk tokens or decodes, their history in tokens, seconds, relative spread (NaN: none)."""

    size: Floats
    history: Floats
    time_s: Floats
    spread: Floats

    def __len__(self) -> int:
        return len(self.size)

    def where(self, chosen: npt.NDArray[np.bool_]) -> _Points:
        return _Points(self.size[chosen], self.history[chosen], self.time_s[chosen], self.spread[chosen])


@dataclass(frozen=True, slots=True)
class _Measured:
    """One kind of attention.csv's rows.

    Attributes:
        keys: kv_cache_size as it stands, [n].
        points: what it means.
        of_batch: in decode rows it counts the keys of the whole batch.
    """

    keys: Floats
    points: _Points
    of_batch: bool = False


def read_attention(
    folder: Path, tp: int, lone: Curve | None, kernel: FlashAttention2 | None = None
) -> tuple[AttentionRows, list[str]]:
    """One layer's attention on one of `tp` devices, and what a reader should know of it.

    Args:
        folder: holds attention.csv, predictions, or both.
        tp: the degree that attention.csv has to be of.
        lone: a single prefill chunk without history by tokens, from layers.csv; None when it has none.
        kernel: of the engine, whose decodes it is to be; None: as measured and predicted.

    Raises:
        InputError: with file, line and field.
        ProfileError: prefill or decodes have neither measurements nor predictions, or too few for the kernel.
    """
    prefill, decode, notes = _measured(folder / "attention.csv", tp)
    predicted = {kind: _predicted(folder / "predictions" / PREDICTIONS[kind], kind) for kind in PREDICTIONS}
    chunks, batches = prefill.points, _merged(decode.points)
    if not len(chunks) and predicted["prefill"] is not None:
        chunks = predicted["prefill"]
        notes.append(f"prefill chunks: {len(chunks)} predictions of LLMServingSim, none measured")
    elif predicted["prefill"] is not None:
        factor = _factor(prefill, predicted["prefill"])
        notes.append(f"prefill chunks: {len(predicted['prefill'])} predictions of LLMServingSim not used; {factor}")
    chunks = _with_lone(chunks, lone, notes)
    if kernel is not None and len(chunks):
        times = fit_apart(kernel, decode.points.size, decode.points.history, decode.points.time_s)
        if times is None:
            message = "has too few decodes that fill the device to tell what each request and each key takes"
            accepted = "more of them, or format llmservingsim-older-published"
            raise ProfileError(message, file=folder / "attention.csv", accepted=accepted)
        notes.append(_said(kernel, times.request_s, times.key_s))
        no_decode = np.zeros(len(chunks))
        alone = AttentionRows(chunks.size, chunks.history, no_decode, no_decode, chunks.time_s, _spread(chunks.spread))
        return with_decodes(alone, times), [f"tp {tp}: attention of {note}" for note in notes]
    if predicted["decode"] is not None:
        batches = _with_predictions(decode, predicted["decode"], notes)
    for name, points in (("prefill chunks", chunks), ("decodes", batches)):
        if not len(points):
            accepted = "attention.csv with measurements of them, or predictions/ with predictions"
            raise ProfileError(f"holds no attention times of {name}", file=folder, accepted=accepted)
    none = (np.zeros(len(chunks)), np.zeros(len(batches)))
    spread = np.concatenate([chunks.spread, batches.spread])
    rows = AttentionRows(
        np.concatenate([chunks.size, none[1]]),
        np.concatenate([chunks.history, none[1]]),
        np.concatenate([none[0], batches.size]),
        np.concatenate([none[0], batches.history]),
        np.concatenate([chunks.time_s, batches.time_s]),
        _spread(spread),
    )
    return rows, [f"tp {tp}: attention of {note}" for note in notes]


def _spread(spread: Floats) -> Floats | None:
    return None if np.isnan(spread).all() else spread


def _said(kernel: FlashAttention2, request_s: float, key_s: float) -> str:
    """What decodes were made of, in words."""
    alone = "read their keys once" if kernel.packs else "do so too, for the model's sliding window"
    return (
        f"decodes: as FlashAttention 2 computes them; beside a prompt each query head reads its keys, at "
        f"{request_s * 1e6:.2f} us a request and {key_s * 1e9:.1f} ns a key, as measured, and no faster than memory; "
        f"alone they {alone}; predictions of LLMServingSim are not used"
    )


def _measured(file: Path, tp: int) -> tuple[_Measured, _Measured, list[str]]:
    """attention.csv's prefill and decode rows; none of either when there is no such file."""
    nothing = _Measured(np.empty(0), _Points(*np.empty((4, 0))))
    if not file.exists():
        return nothing, nothing, []
    table = read_csv(file, _SHAPE, optional=[*_GPU, *_TPU, "num_tensor_parallel_workers"], others=True)
    is_gpu = table.has(_GPU[0])
    if not is_gpu and not table.has(_TPU[0]):
        raise InputError("is missing", file=file, line=1, field=_GPU[0], accepted=f"{_GPU[0]} (ms), or {_TPU[0]} (ns)")
    n, chunk, keys = (table.numbers(name, whole=True) for name in _SHAPE)
    _check(table, n, chunk, tp)
    time_s, spread = _times_s(table, chunk > 0, is_gpu)
    notes: list[str] = []
    first, own = _reading(table, is_gpu, chunk, keys)
    second, share, of_batch = _batch_reading(is_gpu, n, keys, time_s, chunk == 0)
    notes += [f"prefill chunks: kv_cache_size is {first}", f"decodes: kv_cache_size is {second}"]
    history = np.where(chunk > 0, keys - own, share)
    empty = (chunk == 0) & (history < 0)
    if empty.any():
        notes.append(f"decodes: {np.count_nonzero(empty)} rows of more requests than keys left out")
    kinds = []
    for name, chosen, size in (("prefill chunks", chunk > 0, chunk), ("decodes", (chunk == 0) & ~empty, n)):
        points = _Points(size[chosen], history[chosen], time_s[chosen], spread[chosen])
        distinct = _merged(points)
        if len(distinct):
            again = len(points) - len(distinct)
            twice = f", of which {again} repeat a point and count with their mean" if again else ""
            notes.append(f"{name}: {len(points)} rows measured{twice}")
        kinds.append(_Measured(keys[chosen], points, of_batch))
    return kinds[0], kinds[1], notes


_GPU = tuple(f"time_stats.attn_{kind}.{name}" for kind in PREDICTIONS for name in ("median", "std"))
_TPU = ("p50_ns",)


def _check(table: CsvTable, n: Floats, chunk: Floats, tp: int) -> None:
    """Raise InputError at a row of no requests, of several prompts, or of another degree than the folder's."""
    wrong = [("batch_size", n < 1, "1 or more"), ("batch_size", (chunk > 0) & (n > 1), "1, as there is a chunk")]
    if table.has(name := "num_tensor_parallel_workers"):
        wrong.append((name, table.numbers(name) != tp, f"{tp}, as the folder's name says"))
    for name, where, accepted in wrong:
        if where.any():
            row = int(np.flatnonzero(where)[0])
            raise table.error(row, name, found=float(table.numbers(name)[row]), accepted=accepted)


def _times_s(table: CsvTable, is_chunk: npt.NDArray[np.bool_], is_gpu: bool) -> tuple[Floats, Floats]:
    """Median seconds of each row and the standard deviation over it, [n]; NaN where that was not taken."""
    if not is_gpu:
        return table.numbers(_TPU[0], above_0=True) * 1e-9, np.full(len(is_chunk), np.nan)
    time_ms, std_ms = np.full((2, len(is_chunk)), np.nan)
    for kind, own in zip(PREDICTIONS, (is_chunk, ~is_chunk), strict=True):
        median, std = f"time_stats.attn_{kind}.median", f"time_stats.attn_{kind}.std"
        if not own.any():
            continue
        if not table.has(median):
            raise InputError("is missing", file=table.file, line=1, field=median, accepted=f"as there are {kind} rows")
        values = table.numbers(median, above_0=True, gaps=True)
        if (missing := np.isnan(values) & own).any():
            row = int(np.flatnonzero(missing)[0])
            raise table.error(row, median, "is empty", accepted=f"the time of this row, which is {kind}")
        time_ms[own] = values[own]
        if table.has(std):
            std_ms[own] = table.numbers(std, gaps=True)[own]
    return time_ms * 1e-3, std_ms / time_ms


def _reading(table: CsvTable, is_gpu: bool, chunk: Floats, keys: Floats) -> tuple[str, Floats]:
    """What kv_cache_size counts in prefill rows, in words, and how many of it are the chunk's own, [n].

    All keys on GPUs, as its profiler passes them; elsewhere too, unless a chunk has fewer keys than tokens.
    """
    fewer = (chunk > 0) & (keys < chunk)
    if fewer.any() and is_gpu:
        row = int(np.flatnonzero(fewer)[0])
        accepted = f"at least prefill_chunk_size, {chunk[row]:.0f}: it counts the chunk's own keys"
        raise table.error(row, "kv_cache_size", found=float(keys[row]), accepted=accepted)
    if fewer.any():
        return "taken as the history: some are below the chunk", np.zeros(len(chunk))
    return "taken as all keys, the chunk's own among them", chunk


def _batch_reading(
    is_gpu: bool, n: Floats, keys: Floats, time_s: Floats, is_batch: npt.NDArray[np.bool_]
) -> tuple[str, Floats, bool]:
    """What kv_cache_size counts in decode rows, in words, the history of one request, [n], and if it is the batch's.

    All keys of the batch on GPUs, evenly divided, each request's new one among them. Elsewhere the times tell: if the
    largest batch at the larger sizes costs more than the square root of its requests times the smallest, each request
    had so many keys.
    """
    of_batch = np.floor(keys / np.maximum(n, 1)) - 1
    if is_gpu:
        return "taken as the keys of the whole batch", of_batch, True
    growths = []
    for size in np.unique(keys[is_batch & (keys >= np.median(keys[is_batch]))]) if is_batch.any() else []:
        own = np.flatnonzero(is_batch & (keys == size))
        few, many = own[np.argmin(n[own])], own[np.argmax(n[own])]
        if n[many] > n[few]:
            growths.append(np.log(time_s[many] / time_s[few]) / np.log(n[many] / n[few]))
    if growths and np.median(growths) < 0.5:
        return "taken as the keys of the whole batch, by how its times grow with the batch", of_batch, True
    return "taken as the keys of each request", np.maximum(keys - 1, 0), False


def _merged(points: _Points) -> _Points:
    """Each point once: the mean of its times and spreads."""
    if not len(points):
        return points
    at = np.column_stack([points.size, points.history])
    distinct, group = np.unique(at, axis=0, return_inverse=True)
    group = group.reshape(-1)
    count = np.bincount(group)
    time_s, spread = (np.bincount(group, weights=values) / count for values in (points.time_s, points.spread))
    return _Points(distinct[:, 0], distinct[:, 1], time_s, spread)


def _predicted(file: Path, kind: str) -> _Points | None:
    """LLMServingSim's predictions, read as it does: history of the chunk, or of each request; None without them."""
    if not file.exists():
        return None
    size = "prefill_chunk_size" if kind == "prefill" else "batch_size"
    table = read_csv(file, (size, "kv_cache_size", "prediction"))
    table.check_unique((size, "kv_cache_size"))
    time_s = table.numbers("prediction", above_0=True) * 1e-9
    sizes = table.numbers(size, above_0=True, whole=True)
    return _Points(sizes, table.numbers("kv_cache_size"), time_s, np.full(len(time_s), np.nan))


def _factor(measured: _Measured, predicted: _Points) -> str:
    """How the predictions compare with the measurements of the same row, in words."""
    times = dict(zip(zip(predicted.size, predicted.history, strict=True), predicted.time_s, strict=True))
    points = measured.points
    ratios = [
        times[at] / time_s
        for at, time_s in zip(zip(points.size, measured.keys, strict=True), points.time_s, strict=True)
        if at in times
    ]
    if not ratios:
        return "they share no row with the measurements"
    return f"at the {len(ratios)} rows that both have they are {np.median(ratios):.2f} times the measurement (median)"


def _with_predictions(decode: _Measured, predicted: _Points, notes: list[str]) -> _Points:
    """Decode batches as measured, and predictions beyond.

    Where a row's keys are the batch's, the regression learned rows of more requests than keys as next to no time.
    """
    beyond = _beyond(decode.points, predicted)
    void = beyond & (predicted.history < predicted.size) if decode.of_batch else np.zeros_like(beyond)
    if void.any():
        notes.append(f"decodes: {np.count_nonzero(void)} predictions for more requests than keys left out")
    chosen = predicted.where(beyond & ~void)
    factor = _factor(decode, predicted)
    notes.append(f"decodes: {len(chosen)} predictions of LLMServingSim beyond what was measured; {factor}")
    bounded = _bounded(decode.points, chosen)
    if n := np.count_nonzero(bounded.time_s < decode.points.time_s):
        larger = "more work: as many requests or more, with as long a history or longer"
        notes.append(f"decodes: {n} measured rows take longer than a prediction for {larger}; they count with its time")
    return _joined([bounded, chosen])


def _bounded(points: _Points, larger: _Points) -> _Points:
    """The points, none slower than one of `larger` that does all of its work and more.

    The two sources contradict each other there: a batch cannot take longer than one that contains it. Whose kernel was
    the slower is not recorded; that of an engine, which the predictions were scaled to, is the one that is simulated.
    """
    if not len(larger):
        return points
    sizes, histories = np.unique(larger.size), np.unique(larger.history)
    least_s = np.full((len(sizes) + 1, len(histories) + 1), np.inf)
    at = np.searchsorted(sizes, larger.size), np.searchsorted(histories, larger.history)
    np.minimum.at(least_s, at, larger.time_s)
    for axis in (0, 1):
        least_s = np.flip(np.minimum.accumulate(np.flip(least_s, axis), axis=axis), axis)
    bound_s = least_s[np.searchsorted(sizes, points.size), np.searchsorted(histories, points.history)]
    return replace(points, time_s=np.minimum(points.time_s, bound_s))


def _beyond(measured: _Points, predicted: _Points) -> npt.NDArray[np.bool_]:
    """Whether no batch of as many requests or more was measured with a history as long, [n predicted]."""
    order = np.argsort(measured.size)
    longest = np.maximum.accumulate(measured.history[order][::-1])[::-1]
    reach = np.append(longest, -1.0)[np.searchsorted(measured.size[order], predicted.size)]
    return np.asarray(predicted.history > reach)


def _with_lone(chunks: _Points, lone: Curve | None, notes: list[str]) -> _Points:
    """The chunks, those of layers.csv that are longer, and a history for every length that was measured without one.

    The part of a chunk's time that its history takes is in proportion to its tokens, as the pairs of query and key are:
    it is taken over from the longest chunk that was measured with histories.
    """
    chunks = _merged(chunks)
    if lone is not None:
        longer = lone.x > (chunks.size.max() if len(chunks) else 0)
        if longer.any():
            n = np.count_nonzero(longer)
            chunks = _joined([chunks, _Points(lone.x[longer], np.zeros(n), lone.time_s[longer], np.full(n, np.nan))])
            notes.append(f"prefill chunks: {n} lengths without history from layers.csv")
    lengths, count = np.unique(chunks.size, return_counts=True)
    if not (several := lengths[count > 1]).size:
        return chunks
    model = chunks.where(chunks.size == several[-1])
    nearest, farthest = np.argmin(model.history), np.argmax(model.history)
    slope_s = (model.time_s[farthest] - model.time_s[nearest]) / several[-1]
    alone = chunks.where(np.isin(chunks.size, lengths[(count == 1) & (lengths > several[-1])]))
    if not len(alone):
        return chunks
    way = float(model.history[farthest] - model.history[nearest])
    derived = replace(alone, history=alone.history + way, time_s=alone.time_s + slope_s * alone.size)
    notes.append(
        f"prefill chunks: {len(alone)} lengths above {several[-1]:.0f} were measured without history; {way:.0f} tokens "
        "of history add to them what they add to that length, in proportion to the tokens"
    )
    return _joined([chunks, replace(derived, spread=np.full(len(alone), np.nan))])


def _joined(parts: Sequence[_Points]) -> _Points:
    """All points, each once."""
    size, history, time_s, spread = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("size", "history", "time_s", "spread")
    )
    return _merged(_Points(size, history, time_s, spread))
