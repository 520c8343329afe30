"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Tests leave nothing in the folder in which a user's compiled tables are kept.
os.environ.setdefault("SERVETWIN_CACHE", "off")


@pytest.fixture(scope="session")
def ground_truth() -> Path:
    """Measured data that is not part of the project; a test that needs it is skipped where it is absent."""
    path = Path(os.environ.get("SERVETWIN_GROUND_TRUTH", ROOT.parent / "shared" / "ground-truth"))
    if not path.is_dir():
        pytest.skip(f"no ground truth at {path}; point SERVETWIN_GROUND_TRUTH at it")
    return path
