"""Arrow's columns as numpy's arrays: the same as Arrow's own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from traces.arrow import numpy_column


@pytest.mark.parametrize(
    "column",
    [
        pa.chunked_array([[1, 2], [], [3]], type=pa.int64()),
        pa.chunked_array([[0.5, float("nan")], [2.5]], type=pa.float64()),
        pa.chunked_array([], type=pa.int64()),
        pa.chunked_array([pa.array([1.0, 2.0, 3.0, 4.0]).slice(1, 2)]),
        pa.array([7, 8, 9], type=pa.int64()).slice(1),
        pa.chunked_array([[1, None]], type=pa.int64()),
        pa.chunked_array([[1, 2]], type=pa.int32()),
        pa.chunked_array([[True, False]]),
        pa.chunked_array([["a", "b"]]),
    ],
    ids=["int64", "double", "empty", "slice", "array", "gap", "int32", "bool", "texts"],
)
def test_a_column_is_the_array_that_arrow_makes_of_it(column: pa.ChunkedArray | pa.Array) -> None:
    own, arrows = numpy_column(column), column.to_numpy(zero_copy_only=False)
    assert own.dtype == arrows.dtype
    np.testing.assert_array_equal(own, arrows)


def test_an_array_is_ones_own() -> None:
    column = pa.chunked_array([[1, 2]], type=pa.int64())
    numpy_column(column)[0] = 5
    assert column.to_pylist() == [1, 2]
