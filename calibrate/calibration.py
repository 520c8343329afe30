"""A calibration as a file: what was fitted between a step-time model and a real engine, on what, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from calibrate.parameters import FRONT_END, HANDOVER, KV_TRANSFER, RESIDUAL, Basis, Parameter, names_of
from calibrate.regression import robust_sd
from calibrate.whole_step import Shape, basis_of, edges_of
from simulator.front_end import FrontEnd
from simulator.steps.correction import CorrectedModel
from simulator.steps.step_time import StepTimeModel
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError, nearest
from traces.steps import Floats

CALIBRATION_SCHEMA = "servetwin.calibration/1"


class FittedParameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter.

    Attributes:
        value: fitted, or the prior where the data do not tell it.
        standard_error: of the value; None where it was held.
        unit: of the value; `1` for a scale.
        prior: what it was taken to be before any data.
        prior_sd: how far from it was plausible.
        identified: whether the data tell it.
        note: why it was held, where it was.
    """

    value: float
    standard_error: float | None
    unit: str
    prior: float
    prior_sd: float
    identified: bool
    note: str | None = None


class FittedOn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of one capture that was fitted.

    Attributes:
        capture: name of its folder.
        sha256: digest of its description and outcomes.
        n_requests: how many of its requests were fitted.
        n_steps: how many of its steps; None where requests were fitted and no steps.
        from_s: when the first of them arrived, or the first step began.
        to_s: when the last of them ended.
    """

    capture: str
    sha256: str
    n_requests: int
    n_steps: int | None
    from_s: float
    to_s: float


class Residuals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the fit leaves, as (measured - corrected) / corrected.

    Attributes:
        n: steps, or requests.
        mean: signed.
        quantiles: at `RESIDUAL_QUANTILES`.
        common: standard deviation of what many have in common: of the medians of consecutive tenths of each capture
            beyond what chance explains, or of whole captures where several were fitted and differ by more. How far
            the engine itself wanders.
    """

    n: int
    mean: float
    quantiles: tuple[float, ...]
    common: float


RESIDUAL_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was fitted.

    Attributes:
        kind: fitted from step records; from request records with the simulation in the loop; or a whole-step model
            from step records, which corrects no profile. KV transfers are fitted from their own records, of any kind.
        model: the model that was served.
        device: what it was served on.
        engine: its name and version, as the capture says.
        async_scheduling: whether the engine planned a step ahead; without that, the times mean another thing.
        profile: digest of the profile whose residual this is; None of a whole-step model.
        knots: tokens at which a whole-step model's cost of a token may change.
        fit_on: which part of the captures was fitted.
        fitted_on: the captures.
        ranges: least and most of what the fitted steps, or the steps of the fitted requests' simulation, held.
        parameters: by name.
        covariance_of: names in the order of `covariance`: all that the fit leaves unsure, held ones included.
        covariance: of their values.
        front_end_spread_s: standard deviation of a request's way to the engine; None where it cannot be told.
        residuals: what is left, by what it was measured on.
        versions: of what fitted it.
        notes: what a reader should know.
    """

    schema_version: str = CALIBRATION_SCHEMA
    kind: Literal["steps", "requests", "whole-step"]
    model: str
    device: str
    engine: str | None
    async_scheduling: bool
    profile: str | None = None
    knots: tuple[int, ...] = ()
    fit_on: str
    fitted_on: tuple[FittedOn, ...]
    ranges: dict[str, tuple[float, float]]
    parameters: dict[str, FittedParameter]
    covariance_of: tuple[str, ...]
    covariance: tuple[tuple[float, ...], ...]
    front_end_spread_s: float | None
    residuals: dict[str, Residuals]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, float]:
        """Every parameter's value."""
        return {name: parameter.value for name, parameter in self.parameters.items()}

    def basis(self) -> Basis:
        """What a step's time is linear in. Raises InputError when the parameters are not those of its kind."""
        if self.kind != "whole-step":
            return RESIDUAL
        beside = names_of(self.beside_steps())
        return basis_of(
            Shape(self.knots, edges_of(self.ranges)),
            [p.prior_sd for name, p in self.parameters.items() if name not in beside],
        )

    def beside_steps(self) -> tuple[Parameter, ...]:
        """The parameters that are no part of a step's time: the front end's, and those of KV transfers."""
        sends = any(name in self.parameters for name in names_of(KV_TRANSFER))
        return (*FRONT_END, *KV_TRANSFER, HANDOVER) if sends else FRONT_END

    def every_parameter(self) -> tuple[Parameter, ...]:
        """All parameters that one of its kind has. Raises InputError as `basis`."""
        return (*self.basis().parameters, *self.beside_steps())

    def corrected(self, model: StepTimeModel) -> CorrectedModel:
        """A step-time model with this put back; of a whole-step model, `Unpriced`."""
        basis, values = self.basis(), self.values()
        return CorrectedModel(model, {name: values[name] for name in basis.names}, basis.terms, self.ranges)

    def covariance_matrix(self, names: Sequence[str]) -> Floats:
        """Covariance of the named parameters, [k, k]; 0 for those that are no question of the data."""
        place = {name: i for i, name in enumerate(self.covariance_of)}
        whole = np.zeros((len(place) + 1, len(place) + 1))
        whole[:-1, :-1] = np.array(self.covariance).reshape(len(place), len(place))
        own = [place.get(name, len(place)) for name in names]
        return np.asarray(whole[np.ix_(own, own)])


