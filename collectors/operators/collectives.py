"""What messages between devices take: torch.distributed's collectives by operation, number of ranks and bytes.

One process per rank: NCCL on GPUs, Gloo on a CPU. A sample is the time of a call on the slowest rank, all having begun
together; on GPUs of ten calls in a row, by events, so that launches do not count. `bytes` is the larger of a rank's two
buffers, as nccl-tests count: what all_reduce sums, what all_gather fills, what reduce_scatter and all_to_all read.

An engine may use kernels of its own for small messages (vLLM's custom all-reduce); these are torch's.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from profiles.profile import COLLECTIVES, Curve
from profiles.spread import relative_spread
from traces.errors import CollectorError, InputError

SMALLEST_BYTES, LARGEST_BYTES = 1 << 10, {"cuda": 1 << 28, "cpu": 1 << 24}
GROWTH = 4
"""Each size is so many times the one before."""
WARM_UPS, SAMPLES = 3, 20
CALLS = 10
"""In a row, between two events of a GPU."""
TIMEOUT_S = 600


class Devices(msgspec.Struct, frozen=True):
    """Between which devices to measure: `cuda` or `cpu`, and how many."""

    kind: str
    count: int

    def group_sizes(self) -> list[int]:
        """2, 4, 8, ... and all of them."""
        powers = [2**i for i in range(1, self.count.bit_length()) if 2**i <= self.count]
        return sorted({*powers, self.count})


class Row(msgspec.Struct, frozen=True):
    """Samples of one operation at one size, microseconds of the slowest rank; none and why where it cannot be done."""

    op: str
    ranks: int
    bytes: int
    samples_us: list[float]
    error: str | None = None


def devices_of(asked: str) -> Devices | None:
    """The devices that an option names: `auto` are the GPUs where there are several; None: none.

    Raises InputError for what is not there.
    """
    if asked == "none":
        return None
    n_gpus = _n_gpus()
    if asked == "auto":
        return Devices("cuda", n_gpus) if n_gpus > 1 else None
    kind, _, count = asked.partition(":")
    if kind not in ("cpu", "cuda") or not count.isdigit() or int(count) < 2:
        raise InputError(field="--collectives", found=asked, accepted="auto, none, cpu:N or cuda:N with N from 2")
    if kind == "cuda" and int(count) > n_gpus:
        raise InputError(field="--collectives", found=asked, accepted=f"as many as there are, {n_gpus}")
    return Devices(kind, int(count))


def _n_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def measure_collectives(devices: Devices) -> list[Row]:
    """Every operation at every group size and message size. Raises CollectorError when a rank fails."""
    rows = []
    for ranks in devices.group_sizes():
        rows += _group(devices.kind, ranks)
    return rows


def collective_curves(rows: Sequence[Row]) -> tuple[dict[str, dict[int, Curve]], tuple[str, ...]]:
    """Curves by operation and ranks, and notes of what could not be measured."""
    curves: dict[str, dict[int, Curve]] = {}
    failed = {(row.op, row.ranks): row.error for row in rows if row.error is not None}
    for op, ranks in sorted({(row.op, row.ranks) for row in rows} - failed.keys()):
        own = sorted((row for row in rows if (row.op, row.ranks) == (op, ranks)), key=lambda row: row.bytes)
        samples = [row.samples_us for row in own]
        curves.setdefault(op, {})[ranks] = Curve(
            np.array([row.bytes for row in own], dtype=np.float64),
            np.array([np.median(values) for values in samples]) * 1e-6,
            np.array([relative_spread(values) for values in samples]),
            np.array([len(values) for values in samples], dtype=np.float64),
        )
    return curves, tuple(f"{op} of {ranks} ranks was not measured: {error}" for (op, ranks), error in failed.items())


def _group(kind: str, ranks: int) -> list[Row]:
    """One process for each rank; the first one's rows."""
    context = multiprocessing.get_context("spawn")
    address = f"tcp://127.0.0.1:{_free_port()}"
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=_rank, args=(kind, rank, ranks, address, sender)) for rank in range(ranks)]
    for process in processes:
        process.start()
    sender.close()
    try:
        rows = msgspec.convert(receiver.recv(), list[Row]) if receiver.poll(TIMEOUT_S) else None
    except EOFError:
        rows = None
    for process in processes:
        process.join(10 if rows is not None else 1)
        if process.is_alive():
            process.terminate()
    if rows is None:
        codes = ", ".join(str(process.exitcode) for process in processes)
        raise CollectorError(f"collectives of {ranks} {kind} ranks failed; their processes ended with {codes}")
    return rows


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank(kind: str, rank: int, ranks: int, address: str, answer: Any) -> None:
    """A rank's process: every operation at every size, in the same order on all."""
    import torch
    import torch.distributed as dist

    if kind == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=ranks)
    rows = [row for op in COLLECTIVES for row in _operation(op, kind, ranks)]
    if rank == 0:
        answer.send(msgspec.to_builtins(rows))
    dist.barrier()
    dist.destroy_process_group()


def _operation(op: str, kind: str, ranks: int) -> list[Row]:
    """One operation at every size; a single row with the error where torch's backend does not have it."""
    rows = []
    n_bytes = SMALLEST_BYTES
    while n_bytes <= LARGEST_BYTES[kind]:
        try:
            samples_us = _sample(_call(op, kind, ranks, n_bytes), kind)
        except (RuntimeError, NotImplementedError) as error:
            return [Row(op, ranks, n_bytes, [], str(error).splitlines()[0])]
        rows.append(Row(op, ranks, n_bytes, samples_us))
        n_bytes *= GROWTH
    return rows


def _call(op: str, kind: str, ranks: int, n_bytes: int) -> Callable[[], None]:
    """What does the operation once, on bfloat16."""
    import torch
    import torch.distributed as dist

    n = n_bytes // 2 // ranks * ranks
    whole = torch.zeros(n, dtype=torch.bfloat16, device=kind)
    part = torch.zeros(n // ranks, dtype=torch.bfloat16, device=kind)
    other = torch.zeros_like(whole)
    match op:
        case "all_reduce":
            return lambda: dist.all_reduce(whole)
        case "all_gather":  # torch 2.13 has new names for the two
            gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            return lambda: gather(whole, part)
        case "reduce_scatter":
            reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
            return lambda: reduce_scatter(part, whole)
        case _:
            return lambda: dist.all_to_all_single(other, whole)


def _sample(call: Callable[[], None], kind: str) -> list[float]:
    """Microseconds of a call on the slowest rank, several times."""
    import torch
    import torch.distributed as dist

    for _ in range(WARM_UPS):
        call()
    took_us = []
    for _ in range(SAMPLES):
        dist.barrier()
        took_us.append(_events_us(call) if kind == "cuda" else _clock_us(call))
    slowest = torch.tensor(took_us, dtype=torch.float64, device=kind)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return [float(value) for value in slowest.tolist()]


def _clock_us(call: Callable[[], None]) -> float:
    begun_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begun_ns) / 1e3


def _events_us(call: Callable[[], None]) -> float:
    import torch

    torch.cuda.synchronize()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(CALLS):
        call()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) * 1e3 / CALLS
