"""Percentiles, intervals and the refusal to give either from too few samples.

Plain functions over arrays: this module knows neither requests nor captures. Whatever draws at random takes a
`numpy.random.Generator`, so the same input gives the same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from traces.steps import Floats, Ints

Interval = tuple[float, float]

QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", *QUANTILES)

_BINS = 2048
"""Bins of equal count that stand for pooled values in `pooled_error_ci`."""

_BLOCK_ELEMENTS = 1 << 22
"""Resampled values held at once, so that a long trace needs no more memory than a short one."""


def percentile(values: Floats, q: float) -> float:
    """The q-quantile (0 to 1) by numpy's linear interpolation between order statistics. `values` must not be empty."""
    return float(np.quantile(values, q))


def statistic(values: Floats, name: str) -> float | None:
    """The mean or a percentile by its name in `STATISTICS`; None from too few samples to say it (`enough`)."""
    if not enough(len(values), name):
        return None
    return float(np.mean(values)) if name == "mean" else percentile(values, QUANTILES[name])


def enough(n: int, name: str) -> bool:
    """Whether n samples have such a statistic: a mean needs one, a percentile at least one sample expected beyond it.

    p50 needs 2 samples, p90 10, p95 20, p99 100. Its interval needs more (`has_interval`).
    """
    return n > 0 if name == "mean" else round(n * (1 - QUANTILES[name]), 9) >= 1


def has_interval(n: int, name: str, confidence: float = 0.95) -> bool:
    """Whether n samples bound the statistic from both sides: a mean needs two, a percentile its order statistics.

    At 95 %: p50 needs 6 samples, p90 29, p95 59, p99 299.
    """
    return n > 1 if name == "mean" else quantile_ranks(n, QUANTILES[name], confidence) is not None


def quantile_ci(sorted_values: Floats, q: float, confidence: float = 0.95) -> Interval | None:
    """Interval for the q-quantile of the population, free of any assumption on its distribution.

    Args:
        sorted_values: [n] independent samples, ascending.
        q: 0 to 1.
        confidence: probability, at least, that the interval holds the quantile.

    Returns:
        Two of the samples; None when no two of them are far enough apart.
    """
    ranks = quantile_ranks(len(sorted_values), q, confidence)
    return None if ranks is None else (float(sorted_values[ranks[0] - 1]), float(sorted_values[ranks[1] - 1]))


@functools.lru_cache(maxsize=256)
def quantile_ranks(n: int, q: float, confidence: float = 0.95) -> tuple[int, int] | None:
    """Ranks r < s, from 1, of the order statistics that bracket the q-quantile of n samples; None when none do.

    P(X_(r) < x_q < X_(s)) >= P(r <= B <= s - 1) with B ~ Binomial(n, q): David & Nagaraja, Order Statistics, 3rd
    edition, section 7.1. Half of the allowed miss goes to each side; where one side needs more than its half, because
    the quantile lies close to that end of the sample, the other side has what is left.
    """
    pmf = _binomial_pmf(n, q)
    below, above = np.cumsum(pmf), np.cumsum(pmf[::-1])  # P(B <= k) and P(B >= n - k), k = 0..n
    miss = 1.0 - confidence
    if below[0] + above[0] > miss:
        return None
    above_share = min(max(miss / 2, above[0]), miss - below[0])
    below_share = max(miss - above_share, below[0])
    r = int(np.count_nonzero(below <= below_share))
    s = n + 1 - int(np.count_nonzero(above <= above_share))
    return r, s


