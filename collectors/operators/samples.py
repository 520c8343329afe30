"""What was measured, and the tables of a profile made of it.

A sample is what an operator's calls took in one step, by how many of them the composition counts: a step is the sum of
its samples. A time is the median of its samples, its spread that of `profiles.spread`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from collectors.operators.shots import Shot, mean_history, skewed_shots
from profiles.profile import (
    NO_OPERATORS,
    AttentionRows,
    Composition,
    Curve,
    MoeRows,
    OperatorTables,
    SkewRows,
    StepRows,
)
from profiles.spread import relative_spread
from traces.errors import CollectorError
from traces.steps import Floats


class Answer(msgspec.Struct, frozen=True):
    """What an engine says of a shot, in microseconds.

    Attributes:
        step_us: the step without timers.
        instrumented_us: the step with them; None where there were none.
        operators: by operator, all its calls of that step together.
    """

    step_us: float
    instrumented_us: float | None
    operators: dict[str, float]


@dataclass(slots=True)
class Samples:
    """What was measured of one shot, in microseconds: one number per step, for an operator of all its calls."""

    step_us: list[float] = field(default_factory=list)
    instrumented_us: list[float] = field(default_factory=list)
    operator_us: dict[str, list[float]] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        """Take in an engine's answer."""
        self.step_us.append(answer.step_us)
        if answer.instrumented_us is not None:
            self.instrumented_us.append(answer.instrumented_us)
        for operator, took_us in answer.operators.items():
            self.operator_us.setdefault(operator, []).append(took_us)


@dataclass(frozen=True, slots=True)
class Parts:
    """How a step's times are split: the composition, and how often a layer's operators run.

    Attributes:
        composition: of which operators a step is made up.
        num_layers: layers of the model that was measured.
    """

    composition: Composition
    num_layers: int

    def of(self, samples: Samples) -> dict[str, list[float]]:
        """Samples of every operator, in microseconds of one of its runs; the rotary embedding's by difference where no
        timer saw it. Raises CollectorError when an operator of the composition was not seen.
        """
        seen = dict(samples.operator_us)
        if "rotary_emb" not in seen and "self_attn" in seen:
            parts = [name for name in ("qkv_proj", "qk_norm", "attention", "o_proj") if name in seen]
            whole_and_parts = zip(*(seen[name] for name in ("self_attn", *parts)), strict=True)
            seen["rotary_emb"] = [whole - sum(rest) for whole, *rest in whole_and_parts]
        runs = self._runs()
        if missing := sorted(runs.keys() - seen.keys()):
            raise CollectorError(
                f"no module of the model was seen to be: {', '.join(missing)}; modules are known by their names in "
                "collectors.operators.worker, and `--operators none` measures whole steps of any model"
            )
        return {name: [took_us / times for took_us in seen[name]] for name, times in runs.items()}

    def _runs(self) -> Counter[str]:
        """How often each operator runs in a step."""
        runs: Counter[str] = Counter()
        for name in self.composition.per_layer:
            runs[name] += self.num_layers
        for name in (*self.composition.once, *self.composition.per_request):
            runs[name] += 1
        return runs


def tables_of(samples: Mapping[Shot, Samples], parts: Parts) -> OperatorTables:
    """The tables of a profile: medians of all samples of a point, whichever shots they came with.

    Raises CollectorError when an operator of the composition was not seen.
    """
    steps = _steps({shot: one for shot, one in samples.items() if shot.is_plain})
    if not parts.composition.per_layer:
        return OperatorTables(**NO_OPERATORS, steps=steps)
    operators = {shot: parts.of(one) for shot, one in samples.items()}
    attention = {shot: times["attention"] for shot, times in operators.items() if shot.is_plain or shot.n_chunks > 1}
    dense = {name: {shot: times[name] for shot, times in operators.items()} for name in parts.composition.dense()}
    heads = {name: {shot: times[name] for shot, times in operators.items()} for name in parts.composition.per_request}
    return OperatorTables(
        dense={name: _curve(own, "n_tokens") for name, own in sorted(dense.items())},
        per_request={name: _curve(own, "n_requests") for name, own in heads.items()},
        attention=AttentionRows(
            **_axes(list(attention)), **_times(list(attention.values())), n_chunks=_column(list(attention), "n_chunks")
        ),
        moe=_moe(operators) if "moe" in parts.composition.per_layer else None,
        skew=_skew({shot: times["attention"] for shot, times in operators.items()}),
        steps=steps,
    )


def _axes(shots: Sequence[Shot]) -> dict[str, Floats]:
    names = ("prefill_tokens", "prefill_kv_tokens", "n_decode", "decode_kv_tokens")
    return {name: _column(shots, name) for name in names}


def _column(shots: Sequence[Shot], name: str) -> Floats:
    return np.array([getattr(shot, name) for shot in shots], dtype=np.float64)


def _steps(samples: Mapping[Shot, Samples]) -> StepRows:
    shots, columns = list(samples), list(samples.values())
    step = _times([one.step_us for one in columns])
    instrumented = [one.instrumented_us for one in columns]
    return StepRows(
        **_axes(shots),
        n_requests=_column(shots, "n_requests"),
        step_s=step["time_s"],
        instrumented_s=_times(instrumented)["time_s"] if all(instrumented) else None,
        repeats=step["n"],
        spread=step["spread"],
    )


def _curve(samples_us: Mapping[Shot, list[float]], x_name: str) -> Curve:
    """Medians by size."""
    by_size: dict[int, list[float]] = {}
    for shot, values in samples_us.items():
        by_size.setdefault(getattr(shot, x_name), []).extend(values)
    x = sorted(by_size)
    return Curve(np.array(x, dtype=np.float64), **_times([by_size[size] for size in x]))


def _moe(operators: Mapping[Shot, dict[str, list[float]]]) -> MoeRows:
    """One layer's experts by tokens and how many of them they were made to reach."""
    own = {shot: times["moe"] for shot, times in operators.items() if shot.n_experts}
    return MoeRows(_column(list(own), "n_tokens"), _column(list(own), "n_experts"), **_times(list(own.values())))


def _skew(attention_us: Mapping[Shot, list[float]]) -> SkewRows | None:
    """Decodes of unequal history beside the equal ones of their mean and of the longest; None without any."""
    triples = list(skewed_shots(list(attention_us)))
    if not triples:
        return None
    skewed, of_mean, of_longest = ([triple[i] for triple in triples] for i in range(3))
    return SkewRows(
        n_decode=_column(skewed, "n_decode"),
        n_long=_column(skewed, "n_long"),
        prefill_tokens=_column(skewed, "prefill_tokens"),
        prefill_kv_tokens=_column(skewed, "prefill_kv_tokens"),
        short_kv_tokens=_column(skewed, "decode_kv_tokens"),
        long_kv_tokens=_column(skewed, "long_kv_tokens"),
        mean_kv_tokens=np.array([mean_history(shot) for shot in skewed], dtype=np.float64),
        uniform_mean_s=_times([attention_us[shot] for shot in of_mean])["time_s"],
        uniform_max_s=_times([attention_us[shot] for shot in of_longest])["time_s"],
        **_times([attention_us[shot] for shot in skewed]),
    )


def _times(samples_us: Sequence[list[float]]) -> dict[str, Any]:
    """Median, spread and number of the samples of each point, [k] each."""
    return {
        "time_s": np.array([np.median(values) for values in samples_us]) * 1e-6,
        "spread": np.array([relative_spread(values) for values in samples_us]),
        "n": np.array([len(values) for values in samples_us], dtype=np.float64),
    }
