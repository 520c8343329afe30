"""From captures to a calibration: chooses what to fit it from, fits, and writes down what was seen and what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from calibrate.calibration import Calibration, FittedOn, FittedParameter, Residuals, residuals_of, versions
from calibrate.fit_requests import Run, fit_requests
from calibrate.fit_steps import fit_steps, held_in, relative_residuals
from calibrate.front_end import fit_front_end, front_end_prior, ways
from calibrate.kv_transfer import fit_handover, fit_transfers, handovers_s, transfer_residuals
from calibrate.parameters import FRONT_END, HANDOVER, KV_TRANSFER, RESIDUAL, Basis, Parameter, names_of
from calibrate.pricing import Priced
from calibrate.regression import Estimate
from calibrate.repricing import reprice
from calibrate.split import Split
from calibrate.subject import Subject
from calibrate.whole_step import EVERY, whole_step_basis
from simulator.steps.correction import AXES
from traces.capture import Capture
from traces.errors import InputError
from traces.metrics import requests
from traces.outcome import Status
from traces.steps import Floats, Mask

Source = Literal["auto", "steps", "requests", "whole-step"]

FEWEST_STEPS = 100
"""Steps from which a residual is fitted."""

FEWEST_REQUESTS = 20
"""Requests from which a residual is fitted."""


Chosen = Sequence[tuple[Subject, Mask]]
"""Captures and which of their requests are fitted."""


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What any way of fitting gives; the estimate is of `basis` and then of the front end."""

    basis: Basis
    estimate: Estimate
    ranges: dict[str, tuple[float, float]]
    residuals: dict[str, Residuals]
    knots: tuple[int, ...] = ()
    front_end: tuple[Parameter, ...] = FRONT_END
    spread_s: float | None = None
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, float]:
        """Every parameter's value."""
        return dict(zip(names_of(self.basis.with_front_end), self.estimate.values.tolist(), strict=True))


def fit(subjects: Sequence[Subject], split: Split, source: Source = "auto") -> Calibration:
    """Fit the chosen part of captures of one engine.

    Args:
        subjects: the captures.
        split: which part of them is fitted.
        source: step records, request records, or the better of the two that all captures have; or step records
            without a profile.

    Raises:
        InputError: the part is too small, or the captures are of different engines.
    """
    subjects = [subject.unprofiled() for subject in subjects] if source == "whole-step" else subjects
    chosen = [(s, mask) for s in subjects if (mask := split.requests(s.measured, s.name)).any()]
    _check(subjects, chosen, split)
    kind = source if source != "auto" else "steps" if all(s.has_batches for s, _ in chosen) else "requests"
    sent = _fit_sent(chosen)
    between = (*KV_TRANSFER, HANDOVER)
    told = {} if sent is None else dict(zip(names_of(between), sent.values.tolist(), strict=True))
    fitted = (
        _from_requests(chosen, told) if kind == "requests" else _from_steps(chosen, split, whole=kind == "whole-step")
    )
    first = chosen[0][0]
    never = held_in(asynchronous=first.asynchronous) if fitted.basis is RESIDUAL else {}
    values, parameters = {**fitted.values(), **told}, (*fitted.basis.parameters, *fitted.front_end)
    estimate = fitted.estimate
    if sent is not None:
        parameters, estimate = (*parameters, *between), _joined(estimate, sent)
    unsure = [i for i, parameter in enumerate(parameters) if parameter.name not in never]
    covariance, errors, held = estimate.covariance, estimate.errors, estimate.held
    return Calibration(
        kind=kind,
        model=first.engine.model,
        device=first.engine.device,
        engine=first.measured.meta.engine,
        async_scheduling=first.asynchronous,
        profile=first.profile,
        knots=fitted.knots,
        fit_on=split.text,
        fitted_on=tuple(_fitted_on(s, mask, split, kind) for s, mask in chosen),
        ranges=fitted.ranges,
        parameters={
            parameter.name: FittedParameter(
                value=values[parameter.name],
                standard_error=None if parameter.name in held else float(errors[i]),
                unit=parameter.unit,
                prior=parameter.prior,
                prior_sd=parameter.prior_sd,
                identified=parameter.name not in held,
                note=held.get(parameter.name),
            )
            for i, parameter in enumerate(parameters)
        },
        covariance_of=tuple(parameters[i].name for i in unsure),
        covariance=tuple(tuple(row) for row in covariance[np.ix_(unsure, unsure)].tolist()),
        front_end_spread_s=fitted.spread_s,
        residuals={
            **fitted.residuals,
            **_transfer_residuals(chosen, values),
            **_request_residuals(chosen, values, fitted.basis),
        },
        versions=versions(),
        notes=fitted.notes,
    )


