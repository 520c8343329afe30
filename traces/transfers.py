"""KV of prompts on its way between two engines, as columns: one numpy array per fact, one entry per prompt.

Nothing is said of what was in it: bytes and times, and whose prompt it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.steps import Floats, Ints


@dataclass(frozen=True, slots=True)
class KVTransfers:
    """All transfers of a capture, ordered by end. Every column is [n]; times are seconds on the capture's clock.

    Attributes:
        request: index of its request in the capture's outcomes.
        source: instance that computed the prompt.
        target: instance that goes on with it.
        n_bytes: what was sent.
        start_s: when it was asked for; layer by layer, when the first of it left.
        under_way_s: when it was last seen unfinished; `end_s` where its very end is known.
        end_s: when all of it was seen to be there.
    """

    request: Ints
    source: Ints
    target: Ints
    n_bytes: Floats
    start_s: Floats
    under_way_s: Floats
    end_s: Floats

    def __len__(self) -> int:
        return len(self.end_s)

    def chosen(self, which: Any) -> KVTransfers:
        """Some of them, by a mask or by indices."""
        return KVTransfers(*(getattr(self, name)[which] for name in TRANSFER_COLUMNS))


TRANSFER_COLUMNS = tuple(field.name for field in fields(KVTransfers))
WHOLE_COLUMNS = ("request", "source", "target")


def transfers_from_columns(columns: Mapping[str, Any], file: Path | None = None) -> KVTransfers:
    """Transfers from one sequence per column, of `file` where they were read.

    Raises InputError for columns that differ in length, times out of order and bytes below 0.
    """
    arrays: dict[str, Any] = {
        name: np.asarray(columns[name], dtype=np.int64 if name in WHOLE_COLUMNS else np.float64)
        for name in TRANSFER_COLUMNS
    }
    found = KVTransfers(**arrays)
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = {name: len(array) for name, array in arrays.items()}
        raise InputError("columns differ in length", file=file, found=lengths)
    if not (found.start_s <= found.under_way_s).all() or not (found.under_way_s <= found.end_s).all():
        raise InputError(file=file, field="under_way_s", accepted="between start_s and end_s")
    if not (found.n_bytes >= 0).all():
        raise InputError(file=file, field="n_bytes", found=float(found.n_bytes.min()), accepted="at least 0")
    return found.chosen(np.lexsort((found.request, found.end_s)))
