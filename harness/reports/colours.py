"""The colours of roles, on light and on dark."""

from __future__ import annotations

from typing import Any

COLOURS: dict[str, dict[str, Any]] = {
    "light": {
        "text": "#1b1b1b",
        "back": "#ffffff",
        "grid": "#d5d8dd",
        "measured": "#0072b2",
        "simulated": "#d55e00",
        "reference": "#767676",
        "queue": "#cc79a7",
        "prefill": "#0072b2",
        "decode": "#009e73",
        "run": ["#0072b2", "#d55e00", "#007a5a", "#a0447c", "#7a5c00", "#4b4b4b"],
    },
    "dark": {
        "text": "#ececec",
        "back": "#16181c",
        "grid": "#3a3d44",
        "measured": "#56b4e9",
        "simulated": "#ff8c42",
        "reference": "#9a9a9a",
        "queue": "#e39cc4",
        "prefill": "#56b4e9",
        "decode": "#2fc79a",
        "run": ["#56b4e9", "#ff8c42", "#2fc79a", "#e39cc4", "#f0e442", "#c9c9c9"],
    },
}
"""Okabe and Ito's colours, lighter or darker as a background asks: apart for every kind of colour vision
(https://jfly.uni-koeln.de/color/), and at least 3 to 1 against it (WCAG 2.2, 1.4.11)."""


ROLES = len(COLOURS["light"]["run"])
"""Runs that have a colour each; further ones begin again, with the colours of the first."""


def colours(theme: str) -> dict[str, str]:
    """Colours by role: of side-by-side runs a role each, `run0` and so on."""
    found = {role: colour for role, colour in COLOURS[theme].items() if role != "run"}
    return {**found, **{f"run{i}": colour for i, colour in enumerate(COLOURS[theme]["run"])}}
