"""ShareGPT with a tokenizer: answers become requests whose lengths and blocks are the text's; nothing of it is kept."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from typer.testing import CliRunner

from harness.cli import app
from tests.traces.mutations import N_COPIES, read_copies
from tests.traces.samples import SAMPLES
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.trace import Trace

SYSTEM = "You are a helpful assistant. Answer in short sentences."
TALKS: list[dict[str, Any]] = [
    {"id": "a", "conversations": [{"from": "system", "value": SYSTEM}, {"from": "human", "value": "What is a trace?"},
     {"from": "gpt", "value": "The requests to serve."}, {"from": "human", "value": "Is there text in it? Grüße"},
     {"from": "gpt", "value": "No, lengths only."}, {"from": "human", "value": "thanks"}]},
    {"id": "b", "conversations": [{"from": "system", "value": SYSTEM}, {"from": "user", "value": "What is a block?"},
     {"from": "assistant", "value": "Sixteen tokens,"}, {"from": "assistant", "value": " as a rule."}]},
    {"id": "c", "conversations": [{"from": "gpt", "value": "(continued)"}, {"from": "human", "value": "go on"},
     {"from": "gpt", "value": ""}, {"from": "human", "value": "please"}, {"from": "gpt", "value": "Well."}]},
    {"id": "d", "conversations": []},
]  # fmt: skip
TEXT = "[\n" + ",\n".join(json.dumps(talk) for talk in TALKS) + "\n]\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token for each byte of UTF-8; it would cut off, fill up and add special tokens if it were let."""
    model = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<s>"])
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", model.token_to_id("<s>"))]
    )
    model.enable_truncation(8)
    model.enable_padding(length=32)
    folder = tmp_path_factory.mktemp("model")
    model.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    (tmp_path / "talks.json").write_text(TEXT)
    return tmp_path / "talks.json"


def naive(text: str) -> list[tuple[str, int, int]]:
    """Session, prompt and output tokens by counting bytes."""
    found = []
    for number, talk in enumerate(json.loads(text)):
        before = spoken = 0
        turns = [(turn["from"] in ("gpt", "assistant"), len(turn["value"].encode())) for turn in talk["conversations"]]
        for (answers, tokens), (next_answers, _) in pairwise([*turns, (False, 0)]):
            spoken += tokens
            if answers and next_answers:
                continue
            if answers and before and spoken:
                found.append((str(number), before, spoken))
            before, spoken = before + spoken, 0
    return found


def said(trace: Trace) -> list[tuple[str, int, int]]:
    return [(row.session_id or "", row.prompt_tokens, row.output_tokens) for row in trace.rows]


def test_each_answer_is_a_request(talks: Path, tokenizer: Path) -> None:
    trace = read_any_trace(talks, tokenizer=tokenizer)
    assert said(trace) == naive(TEXT)
    assert [row.request_id for row in trace.rows] == ["0/0", "0/1", "1/0", "2/2"]
    assert [row.delay_s for row in trace.rows] == [None, 0.0, None, None]
    assert {row.arrival_s for row in trace.rows} == {0.0}
    assert trace == read_any_trace(talks, "sharegpt", tokenizer / "tokenizer.json")
    for note in (
        "1 conversations end without an answer: what was said last was left out",
        "1 answers stand in several turns: each was taken as one answer",
        "1 requests of 0 prompt tokens were left out: there is nothing to serve",
        "1 requests of 0 output tokens were left out: there is nothing to serve",
        "1 conversations without a turn were left out",
    ):
        assert note in trace.notes


def test_what_prompts_share_is_known_by_their_blocks(talks: Path, tokenizer: Path) -> None:
    first, second, other, last = (
        row.block_hashes or () for row in read_any_trace(talks, tokenizer=tokenizer).rows
    )  # fmt: skip
    same = SYSTEM + "What is a "
    assert len(first) == len((SYSTEM + "What is a trace?The requests to serve.").encode()) // 16
    assert second[: len(first)] == first
    assert [a == b for a, b in zip(first, other, strict=False)].count(True) == len(same) // 16
    assert not set(last) & {*second, *other}


def test_no_text_is_kept(talks: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    said = CliRunner().invoke(app, ["trace", "import", str(talks), "--tokenizer", str(tokenizer), "--out", str(out)])
    assert said.exit_code == 0, said.output
    assert len(read_any_trace(out)) == 4
    assert not any(word in out.read_text() for word in ("requests to serve", "helpful", '"a"'))


def test_sessions_begin_at_a_rate_if_asked(talks: Path, tokenizer: Path, tmp_path: Path) -> None:
    words = ["trace", "import", str(talks), "--tokenizer", str(tokenizer), "--rate", "0.5", "--seed"]
    runs = [
        CliRunner().invoke(app, [*words, seed, "--out", str(tmp_path / name)])
        for seed, name in (("3", "a"), ("3", "b"), ("4", "c"))
    ]
    assert [run.exit_code for run in runs] == [0, 0, 0]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    trace = read_any_trace(tmp_path / "a")
    start_s = {row.session_id: row.arrival_s for row in trace.rows}
    assert len(set(start_s.values())) == 3
    assert all(row.arrival_s == start_s[row.session_id] for row in trace.rows)
    assert any("3 sessions begin as a Poisson process of 0.5/s, seed 3" in note for note in trace.notes)


def test_what_is_missing_is_named(
    talks: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"--tokenizer.*--tokenizer PATH"):
        read_any_trace(talks)
    with pytest.raises(InputError, match="no such file"):
        read_any_trace(talks, tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="is no tokenizer"):
        read_any_trace(talks, tokenizer=tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"not installed.*'\.\[tokenizer\]'"):
        read_any_trace(talks, tokenizer=tokenizer)


def test_options_without_an_effect_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(next(sample.text for sample in SAMPLES if sample.name == "azure"))
    for words, field in ((["--tokenizer", str(tokenizer)], "--tokenizer"), (["--rate", "2"], "--rate")):
        result = CliRunner().invoke(app, ["trace", "import", str(tmp_path / "t"), *words, "--out", str(tmp_path / "o")])
        assert isinstance(result.exception, InputError)
        assert result.exception.field == field


def test_a_damaged_copy_is_refused_where_it_is_damaged_or_read_aright(tokenizer: Path, tmp_path: Path) -> None:
    refused, path = 0, tmp_path / "talks"
    texts = [json.dumps(TALKS) + "\n", TEXT]
    for text in texts:
        for copy, found in read_copies(
            text.encode(), lambda path: read_any_trace(path, "sharegpt", tokenizer), path, text=text is texts[0]
        ):
            if isinstance(found, InputError):
                refused += 1
                assert found.file == str(path), (copy, str(found))
                assert found.line is not None or "holds no requests" in str(found), (copy, str(found))
            else:
                assert said(found) == naive(copy.decode()), copy
    assert refused > N_COPIES / 2


def test_an_error_says_where_the_conversation_begins(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "talks"
    path.write_text(TEXT.replace('"user"', '"robot"'))
    with pytest.raises(InputError, match=r"talks:3: field 'conversations\[1\].from'.*robot.*accepted: assistant, bard"):
        read_any_trace(path, tokenizer=tokenizer)