def front_end_of(values: Mapping[str, float]) -> FrontEnd:
    """The parameters of a request's way to the engine."""
    return FrontEnd(values["front_end_s"], values["front_end_token_s"])


def residuals_of(captures: Sequence[Floats]) -> Residuals:
    """A summary of relative residuals, each capture's in order of time, [n] each."""
    whole = np.concatenate(captures)
    tenths = [[part for part in np.array_split(capture, 10) if len(part)] for capture in captures]
    common = max(_wander(parts) for parts in tenths)
    if len(captures) > 1:
        common = max(common, _wander(captures) * float(np.sqrt(1 + 1 / len(captures))))
    quantiles = tuple(float(q) for q in np.quantile(whole, RESIDUAL_QUANTILES))
    return Residuals(len(whole), float(whole.mean()), quantiles, common)


def _wander(parts: Sequence[Floats]) -> float:
    """Standard deviation of the parts' medians beyond what the spread inside them explains."""
    if len(parts) < 2:
        return 0.0
    medians = [float(np.median(part)) for part in parts]
    spreads = [robust_sd(part, middle) for part, middle in zip(parts, medians, strict=True)]
    chance = [np.pi / 2 * spread**2 / len(part) for spread, part in zip(spreads, parts, strict=True)]
    beyond = float(np.var(np.array(medians), ddof=1)) - float(np.mean(np.array(chance)))
    return float(np.sqrt(max(beyond, 0.0)))


def versions() -> dict[str, str]:
    """Of what fits."""
    return {name: version(name) for name in ("servetwin", "numpy", "scipy")}


def encode_calibration(calibration: Calibration) -> bytes:
    """The bytes of its file: JSON, a line per fact."""
    return msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n"


def read_calibration(path: Path) -> Calibration:
    """Read a calibration. Raises InputError with file and field."""
    calibration = decode_json(read_bytes(path), Calibration, file=path)
    if calibration.schema_version != CALIBRATION_SCHEMA:
        found = calibration.schema_version
        raise InputError(file=path, field="schema_version", found=found, accepted=CALIBRATION_SCHEMA)
    known = names_of(calibration.every_parameter())
    if missing := [name for name in known if name not in calibration.parameters]:
        raise InputError("is missing", file=path, field=f"parameters.{missing[0]}")
    if extra := [name for name in (*calibration.parameters, *calibration.covariance_of) if name not in known]:
        raise InputError("is unknown", file=path, field=f"parameters.{extra[0]}", accepted=nearest(extra[0], known))
    size = len(calibration.covariance_of)
    if len(calibration.covariance) != size or any(len(row) != size for row in calibration.covariance):
        raise InputError(file=path, field="covariance", accepted=f"{size} rows of {size} numbers, as covariance_of")
    return calibration
