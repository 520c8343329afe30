"""docs/report.md shows what its commands print, and its Python runs."""

from __future__ import annotations

from pathlib import Path

from tests.pages import ROOT, blocks, shown_and_printed

PAGE = ROOT / "docs" / "report.md"


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    shown, printed = shown_and_printed("report.md", tmp_path, numbers=False)
    assert len(shown) > 15
    assert printed == shown
    assert (tmp_path / "check" / "measured" / "meta.json").is_file()


def test_its_python_runs() -> None:
    (block,) = blocks("report.md", "python")
    exec(compile(block, str(PAGE), "exec"), {})


def test_its_figures_are_those_of_the_code() -> None:
    from harness.reports import chart, latencies, over_time

    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"more than {chart.MOST_POINTS:,} values" in text
    assert f"than {latencies.MOST_DOTS:,} pairs the {latencies.FARTHEST} farthest" in text
    assert f"at most {over_time.MOST_WINDOWS} windows" in text
