"""A simulator of an accelerator: 64 systolic arrays of 128 x 128 at 1 GHz, and a memory of 1 TB/s.

servetwin starts it, writes shapes to its stdin and reads seconds from its stdout (docs/profiles.md).
"""

import json
import math
import sys

CLOCK_HZ, ARRAYS, WIDTH, BYTES_PER_S, LAUNCH_S = 1.0e9, 64, 128, 1.0e12, 2.0e-6


def gemm_s(m: int, n: int, k: int) -> float:
    """Tiles of the weights, each filled and drained on one of the arrays; weights are read once."""
    tiles = math.ceil(n / WIDTH) * math.ceil(k / WIDTH)
    return max(tiles * (m + 2 * WIDTH) / CLOCK_HZ / ARRAYS, 2 * n * k / BYTES_PER_S)


def attention_s(queries: int, keys: int, heads: int, kv_heads: int, width: int) -> float:
    """Two products for each head, or the time to read keys and values."""
    products_s = 2 * heads * gemm_s(queries, keys, width) if queries else 0.0
    return max(4 * keys * kv_heads * width / BYTES_PER_S, products_s)


def time_s(shape: dict) -> float:
    """Seconds of one operator."""
    if shape["kind"] == "gemm":
        return LAUNCH_S + gemm_s(shape["m"], shape["n"], shape["k"])
    if shape["kind"] == "elementwise":
        return LAUNCH_S + (shape["read_bytes"] + shape["write_bytes"]) / BYTES_PER_S
    if shape["kind"] == "attention":
        keys = shape["prefill_kv_tokens"] + shape["prefill_tokens"]
        keys += shape["n_decode"] * (shape["decode_kv_tokens"] + 1)
        heads = shape["num_heads"], shape["num_kv_heads"], shape["head_dim"]
        return LAUNCH_S + attention_s(shape["prefill_tokens"], keys, *heads)
    sys.exit(f"no model of {shape['kind']}")


question = json.load(sys.stdin)
json.dump({"time_s": [time_s(shape) for shape in question["shapes"]]}, sys.stdout)
