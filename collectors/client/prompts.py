"""Prompts for a trace: tokens or words that share what the trace's block hashes say is shared, and nothing else."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.trace import Trace, TraceRow

FIRST_TOKEN_ID = 3
"""Ids below are special tokens in the tokenizers that vLLM serves, as a rule."""

_COMMON_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education"
)
WORDS = _COMMON_WORDS.split()
"""Words that common tokenizers hold as one token each, behind a space."""


def prompt_token_ids(row: TraceRow, trace: Trace, vocab_size: int, seed: int = 0) -> list[int]:
    """Token ids of a row's prompt, [prompt_tokens]: the same for the same seed.

    A block's tokens are drawn from its hash, so that equal hashes become equal tokens; the rest is drawn from the
    request's id. Prompts of rows without hashes differ from each other from the first token on.
    """
    drawn = _drawn(row, trace, seed) % np.uint64(vocab_size - FIRST_TOKEN_ID) + np.uint64(FIRST_TOKEN_ID)
    tokens: list[int] = drawn.tolist()
    return tokens


def prompt_text(row: TraceRow, trace: Trace, seed: int = 0) -> str:
    """As many common words as the row's prompt has tokens, drawn alike; the server's tokenizer has the last word."""
    return " ".join(WORDS[i] for i in (_drawn(row, trace, seed) % np.uint64(len(WORDS))).tolist())


def _drawn(row: TraceRow, trace: Trace, seed: int) -> npt.NDArray[np.uint64]:
    """A random number for each token of the prompt, [prompt_tokens]."""
    size = trace.hash_block_size or 0
    blocks = (row.block_hashes or ())[: row.prompt_tokens // size if size else 0]
    rest = row.prompt_tokens - len(blocks) * size
    keys = np.array([_key(seed, f"block {hash_}") for hash_ in blocks], dtype=np.uint64)
    shared = _mixed(keys[:, None] + np.arange(size, dtype=np.uint64)).ravel()
    own = _mixed(np.uint64(_key(seed, f"request {row.request_id}")) + np.arange(rest, dtype=np.uint64))
    return np.concatenate([shared, own])


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "little")


def _mixed(numbers: Any) -> Any:
    """SplitMix64's output function (Steele, Lea, Flood 2014), which makes a random sequence of successive numbers."""
    with np.errstate(over="ignore"):
        numbers = numbers * np.uint64(0x9E3779B97F4A7C15)
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return numbers ^ (numbers >> np.uint64(31))
