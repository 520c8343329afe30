"""Profiles whose operators nobody measured: shapes on a grid, priced by a function, as the tables of a profile.

So everything that reads a measured profile reads these too: interpolation, overheads, notes on what lies outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import msgspec
import numpy as np

from profiles.model import ModelSpec
from profiles.operators import Operators, Shape
from profiles.profile import AttentionRows, Curve, MoeRows, OperatorTables, Profile, ProfileMeta
from traces.errors import InputError
from traces.steps import Floats

Price = Callable[[Sequence[Shape]], Floats]
"""Seconds of each shape, [n], all above 0."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where operators are priced; between the points times are linear, and beyond the largest they are counted.

    Attributes:
        tokens: of a step, ascending.
        requests: of a step.
        prefill_tokens: of a chunk.
        history: tokens computed before, of a chunk or of each decode.
    """

    tokens: tuple[int, ...]
    requests: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    history: tuple[int, ...]

    def up_to(self, max_model_len: int | None) -> Grid:
        """Without chunks and histories longer than the model allows."""
        if max_model_len is None:
            return self
        chunks = tuple(tokens for tokens in self.prefill_tokens if tokens <= max_model_len)
        histories = tuple(history for history in self.history if history <= max_model_len)
        return replace(self, prefill_tokens=chunks, history=histories)


def _octaves(largest: int, per_octave: int = 1) -> tuple[int, ...]:
    """1, 2, 4, ... up to `largest`, with so many points to an octave."""
    steps = per_octave * int(np.log2(largest))
    return tuple(sorted({round(2 ** (i / per_octave)) for i in range(steps + 1)}))


GRID = Grid(
    tokens=_octaves(32768, per_octave=4),
    requests=_octaves(2048, per_octave=2),
    prefill_tokens=_octaves(32768),
    history=(0, *(n for n in _octaves(131072) if n >= 16)),
)
"""Close enough that a roofline's corner between memory and arithmetic is rounded by less than 5 %."""


def priced_profile(meta: ProfileMeta, model: ModelSpec, degrees: Sequence[int], price: Price) -> Profile:
    """A profile of `model` whose times `price` says, at these tensor-parallel degrees.

    Args:
        meta: its description; `dtype` and `kv_cache_dtype` are those of the shapes, `composition` is filled in.
        model: its dimensions.
        degrees: tensor-parallel degrees.
        price: seconds of each shape.

    Raises:
        InputError: the model cannot be split so, or whatever `price` raises.
    """
    tables = {}
    grid = GRID.up_to(model.max_position_embeddings)
    for tp in degrees:
        model.parameters(tp)  # raises for a degree that the model cannot be split by
        operators = Operators(model, tp, meta.dtype, meta.kv_cache_dtype)
        tables[tp] = _tables(operators, grid, price)
    composition = Operators(model, 1, meta.dtype).composition
    return with_digest(Profile(msgspec.structs.replace(meta, composition=composition), tables))


def with_digest(profile: Profile) -> Profile:
    """The profile with a digest of its contents, since there are no files to take one of."""
    digest = hashlib.sha256(msgspec.json.encode(profile.meta))
    for tp, tables in sorted(profile.tables.items()):
        digest.update(repr(tp).encode())
        for name, curve in sorted({**tables.dense, **tables.per_request}.items()):
            digest.update(name.encode() + curve.x.tobytes() + curve.time_s.tobytes())
        for rows in (tables.attention, tables.moe):
            digest.update(b"" if rows is None else rows.time_s.tobytes())
    for name, by_ranks in sorted((profile.collectives or {}).items()):
        for ranks, curve in sorted(by_ranks.items()):
            digest.update(f"{name} {ranks}".encode() + curve.x.tobytes() + curve.time_s.tobytes())
    return replace(profile, sha256="sha256:" + digest.hexdigest())


def _tables(operators: Operators, grid: Grid, price: Price) -> OperatorTables:
    """All tables of one degree; every shape is priced in one call."""
    composition = operators.composition
    dense = {(name, n): operators.token_wise(name, n) for name in sorted(composition.dense()) for n in grid.tokens}
    head = {(name, n): operators.token_wise(name, n) for name in composition.per_request for n in grid.requests}
    chunks = list(product(grid.prefill_tokens, grid.history))
    decodes = list(product(grid.requests, [n for n in grid.history if n]))
    experts = _expert_points(operators.model, grid)
    shapes: list[Shape] = [*dense.values(), *head.values()]
    shapes += [operators.prefill(*point) for point in chunks]
    shapes += [operators.decode(*point) for point in decodes]
    shapes += [operators.experts(*point) for point in experts]
    time_s = iter(price(shapes))
    curves = {point: next(time_s) for point in (*dense, *head)}
    attention_s = np.array([next(time_s) for _ in range(len(chunks) + len(decodes))])
    return OperatorTables(
        {name: _curve(name, grid.tokens, curves) for name in composition.dense()},
        {name: _curve(name, grid.requests, curves) for name in composition.per_request},
        attention_rows(chunks, decodes, attention_s),
        _moe_rows(experts, np.array(list(time_s))),
    )


def attention_rows(
    chunks: Sequence[tuple[int, int]], decodes: Sequence[tuple[int, int]], time_s: Floats
) -> AttentionRows:
    """Rows of chunks (tokens, history), then of decodes (how many, history), with their times in that order."""
    points = [(tokens, history, 0, 0) for tokens, history in chunks] + [(0, 0, n, history) for n, history in decodes]
    tokens, history, n, decode_history = _columns(points, 4)
    return AttentionRows(tokens, history, n, decode_history, time_s)


def _moe_rows(points: Sequence[tuple[int, int]], time_s: Floats) -> MoeRows | None:
    if not points:
        return None
    tokens, n_experts = _columns(points, 2)
    return MoeRows(tokens, n_experts, time_s)


def _columns(points: Sequence[tuple[int, ...]], n_columns: int) -> list[Floats]:
    return [np.array([point[i] for point in points], dtype=np.float64) for i in range(n_columns)]


def _curve(name: str, sizes: Sequence[int], times: dict[tuple[str, int], float]) -> Curve:
    return Curve(np.array(sizes, dtype=np.float64), np.array([times[name, size] for size in sizes]))


def _expert_points(model: ModelSpec, grid: Grid) -> list[tuple[int, int]]:
    """Tokens and experts they reach, which are at least a token's own and at most the model's."""
    if not model.num_experts:
        return []
    own = model.num_experts_per_tok
    reached = sorted({own, *(n for n in _octaves(model.num_experts) if n > own), model.num_experts})
    return [(tokens, n) for tokens, n in product(grid.prefill_tokens, reached) if n <= tokens * own]


def check_times(shapes: Sequence[Shape], time_s: Floats, source: str) -> Floats:
    """The times. Raises InputError for the first that is not above 0 and finite."""
    wrong = ~np.isfinite(time_s) | (time_s <= 0)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        of = f"of {msgspec.json.encode(shapes[at]).decode()}"
        raise InputError(of, file=source, field="time_s", found=float(time_s[at]), accepted="a finite time above 0")
    return time_s
