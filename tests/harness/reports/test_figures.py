"""Pictures: one per chart, always the same bytes, and a message where Matplotlib is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from harness.reports.chart import Cells, Chart
from harness.reports.figures import drawn, figures
from tests.harness.reports.runs import compared, run
from tests.harness.reports.test_report import write_validation
from traces.capture import write_capture
from traces.errors import InputError

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    write_capture(run(), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_every_format_is_written_and_always_the_same(captured: Path, tmp_path: Path, format: str) -> None:
    pytest.importorskip("matplotlib")
    files = figures([captured], tmp_path / "figures", format)
    assert all(file.read_bytes().startswith(MAGIC[format]) for file in files)
    again = figures([captured], tmp_path / "again", format)
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
    assert "`stages." in (tmp_path / "figures" / "captions.md").read_text()


def test_a_validation_is_drawn_whole(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = write_validation(compared(), tmp_path / "check")
    names = {file.stem for file in figures([folder], tmp_path / "figures")}
    assert {"errors", "scatter-ttft_s", "distribution-e2el_s", "series-n_running", "stages", "worst"} <= names


def test_counts_by_cell_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    edges = np.geomspace(1, 10, 4)
    chart = Chart("cells", "", "x", "y", (Cells("", "measured", edges, edges, np.eye(3)),), "log", "log")
    assert drawn(chart).axes[0].get_xscale() == "log"


def test_without_matplotlib_the_message_names_the_extra(
    captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install '\.\[figures\]'"):
        figures([captured], tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_what_cannot_be_drawn_is_refused(captured: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'--format': found 'gif': accepted: png, svg, pdf"):
        figures([captured], tmp_path / "figures", "gif")
    (tmp_path / "results.csv").write_text("point\n0\n")
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="nothing that is drawn"):
        figures([tmp_path], tmp_path / "figures")
