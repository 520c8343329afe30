"""A browser for the pages. Where there is none the tests that need it are skipped, and the run says so at its end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOW = "apt-get install chromium, or: .venv/bin/playwright install --with-deps chromium"
LOADED = "document.readyState === 'complete'"


def executable(playwright: Any) -> str | None:
    """The system's Chromium, or the one that Playwright installed."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).exists() else None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, for the tests of one module: it must be gone before others run a loop of their own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = executable(playwright)
        if path is None and os.environ.get("SERVETWIN_BROWSER") == "required":
            pytest.fail(f"no Chromium: {HOW}")
        if path is None:
            pytest.skip("no Chromium")
        # As root, which containers are, Chromium has no sandbox.
        started = playwright.chromium.launch(executable_path=path, chromium_sandbox=False)
        yield started
        started.close()


@dataclass
class Opened:
    """A page in the browser, and what went on meanwhile."""

    page: Any
    said: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def drawn(self, chart: str) -> list[dict[str, Any]]:
        """The traces of a chart as Plotly holds them, once it is scrolled to: kind, name, points, colour."""
        self.page.locator(f"#chart-{chart}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#chart-{chart} .main-svg")
        return self.page.evaluate(  # type: ignore[no-any-return]
            """name => document.getElementById('chart-' + name)._fullData.map(t => ({
                type: t.type, name: t.name, points: (t.x ?? []).length, colour: (t.line ?? t.marker ?? {}).color}))""",
            chart,
        )

    def axis(self, chart: str) -> str:
        return str(self.page.evaluate("n => document.getElementById('chart-' + n)._fullLayout.xaxis.type", chart))


Open = Callable[..., Opened]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page's HTML from a file, as a reader does."""
    contexts = []

    def open_page(html: str, **options: Any) -> Opened:
        file = tmp_path / f"page{len(contexts)}.html"
        file.write_text(html, encoding="utf-8")
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        found = Opened(contexts[-1].new_page())
        found.page.on("console", lambda message: found.said.append(message.text))
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("request", lambda request: found.requested.append(request.url))
        found.page.goto(file.as_uri())
        found.page.wait_for_function(LOADED)
        return found

    yield open_page
    for context in contexts:
        context.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly that pages were not opened."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "no Chromium" in str(report.longrepr)]
    if skipped:
        terminalreporter.write_sep("!", f"{len(skipped)} tests of HTML pages were skipped: no Chromium", yellow=True)
        terminalreporter.write_line(HOW)
