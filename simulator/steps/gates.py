"""Which experts a mixture-of-experts layer's tokens choose: each token `top_k` different ones, by given probabilities.

A gate is known by q, the probability that a token chooses each expert: the entries of q sum to `top_k`. Of everything
else the choice is as random as it can be (the distribution of most entropy with that q: conditional Poisson sampling;
Chen, Dempster and Liu, Biometrika 81(3), 1994). That is also what comes of drawing `top_k` times from weights w and
starting over unless all are different, with q as they say:

    P(a token chooses the set s) = prod of w over s / R(top_k),    q_e = w_e * R(top_k - 1, without e) / R(top_k)

where R(j) sums, over all sets of j experts, the product of their weights. Both directions are exact up to rounding: q
of weights from R, and weights of q by their iteration. Tokens choose independently of each other, and layers too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from profiles.csv_table import read_csv
from traces.errors import InputError
from traces.steps import Floats, Ints

_CERTAIN = 1 - 1e-9
"""An expert that is chosen with this probability is taken to be chosen always."""


@dataclass(frozen=True)
class Gate:
    """How the tokens of one layer choose.

    Attributes:
        shares: [n_rows, n_experts] probability that a token chooses each expert; one row, or one per recorded step.
        top_k: experts of a token.
        source: where the shares are from, for the record.
        is_recorded: the rows are what so many steps did, one after another, their chance included.
    """

    shares: Floats
    top_k: int
    source: str
    is_recorded: bool = False

    @property
    def n_experts(self) -> int:
        """Experts of a layer."""
        return int(self.shares.shape[1])

    @cached_property
    def _chances(self) -> Floats:
        """[n_experts, top_k + 1] probability that a token with so many choices left takes this expert, in order."""
        return _chances(self.shares[0], self.top_k)

    def draw(self, rng: np.random.Generator, n_tokens: Ints) -> Ints:
        """How many of `n_tokens` [n] tokens choose each expert, [n, n_experts]; rows sum to n_tokens * top_k.

        Expert by expert: of the tokens that have r choices left, each takes it with the same probability, so that one
        binomial draw per r stands for all of them (Chen, Dempster and Liu, procedure 3, for many tokens at once).
        """
        chosen = np.zeros((len(n_tokens), self.n_experts), dtype=np.int64)
        left = np.zeros((len(n_tokens), self.top_k + 1), dtype=np.int64)
        left[:, self.top_k] = n_tokens
        for expert, chance in enumerate(self._chances):
            taken = rng.binomial(left[:, 1:], chance[1:])
            chosen[:, expert] = taken.sum(axis=1)
            left[:, 1:] -= taken
            left[:, :-1] += taken
        return chosen


def uniform(n_experts: int, top_k: int) -> Gate:
    """Every expert alike: what a perfectly balanced router does. Raises InputError."""
    _check(n_experts, top_k)
    return Gate(np.full((1, n_experts), top_k / n_experts), top_k, "uniform")


def zipf(n_experts: int, top_k: int, exponent: float) -> Gate:
    """Weights 1 / (e + 1) ** exponent for expert e: the first is the hottest; exponent 0 is uniform.

    A token draws from the weights until it has `top_k` different experts in a row of `top_k` draws. Raises InputError.
    """
    _check(n_experts, top_k)
    if not 0 <= exponent < np.inf:
        raise InputError(field="experts.gate", found=exponent, accepted="zipf with an exponent of 0 or above")
    weights = 1 / np.arange(1, n_experts + 1, dtype=np.float64) ** exponent
    return Gate(inclusion(weights, top_k)[None], top_k, f"zipf, exponent {exponent:g}")


def measured(counts: Floats, top_k: int, source: str, *, is_recorded: bool = False) -> Gate:
    """Shares as counted.

    Args:
        counts: [n_rows, n_experts] pairs of a token and an expert that it chose; one row, or one per recorded step.
        top_k: experts of a token.
        source: where the counts are from.
        is_recorded: the rows are steps.

    Raises:
        InputError: a row is empty, or an expert has more than one pair in `top_k`: no token chooses it twice.
    """
    _check(counts.shape[1], top_k)
    totals = counts.sum(axis=1, keepdims=True)
    if not totals.all():
        raise InputError(f"row {int(np.argmin(totals))} counts no choice", file=source, field="n_pairs")
    shares = top_k * counts / totals
    if shares.max() > 1 + 1e-9:
        row, expert = np.unravel_index(int(shares.argmax()), shares.shape)
        accepted = f"at most one pair in {top_k}, as a token chooses an expert once"
        found = f"{counts[row, expert]:g} of {totals[row, 0]:g} pairs for expert {expert}"
        raise InputError(file=source, field="n_pairs", found=found, accepted=accepted)
    return Gate(np.minimum(shares, 1.0), top_k, source, is_recorded)


def read_gate(path: Path, n_experts: int, top_k: int) -> Gate:
    """A histogram, or a trace of histograms, from a CSV file.

    Columns are `expert` (from 0), `n_pairs`, how many tokens chose it, and in a trace `step`, ascending from any
    number. An expert without a row was chosen by nobody. Raises InputError with file, line and field.
    """
    table = read_csv(path, ["expert", "n_pairs"], optional=["step"])
    has_steps = table.has("step")
    table.check_unique(["step", "expert"] if has_steps else ["expert"])
    expert, n_pairs = table.numbers("expert", whole=True).astype(np.int64), table.numbers("n_pairs", whole=True)
    if (unknown := np.flatnonzero(expert >= n_experts)).size:
        row = int(unknown[0])
        raise table.error(row, "expert", found=int(expert[row]), accepted=f"an expert from 0 to {n_experts - 1}")
    step = table.numbers("step", whole=True) if has_steps else np.zeros(len(expert))
    if (back := np.flatnonzero(np.diff(step) < 0)).size:
        row = int(back[0]) + 1
        raise table.error(row, "step", found=float(step[row]), accepted=f"at least {step[row - 1]:g}, as before it")
    steps, of_step = np.unique(step, return_inverse=True)
    counts = np.zeros((len(steps), n_experts))
    counts[of_step.reshape(-1), expert] = n_pairs
    return measured(counts, top_k, str(path), is_recorded=has_steps)


def new_gate(name: str, n_experts: int, top_k: int) -> Gate:
    """The gate that a scenario names: `uniform`, `zipf:EXPONENT`, or a CSV file of counts. Raises InputError."""
    if name == "uniform":
        return uniform(n_experts, top_k)
    if name.startswith("zipf:"):
        try:
            exponent = float(name.removeprefix("zipf:"))
        except ValueError:
            exponent = np.nan
        return zipf(n_experts, top_k, exponent)
    if not name.endswith((".csv", ".csv.gz")):
        raise InputError(field="experts.gate", found=name, accepted="uniform, zipf:EXPONENT, or a .csv file of counts")
    return read_gate(Path(name), n_experts, top_k)


def activated(shares: Floats, n_tokens: Ints) -> Floats:
    """Expected experts that at least one of `n_tokens` [n] tokens chooses, [n]: the sum over experts of 1 - (1 - q)^n.

    Uniform: E * (1 - (1 - top_k / E)^n).
    """
    reached: Floats = (1 - (1 - shares[None, :]) ** n_tokens[:, None]).sum(axis=1)
    return reached


def inclusion(weights: Floats, top_k: int) -> Floats:
    """q of weights w, [n_experts] each; weights may be 0, as long as `top_k` are not."""
    before, after = _sums(weights[::-1], top_k)[::-1], _sums(weights, top_k)
    # Sums over sets of top_k - 1 without expert e: j of those before it, the others of those after it.
    without = (before[:-1, :top_k] * after[1:, top_k - 1 :: -1]).sum(axis=1)
    q: Floats = weights * without / after[0, top_k]
    return q


def _sums(weights: Floats, most: int) -> Floats:
    """[n + 1, most + 1]: entry [i, j] sums, over all sets of j of the weights from the i-th on, their product."""
    sums = np.zeros((len(weights) + 1, most + 1))
    sums[-1, 0] = 1.0
    for i in range(len(weights) - 1, -1, -1):
        sums[i] = sums[i + 1]
        sums[i, 1:] += weights[i] * sums[i + 1, :-1]
    return sums


def _weights(q: Floats, top_k: int) -> Floats:
    """Weights of q, all of it below 1: `w <- w * q / inclusion(w)` until nothing changes (Chen et al., equation 9).

    The nearer a share is to 1 the slower that is; it ends when all shares are right to a millionth of themselves, or
    to a thousandth after 5,000 rounds.
    """
    weights = q / (1 - q)
    weights /= weights.max()
    wrong = np.inf
    for _ in range(5000):
        ratio = np.divide(q, inclusion(weights, top_k), out=np.ones_like(q), where=q > 0)
        weights *= ratio
        weights /= weights.max()
        wrong = float(np.abs(ratio - 1).max())
        if wrong < 1e-6:
            break
    assert wrong < 1e-3, f"the weights of a gate with shares up to {q.max()} were not found"
    return weights


def _chances(q: Floats, top_k: int) -> Floats:
    """What `Gate._chances` says, of q: expert e takes w_e * R(r - 1, of those after it) / R(r, of it and those)."""
    certain = q >= _CERTAIN
    chances = np.zeros((len(q), top_k + 1))
    chances[certain, 1:] = 1.0
    free = top_k - int(certain.sum())
    if free == 0:
        return chances
    weights = np.zeros(len(q))
    weights[~certain] = _weights(q[~certain], free)
    sums = _sums(weights, free)
    # Some of the choices left are kept for experts to come that are always chosen.
    kept = np.cumsum(certain[::-1])[::-1]
    for expert in np.flatnonzero(~certain):
        left = np.arange(1, free + 1)[: top_k - kept[expert]]
        whole = sums[expert, left]
        share = np.divide(
            weights[expert] * sums[expert + 1, left - 1], whole, out=np.zeros_like(whole), where=whole > 0
        )
        chances[expert, left + kept[expert]] = share
    return chances


def _check(n_experts: int, top_k: int) -> None:
    if not 1 <= top_k <= n_experts:
        raise InputError(field="num_experts_per_tok", found=top_k, accepted=f"1 to {n_experts}, as there are experts")
