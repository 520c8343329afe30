"""What messages between devices take: collectives by operation, number of ranks and bytes.

One process per rank. On GPUs torch.distributed's by NCCL; on a CPU those of vLLM's tensor-parallel group, most of which
go through shared memory, or without vLLM torch's by Gloo. A sample is the mean of ten calls in a row on the slowest
rank, all having begun together, so that neither launches (on GPUs events are taken) nor when each rank begins count.
`bytes` is the larger of a rank's two buffers, as nccl-tests count: what all_reduce sums, what all_gather fills, what
reduce_scatter and all_to_all read.

Between GPUs vLLM has a kernel of its own for small sums (custom all-reduce), which is not measured here.
"""

from __future__ import annotations

import multiprocessing
import os
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
"""In a row, of which a sample is the mean."""
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


def measure_collectives(devices: Devices, engine: str = "torch") -> list[Row]:
    """Every operation at every group size and message size, by `engine`, on GPUs always torch.

    Raises CollectorError when a rank fails.
    """
    by_vllm = devices.kind == "cpu" and engine == "vllm"
    rows = []
    for ranks in devices.group_sizes():
        rows += _group(devices.kind, ranks, by_vllm=by_vllm)
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


def _group(kind: str, ranks: int, *, by_vllm: bool) -> list[Row]:
    """One process for each rank; the first one's rows."""
    context = multiprocessing.get_context("spawn")
    address = f"tcp://127.0.0.1:{_free_port()}"
    receiver, sender = context.Pipe(duplex=False)
    asked = [(kind, rank, ranks, address, by_vllm, sender) for rank in range(ranks)]
    processes = [context.Process(target=_rank, args=one) for one in asked]
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


def _rank(kind: str, rank: int, ranks: int, address: str, by_vllm: bool, answer: Any) -> None:
    """A rank's process: every operation at every size, in the same order on all."""
    import torch
    import torch.distributed as dist

    if kind == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    group = None
    if by_vllm:
        group = _vllm_group(rank, ranks, address)
    else:
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=ranks)
    rows = [row for op in COLLECTIVES for row in _operation(op, kind, ranks, group)]
    if rank == 0:
        answer.send(msgspec.to_builtins(rows))
    dist.barrier()
    dist.destroy_process_group()


def _vllm_group(rank: int, ranks: int, address: str) -> Any:
    """vLLM's tensor-parallel group of all ranks, as its workers make it on a CPU (0.32 `v1/worker/cpu_worker.py`)."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    os.environ["VLLM_DIST_IDENT"] = address.rpartition(":")[2]  # names the memory that the ranks share
    with set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(ranks, rank, address, rank, "gloo")
        parallel_state.initialize_model_parallel(ranks)
    return parallel_state.get_tp_group()


def _operation(op: str, kind: str, ranks: int, group: Any) -> list[Row]:
    """One operation at every size; a single row with the error where the backend does not have it."""
    rows = []
    n_bytes = SMALLEST_BYTES
    while n_bytes <= LARGEST_BYTES[kind]:
        try:
            samples_us = _sample(_call(op, kind, ranks, n_bytes, group), kind)
        except (RuntimeError, NotImplementedError) as error:
            return [Row(op, ranks, n_bytes, [], str(error).splitlines()[0])]
        rows.append(Row(op, ranks, n_bytes, samples_us))
        n_bytes *= GROWTH
    return rows


def _call(op: str, kind: str, ranks: int, n_bytes: int, group: Any) -> Callable[[], object]:
    """What does the operation once, on bfloat16: by vLLM's group, where there is one and it has the operation."""
    import torch
    import torch.distributed as dist

    n = n_bytes // 2 // ranks * ranks
    whole = torch.zeros(n, dtype=torch.bfloat16, device=kind)
    part = torch.zeros(n // ranks, dtype=torch.bfloat16, device=kind)
    other = torch.zeros_like(whole)
    if group is not None and op != "all_to_all":
        data = part if op == "all_gather" else whole
        along = {} if op == "all_reduce" else {"dim": 0}
        return lambda: getattr(group, op)(data, **along)
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


def _sample(call: Callable[[], object], kind: str) -> list[float]:
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


def _clock_us(call: Callable[[], object]) -> float:
    begun_ns = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - begun_ns) / 1e3 / CALLS


def _events_us(call: Callable[[], object]) -> float:
    import torch

    torch.cuda.synchronize()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(CALLS):
        call()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) * 1e3 / CALLS
