"""Profiles that are read once in a process, and compiled tables that are made once, kept in a file of the user's too.

A table is found by what it is made of: a digest of the rows, to the last bit, of the sources that compile it, and of
numpy's version. So nothing that is found is out of date, and results are the same with and without.

A process keeps a few tables and profiles, whoever asks for them: engines of one kind, points of a study. Files lie in
`$XDG_CACHE_HOME/servetwin/tables`, or `~/.cache/servetwin/tables`; `SERVETWIN_CACHE=off` in the environment neither
reads nor writes any. A file is written aside and then renamed, so that others see all of it or nothing. One that is
damaged (it carries a digest of itself) is compiled again and replaced; where none can be written, none is kept. Both
are counted in `COUNTS`, and change nothing but time; `servetwin doctor` says which files are there and how many are
damaged.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from profiles import attention, interpolation
from profiles.attention import AttentionArrays, compile_attention
from profiles.profile import AttentionRows, Profile, SkewRows
from profiles.profile_folder import digest_of, read_profile
from traces.errors import InputError
from traces.steps import Floats

LAYOUT = "servetwin.table/1"
"""What a file begins with; a new one for every change of what stands behind it."""
MOST_KEPT = 32
"""Tables that a process keeps; the one that was asked for longest ago goes first."""
MOST_FILES = 256
"""Tables that the folder keeps; the one that was written longest ago goes first."""
SWITCH = "SERVETWIN_CACHE"

COUNTS: Counter[str] = Counter()
"""What became of the requests of this process for a table: `compiled`, `read` from a file, `kept` from before; of its
files: `damaged`, `not written`; and of profiles: `profiles read`, `profiles kept`."""

_KEPT: dict[str, AttentionArrays] = {}
_PROFILES: dict[tuple[Path, str], Profile] = {}
_DIGEST_BYTES = 32


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
    digest = hashlib.sha256(_sources())
    for part in (rows, skew):
        for name in () if part is None else part.__dataclass_fields__:
            values = getattr(part, name)
            digest.update(f"{name} {None if values is None else values.shape}".encode())
            digest.update(b"" if values is None else np.asarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()


@cache
def _sources() -> bytes:
    """Digest of what compiles a table."""
    digest = hashlib.sha256(f"{LAYOUT} {np.__version__} {platform.machine()}".encode())
    for module in (attention, interpolation):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.digest()


def forget() -> None:
    """Keep none of what this process has, and no counts. Files stay."""
    _KEPT.clear()
    _PROFILES.clear()
    COUNTS.clear()


def folder() -> Path | None:
    """Where tables are kept; None where they are not. The folder need not be there. Raises InputError."""
    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise InputError(field=SWITCH, found=switch, accepted="on, or off: keep no compiled tables in files")
    if switch == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "servetwin" / "tables"
    except RuntimeError:  # a user without a home
        return None


def _filed(key: str, rows: AttentionRows, skew: SkewRows | None) -> AttentionArrays:
    """The table from its file, else compiled and put there."""
    at = folder()
    # What takes time is the grid of mixed batches; without one, a file would not be found sooner than it is compiled.
    is_mixed = bool(((rows.prefill_tokens > 0) & (rows.n_decode > 0)).any())
    file = at / f"{key}.table" if at is not None and is_mixed else None
    if file is not None and (data := _bytes_of(file)) is not None:
        table = unpacked(data)
        if table is not None:
            COUNTS["read"] += 1
            return table
        COUNTS["damaged"] += 1
    COUNTS["compiled"] += 1
    table = compile_attention(rows, skew)
    if file is not None:
        _write(file, packed(table))
    return table


def _bytes_of(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _write(file: Path, data: bytes) -> None:
    """Write a file, all of it or nothing; what cannot be written is counted, since nothing depends on it."""
    aside = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=file.parent, suffix=".new", delete=False) as stream:
            aside = Path(stream.name)
            stream.write(data)
        aside.replace(file)
        _make_room(file.parent)
    except OSError:
        COUNTS["not written"] += 1
        if aside is not None:
            with suppress(OSError):
                aside.unlink()


def _make_room(at: Path) -> None:
    """Remove the oldest files beyond `MOST_FILES`. Raises OSError."""
    files = list(at.glob("*.table"))
    if len(files) > MOST_FILES:
        for file in sorted(files, key=lambda file: file.stat().st_mtime)[: len(files) - MOST_FILES]:
            file.unlink(missing_ok=True)


def looked_at(at: Path) -> tuple[int, int]:
    """How many files a folder has, and how many of them are damaged."""
    found = [_bytes_of(file) for file in sorted(at.glob("*.table"))]
    return len(found), sum(data is None or unpacked(data) is None for data in found)


def packed(table: AttentionArrays) -> bytes:
    """A table's file: a digest of all that follows it, the layout's name, the arrays."""
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
    body = LAYOUT.encode() + b"\n" + msgspec.msgpack.encode(stored)
    return hashlib.sha256(body).digest() + body


def unpacked(data: bytes) -> AttentionArrays | None:
    """The table of a file; None when the file is damaged or none of this layout."""
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    name, _, content = body.partition(b"\n")
    if name != LAYOUT.encode() or hashlib.sha256(body).digest() != digest:
        return None
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
