"""Step times from a datasheet: each operator takes its arithmetic at peak or its bytes at peak, whichever is longer.

The roofline of Williams, Waterman and Patterson, CACM 52(4), 2009. It is a bound, not a prediction: kernels reach a
part of either peak, and launching one takes a few microseconds. docs/validity.md says how far off it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from profiles.device import DeviceSpec
from profiles.model import ModelSpec, dtype_bytes
from profiles.operators import Attention, Elementwise, Experts, Gemm, Operators, Shape
from profiles.priced import priced_profile
from profiles.profile import Profile, ProfileMeta
from traces.errors import InputError
from traces.steps import Floats


def roofline_profile(
    device: DeviceSpec, model: ModelSpec, dtype: str, kv_cache_dtype: str = "auto", degrees: Sequence[int] = (1,)
) -> Profile:
    """A profile computed from the device's peaks. Raises InputError where its description lacks one that is needed."""
    compute_dtype = Operators(model, 1, dtype).compute_dtype
    for needed in dict.fromkeys((dtype, compute_dtype)):
        _peak(device, needed)
    bandwidth = _bandwidth(device)
    peaks = ", ".join(f"{rate / 1e12:g} Tflop/s {name}" for name, rate in sorted(device.peak_flops_per_s.items()))
    meta = ProfileMeta(
        device=device.name,
        model=model.name,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        source="roofline",
        method=f"not measured: the longer of arithmetic at {peaks} and memory at {bandwidth / 1e9:g} GB/s",
        composition=Operators(model, 1, dtype).composition,
        notes=(
            "a roofline from the datasheet, a bound and not a measurement: "
            f"{peaks}; {bandwidth / 1e9:g} GB/s ({device.name}: {device.sources['memory_bandwidth_bytes_per_s']}; "
            f"{device.sources['peak_flops_per_s']})",
        ),
    )
    return priced_profile(meta, model, degrees, lambda shapes: _times_s(device, shapes))


def operator_s(device: DeviceSpec, shape: Shape) -> float:
    """Seconds of one operator at the device's peaks. Raises InputError for a peak that is not described."""
    flops, n_bytes, dtype = work(shape)
    arithmetic_s = flops / _peak(device, dtype) if flops else 0.0
    return max(arithmetic_s, n_bytes / _bandwidth(device))


def work(shape: Shape) -> tuple[float, float, str]:
    """Floating-point operations, bytes read and written, and the type that the arithmetic is in."""
    match shape:
        case Gemm(m, n, k, dtype):
            out_bytes = 2 if dtype == "fp8" else dtype_bytes(dtype)
            return 2.0 * m * n * k, (m * k + k * n) * dtype_bytes(dtype) + m * n * out_bytes, dtype
        case Elementwise(_, _, read_bytes, write_bytes):
            return 0.0, read_bytes + write_bytes, ""
        case Attention():
            # Queries times keys, weights times values; queries read, outputs written, KV read once and written once.
            width, kv_width = dtype_bytes(shape.dtype), dtype_bytes(shape.kv_cache_dtype)
            query_bytes = 2 * shape.new_tokens * shape.num_heads * shape.head_dim * width
            kv_tokens = shape.kv_tokens + shape.new_tokens
            kv_bytes = 2 * kv_tokens * shape.num_kv_heads * shape.head_dim * kv_width
            return 4.0 * shape.pairs * shape.num_heads * shape.head_dim, query_bytes + kv_bytes, shape.dtype
        case Experts(tokens, n_experts, per_token, hidden, inter, dtype):
            weights, rows = 3 * hidden * inter, tokens * per_token
            activations = rows * (2 * hidden + 3 * inter) * 2
            return 2.0 * rows * weights, n_experts * weights * dtype_bytes(dtype) + activations, dtype
    raise TypeError(shape)


def _times_s(device: DeviceSpec, shapes: Sequence[Shape]) -> Floats:
    return np.array([operator_s(device, shape) for shape in shapes])


def _peak(device: DeviceSpec, dtype: str) -> float:
    if dtype not in device.peak_flops_per_s:
        known = ", ".join(sorted(device.peak_flops_per_s)) or "none is described"
        message = f"the description of {device.name} has no peak for {dtype}, which a roofline needs"
        raise InputError(message, field="peak_flops_per_s", accepted=known)
    return device.peak_flops_per_s[dtype]


def _bandwidth(device: DeviceSpec) -> float:
    if device.memory_bandwidth_bytes_per_s is None:
        message = f"the description of {device.name} has no memory bandwidth, which a roofline needs"
        raise InputError(message, field="memory_bandwidth_bytes_per_s")
    return device.memory_bandwidth_bytes_per_s
