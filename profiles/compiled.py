"""Profiles that are read once in a process, and compiled tables that are made once, kept in a file of the user's too.

A table is found by what it is made of: a digest of the rows, to the last bit, of the sources that compile it, and of
numpy's version. A process keeps a few tables and profiles, whoever asks for them: engines of one kind, points of a
study. Their files are `profiles.kept`'s: one that is damaged is compiled again and replaced, and `servetwin doctor`
says which are there. What became of the requests of this process is counted in `COUNTS`: for a table `compiled`, `read`
from a file, `kept` from before; for profiles `profiles read`, `profiles kept`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from profiles import attention, interpolation
from profiles.attention import AttentionArrays, compile_attention
from profiles.kept import COUNTS, keep, kept, source_digest
from profiles.profile import AttentionRows, Profile, SkewRows
from profiles.profile_folder import digest_of, read_profile
from traces.steps import Floats

LAYOUT = "servetwin.table/1"
"""What a file begins with; a new one for every change of what stands behind it."""
MOST_KEPT = 32
"""Tables that a process keeps; the one that was asked for longest ago goes first."""

_KEPT: dict[str, AttentionArrays] = {}
_PROFILES: dict[tuple[Path, str], Profile] = {}


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arrays of a table as (shape, bytes of its doubles), in the order of `AttentionArrays`."""

    p_axes: tuple[_Array, ...]
    p: _Array
    d_axes: tuple[_Array, ...]
    d: _Array
    r_axes: tuple[_Array, ...]
    r: _Array | None
    filled_corners: int
    skew: dict[int, tuple[_Array, _Array]]
    serial: tuple[_Array, _Array] | None


class _Array(msgspec.Struct, frozen=True, array_like=True):
    shape: tuple[int, ...]
    data: bytes


def compiled_attention(rows: AttentionRows, skew: SkewRows | None = None) -> AttentionArrays:
    """`compile_attention` of these rows, or what an earlier call made of them.

    Raises ProfileError as it does, InputError for a switch that is neither on nor off.
    """
    key = key_of(rows, skew)
    if (table := _KEPT.pop(key, None)) is not None:
        COUNTS["kept"] += 1
    else:
        table = _filed(key, rows, skew)
    _KEPT[key] = table  # the last to go
    if len(_KEPT) > MOST_KEPT:
        del _KEPT[next(iter(_KEPT))]
    return table


def read_once(path: Path) -> Profile:
    """`read_profile`, of a folder whose content this process has read before what was read then.

    Raises InputError and ProfileError as it does.
    """
    key = path, digest_of(path)
    if (profile := _PROFILES.pop(key, None)) is not None:
        COUNTS["profiles kept"] += 1
    else:
        COUNTS["profiles read"] += 1
        profile = read_profile(path)
    _PROFILES[key] = profile
    if len(_PROFILES) > MOST_KEPT:
        del _PROFILES[next(iter(_PROFILES))]
    return profile


def key_of(rows: AttentionRows, skew: SkewRows | None) -> str:
    """Digest of all that the table depends on."""
    digest = hashlib.sha256(source_digest(LAYOUT, str(attention.__file__), str(interpolation.__file__)))
    for part in (rows, skew):
        for name in () if part is None else part.__dataclass_fields__:
            values = getattr(part, name)
            digest.update(f"{name} {None if values is None else values.shape}".encode())
            digest.update(b"" if values is None else np.asarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()


def forget() -> None:
    """Keep none of what this process has, and no counts. Files stay."""
    _KEPT.clear()
    _PROFILES.clear()
    COUNTS.clear()


def _filed(key: str, rows: AttentionRows, skew: SkewRows | None) -> AttentionArrays:
    """The table from its file, else compiled and put there."""
    if (content := kept(key, LAYOUT)) is not None:
        COUNTS["read"] += 1
        return unpacked(content)
    COUNTS["compiled"] += 1
    table = compile_attention(rows, skew)
    # What takes time is the grid of mixed batches; without one, a file would not be found sooner than it is compiled.
    if ((rows.prefill_tokens > 0) & (rows.n_decode > 0)).any():
        keep(key, LAYOUT, packed(table))
    return table


def packed(table: AttentionArrays) -> bytes:
    """A table's arrays, as its file holds them."""
    stored = _Stored(
        _several(table.p_axes),
        _array(table.p),
        _several(table.d_axes),
        _array(table.d),
        _several(table.r_axes),
        None if table.r is None else _array(table.r),
        table.filled_corners,
        {int(key): (_array(sizes), _array(share)) for key, (sizes, share) in table.skew.items()},
        None if table.serial is None else (_array(table.serial[0]), _array(table.serial[1])),
    )
    return msgspec.msgpack.encode(stored)


def unpacked(content: bytes) -> AttentionArrays:
    """The table that `packed` made this of."""
    stored = msgspec.msgpack.decode(content, type=_Stored)
    return AttentionArrays(
        tuple(map(_floats, stored.p_axes)),
        _floats(stored.p),
        tuple(map(_floats, stored.d_axes)),
        _floats(stored.d),
        tuple(map(_floats, stored.r_axes)),
        None if stored.r is None else _floats(stored.r),
        stored.filled_corners,
        {bool(key): (_floats(sizes), _floats(share)) for key, (sizes, share) in stored.skew.items()},
        None if stored.serial is None else (_floats(stored.serial[0]), _floats(stored.serial[1])),
    )


def _several(arrays: tuple[Floats, ...]) -> tuple[_Array, ...]:
    return tuple(map(_array, arrays))


def _array(values: Floats) -> _Array:
    return _Array(values.shape, np.ascontiguousarray(values, dtype="<f8").tobytes())


def _floats(stored: _Array) -> Floats:
    return np.frombuffer(stored.data, dtype="<f8").reshape(stored.shape)
