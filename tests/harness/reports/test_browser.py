"""The pages in a real browser: they draw, they answer, they ask nobody for anything."""

from __future__ import annotations

import pytest

from harness.reports.capture_page import capture_page
from harness.reports.captures_page import captures_page
from harness.reports.page import Page, Section, table
from harness.reports.side_by_side import validations_page
from harness.reports.sweep_page import Sweep, sweep_page
from harness.reports.validation_page import validation_page
from tests.harness.reports.conftest import Open
from tests.harness.reports.runs import calibration, compared, run
from traces.metrics import summary

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def validation() -> str:
    return validation_page(compared()).html()


def test_every_chart_of_a_validation_has_data(opened: Open, validation: str) -> None:
    page = opened(validation)
    names = page.page.evaluate(
        "Object.keys(CHARTS).filter(n => !document.getElementById('chart-' + n).closest('figure').hidden)"
    )
    assert {
        "errors",
        "distribution-ttft_s",
        "scatter-e2el_s",
        "series-power_w",
        "series-n_running",
        "stages",
        "worst",
    } <= {*names}
    for name in names:
        traces = page.drawn(name)
        assert traces
        assert all(trace["points"] for trace in traces), name
    assert {trace["name"] for trace in page.drawn("distribution-e2el_s")} == {"measured", "simulated"}
    assert page.said == []


def test_nothing_is_asked_of_anybody(opened: Open, validation: str) -> None:
    page = opened(validation)
    page.drawn("worst")
    assert [url.split("/")[-1] for url in page.requested] == ["page0.html"]


def test_charts_are_drawn_when_they_are_scrolled_to(opened: Open, validation: str) -> None:
    page = opened(validation)
    assert page.page.locator("#chart-worst .main-svg").count() == 0
    page.drawn("worst")
    assert page.page.locator("#chart-worst .main-svg").count() > 0


def test_the_theme_is_the_systems_until_a_reader_chooses(opened: Open, validation: str) -> None:
    page = opened(validation, color_scheme="dark")
    theme = "document.documentElement.dataset.theme"
    dark = page.drawn("distribution-ttft_s")[0]["colour"]
    assert page.page.evaluate(theme) == "dark"
    page.page.select_option("#theme", "light")
    assert page.page.evaluate(theme) == "light"
    assert page.drawn("distribution-ttft_s")[0]["colour"] != dark
    page.page.select_option("#theme", "auto")
    page.page.emulate_media(color_scheme="light")
    page.page.wait_for_function(f"{theme} === 'light'")


def test_a_keyboard_alone_reaches_the_controls(opened: Open, validation: str) -> None:
    page = opened(validation)
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.className") == "skip"
    page.drawn("distribution-ttft_s")
    page.page.focus("#log-times")
    page.page.keyboard.press("Space")
    assert page.axis("distribution-ttft_s") == "log"
    page.page.keyboard.press("Space")
    assert page.axis("distribution-ttft_s") == "linear"
    page.page.focus("#scattered")
    page.page.keyboard.press("ArrowDown")
    assert page.page.locator("#chart-scatter-e2el_s").is_hidden()
    assert page.drawn("scatter-ttft_s")[1]["points"] == 60


def test_a_phone_never_scrolls_sideways(opened: Open, validation: str) -> None:
    page = opened(validation, **PHONE)
    for name in ("errors", "worst"):
        page.drawn(name)
    assert page.page.evaluate("document.documentElement.scrollWidth") == 360


LONG = "cluster.instances.0.tensor_parallel_size"


def test_headers_break_where_a_table_would_be_too_wide_and_figures_do_not(opened: Open) -> None:
    names = [LONG, "ttft_s.p95 ≤ 150 ms", *(f"a header of several words {i}" for i in range(8))]
    text = Page("p", "", (Section("wide", table(names, [["12.34 ms"] * len(names)])),)).html()
    page = opened(text, viewport={"width": 1280, "height": 700})
    scroll = "(e => e.scrollWidth - e.clientWidth)(document.querySelector('.scroll'))"
    assert page.page.evaluate(scroll) == 0
    lines = "[...document.querySelectorAll('{}')].map(e => e.getClientRects().length && e.offsetHeight > 40)"
    assert page.page.evaluate(lines.format("th")).count(True) == len(names)
    assert not any(page.page.evaluate(lines.format("td")))


def test_paper_has_every_chart_in_light_colours(opened: Open, validation: str) -> None:
    page = opened(validation, color_scheme="dark")
    page.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.page.evaluate("document.documentElement.dataset.theme") == "light"
    page.page.wait_for_selector("#chart-worst .main-svg")
    assert page.page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert page.page.pdf().startswith(b"%PDF")
    page.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_text_is_readable_against_what_is_behind_it(opened: Open, validation: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    for scheme in ("light", "dark"):
        page = opened(validation, color_scheme=scheme)
        assert min(page.page.evaluate(CONTRASTS)) >= 4.5, scheme


CONTRASTS = """() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
    const [r, g, b] = parts.map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.startsWith('rgba(0, 0, 0, 0')) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('p, a, strong, b, span, th, td, dt, dd, li, figcaption, summary, label, select')]
    .map((element) => [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a))
    .map(([most, least]) => (most + 0.05) / (least + 0.05));
}"""


def test_a_capture_and_runs_side_by_side_are_drawn(opened: Open) -> None:
    one = run()
    page = opened(capture_page(one, summary(one)).html())
    assert [trace["name"] for trace in page.drawn("worst")] == ["queue time", "prefill time", "decode time"]
    assert page.said == []
    runs = {"slow": run(step_s=0.02), "fast": one}
    both = opened(captures_page(runs, {name: summary(capture) for name, capture in runs.items()}).html())
    assert [trace["name"] for trace in both.drawn("distribution-e2el_s")] == ["slow", "fast"]
    assert len({trace["colour"] for trace in both.drawn("series-n_running")}) == 2
    assert both.said == []


def test_validations_side_by_side_are_drawn(opened: Open) -> None:
    page = opened(validations_page({"monday": compared(), "tuesday": compared(40)}).html())
    assert [trace["name"] for trace in page.drawn("errors")] == ["monday", "tuesday"]
    assert page.said == []


def test_a_calibration_is_drawn(opened: Open) -> None:
    from harness.reports.calibration_page import calibration_page

    page = opened(calibration_page("fitted.json", calibration()).html())
    assert page.drawn("parameters")[0]["points"] == 12
    assert page.drawn("residuals")[0]["points"] == 1
    assert page.said == []


def test_a_sweeps_reader_chooses_axes_and_colours(opened: Open) -> None:
    cells = {
        "point": ["0", "1", "2", "3"],
        "engine.max_num_seqs": ["16", "32", "16", "32"],
        "routing": ["round_robin", "round_robin", "random", "random"],
        "ttft_s.mean": ["0.3", "0.2", "0.4", ""],
        "status": ["ok", "ok", "ok", "failed"],
    }
    numbers = {
        name: [float(c) if c else None for c in cells[name]] for name in ("point", "engine.max_num_seqs", "ttft_s.mean")
    }
    page = opened(sweep_page("study", Sweep(cells, numbers)).html())
    assert [trace["points"] for trace in page.drawn("explore")] == [4]
    page.page.select_option("#explore-x", "engine.max_num_seqs")
    page.page.select_option("#explore-colour", "routing")
    assert [(trace["name"], trace["points"]) for trace in page.drawn("explore")] == [("round_robin", 2), ("random", 2)]
    page.page.select_option("#explore-colour", "point")
    assert [trace["points"] for trace in page.drawn("explore")] == [4]
    assert page.said == []
