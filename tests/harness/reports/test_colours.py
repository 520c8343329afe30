"""Colours that carry meaning stand out from what is behind them."""

from __future__ import annotations

import pytest

from harness.reports.colours import COLOURS, colours


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", COLOURS)
def test_every_role_has_three_to_one(theme: str) -> None:
    """WCAG 2.2, 1.4.11."""
    found = colours(theme)
    back = luminance(found["back"])
    for role in set(found) - {"back", "grid", "text"}:
        most, least = sorted((luminance(found[role]), back), reverse=True)
        assert (most + 0.05) / (least + 0.05) >= 3, role


def test_both_themes_have_the_same_roles() -> None:
    assert colours("light").keys() == colours("dark").keys()
