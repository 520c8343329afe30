"""ShareGPT: a JSON list of conversations, as text. Their lengths and shared prefixes are those of a tokenizer.

    [{"id": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}, ...]

Each answer is a request, whose prompt is everything in the conversation before it. Neither text nor token ids are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from traces.arrivals import Rate, arrivals_s
from traces.decoding import decode_json, read_bytes, sha256
from traces.errors import InputError, installs
from traces.hashes import token_hashes
from traces.readers.source import Numbered, Source, whole
from traces.trace import Trace, TraceRow

BLOCK_SIZE = 16
"""Tokens per block hash: vLLM's default block."""
ANSWERS = ("gpt", "chatgpt", "assistant", "bing", "bard")
"""Who answers, in the copies of the data set that go round; everybody else asks."""


class _Turn(msgspec.Struct):
    from_: Literal["human", "user", "system", "gpt", "chatgpt", "assistant", "bing", "bard"] = msgspec.field(
        name="from"
    )
    value: str


class _Conversation(msgspec.Struct):
    conversations: list[_Turn]


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer that makes no special tokens, cuts nothing off and fills nothing up.

    Attributes:
        encode: the token ids of a text.
        source: its file.
        sha256: digest of that file.
    """

    encode: Callable[[str], list[int]]
    source: str
    sha256: str


def is_sharegpt(first_line: bytes) -> bool:
    """Whether a file that starts with this line is a JSON list, as no other trace is."""
    return first_line.lstrip(b"\xef\xbb\xbf \t").startswith(b"[")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of a model's folder with one. Raises InputError."""
    try:
        from tokenizers import Tokenizer as Model
    except ImportError:
        message = "a tokenizer needs the package tokenizers, which is not installed"
        raise InputError(message, field="--tokenizer", accepted=installs("tokenizer")) from None
    file = path / "tokenizer.json" if path.is_dir() else path
    data = read_bytes(file)
    try:
        model = Model.from_buffer(data)
    except Exception as error:  # the package raises this class itself
        raise InputError(f"is no tokenizer ({error})", file=file, accepted="a tokenizer.json of Hugging Face") from None
    model.no_truncation()
    model.no_padding()
    return Tokenizer(lambda text: list(model.encode(text, add_special_tokens=False).ids), str(file), sha256(data))


def read_sharegpt(path: Path, tokenizer: Path | None) -> Trace:
    """All conversations begin at second 0; a turn is sent when the answer before it is out. Raises InputError."""
    if tokenizer is None:
        accepted = "a tokenizer.json or a model's folder: servetwin trace import FILE --tokenizer PATH --out TRACE"
        raise InputError(
            "holds text, whose lengths are a tokenizer's", file=path, field="--tokenizer", accepted=accepted
        )
    loaded = load_tokenizer(tokenizer)
    return whole(path, lambda source: rows(source, loaded))


def rows(source: Source, tokenizer: Tokenizer) -> Iterator[Numbered]:
    """The answers of conversation 2 are requests "2/0", "2/1" and so on of session "2". Raises InputError."""
    source.hash_block_size = BLOCK_SIZE
    source.notes += [
        f"lengths and blocks of {BLOCK_SIZE} are of {tokenizer.source} ({tokenizer.sha256}), each turn by itself",
        "no chat template and no special tokens: a served prompt has a few tokens more in each turn",
        "no arrivals are recorded: every conversation begins at second 0",
        "a turn is sent as soon as the answer before it is out: how long a user takes is not recorded",
    ]
    for number, (line, conversation) in enumerate(_conversations(source)):
        ids, answers = _tokens(source, conversation, tokenizer)
        hashes = token_hashes(ids, BLOCK_SIZE)
        begun = False
        for turn, (start, end) in enumerate(answers):
            if source.empty(line, start, end - start):
                continue
            row = TraceRow(
                request_id=f"{number}/{turn}",
                arrival_s=0.0,
                prompt_tokens=start,
                output_tokens=end - start,
                block_hashes=hashes[: end // BLOCK_SIZE] or None,
                session_id=str(number),
                delay_s=0.0 if begun else None,
            )
            begun = True
            yield line, row


def with_rate(trace: Trace, rate: Rate, seed: int) -> Trace:
    """Sessions that begin at random (Poisson), so many a second; a request of no session is one by itself.

    Only for a trace whose arrivals are all at second 0: recorded ones are never replaced. Raises InputError.
    """
    if late := next((row for row in trace.rows if row.arrival_s > 0), None):
        accepted = "a trace without arrivals, or --speed"
        raise InputError(field="--rate", found=f"an arrival at second {late.arrival_s:g}", accepted=accepted)
    names = [(row.session_id is None, row.session_id or row.request_id) for row in trace.rows]
    starts = list(dict.fromkeys(names))
    times_s = arrivals_s(len(starts), rate, "poisson", None, np.random.default_rng(seed)).tolist()
    begin_s = dict(zip(starts, times_s, strict=True))
    moved = [msgspec.structs.replace(row, arrival_s=begin_s[name]) for row, name in zip(trace.rows, names, strict=True)]
    moved.sort(key=lambda row: row.arrival_s)
    note = f"{len(starts)} sessions begin as a Poisson process of {rate.mean_per_s:g}/s, seed {seed}"
    return Trace(tuple(moved), trace.hash_block_size, trace.source, trace.sha256, (*trace.notes, note))


def _tokens(
    source: Source, conversation: _Conversation, tokenizer: Tokenizer
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a whole conversation, and between which of them each answer stands."""
    ids: list[int] = []
    answers: list[tuple[int, int]] = []
    answered = True
    for answered, group in groupby(conversation.conversations, lambda turn: turn.from_ in ANSWERS):
        turns, start = list(group), len(ids)
        for turn in turns:
            ids += tokenizer.encode(turn.value)
        if answered:
            answers.append((start, len(ids)))
            if len(turns) > 1:
                source.counts["{n} answers stand in several turns: each was taken as one answer"] += 1
    if not answered:
        source.counts["{n} conversations end without an answer: what was said last was left out"] += 1
    if not conversation.conversations:
        source.counts["{n} conversations without a turn were left out"] += 1
    return ids, answers


def _conversations(source: Source) -> Iterator[tuple[int, _Conversation]]:
    """Each conversation, and the line on which it begins. Raises InputError."""
    source.digest_whole()
    data = read_bytes(source.path).removeprefix(b"\xef\xbb\xbf")
    at, line = 0, 1
    for raw in _listed(data, source.path):
        text = bytes(raw)
        start = data.index(text, at)
        line += data.count(b"\n", at, start)
        yield line, decode_json(text, _Conversation, file=source.path, line=line)
        at = start + len(text)
        line += data.count(b"\n", start, at)


def _listed(data: bytes, file: Path) -> list[msgspec.Raw]:
    try:
        return decode_json(data, list[msgspec.Raw], file=file)
    except InputError:
        return decode_json(data, list[msgspec.Raw], file=file, line=_broken_line(data))


def _broken_line(data: bytes) -> int:
    """The line on which a text stops being JSON; the first where that is JSON, but not a list."""
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        return error.lineno
    except UnicodeDecodeError as error:
        return 1 + data.count(b"\n", 0, error.start)
    except (ValueError, RecursionError):
        return 1
    return 1
