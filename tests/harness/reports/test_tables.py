"""Tables as files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.reports.tables import write_table
from tests.harness.reports.runs import run
from traces.errors import InputError
from traces.frames import requests_frame


def test_a_table_comes_back(tmp_path: Path) -> None:
    assert write_table(run(), "requests", tmp_path / "requests.csv") == 60
    read = pd.read_csv(tmp_path / "requests.csv", dtype={"request_id": str}).set_index("request_id")
    assert read["e2el_s"].tolist() == requests_frame(run())["e2el_s"].tolist()
    assert write_table(run(), "steps", tmp_path / "steps.parquet") == len(run().steps)  # type: ignore[arg-type]
    assert "duration_s" in pd.read_parquet(tmp_path / "steps.parquet")
    write_table(run(), "series", tmp_path / "series.csv")
    assert (tmp_path / "series.csv").read_text().startswith("time_s,output_tokens_per_s,")


@pytest.mark.parametrize(
    ("of", "name", "message"),
    [
        ("request", "a.csv", "'--of': found 'request': accepted: requests, steps, series"),
        ("requests", "a.xlsx", "accepted: a name that ends in .csv or .parquet"),
        ("steps", "a.csv", "has no steps: they were not recorded"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path: Path, of: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_table(replace(run(), steps=None), of, tmp_path / name)
    assert not (tmp_path / name).exists()
