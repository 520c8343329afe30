"""Reads what the stat logger wrote in a server's front end: its iterations, and its requests as they ended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any

import msgspec

from collectors.journal import read_journal
from collectors.request_ids import id_of_front_end
from traces.decoding import decode_json
from traces.errors import CollectorError

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class StatsHeader(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="header"):
    """What a server was started with.

    Attributes:
        vllm_version: as vLLM says it.
        wall_ns: the wall clock when the stat logger started.
        monotonic_ns: the monotonic clock at the same moment.
        model: the name, or names, that it is served under.
        num_gpu_blocks: KV blocks of an engine, the null block included; None: vLLM did not say.
        api_server: index among the deployment's API servers.
        engines: data-parallel engines that this API server hears of.
        options: the engine's, by vLLM's names.
    """

    vllm_version: str
    wall_ns: int
    monotonic_ns: int
    model: str | list[str]
    api_server: Count
    engines: tuple[Count, ...]
    options: dict[str, Any]
    num_gpu_blocks: Count | None = None


class Iteration(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="iteration"):
    """A batch of outputs that reached the front end. What vLLM did not send with it is None, not 0.

    Attributes:
        engine: index of the data-parallel engine.
        wall_ns: the wall clock when the front end had counted it.
        monotonic_ns: the monotonic clock at the same moment.
        n_running: requests in the engine's running queue.
        n_waiting: requests that wait, deferred ones included.
        kv_cache_usage: share of the KV blocks in use.
        prefix_cache_queries: prompt tokens looked up in the prefix cache since the iteration before.
        prefix_cache_hits: those of them that were found.
        prompt_tokens: of the prompts whose first token came.
        generation_tokens: tokens that came.
        n_preempted: preemptions since the iteration before.
        ttft_s: arrival to first token, of the requests whose first token came.
        logger_ns: what the stat logger took of the front end's thread since the iteration before.
    """

    engine: Count
    wall_ns: int
    monotonic_ns: int
    logger_ns: int
    n_running: Count | None = None
    n_waiting: Count | None = None
    kv_cache_usage: float | None = None
    prefix_cache_queries: Count | None = None
    prefix_cache_hits: Count | None = None
    prompt_tokens: Count | None = None
    generation_tokens: Count | None = None
    n_preempted: Count | None = None
    ttft_s: tuple[float, ...] = ()


class FinishedRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="request"):
    """A request that ended. A stage that it did not reach is None.

    Attributes:
        id: vLLM's, in the front end.
        engine: index of the data-parallel engine that served it.
        arrival_wall_s: when the front end received it, wall clock.
        end_wall_s: when its last output reached the front end, wall clock.
        e2e_s: between the two.
        queued_s: from the engine's queue to its first scheduling.
        prefill_s: from there to its first token.
        decode_s: from there to its last token.
        inference_s: from its first scheduling to its last token.
        prompt_tokens: length of the prompt.
        output_tokens: tokens that came.
        max_tokens: most tokens it asked for.
        cached_tokens: prompt tokens found in the prefix cache.
        num_preemptions: times it was preempted; None: this vLLM does not say.
        reason: vLLM's word for the end.
    """

    id: str
    engine: Count
    arrival_wall_s: float
    end_wall_s: float
    e2e_s: float
    prompt_tokens: Count
    output_tokens: Count
    cached_tokens: Count
    reason: str
    queued_s: Seconds | None = None
    prefill_s: Seconds | None = None
    decode_s: Seconds | None = None
    inference_s: Seconds | None = None
    max_tokens: Count | None = None
    num_preemptions: Count | None = None


class Rejection(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="rejection"):
    """A request that the front end did not admit.

    Attributes:
        wall_ns: the wall clock when it was turned away.
        monotonic_ns: the monotonic clock at the same moment.
        reason: the option whose limit was reached.
    """

    wall_ns: int
    monotonic_ns: int
    reason: str


class _Off(msgspec.Struct, frozen=True, tag_field="kind", tag="refused"):
    """The server started without the stat logger."""

    reason: str


class _Stopped(msgspec.Struct, frozen=True, tag_field="kind", tag="stopped"):
    """The stat logger gave up while the server went on."""

    reason: str


class _Lost(msgspec.Struct, frozen=True, tag_field="kind", tag="lost"):
    """Records that were neither written nor kept."""

    records: dict[str, int]


class _Summary(msgspec.Struct, frozen=True, tag_field="kind", tag="summary"):
    """The end of an orderly run."""

    n_iterations: int


_Line = StatsHeader | Iteration | FinishedRequest | Rejection | _Off | _Stopped | _Lost | _Summary


@dataclass(frozen=True, slots=True)
class StatsLog:
    """What one API server's stat logger wrote.

    Attributes:
        header: of the latest start.
        iterations: of all starts, as they came.
        requests: by the id that the client gave them; a further one of that id goes by vLLM's own, then with a number.
        rejections: as they came.
        notes: what is missing, and why.
    """

    header: StatsHeader
    iterations: tuple[Iteration, ...]
    requests: dict[str, FinishedRequest]
    rejections: tuple[Rejection, ...]
    notes: tuple[str, ...]


def read_stats(path: Path) -> StatsLog:
    """Read a stat logger's file; a last line that was cut off is left out.

    Raises InputError when it cannot be read or a line is not the stat logger's, CollectorError when it says that
    nothing was recorded.
    """
    header: StatsHeader | None = None
    iterations: list[Iteration] = []
    requests: dict[str, FinishedRequest] = {}
    rejections: list[Rejection] = []
    notes: list[str] = []
    for number, data in read_journal(path):
        match decode_json(data, _Line, file=path, line=number):  # type: ignore[arg-type]
            case StatsHeader() as header:
                pass
            case Iteration() as iteration:
                iterations.append(iteration)
            case FinishedRequest() as request:
                _add(requests, request)
            case Rejection() as rejection:
                rejections.append(rejection)
            case _Off(reason):
                notes.append(f"the stat logger was off: {reason}")
            case _Stopped(reason):
                notes.append(f"the stat logger stopped while the server went on: {reason}")
            case _Lost(records):
                lost = ", ".join(f"{count} {kind}" for kind, count in sorted(records.items()))
                notes.append(f"records were lost while the file could not be written: {lost}")
    if header is None:
        why = "; ".join(notes) or "holds no header; is the stat logger's folder on the server's PYTHONPATH?"
        raise CollectorError(f"{path}: {why}")
    return StatsLog(header, tuple(iterations), requests, tuple(rejections), tuple(notes))


def _add(requests: dict[str, FinishedRequest], request: FinishedRequest) -> None:
    further = (f"{request.id}#{i}" for i in count(2))
    name = next(name for name in chain((id_of_front_end(request.id), request.id), further) if name not in requests)
    requests[name] = request
