"""Prefix identity: hashes of blocks of tokens that each cover everything before their block too.

Plain functions over whole numbers. Equality within one trace is all that is ever asked of a hash; 64 bits make a false
match of two among a million blocks less likely than 1 in 10 million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

_EVEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = 2**64 - 1


def chained(ids: Iterable[int | str], seed: str = "") -> tuple[int, ...]:
    """Hashes of blocks that are known by an id only, as unsigned 64-bit integers.

    An id stands for a block's content, or for that and all before it; traces differ in this, and some do not say. The
    chain is right for both: two hashes are equal exactly where the ids are equal up to and including that block.
    """
    parent = seed.encode()
    hashes: list[int] = []
    for number in ids:
        parent = hashlib.blake2b(parent + str(number).encode(), digest_size=16).digest()
        hashes.append(int.from_bytes(parent[:8], "little"))
    return tuple(hashes)


def token_hashes(token_ids: Sequence[int], block_size: int) -> tuple[int, ...]:
    """Identity of each full block of tokens together with everything before it, as unsigned 64-bit integers.

    The chain is vLLM's (0.19 v1/core/kv_cache_utils.py hash_block_tokens: parent's hash, then the block's tokens), the
    hash is not.
    """
    tokens = np.asarray(token_ids, dtype="<i8").tobytes()
    hashes: list[int] = []
    parent = b""
    for start in range(0, len(token_ids) // block_size * block_size * 8, block_size * 8):
        parent = hashlib.blake2b(parent + tokens[start : start + block_size * 8], digest_size=16).digest()
        hashes.append(int.from_bytes(parent[:8], "little"))
    return tuple(hashes)


def refined(hashes: Sequence[int], parts: int) -> tuple[int, ...]:
    """Hashes of blocks `parts` times smaller: block h becomes blocks (h, 0), (h, 1) and so on, in this order.

    Two requests that shared n large blocks share exactly n * parts small ones, so a trace with large blocks can be
    served by an engine with small ones. What two prompts share of a large block that they do not share whole is not in
    the trace and is not made up: reuse is that of the large blocks, a lower bound of what the small ones would find.
    The last part keeps the large block's own hash, so that `coarsened` takes it back.
    """
    if parts == 1:
        return tuple(hashes)
    whole = np.array(hashes, dtype=np.uint64)[:, None]
    steps = np.arange(parts, 0, -1, dtype=np.uint64)  # [parts], the last is 1
    with np.errstate(over="ignore"):
        inner = mixed(mixed(whole) + steps * _EVEN)
    inner[:, -1] = whole[:, 0]
    return tuple(inner.ravel().tolist())


def coarsened(hashes: Sequence[int], parts: int) -> tuple[int, ...]:
    """Hashes of blocks `parts` times larger: every `parts`-th, since a hash covers all before its block."""
    return tuple(hashes[parts - 1 :: parts])


def resized(hashes: Sequence[int], hash_block_size: int, block_size: int) -> tuple[int, ...] | None:
    """Hashes for blocks of `block_size` tokens; None when neither size is a multiple of the other."""
    if block_size % hash_block_size == 0:
        return coarsened(hashes, block_size // hash_block_size)
    if hash_block_size % block_size == 0:
        return refined(hashes, hash_block_size // block_size)
    return None


def stretched(hashes: Sequence[int], factor: Fraction) -> tuple[int, ...]:
    """Hashes of as large blocks of a text that is `factor` times as long, of which each part is.

    New block i ends where old block ceil((i + 1) / factor) - 1 does or within it, and is known by that block's hash and
    by how many new blocks end in it behind it. Two texts that shared n blocks share exactly floor(n * factor). By a
    whole factor this is `refined`, by one over a whole number `coarsened`.
    """
    if factor == 1:
        return tuple(hashes)
    up, down = factor.numerator, factor.denominator
    # A factor's decimals may be beyond 64 bits.
    exact = np.int64 if (len(hashes) + 1) * max(up, down) < 2**63 else object
    numbers = np.arange(1, len(hashes) * up // down + 1).astype(exact)  # [n_new], blocks counted from 1
    ends = -(-numbers * down // up)  # [n_new], the old block that each ends in
    steps = (ends * up // down - numbers + 1).astype(np.uint64)  # [n_new], the last within an old block is 1
    whole = np.array([h & _WORD for h in hashes], dtype=np.uint64)[ends.astype(np.int64) - 1]
    with np.errstate(over="ignore"):
        inner = mixed(mixed(whole) + steps * _EVEN)
    return tuple(np.where(steps == 1, whole, inner).tolist())


def salted(hashes: Sequence[int], salt: bytes) -> tuple[int, ...]:
    """Other hashes, equal where these are equal; without the salt nobody can tell whether a known block is among them.

    A keyed hash (BLAKE2b with `salt` as key, at most 64 bytes).
    """
    return tuple(
        int.from_bytes(hashlib.blake2b(str(h).encode(), digest_size=8, key=salt).digest(), "little") for h in hashes
    )


def mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood 2014): a random-looking number of each, one to one."""
    with np.errstate(over="ignore"):
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return numbers ^ (numbers >> np.uint64(31))
