"""Timers of operators: the host's clock, CUDA events, or torch's profiler. Each sums what an operator took in one step.

    with timer:                      # one step
        timer.begin("qkv_proj")      # around every call of the operator; may be nested
        timer.end("qkv_proj")
    timer.totals()                   # {"qkv_proj": microseconds of all its calls}

The host's clock and events span everything between begin and end, launches and Python included; the profiler counts
kernels alone, so that it suits kernels shorter than what it takes to launch them. Needs torch and nothing else, because
it runs in the engine's environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from collectors.operators.kernels import Kernel, Range, kernels_by_range

PREFIX = "servetwin."
"""Of the profiler's ranges."""


class Timer(Protocol):
    """Anything that can time the operators of one step."""

    def __enter__(self) -> Timer:
        """Begin a step."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it, when the device is done."""
        ...

    def begin(self, operator: str) -> None:
        """Begin a call of an operator."""
        ...

    def end(self, operator: str) -> None:
        """End the innermost call."""
        ...

    def totals(self) -> dict[str, float]:
        """Microseconds by operator, of the step that ended last."""
        ...


def timer_of(kind: str, device_type: str) -> Timer:
    """A timer: `profiler`, or `hooks`, which are events on a GPU and the host's clock elsewhere."""
    if kind == "profiler":
        return ProfilerTimer(device_type)
    return EventTimer() if device_type == "cuda" else HostTimer()


class HostTimer:
    """The host's clock; right where calls return when they are done, as on a CPU."""

    def __enter__(self) -> HostTimer:
        self._begun_ns: list[int] = []
        self._totals_ns: dict[str, int] = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def begin(self, operator: str) -> None:
        """See `Timer`."""
        self._begun_ns.append(time.perf_counter_ns())

    def end(self, operator: str) -> None:
        """See `Timer`."""
        ended_ns = time.perf_counter_ns()
        took_ns = ended_ns - self._begun_ns.pop()
        self._totals_ns[operator] = self._totals_ns.get(operator, 0) + took_ns

    def totals(self) -> dict[str, float]:
        """See `Timer`."""
        return {operator: took_ns / 1e3 for operator, took_ns in self._totals_ns.items()}


class EventTimer:
    """CUDA events, read when the step has ended. They include the gaps of kernels shorter than their launch."""

    def __enter__(self) -> EventTimer:
        self._begun: list[Any] = []
        self._calls: list[tuple[str, Any, Any]] = []
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import torch

        torch.cuda.synchronize()

    def begin(self, operator: str) -> None:
        """See `Timer`."""
        self._begun.append(_event())

    def end(self, operator: str) -> None:
        """See `Timer`."""
        self._calls.append((operator, self._begun.pop(), _event()))

    def totals(self) -> dict[str, float]:
        """See `Timer`."""
        totals: dict[str, float] = {}
        for operator, begun, ended in self._calls:
            totals[operator] = totals.get(operator, 0.0) + begun.elapsed_time(ended) * 1e3
        return totals


def _event() -> Any:
    """A CUDA event, recorded now."""
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class ProfilerTimer:
    """torch's profiler: the kernels that ran for an operator, on a GPU those it launched, on a CPU its native calls."""

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type

    def __enter__(self) -> ProfilerTimer:
        import torch

        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device_type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._ranges: list[Any] = []
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import torch

        if self._device_type == "cuda":
            torch.cuda.synchronize()
        self._profile.__exit__(kind, error, at)

    def begin(self, operator: str) -> None:
        """See `Timer`."""
        import torch

        self._ranges.append(torch.profiler.record_function(PREFIX + operator))
        self._ranges[-1].__enter__()

    def end(self, operator: str) -> None:
        """See `Timer`."""
        self._ranges.pop().__exit__(None, None, None)

    def totals(self) -> dict[str, float]:
        """See `Timer`."""
        return {operator: sum(kernels.values()) for operator, kernels in self.kernels().items()}

    def kernels(self) -> dict[str, dict[str, float]]:
        """Microseconds by operator and kernel, of the step that ended last."""
        events = list(self._profile.events())
        ranges = [
            Range(event.name.removeprefix(PREFIX), event.time_range.start, event.time_range.end)
            for event in events
            if event.name.startswith(PREFIX) and not _on_gpu(event)
        ]
        kernels = launched_kernels(events) if self._device_type == "cuda" else native_calls(events)
        return kernels_by_range(ranges, kernels)


def _on_gpu(event: Any) -> bool:
    return str(event.device_type).endswith("CUDA")


def launched_kernels(events: Sequence[Any]) -> list[Kernel]:
    """Kernels of a GPU, each at the time it was launched at.

    A kernel bears the correlation id of the runtime call that launched it (`cudaLaunchKernel`, `cuLaunchKernelEx`,
    `cudaMemcpyAsync`, ...), which is an event of its own on the CPU's side (torch 2.13 `autograd/profiler.py`).
    """
    launches = {
        event.id: event.time_range.start
        for event in events
        if not _on_gpu(event) and event.name.startswith(("cuda", "cu", "hip"))
    }
    return [
        Kernel(event.name, launches[event.id], event.time_range.end - event.time_range.start)
        for event in events
        if _on_gpu(event) and event.id in launches and not event.name.startswith(PREFIX)
    ]


def native_calls(events: Sequence[Any]) -> list[Kernel]:
    """Native operators on a CPU, each without those it called."""
    native = [event for event in events if not event.name.startswith((PREFIX, "ProfilerStep", "[memory]"))]
    return [Kernel(event.name, event.time_range.start, event.self_cpu_time_total) for event in native]


@contextmanager
def watched(timer: Timer, modules: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Within it, every call of a module, (operator, module), is timed."""
    handles = []
    try:
        for operator, module in modules:
            handles.append(module.register_forward_pre_hook(_before(timer, operator)))
            handles.append(module.register_forward_hook(_after(timer, operator)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(timer: Timer, operator: str) -> Callable[..., None]:
    def before(*_: Any) -> None:
        timer.begin(operator)

    return before


def _after(timer: Timer, operator: str) -> Callable[..., None]:
    def after(*_: Any) -> None:
        timer.end(operator)

    return after


class TimedCall:
    """Stands in for an object that is called and is no module, as a sampler may be."""

    def __init__(self, called: Any, timer: Timer, operator: str) -> None:
        self.called, self._timer, self._operator = called, timer, operator

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call it, timed."""
        self._timer.begin(self._operator)
        try:
            return self.called(*args, **options)
        finally:
            self._timer.end(self._operator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.called, name)
