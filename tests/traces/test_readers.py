"""Other tools' traces: each file is read as it says, a damaged copy refused where it is damaged or read aright."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.traces.mutations import N_COPIES, read_copies
from tests.traces.samples import SAMPLES, Sample, Says, served
from traces.errors import InputError
from traces.formats import TRACE_FORMATS, read_any_trace, stream_trace
from traces.trace import Trace

OF_THE_WHOLE_FILE = ("holds no requests", "is empty", "no such file")


def said(trace: Trace) -> Says:
    return served([(row.arrival_s, row.prompt_tokens, row.output_tokens) for row in trace.rows])


def agrees(found: Says, expected: Says) -> bool:
    return [(p, o) for _, p, o in found] == [(p, o) for _, p, o in expected] and all(
        abs(a[0] - b[0]) <= 1e-9 * max(1.0, b[0]) for a, b in zip(found, expected, strict=True)
    )


def test_there_is_a_sample_of_every_format() -> None:
    names = [name for name in TRACE_FORMATS if name != "sharegpt"]  # it needs a tokenizer: test_sharegpt.py
    assert [sample.name for sample in SAMPLES] == names


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_sample_is_told_and_read(tmp_path: Path, sample: Sample) -> None:
    path = tmp_path / "trace"
    path.write_text(sample.text)
    first = next(line for line in sample.text.encode().splitlines() if line.strip())
    assert [name for name, known in TRACE_FORMATS.items() if known.fits(first)] == [sample.name]
    trace = read_any_trace(path)
    assert agrees(said(trace), sample.naive(sample.text))
    assert trace.sha256 == read_any_trace(path, sample.name).sha256
    assert trace.notes or sample.name == "servetwin"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_damaged_copy_is_refused_where_it_is_damaged_or_read_aright(tmp_path: Path, sample: Sample) -> None:
    refused = 0
    path = tmp_path / "trace"
    for copy, found in read_copies(sample.text.encode(), lambda path: read_any_trace(path, sample.name), path):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path), (copy, str(found))
            assert found.line is not None or any(text in str(found) for text in OF_THE_WHOLE_FILE), (copy, str(found))
        else:
            expected = sample.naive(copy.decode())
            assert agrees(said(found), expected), (copy, said(found), expected)
    assert refused > N_COPIES / 4


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_damaged_copy_is_told_as_what_it_is_or_refused(tmp_path: Path, sample: Sample) -> None:
    path = tmp_path / "trace"
    for copy, found in read_copies(sample.text.encode(), read_any_trace, path):
        if isinstance(found, InputError):
            assert found.file == str(path), (copy, str(found))
        else:
            assert agrees(said(found), sample.naive(copy.decode())), copy


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_stream_gives_the_same_rows(tmp_path: Path, sample: Sample) -> None:
    path = tmp_path / "trace"
    path.write_text(sample.text)
    whole = read_any_trace(path)
    if any("sorted" in note for note in whole.notes):
        with pytest.raises(InputError, match="ascending order"):
            list(stream_trace(path))
    else:
        assert tuple(stream_trace(path)) == whole.rows