def _binomial_pmf(n: int, q: float) -> Floats:
    """P(B = k) for k = 0..n and 0 < q < 1."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    log_choices = log_factorial[n] - log_factorial - log_factorial[::-1]
    pmf: Floats = np.exp(log_choices + k * np.log(q) + (n - k) * np.log1p(-q))
    return pmf


def ratio_ci(
    numerators: Floats,
    denominators: Floats,
    rng: np.random.Generator,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> Interval | None:
    """Percentile-bootstrap interval of sum(numerators) / sum(denominators), whose entries are resampled in pairs.

    None from fewer than two entries, or when a resample's denominators sum to 0. Efron & Tibshirani, An Introduction
    to the Bootstrap (1993), section 13.3.
    """
    if len(numerators) < 2:
        return None
    draws = [
        (numerators[i].sum(axis=1), denominators[i].sum(axis=1)) for i in _resamples(len(numerators), n_resamples, rng)
    ]
    top, bottom = (np.concatenate(part) for part in zip(*draws, strict=True))
    return None if np.any(bottom == 0) else middle(top / bottom, confidence)


def mean_ci(
    values: Floats, rng: np.random.Generator, *, n_resamples: int = 1000, confidence: float = 0.95
) -> Interval | None:
    """Percentile-bootstrap interval of the mean; None from fewer than two values."""
    return ratio_ci(values, np.ones_like(values), rng, n_resamples=n_resamples, confidence=confidence)


def relative_error(measured: Floats, simulated: Floats, name: str) -> float | None:
    """(simulated - measured) / measured of one statistic; None from too few samples, or when the measured one is 0."""
    before, after = statistic(measured, name), statistic(simulated, name)
    return None if before is None or after is None or before == 0 else (after - before) / before


def relative_error_ci(
    measured: Floats,
    simulated: Floats,
    statistics: Sequence[str],
    rng: np.random.Generator,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Interval | None]:
    """Percentile-bootstrap intervals of `relative_error`, for many statistics from one set of resamples.

    Args:
        measured: [n] one value per request.
        simulated: [n] the same requests. A resample draws requests, not values, so both sides always hold the same
            ones and the spread between requests, which the two share, cancels.
        statistics: names in `STATISTICS`.
        rng: source of the draws.
        n_resamples: resamples drawn.
        confidence: probability, about, that an interval holds the error on the population of requests.

    Returns:
        An interval by statistic; None where n requests are too few for it.
    """
    n = len(measured)
    wanted = [name for name in statistics if has_interval(n, name, confidence)]
    if not wanted:
        return dict.fromkeys(statistics)
    sides = [(_of_rows(measured[i], wanted), _of_rows(simulated[i], wanted)) for i in _resamples(n, n_resamples, rng)]
    before, after = (np.concatenate(part, axis=1) for part in zip(*sides, strict=True))
    found: dict[str, Interval | None] = dict.fromkeys(statistics)
    for name, old, new in zip(wanted, before, after, strict=True):
        found[name] = None if np.any(old == 0) else middle((new - old) / old, confidence)
    return found


def pooled_error_ci(
    measured: Sequence[Floats],
    simulated: Sequence[Floats],
    statistics: Sequence[str],
    rng: np.random.Generator,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Interval | None]:
    """As `relative_error_ci`, where each request has many values (ITL) and the statistic is over all of them pooled.

    A resample draws requests, each with all its values, because values of one request are not independent: Davison &
    Hinkley, Bootstrap Methods and their Application (1997), section 3.8. Its percentiles are read off `_BINS` bins of
    equal count, so they are good to that fraction of the values.
    """
    found: dict[str, Interval | None] = dict.fromkeys(statistics)
    n = len(measured)
    sizes = [np.array([len(values) for values in side]) for side in (measured, simulated)]
    wanted = [
        name for name in statistics if n > 1 and all(has_interval(int(size.sum()), name, confidence) for size in sizes)
    ]
    if not wanted:
        return found
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    if any(np.any(weights @ size == 0) for size in sizes):
        return found
    before, after = (pooled_statistics(side, weights, wanted) for side in (measured, simulated))
    for name, old, new in zip(wanted, before, after, strict=True):
        found[name] = None if np.any(old == 0) else middle((new - old) / old, confidence)
    return found


def pooled_statistics(groups: Sequence[Floats], weights: Ints, names: Sequence[str]) -> list[Floats]:
    """The named statistics of groups pooled, [n_resamples] each; each counts `weights` [n_resamples, n_groups] times.

    Percentiles are read off `_BINS` bins of equal count.
    """
    values = np.concatenate(groups)
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    edges = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:], method="inverted_cdf")
    cells = owner * _BINS + np.searchsorted(edges, values)
    counts = np.bincount(cells, minlength=len(groups) * _BINS).reshape(len(groups), _BINS)
    counted = weights.astype(np.float64)
    below = np.cumsum(counted @ counts.astype(np.float64), axis=1)  # [n_resamples, _BINS]
    sums = counted @ np.bincount(owner, weights=values, minlength=len(groups))
    return [
        sums / below[:, -1] if name == "mean" else edges[np.argmax(below >= QUANTILES[name] * below[:, -1:], axis=1)]
        for name in names
    ]


def _of_rows(values: Floats, names: Sequence[str]) -> Floats:
    """The named statistics of every row of `values` [n_resamples, n], as [n_names, n_resamples]."""
    ordered = np.sort(values, axis=1) if any(name != "mean" for name in names) else values
    return np.stack([values.mean(axis=1) if name == "mean" else _of_sorted(ordered, QUANTILES[name]) for name in names])


def _of_sorted(ordered: Floats, q: float) -> Floats:
    """The q-quantile of every row, each ascending: as `percentile`, without sorting again."""
    position = q * (ordered.shape[1] - 1)
    low = min(int(position), ordered.shape[1] - 2)
    between: Floats = ordered[:, low] + (position - low) * (ordered[:, low + 1] - ordered[:, low])
    return between


def _resamples(n: int, n_resamples: int, rng: np.random.Generator) -> Iterator[Ints]:
    """Index arrays [some, n], `n_resamples` rows in all."""
    rows = max(1, _BLOCK_ELEMENTS // n)
    for first in range(0, n_resamples, rows):
        yield rng.integers(n, size=(min(rows, n_resamples - first), n))


def middle(draws: Floats, confidence: float) -> Interval:
    """The interval that holds this share of the draws, as many below it as above."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