def _finished(capture: Capture) -> Mask:
    return np.array([outcome.status is Status.FINISHED for outcome in capture.outcomes])


_SAME: dict[str, Callable[[Subject], str | bool | None]] = {
    "models": lambda subject: subject.engine.model,
    "devices": lambda subject: subject.engine.device,
    "profiles": lambda subject: subject.profile,
    "scheduling": lambda subject: subject.asynchronous,
}


def _check(subjects: Sequence[Subject], chosen: Chosen, split: Split) -> None:
    if not chosen:
        names = ", ".join(subject.name for subject in subjects)
        raise InputError("chooses no request", field="--fit-on", found=split.text, accepted=f"a part of {names}")
    for what, of in _SAME.items():
        found = {of(subject) for subject, _ in chosen}
        if len(found) > 1:
            raise InputError(f"captures of different {what} cannot be fitted together", found=sorted(map(str, found)))
    n = sum(int((mask & _finished(subject.measured)).sum()) for subject, mask in chosen)
    if n < FEWEST_REQUESTS:
        message = f"chooses {n} requests that finished"
        raise InputError(message, field="--fit-on", found=split.text, accepted=f"at least {FEWEST_REQUESTS} requests")


def _fit_sent(chosen: Chosen) -> Estimate | None:
    """The parameters of `KV_TRANSFER`, and `HANDOVER`; None where no engine sends KV to another."""
    if not any(subject.cluster.is_disaggregated for subject, _ in chosen):
        return None
    ways_s = np.concatenate([handovers_s(subject.measured, mask) for subject, mask in chosen])
    sent = fit_transfers([sent for subject, mask in chosen if (sent := subject.sent(mask)) is not None])
    return _joined(sent, fit_handover(ways_s))


def _transfer_residuals(chosen: Chosen, values: Mapping[str, float]) -> dict[str, Residuals]:
    parts = [transfer_residuals(sent, values) for s, mask in chosen if (sent := s.sent(mask)) is not None]
    parts = [part for part in parts if len(part)]
    return {"KV transfers": residuals_of(parts)} if parts else {}


def _from_steps(chosen: Chosen, split: Split, *, whole: bool) -> _Fitted:
    basis, knots = EVERY if whole else RESIDUAL, tuple[int, ...]()
    steps = _chosen_steps(chosen, split, basis)
    n = sum(len(part) for part in steps)
    if n < FEWEST_STEPS:
        accepted = f"at least {FEWEST_STEPS}, or --from requests"
        raise InputError(f"leaves {n} steps", field="--fit-on", found=split.text, accepted=accepted)
    if whole:
        basis, shape = whole_step_basis(steps)
        steps, knots = _chosen_steps(chosen, split, basis), shape.knots
    asynchronous = chosen[0][0].asynchronous
    estimate = fit_steps(steps, basis, asynchronous=asynchronous)
    way = fit_front_end([ways(subject.measured, mask) for subject, mask in chosen])
    values = dict(zip(basis.names, estimate.values.tolist(), strict=True))
    relative = [relative_residuals(part, basis, values, asynchronous=asynchronous) for part in steps]
    return _Fitted(
        basis=basis,
        estimate=_joined(estimate, way.estimate),
        ranges=_ranges(steps),
        residuals=_step_residuals(relative, steps),
        knots=knots,
        spread_s=way.spread_s,
    )


def _chosen_steps(chosen: Chosen, split: Split, basis: Basis) -> list[Priced]:
    """The steps of the part, of each instance of each capture."""
    return [
        repriced.priced.chosen(split.steps(s.measured, s.name)[repriced.at])
        for s, _ in chosen
        for repriced in reprice(s.measured, s.engine.step_time, basis)
    ]


def _joined(first: Estimate, second: Estimate) -> Estimate:
    """Two independent estimates as one."""
    k, n = len(first.values), len(first.values) + len(second.values)
    covariance = np.zeros((n, n))
    covariance[:k, :k], covariance[k:, k:] = first.covariance, second.covariance
    values, errors = np.concatenate([first.values, second.values]), np.concatenate([first.errors, second.errors])
    return Estimate(values, errors, covariance, {**first.held, **second.held})


