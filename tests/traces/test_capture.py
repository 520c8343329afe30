"""The capture folder: what is written is read, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.traces.mutations import N_COPIES, read_copies
from traces.capture import Capture, Series, read_capture, write_capture
from traces.errors import InputError
from traces.outcome import Outcome, Status
from traces.steps import STEP_COLUMNS, Batches, steps_from_columns
from traces.trace import read_trace

Served = Callable[..., Outcome]
Captured = Callable[..., Capture]


@pytest.fixture
def full(served: Served, captured: Captured) -> Capture:
    """A capture with every optional part."""
    outcomes = [
        served("0", token_times_s=(3.0, 4.0, 5.0, 6.0, 7.0), cached_tokens=8, num_preemptions=0, reason="length"),
        served("1", status=Status.REJECTED, output_tokens=0, scheduled_s=None, first_token_s=None, finish_s=None),
    ]
    batches = Batches(np.array([0, 2, 2, 3]), np.array([0, 1, 0]), np.array([10, 4, 1]), np.array([0, 0, 10]))
    columns = {name: np.arange(3) for name in STEP_COLUMNS}
    capture = captured(outcomes, steps_from_columns(columns, batches), num_gpu_blocks=9, engine_options={"seed": 1})
    capture.series["power_w"] = Series(np.array([1.0, 2.0]), np.array([30.0, 31.5]))
    capture.series["kv_usage"] = Series(np.array([0.5]), np.array([0.25]))
    return capture


def test_a_capture_may_be_of_series_alone(tmp_path: Path, full: Capture) -> None:
    alone = replace(full, trace=replace(full.trace, rows=()), outcomes=(), steps=None, transfers=None)
    write_capture(alone, tmp_path / "capture")
    back = read_capture(tmp_path / "capture")
    assert (back.trace.rows, back.outcomes) == ((), ())
    assert sorted(back.series) == sorted(full.series)
    with pytest.raises(InputError, match="holds no requests"):
        read_trace(tmp_path / "capture" / "trace.jsonl.gz")


def test_what_is_written_is_read(tmp_path: Path, full: Capture) -> None:
    write_capture(full, tmp_path / "capture")
    back = read_capture(tmp_path / "capture")
    assert (back.meta, back.trace.rows, back.outcomes) == (full.meta, full.trace.rows, full.outcomes)
    assert back.steps is not None
    assert full.steps is not None
    for name in STEP_COLUMNS:
        np.testing.assert_array_equal(getattr(back.steps, name), getattr(full.steps, name))
    for name in ("offsets", "request", "new_tokens", "computed_tokens"):
        np.testing.assert_array_equal(getattr(back.steps.batches, name), getattr(full.steps.batches, name))
    assert sorted(back.series) == ["kv_usage", "power_w"]
    np.testing.assert_array_equal(back.series["power_w"].value, [30.0, 31.5])
    assert len(back.outcomes_frame()) == 2
    assert (frame := back.steps_frame()) is not None
    assert list(frame.columns) == list(STEP_COLUMNS)


def test_parts_that_were_not_recorded_stay_absent(tmp_path: Path, served: Served, captured: Captured) -> None:
    write_capture(captured([served()]), tmp_path / "capture")
    back = read_capture(tmp_path / "capture")
    assert (back.steps, back.series, back.steps_frame()) == (None, {}, None)
    assert sorted(path.name for path in (tmp_path / "capture").iterdir()) == [
        "meta.json",
        "outcomes.parquet",
        "trace.jsonl.gz",
    ]


def test_the_same_capture_is_the_same_bytes(tmp_path: Path, full: Capture) -> None:
    write_capture(full, tmp_path / "a")
    write_capture(full, tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_failing_write_leaves_nothing(tmp_path: Path, full: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(table: object, where: Path, **_: object) -> None:
        if where.name == "steps.parquet":
            raise OSError(28, "No space left on device")
        where.write_bytes(b"half")

    monkeypatch.setattr("pyarrow.parquet.write_table", full_disk)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        write_capture(full, tmp_path / "capture")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, full: Capture) -> None:
    (tmp_path / "capture").mkdir()
    write_capture(full, tmp_path / "capture")  # an empty folder may be filled
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "capture").iterdir())
    with pytest.raises(InputError, match="already exists"):
        write_capture(full, tmp_path / "capture")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "capture").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["capture"]


@pytest.mark.parametrize(
    ("damaged", "content", "said"),
    [
        ("meta.json", None, "is not a capture"),
        ("meta.json", b"{", "meta.json: is not JSON"),
        ("outcomes.parquet", None, "outcomes.parquet: cannot be read as Parquet"),
        ("outcomes.parquet", b"PAR1 no more", "outcomes.parquet: cannot be read as Parquet"),
        ("steps.parquet", b"", "steps.parquet: cannot be read as Parquet"),
        ("trace.jsonl.gz", None, "trace.jsonl.gz: no such file"),
    ],
)
def test_a_damaged_capture_is_refused(
    tmp_path: Path, full: Capture, damaged: str, content: bytes | None, said: str
) -> None:
    write_capture(full, tmp_path / "capture")
    path = tmp_path / "capture" / damaged
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_capture(tmp_path / "capture")


def test_a_capture_of_another_version_is_refused(tmp_path: Path, full: Capture) -> None:
    write_capture(full, tmp_path / "capture")
    path = tmp_path / "capture" / "meta.json"
    path.write_text(path.read_text().replace("servetwin.capture/1", "servetwin.capture/2"))
    with pytest.raises(InputError) as caught:
        read_capture(tmp_path / "capture")
    assert (caught.value.file, caught.value.field) == (str(path), "schema_version")


@pytest.mark.parametrize(
    "name", ["meta.json", "trace.jsonl.gz", "outcomes.parquet", "steps.parquet", "batches.parquet", "series.parquet"]
)
def test_a_damaged_file_is_refused_by_name_or_read(tmp_path: Path, full: Capture, name: str) -> None:
    write_capture(full, tmp_path / "capture")
    path = tmp_path / "capture" / name
    data, text = path.read_bytes(), path.suffix == ".json"
    if text:
        data = b" ".join(data.split())  # on one line, as values are changed there
    refused = 0
    for _, found in read_copies(data, lambda at: read_capture(at.parent), path, text=text):
        if isinstance(found, InputError):
            refused += 1
            assert found.file is not None
            assert Path(found.file).is_relative_to(tmp_path / "capture"), str(found)
    assert 0 < refused <= N_COPIES
