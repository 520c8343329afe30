"""The commands of docs/plan.md print what the page shows, and the answer that it draws from them follows."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from tests.pages import blocks, shown_and_printed

pytest.importorskip("aiconfigurator_core")

REQUESTS_PER_S = 20


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    for name, text in zip(("fleet.yaml", "study.yaml"), blocks("plan.md", "yaml"), strict=True):
        (tmp_path / name).write_text(text)
    shown, printed = shown_and_printed("plan.md", tmp_path, numbers=False)
    assert printed == shown
    engines = {}
    for row in csv.DictReader((tmp_path / "study" / "results.csv").read_text().splitlines()):
        if row["capacity"] == "highest":
            key = row["cluster.instances.0.device"], int(row["cluster.instances.0.tensor_parallel_size"])
            engines[key] = math.ceil(REQUESTS_PER_S / float(row["load.request_rate"]))
    assert engines["H100", 4] == 1
    assert engines["A100-80GB", 8] == 3
    assert engines["A100-80GB", 4] * 4 >= 3 * 8
    assert 3 * 8 * 1.4 > 3 * (4 * 2.5)
