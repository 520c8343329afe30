"""Every wrong value gives one error that says where it stands, what it is and what would be accepted."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from traces.decoding import decode_json, decode_yaml, lines, read_bytes, read_columns
from traces.errors import InputError, nearest


class Part(msgspec.Struct, forbid_unknown_fields=True):
    tokens: Annotated[int, msgspec.Meta(ge=1)]
    time_s: float = 0.0


class Link(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["bus", "switch"]


class Whole(msgspec.Struct, forbid_unknown_fields=True):
    parts: list[Part]
    name: str = ""
    link: Link | None = None


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ('{"parts": [{"tokens": 1, "time_s": NaN}]}', "parts[0].time_s", "accepted: a finite number"),
        ('{"parts": [{"tokens": 1}, {"tokens": 1, "time_s": -Infinity}]}', "parts[1].time_s", "found -inf"),
        ('{"parts": [{"tokens": 1, "time_s": 1e999}]}', "parts[0].time_s", "found inf"),
        ('{"parts": [{"tokens": 0, "time_s": NaN}]}', "parts[0].time_s", "found nan"),
        ('{"parts": [{"tokens": -5}]}', "parts[0].tokens", "found -5: accepted: int >= 1"),
        ('{"parts": [{"tokens": 3.0}]}', "parts[0].tokens", "found 3.0: accepted: int"),
        ('{"parts": [{"tokens": true}]}', "parts[0].tokens", "found True: accepted: int"),
        ('{"parts": [{}]}', "parts[0].tokens", "is missing"),
        ('{"parts": [{"token": 1}]}', "parts[0].token", "'tokens' is the nearest known name"),
        ('{"parts": [{"tokens": 1}], "link": {}}', "link.kind", "is missing: accepted: bus, switch"),
        ('{"parts": 3}', "parts", "found 3"),
        ('{"parts": [', None, "is not JSON"),
        ('{"parts": [{"tokens": -5}], ', None, "is not JSON"),
        ("", None, "is not JSON"),
        ("[]", None, "accepted: a mapping with keys parts, name, link"),
        ('{"parts": [], "link": 3}', "link", "found 3: accepted: null, or a mapping with keys kind"),
    ],
)
def test_json_errors_name_the_field(text: str, field: str | None, said: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_json(text.encode(), Whole, file="a.jsonl", line=7)
    assert (caught.value.file, caught.value.line, caught.value.field) == ("a.jsonl", 7, field)
    assert said in str(caught.value)


class Nested(msgspec.Struct, forbid_unknown_fields=True):
    shares: dict[str, float] = {}
    parts: dict[str, Part] = {}
    steps: dict[int, list[dict[str, int]]] = {}
    kinds: dict[Literal["a", "b"], int] = {}
    either: int | dict[str, int] | None = None
    some: Annotated[dict[str, int], msgspec.Meta(min_length=1)] | None = None


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ('{"shares": {"one": 1, "two": "x", "three": "y"}}', "shares.two", "found 'x': accepted: float"),
        ('{"parts": {"a": {"tokens": 1}, "b": {"tokens": 0}}}', "parts.b.tokens", "found 0: accepted: int >= 1"),
        ('{"parts": {"a": {"tokens": 1}, "b": {"token": 1}}}', "parts.b.token", "'tokens' is the nearest known name"),
        ('{"parts": {"a": {"tokens": 1}, "b": {}}}', "parts.b.tokens", "is missing"),
        ('{"kinds": {"a": 1, "b": "x"}}', "kinds.b", "found 'x': accepted: int"),
        ('{"shares": {"one": 1, "two": []}}', "shares.two", "found []: accepted: float"),
        ('{"parts": {"a.b": 3}}', "parts.a.b", "found 3: accepted: a mapping with keys tokens, time_s"),
        ('{"steps": {"7": [], "9": [{"x": 1}, {"x": 1, "y": null}]}}', "steps.9[1].y", "accepted: int"),
        ('{"steps": {"7": [], "nine": []}}', "steps", "found 'nine': accepted: int"),
        ('{"kinds": {"a": 1, "c": 2}}', "kinds", "found 'c': accepted: a, b"),
        ('{"either": "x"}', "either", "found 'x': accepted: int | null, or a mapping"),
        ('{"some": {}}', "some", "found {}: accepted: a mapping of length >= 1"),
        ('{"shares": [1]}', "shares", "found [1]: accepted: a mapping"),
    ],
)
def test_errors_name_the_key_of_a_dictionary(tmp_path: Path, text: str, field: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_json(text.encode(), Nested, file="a.json")
    assert (caught.value.field, said in str(caught.value)) == (field, True), str(caught.value)
    path = tmp_path / "a.yaml"
    path.write_text(text.replace('"7"', "7").replace('"9"', "9"))
    with pytest.raises(InputError) as caught:
        decode_yaml(path, Nested)
    assert (caught.value.field or "").replace("[9]", ".9") == field  # a whole number is no text in YAML
    assert said in str(caught.value)
    assert caught.value.line == 1


def test_bytes_that_are_no_text_and_brackets_without_end_are_not_json() -> None:
    for data in (b'{"name": "\xff"}', b"[" * 100_000):
        with pytest.raises(InputError, match="is not JSON"):
            decode_json(data, Whole, file="a.json")


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("name: a\nparts:\n- tokens: 1\n  time_s: .nan\n", 4, "parts[0].time_s"),
        ("name: a\nparts:\n- tokens: 0\n", 3, "parts[0].tokens"),
        ("name: a\npart: []\n", 2, "part"),
        ("name: a\n", 1, "parts"),
        ("name: [\n", 2, None),
        ("- 1\n", None, None),
    ],
)
def test_yaml_errors_name_line_and_field(tmp_path: Path, text: str, line: int | None, field: str | None) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        decode_yaml(path, Whole)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), line, field)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: a\nparts: &all [*all]\n", 2, "an anchor holds its own alias"),
        ("name: a\nparts:\n- &one\n  tokens: {1: *one}\n", 3, "an anchor holds its own alias"),
        ("name: " + "[" * 5000 + "]" * 5000, None, "is nested too deeply"),
    ],
)
def test_yaml_without_end_is_refused(tmp_path: Path, text: str, line: int | None, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        decode_yaml(path, Whole)
    assert caught.value.line == line


def test_aliases_that_multiply_are_looked_at_once(tmp_path: Path) -> None:
    rows = ["a0: &a0 [1, 2, 3]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))]
    (tmp_path / "a.yaml").write_text("\n".join(rows))
    with pytest.raises(InputError, match="'a0': is unknown"):  # 9 to the 29th numbers, one by one, would take for ever
        decode_yaml(tmp_path / "a.yaml", Whole)


def test_an_unknown_name_is_told_what_it_begins_or_is_like() -> None:
    known = ["A100-80GB", "A100-SXM", "H100", "max_num_seqs"]
    assert nearest("A100", known) == "A100-80GB, A100-SXM"
    assert nearest("h10", known) == "'H100' is the nearest known name"
    assert nearest("max_seqs", known) == "'max_num_seqs' is the nearest known name"
    assert nearest("", known) == ", ".join(known)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "short.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    (tmp_path / "plain.gz").write_bytes(b"not packed")
    broken = bytearray(gzip.compress(bytes(range(256)) * 40))
    broken[30] ^= 0xFF
    (tmp_path / "broken.gz").write_bytes(bytes(broken))
    for name in ("none.json", ".", "short.gz", "plain.gz", "broken.gz"):
        with pytest.raises(InputError):
            read_bytes(tmp_path / name)


def test_blank_lines_are_counted_but_not_given() -> None:
    assert list(lines(b"a\n\n  \r\nb")) == [(1, b"a"), (4, b"b")]


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("", 1, "t"),
        ("t,watts\n1,2\n", 1, "power"),
        ("t,power\n1,2\n2,nan\n", 3, "power"),
        ("t,power\n1,2\n2,-1\n", 3, "power"),
        ("t,power\n1,2\n2,\n", 3, "power"),
        ("t,power\n1,2\n1,2\n", 3, "t"),
        ("t,power\n1,2\n2\n", 3, None),
    ],
)
def test_csv_errors_name_line_and_field(tmp_path: Path, text: str, line: int, field: str | None) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_columns(path, ("t", "power"))
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), line, field)


def test_csv_columns_stand_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("power,note,t\n5,x,1\n6,y,2\n")
    columns = read_columns(path, ("t", "power"))
    assert {name: column.tolist() for name, column in columns.items()} == {"t": [1, 2], "power": [5, 6]}
