"""The gate inside a test suite: the fixture `servetwin_check`, which pytest finds once servetwin is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from harness.gate.verdict import Checked


class Check(Protocol):
    """What `servetwin_check` gives."""

    def __call__(self, suite: str | Path, *, fail_on: Sequence[str] = (), overrides: Sequence[str] = ()) -> Checked:
        """Check a suite, its path relative to the test's file; the test fails when the check does."""
        ...


@pytest.fixture
def servetwin_check(request: pytest.FixtureRequest) -> Check:
    """`servetwin_check("suite.yaml", fail_on=["ttft.p99:10%"])` fails the test as `servetwin check` would exit."""

    def checked(suite: str | Path, *, fail_on: Sequence[str] = (), overrides: Sequence[str] = ()) -> Checked:
        from harness.gate.causes import failures
        from harness.gate.check import check
        from traces.errors import ServetwinError

        try:
            found = check(request.path.parent / suite, fail_on=fail_on, overrides=overrides)
        except ServetwinError as error:
            pytest.fail(f"servetwin: {error}", pytrace=False)
        if not found.passed:
            pytest.fail(failures(found), pytrace=False)
        return found

    return checked
