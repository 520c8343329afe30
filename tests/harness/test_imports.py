"""What a command imports: packages that take longer to import than a run takes are left alone where it needs none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.demo import BUNDLED
from tests.harness.scenarios import write_scenario

SLOW = {"pandas", "scipy", "asyncio", "plotly", "matplotlib"}


def imported(*arguments: str) -> set[str]:
    """Those of `SLOW` that a command has imported when it ends."""
    code = (
        "import sys; from harness.cli import main\n"
        "try: main()\n"
        f"except SystemExit as end: assert not end.code; print('imported', *({SLOW!r} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(ran.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("command", ["simulate", "validate"])
def test_a_run_imports_nothing_that_takes_longer_than_it(command: str, tmp_path: Path) -> None:
    if command == "simulate":
        arguments = [str(write_scenario(tmp_path))]
    else:
        capture = next(iter(sorted((BUNDLED / "captures").glob("light*"))))
        arguments = [str(BUNDLED / "light.yaml"), "--capture", str(capture)]
    assert imported(command, *arguments, "--out", str(tmp_path / "out")) == set()
