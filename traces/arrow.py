"""Arrow's columns as numpy's arrays, without what Arrow imports for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = {"int64": np.int64, "double": np.float64}


def numpy_column(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A column as an array of its own, [n].

    Its own `to_numpy`, which does the same, imports pandas, which takes longer than to read most files: it is asked
    only for other types than int64 and double, and for columns with gaps.
    """
    kind = _NUMBERS.get(str(column.type))
    if kind is None or column.null_count:
        return np.asarray(column.to_numpy(zero_copy_only=False))
    pieces = [
        np.frombuffer(piece.buffers()[1], kind, len(piece), piece.offset * np.dtype(kind).itemsize)
        for piece in getattr(column, "chunks", [column])
        if len(piece)
    ]
    return np.concatenate([np.zeros(0, dtype=kind), *pieces])
