"""Synthetic traces: arrivals of a process, lengths of a law. The same seed gives the same trace.

`traces.twin` makes one that resembles a given trace instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from traces.arrivals import MOST_REQUESTS, Rate, arrivals_s
from traces.decoding import sha256
from traces.errors import InputError
from traces.steps import Ints
from traces.trace import Trace, TraceRow

MOST_TOKENS = 2**31


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts: drawn uniformly between two bounds, both included (equal bounds fix them), or log-normally.

    Attributes:
        least: no count is below it.
        most: nor above it.
        median: of a log-normal law, whose counts are rounded, and drawn again where they are out of bounds; None: the
            uniform one.
        sigma: standard deviation of the counts' logarithm.
    """

    least: int
    most: int
    median: float | None = None
    sigma: float = 0.0

    @classmethod
    def parse(cls, text: str, field: str) -> Lengths:
        """`512`, `64:1024`, or `lognormal:MEDIAN:SIGMA:MOST`. Raises InputError."""
        parts = text.split(":")
        if parts[0] == "lognormal":
            return cls._lognormal(parts[1:], text, field)
        if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 11 for part in parts):
            accepted = "a token count, two as least:most, or lognormal:MEDIAN:SIGMA:MOST"
            raise InputError(field=field, found=text, accepted=accepted)
        least, most = int(parts[0]), int(parts[-1])
        if not 1 <= least <= most <= MOST_TOKENS:
            raise InputError(field=field, found=text, accepted="at least 1 token, least:most in this order")
        return cls(least, most)

    @classmethod
    def _lognormal(cls, parts: list[str], text: str, field: str) -> Lengths:
        try:
            median, sigma, most = float(parts[0]), float(parts[1]), int(parts[2])
        except (ValueError, IndexError):
            median = sigma = math.nan
            most = 0
        if len(parts) != 3 or not (1 <= median <= most <= MOST_TOKENS and 0 <= sigma <= 5):
            accepted = "lognormal:MEDIAN:SIGMA:MOST, a median from 1 to the most, a sigma from 0 to 5"
            raise InputError(field=field, found=text, accepted=accepted)
        return cls(1, most, median, sigma)

    def __str__(self) -> str:
        """As `parse` takes it."""
        if self.median is not None:
            return f"lognormal:{self.median:g}:{self.sigma:g}:{self.most}"
        return str(self.least) if self.least == self.most else f"{self.least}:{self.most}"

    def draw(self, n: int, rng: np.random.Generator) -> Ints:
        """[n] counts."""
        if self.median is None:
            return rng.integers(self.least, self.most + 1, n)
        counts = np.zeros(n, dtype=np.int64)
        while len(missing := np.flatnonzero((counts < self.least) | (counts > self.most))):
            counts[missing] = np.rint(rng.lognormal(math.log(self.median), self.sigma, len(missing)))
        return counts


def synthetic_trace(
    n_requests: int,
    rate: Rate,
    prompt: Lengths,
    output: Lengths,
    seed: int,
    law: str = "poisson",
    cv: float | None = None,
) -> Trace:
    """`n_requests` with no shared prefixes, the first at second 0. Raises InputError."""
    if not 1 <= n_requests <= MOST_REQUESTS:
        raise InputError(field="--requests", found=n_requests, accepted=f"1 to {MOST_REQUESTS}")
    rng = np.random.default_rng(seed)
    times_s = arrivals_s(n_requests, rate, law, cv, rng)
    prompts, outputs = prompt.draw(n_requests, rng), output.draw(n_requests, rng)
    rows = tuple(
        TraceRow(request_id=str(i), arrival_s=t, prompt_tokens=p, output_tokens=o)
        for i, (t, p, o) in enumerate(zip(times_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True))
    )
    changing = "" if len(rate.per_s) == 1 else f" on average, from {rate.per_s.min():g} to {rate.per_s.max():g}"
    gaps = f"{law} arrivals" + ("" if cv is None else f" of cv {cv:g}")
    source = f"{gaps}, {n_requests} requests at {rate.mean_per_s:g}/s{changing}, prompt {prompt}, output {output}"
    source += f", seed {seed}"
    return Trace(rows, None, source, sha256(source.encode()), (source,))


def poisson_trace(n_requests: int, rate_per_s: float, prompt: Lengths, output: Lengths, seed: int) -> Trace:
    """`n_requests` arriving at random at `rate_per_s`, the first at second 0. Raises InputError."""
    return synthetic_trace(n_requests, Rate.steady(rate_per_s), prompt, output, seed)
