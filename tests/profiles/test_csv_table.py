"""CSV tables: what is wrong is named, with the line on which it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from profiles.csv_table import read_csv
from traces.errors import InputError


def write(folder: Path, data: bytes) -> Path:
    file = folder / "t.csv"
    file.write_bytes(data)
    return file


def read_both(file: Path) -> None:
    table = read_csv(file, ["a", "b"])
    table.numbers("a", whole=True)
    table.numbers("b", above_0=True)


def test_columns_come_as_arrays_whatever_their_order(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, b"\xef\xbb\xbfname,b,a\r\nx,1e3,2\r\ny,4,0.5\r\n"), ["a", "b", "name"])
    assert table.numbers("a").tolist() == [2, 0.5]
    assert table.numbers("b").tolist() == [1000, 4]
    assert table.texts("name") == ["x", "y"]


def test_other_columns_are_read_only_when_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, b"a,b,c\n1,2,3\n")
    assert read_csv(file, ["b"], others=True).numbers("b").tolist() == [2]
    with pytest.raises(InputError, match=r"t.csv:1: field 'c': is unknown"):
        read_csv(file, ["a", "b"])


def test_an_optional_column_may_be_absent_and_have_gaps(tmp_path: Path) -> None:
    assert not read_csv(write(tmp_path, b"a\n1\n"), ["a"], optional=["b"]).has("b")
    table = read_csv(write(tmp_path, b"a,b\n1,\n2,3\n4,x\n"), ["a"], optional=["b"])
    with pytest.raises(InputError, match=r"t.csv:4: field 'b': found 'x'"):
        table.numbers("b", gaps=True)
    table = read_csv(write(tmp_path, b"a,b\n1,\n2,3\n"), ["a"], optional=["b"])
    np.testing.assert_array_equal(table.numbers("b", above_0=True, gaps=True), [np.nan, 3])
    with pytest.raises(InputError, match=r"t.csv:1: field 'c': is unknown: accepted: .*b"):
        read_csv(write(tmp_path, b"a,c\n1,2\n"), ["a"], optional=["b"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,x\n", "t.csv:2: field 'b': found 'x': accepted: a finite number above 0"),
        (b"a,b\n1,\n", "t.csv:2: field 'b': found ''"),
        (b"a,b\n1,2\n\n\n3,nan\n", "t.csv:5: field 'b': found nan"),
        (b"a,b\n1,inf\n", "t.csv:2: field 'b': found inf"),
        (b"a,b\n1,true\n", "t.csv:2: field 'b': found 'true'"),
        (b"a,b\n1,1_0\n", "t.csv:2: field 'b': found '1_0'"),
        (b"a,b\n1, 2\n", "t.csv:2: field 'b': found ' 2'"),
        (b"a,b\n1,0\n", "t.csv:2: field 'b': found 0.0"),
        (b"a,b\n1.5,1\n", "t.csv:2: field 'a': found 1.5: accepted: a whole number, 0 or above"),
        (b"a,b\n1,2\n\n3\n", "t.csv:4: Expected 2 columns, got 1"),
        (b"a,b\n1,2\n  \n", "t.csv:3: Expected 2 columns, got 1"),
        (b"a,b\n1,\xff\n", "t.csv:2: .*UTF8"),
        (b"\xff\n1\n", "t.csv:1: is not text"),
        (b"a,c\n1,2\n", "t.csv:1: field 'b': is missing"),
        (b"a,b,a\n1,2,3\n", "t.csv:1: field 'a': stands twice"),
        (b"a,b\n", "t.csv: holds no rows"),
        (b"", "t.csv:1: field 'a': is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_both(write(tmp_path, data))


def test_the_second_of_two_equal_rows_is_named(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, b"a,b\n9,9\n1,2\n\n1,3\n1,2\n9,9\n"), ["a", "b"])
    with pytest.raises(InputError, match=r"t.csv:6: field 'a, b': is measured twice"):
        table.check_unique(["a", "b"])
