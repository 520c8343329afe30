"""Prompts for a trace: token ids that share what the trace's block hashes say is shared, and nothing else."""

from __future__ import annotations

import numpy as np

from traces.trace import Trace, TraceRow

FIRST_TOKEN_ID = 3
"""Ids below are special tokens in the tokenizers that vLLM serves, as a rule."""


def prompt_token_ids(row: TraceRow, trace: Trace, vocab_size: int, seed: int = 0) -> list[int]:
    """Token ids of a row's prompt, [prompt_tokens]: the same for the same seed.

    A block's tokens are drawn from its hash, so that equal hashes become equal tokens; the rest is drawn from the
    request's id. Prompts of rows without hashes differ from each other from the first token on.
    """
    size = trace.hash_block_size or 0
    blocks = (row.block_hashes or ())[: row.prompt_tokens // size if size else 0]
    parts = [_draw([seed, 1, hash_], size, vocab_size) for hash_ in blocks]
    rest = row.prompt_tokens - len(blocks) * size
    parts.append(_draw([seed, 2, *row.request_id.encode()], rest, vocab_size))
    return [int(token) for part in parts for token in part]


def _draw(key: list[int], count: int, vocab_size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(key).integers(FIRST_TOKEN_ID, vocab_size, count)
