"""Prompts share what their block hashes share, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from collectors.client.prompts import FIRST_TOKEN_ID, prompt_token_ids
from traces.trace import Trace, TraceRow

SIZE = 4
VOCAB_SIZE = 5000


def _row(request_id: str, prompt_tokens: int, hashes: tuple[int, ...] | None) -> TraceRow:
    return TraceRow(
        request_id=request_id, arrival_s=0.0, prompt_tokens=prompt_tokens, output_tokens=8, block_hashes=hashes
    )


def _prompt(row: TraceRow, seed: int = 0) -> list[int]:
    return prompt_token_ids(row, Trace((row,), SIZE, "test", "sha256:0"), VOCAB_SIZE, seed)


hashes = st.lists(st.integers(0, 2**64 - 1), max_size=5).map(tuple)


@given(st.integers(1, 40), hashes, st.integers(0, 3))
def test_a_prompt_has_its_length_and_ordinary_tokens_and_is_the_same_again(
    prompt_tokens: int, chain: tuple[int, ...], seed: int
) -> None:
    row = _row("a", prompt_tokens, chain)
    prompt = _prompt(row, seed)
    assert len(prompt) == prompt_tokens
    assert all(FIRST_TOKEN_ID <= token < VOCAB_SIZE for token in prompt)
    assert prompt == _prompt(row, seed)


def test_equal_hashes_are_equal_tokens_and_the_rest_differs() -> None:
    a = _prompt(_row("a", 14, (1, 2, 3)))
    b = _prompt(_row("b", 14, (1, 2, 9)))
    assert a[:8] == b[:8]
    assert a[8:12] != b[8:12]
    assert a[12:] != b[12:]


def test_hashes_of_the_answer_are_no_part_of_the_prompt() -> None:
    assert len(_prompt(_row("a", 6, (1, 2, 3)))) == 6


def test_prompts_without_hashes_share_nothing() -> None:
    assert _prompt(_row("a", 12, None))[:4] != _prompt(_row("b", 12, None))[:4]
    assert _prompt(_row("a", 12, None)) != _prompt(_row("a", 12, None), seed=1)
