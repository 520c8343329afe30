"""KV transfers of a capture: read as written, and refused where they contradict themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.traces.mutations import N_COPIES, read_copies
from traces.capture import Capture, read_capture, write_capture
from traces.errors import InputError
from traces.outcome import Outcome
from traces.transfers import TRANSFER_COLUMNS, transfers_from_columns

COLUMNS: dict[str, list[float]] = {
    "request": [1, 0],
    "source": [0, 0],
    "target": [1, 2],
    "n_bytes": [4096.0, 0.0],
    "start_s": [2.0, 1.0],
    "under_way_s": [2.5, 1.25],
    "end_s": [3.0, 1.25],
}


@pytest.fixture
def sent(served: Callable[..., Outcome], captured: Callable[..., Capture]) -> Capture:
    """Two requests, whose KV was sent to two instances."""
    return replace(captured([served("0"), served("1")]), transfers=transfers_from_columns(COLUMNS))


def test_they_are_kept_in_the_order_of_their_ends(sent: Capture, tmp_path: Path) -> None:
    write_capture(sent, tmp_path / "capture")
    back = read_capture(tmp_path / "capture").transfers
    assert back is not None
    for name in TRANSFER_COLUMNS:
        np.testing.assert_array_equal(getattr(back, name), COLUMNS[name][::-1])
    assert len(back) == 2
    assert back.chosen([True, False]).target.tolist() == [2]


def test_a_capture_without_them_has_no_file_of_them(sent: Capture, tmp_path: Path) -> None:
    write_capture(replace(sent, transfers=None), tmp_path / "capture")
    assert not (tmp_path / "capture" / "transfers.parquet").exists()
    assert read_capture(tmp_path / "capture").transfers is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"under_way_s": [3.5, 1.25]}, "under_way_s"),
        ({"start_s": [2.6, 1.0]}, "under_way_s"),
        ({"end_s": [float("nan"), 1.25]}, "under_way_s"),
        ({"n_bytes": [-1.0, 0.0]}, "n_bytes"),
        ({"n_bytes": [4096.0]}, "differ in length"),
    ],
)
def test_what_contradicts_itself_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        transfers_from_columns({**COLUMNS, **changed})


def test_a_transfer_of_a_request_that_is_not_there_is_refused(sent: Capture, tmp_path: Path) -> None:
    wrong = transfers_from_columns({**COLUMNS, "request": [2, 0]})
    write_capture(replace(sent, transfers=wrong), tmp_path / "capture")
    with pytest.raises(InputError, match=r"transfers\.parquet: field 'request': accepted: 0 to 1"):
        read_capture(tmp_path / "capture")


def test_a_damaged_file_is_refused_by_name_or_read(sent: Capture, tmp_path: Path) -> None:
    write_capture(sent, tmp_path / "capture")
    path = tmp_path / "capture" / "transfers.parquet"
    refused = 0
    for _, found in read_copies(path.read_bytes(), lambda at: read_capture(at.parent), path, text=False):
        if isinstance(found, InputError):
            refused += 1
            assert found.file == str(path)
    assert 0 < refused <= N_COPIES