def _step_residuals(relative: Sequence[Floats], steps: Sequence[Priced]) -> dict[str, Residuals]:
    prefills = [part.axes[:, AXES.index("prefill tokens per step")] > 0 for part in steps]
    found = {"steps": residuals_of(relative)}
    for name, own in (("decode steps", [~p for p in prefills]), ("prefill steps", prefills)):
        parts = [values[mask] for values, mask in zip(relative, own, strict=True) if mask.any()]
        if parts:
            found[name] = residuals_of(parts)
    return found


def _ranges(steps: Sequence[Priced]) -> dict[str, tuple[float, float]]:
    places = np.concatenate([part.axes for part in steps])
    return {name: (float(column.min()), float(column.max())) for name, column in zip(AXES, places.T, strict=True)}


def _from_requests(chosen: Chosen, sent: Mapping[str, float]) -> _Fitted:
    """From request records; `sent`: what is known of KV transfers."""
    runs = [Run(s.outcomes(mask), lambda values, s=s: s.simulate({**values, **sent}, RESIDUAL)) for s, mask in chosen]  # type: ignore[misc]
    seen = [ways(subject.measured, mask) for subject, mask in chosen]
    way, front_end, told = fit_front_end(seen), front_end_prior(seen), dict[str, str]()
    if way.spread_s is not None:
        front_end = tuple(replace(p, prior=v) for p, v in zip(FRONT_END, way.estimate.values.tolist(), strict=True))
        told = dict.fromkeys(names_of(FRONT_END), "told by queue stamps")
    asynchronous, k = chosen[0][0].asynchronous, len(RESIDUAL.parameters)
    estimate, n_simulations = fit_requests(runs, RESIDUAL, front_end, told, asynchronous=asynchronous)
    if told:
        estimate, front_end = _joined(_first(estimate, k, told), way.estimate), FRONT_END
    values = dict(zip(names_of(RESIDUAL.with_front_end), estimate.values.tolist(), strict=True))
    steps = []
    for subject, mask in chosen:
        until_s = max((o.finish_s for o in subject.outcomes(mask) if o.finish_s is not None), default=np.inf)
        steps += [part.chosen(part.end_s <= until_s) for part in subject.simulate({**values, **sent}, RESIDUAL).priced]
    notes = (f"{n_simulations} simulations of each capture",)
    return _Fitted(RESIDUAL, estimate, _ranges(steps), {}, front_end=front_end, spread_s=way.spread_s, notes=notes)


def _first(estimate: Estimate, k: int, without: Mapping[str, str]) -> Estimate:
    """The first k parameters of an estimate."""
    held = {name: why for name, why in estimate.held.items() if name not in without}
    return Estimate(estimate.values[:k], estimate.errors[:k], estimate.covariance[:k, :k], held)


def _request_residuals(chosen: Chosen, values: Mapping[str, float], basis: Basis) -> dict[str, Residuals]:
    """What is left of each latency of the fitted requests once they are simulated with the fitted values."""
    relative: dict[str, list[Floats]] = {"ttft_s": [], "tpot_s": [], "e2el_s": []}
    for subject, mask in chosen:
        twins = {outcome.request_id: outcome for outcome in subject.simulate(values, basis).capture.outcomes}
        outcomes = subject.outcomes(mask)
        before, after = requests(outcomes), requests([twins[outcome.request_id] for outcome in outcomes])
        for name, parts in relative.items():
            measured_s, simulated_s = getattr(before, name), getattr(after, name)
            both = np.isfinite(measured_s) & (simulated_s > 0)
            if both.any():
                parts.append(measured_s[both] / simulated_s[both] - 1)
    return {name: residuals_of(parts) for name, parts in relative.items() if parts}


def _fitted_on(subject: Subject, mask: Mask, split: Split, kind: Source) -> FittedOn:
    outcomes = subject.outcomes(mask)
    ends_s = [outcome.finish_s for outcome in outcomes if outcome.finish_s is not None]
    from_s, to_s = min(outcome.arrival_s for outcome in outcomes), max(ends_s, default=0.0)
    n_steps = None
    if kind != "requests" and (steps := subject.measured.steps) is not None:
        own = split.steps(subject.measured, subject.name)
        n_steps, from_s, to_s = int(own.sum()), float(steps.scheduled_s[own].min()), float(steps.end_s[own].max())
    return FittedOn(subject.name, subject.sha256, len(outcomes), n_steps, from_s, to_s)
