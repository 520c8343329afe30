"""Synthetic traces: Poisson arrivals, lengths drawn uniformly. The same seed gives the same trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.decoding import sha256
from traces.errors import InputError
from traces.trace import Trace, TraceRow


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts drawn uniformly between two bounds, both included; equal bounds fix them."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str, field: str) -> Lengths:
        """`512`, or `64:1024`. Raises InputError."""
        parts = text.split(":")
        if len(parts) > 2 or not all(part.isdigit() for part in parts):
            raise InputError(field=field, found=text, accepted="a token count, or two as least:most")
        least, most = int(parts[0]), int(parts[-1])
        if not 1 <= least <= most:
            raise InputError(field=field, found=text, accepted="at least 1 token, least:most in this order")
        return cls(least, most)


def poisson_trace(n_requests: int, rate_per_s: float, prompt: Lengths, output: Lengths, seed: int) -> Trace:
    """`n_requests` arriving at random at `rate_per_s`, the first at second 0. Raises InputError."""
    if n_requests < 1:
        raise InputError(field="--requests", found=n_requests, accepted="at least 1")
    if not rate_per_s > 0 or not np.isfinite(rate_per_s):
        raise InputError(field="--rate", found=rate_per_s, accepted="requests per second, above 0")
    rng = np.random.default_rng(seed)
    arrivals_s = np.concatenate([[0.0], np.cumsum(rng.exponential(1 / rate_per_s, n_requests - 1))])
    prompts = rng.integers(prompt.least, prompt.most + 1, n_requests)
    outputs = rng.integers(output.least, output.most + 1, n_requests)
    rows = tuple(
        TraceRow(request_id=str(i), arrival_s=t, prompt_tokens=p, output_tokens=o)
        for i, (t, p, o) in enumerate(zip(arrivals_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True))
    )
    source = f"Poisson, {n_requests} requests at {rate_per_s}/s, prompt {prompt}, output {output}, seed {seed}"
    return Trace(rows, None, source, sha256(source.encode()), (source,))
