"""KV transfers between engines: what they take beside what the figures of their links say, from their records alone.

The measured transfers are sent again over the twin's links, at their measured starts and sizes, so that those that
share a link slow each other as in a simulation. Two things may be off: a time of each transfer, and the time its bytes
take of the links. One size alone tells only one of them.

An engine looks for arrived KV between its steps, so that many ends are known only to lie between two looks. Such a
transfer has the time within them that is expected of it, and tells nothing; outside, it is off by what is missing to
the nearer one. Noise is taken as growing with the square root of a transfer's time, as that of steps is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.explain import Cause, explain
from calibrate.parameters import HANDOVER, KV_TRANSFER, array_of, names_of
from calibrate.regression import FAR, Equations, Estimate, identify, robust_sd, stretches
from simulator.cluster import Cluster
from simulator.engine import Engine
from simulator.kv_transfer import KVResidual, paths_between
from simulator.network.links import Path
from simulator.network.topology import Place
from simulator.network.transfers import Network
from traces.capture import Capture
from traces.errors import InputError
from traces.steps import Floats, Mask
from traces.transfers import KVTransfers

FEWEST_TRANSFERS = 10
"""Transfers from which anything is told."""

STRETCHES = 20
"""Stretches of consecutive transfers of a capture whose noise may be dependent."""

LEAST_S = 1e-6
"""What clocks tell apart: no transfer is taken as shorter."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The transfers of a capture over the links of its twin.

    Attributes:
        transfers: all of them.
        chosen: [n] which are looked at; the others are on the links all the same.
        paths: [n] links that each crosses, one path for each pair of devices.
    """

    transfers: KVTransfers
    chosen: Mask
    paths: Sequence[Sequence[Path]]

    def replayed(self, values: Floats) -> tuple[Floats, Floats]:
        """Time of each transfer, and what of it its bytes take, [n] seconds each, with `values` of `KV_TRANSFER`."""
        fixed_s, scale = values.tolist()
        network, begin_s = Network(), float(self.transfers.start_s.min(initial=np.inf))
        first_s = []
        for i, (paths, n_bytes, start_s) in enumerate(
            zip(self.paths, self.transfers.n_bytes.tolist(), (self.transfers.start_s - begin_s).tolist(), strict=True)
        ):
            parts = [network.start(path, scale * n_bytes / len(paths), start_s + fixed_s, i) for path in paths]
            first_s.append(min(part.first_byte_s for part in parts))
        end_s = np.zeros(len(self.paths))
        for part in network.advance(np.inf):
            assert isinstance(part.owner, int)
            assert part.end_s is not None
            end_s[part.owner] = part.end_s
        return end_s - (self.transfers.start_s - begin_s), end_s - np.array(first_s)


def sent_in(transfers: KVTransfers, chosen: Mask, cluster: Cluster) -> Sent:
    """A capture's transfers over its twin's links.

    Raises InputError when they are between other instances than the twin's.

    Args:
        transfers: as they were measured.
        chosen: [n_requests] the requests whose transfers are looked at.
        cluster: the twin.
    """
    assert cluster.topology is not None
    ranks = _ranks(cluster)
    between: dict[tuple[int, int], list[Path]] = {}
    paths = []
    for source, target in zip(transfers.source.tolist(), transfers.target.tolist(), strict=True):
        if (source, target) not in between:
            roles = [ranks[i][0].role if 0 <= i < len(ranks) else None for i in (source, target)]
            if roles != ["prefill", "decode"]:
                message = "a transfer is not from a prefill to a decode instance of the scenario"
                found, accepted = f"{source} to {target}", "the scenario's instances in the order of the capture's"
                raise InputError(message, field="transfers", found=found, accepted=accepted)
            between[source, target] = paths_between(cluster.topology, ranks[source][1], ranks[target][1])
        paths.append(between[source, target])
    return Sent(transfers, np.asarray(chosen[transfers.request]), paths)


def _ranks(cluster: Cluster) -> list[tuple[Engine, tuple[Place, ...]]]:
    """Each rank's engine and devices, in the order of the ranks' numbers."""
    return [(engine, engine.rank_places(i)) for engine in cluster.engines for i in range(engine.ranks)]


def transfer_equations(captures: Sequence[Sent], values: Floats) -> Equations:
    """An equation for each chosen transfer, around `values`: its time as measured, or as expected within its looks."""
    parts = []
    for number, sent in enumerate(captures):
        own, transfers = sent.chosen, sent.transfers
        expected_s, bytes_s = (column[own] for column in sent.replayed(values))
        low_s, high_s = (
            np.maximum(column[own] - transfers.start_s[own], LEAST_S)
            for column in (transfers.under_way_s, transfers.end_s)
        )
        inside = (low_s < expected_s) & (expected_s < high_s)
        design = np.column_stack([np.ones(len(expected_s)), bytes_s / max(float(values[1]), LEAST_S)])
        design[inside] = 0.0
        off_s = np.where(inside, 0.0, np.clip(expected_s, low_s, high_s) - expected_s)
        scale = np.sqrt(np.clip(expected_s, low_s / FAR, high_s * FAR))
        cluster = stretches(len(off_s), STRETCHES, number)
        parts.append((off_s + design @ values, design, scale, inside, cluster))
    target, design, scale, inside, cluster = (np.concatenate(column) for column in zip(*parts, strict=True))
    # Those that tell nothing are a group of their own, so that their noise of 0 is not the others'.
    return Equations(target, design, scale, np.unique(inside, return_inverse=True)[1], cluster)


def fit_transfers(captures: Sequence[Sent]) -> Estimate:
    """Fit `KV_TRANSFER` to the chosen transfers; held at the priors where there are none, or too few."""
    n = sum(int(sent.chosen.sum()) for sent in captures)
    if n < FEWEST_TRANSFERS:
        why = f"{n} KV transfers were recorded, fewer than {FEWEST_TRANSFERS}" if n else "no KV transfer was recorded"
        prior, sd = (np.array([getattr(each, name) for each in KV_TRANSFER]) for name in ("prior", "prior_sd"))
        held = dict.fromkeys(names_of(KV_TRANSFER), why)
        return Estimate(prior, np.full(len(prior), np.nan), np.diag(sd**2), held)
    return identify(lambda values: transfer_equations(captures, values), KV_TRANSFER, {})


def handovers_s(capture: Capture, chosen: Mask) -> Floats:
    """How long chosen requests took from the end of their prompt until their KV was asked for, [n] seconds.

    Of those alone that found the decode engine without work: another asks when its step is over, or has a seat. Needs
    step records; without, there are none.
    """
    sent, steps = capture.transfers, capture.steps
    if sent is None or steps is None or steps.batches is None:
        return np.zeros(0)
    step = np.repeat(np.arange(len(steps)), np.diff(steps.batches.offsets))
    found = []
    for request, source, target, start_s in zip(
        sent.request.tolist(), sent.source.tolist(), sent.target.tolist(), sent.start_s.tolist(), strict=True
    ):
        own = step[steps.batches.request == request]
        own = own[steps.instance[own] == source]
        if not chosen[request] or not len(own):
            continue
        computed_s = float(steps.end_s[own].max())
        busy = (steps.instance == target) & (steps.end_s > computed_s) & (steps.scheduled_s < start_s)
        if start_s >= computed_s and not busy.any():
            found.append(start_s - computed_s)
    return np.array(found, dtype=np.float64)


def fit_handover(ways_s: Floats) -> Estimate:
    """The median of the ways, with the standard error of a median of normal ones; held where there are too few."""
    if len(ways_s) < FEWEST_TRANSFERS:
        why = f"{len(ways_s)} requests found the decode engine without work, fewer than {FEWEST_TRANSFERS}"
        prior, variance = np.array([HANDOVER.prior]), np.array([[HANDOVER.prior_sd**2]])
        return Estimate(prior, np.array([np.nan]), variance, {HANDOVER.name: why})
    middle_s = float(np.median(ways_s))
    error_s = max(float(np.sqrt(np.pi / 2 / len(ways_s))) * robust_sd(ways_s, middle_s), LEAST_S)
    return Estimate(np.array([middle_s]), np.array([error_s]), np.array([[error_s**2]]), {})


def transfer_residuals(sent: Sent, values: Mapping[str, float]) -> Floats:
    """(measured - expected) / expected of each chosen transfer, in order of end; 0 within its looks."""
    now = array_of(KV_TRANSFER, _values_of(values))
    lines, own = transfer_equations([sent], now), sent.chosen
    return np.asarray((lines.target - lines.design @ now) / sent.replayed(now)[0][own])


def transfer_causes(sent: Sent, values: Mapping[str, float]) -> list[Cause]:
    """Which of `KV_TRANSFER` would have to change for a capture's transfers to be as expected.

    Shares are of the time of all its transfers.
    """
    if int(sent.chosen.sum()) < FEWEST_TRANSFERS:
        return []
    took_s = float((sent.transfers.end_s - sent.transfers.start_s)[sent.chosen].sum())
    return explain(
        lambda now: transfer_equations([sent], now), KV_TRANSFER, _values_of(values), {}, took_s, noise_of_all=True
    )


def kv_residual_of(values: Mapping[str, float]) -> KVResidual:
    """What a cluster is told of all parameters: those of KV transfers, and of a request's way between its engines."""
    return KVResidual(**_values_of(values), handover_s=values.get(HANDOVER.name, HANDOVER.prior))


def _values_of(values: Mapping[str, float]) -> dict[str, float]:
    """The values of `KV_TRANSFER`; of a calibration that has none, those that correct nothing."""
    return {parameter.name: values.get(parameter.name, parameter.prior) for parameter in KV_TRANSFER}
