"""Keys of a scenario set one by one, in mappings and in lists; and how far a study is, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.descriptions.scenario import read_scenario, set_key
from harness.sweeps.cli import progress_text
from harness.sweeps.points import read_inputs
from harness.sweeps.trials import Progress
from tests.harness.scenarios import write_scenario
from traces.errors import InputError


def test_a_number_is_an_item_of_a_list(tmp_path: Path) -> None:
    scenario = read_scenario(write_scenario(tmp_path), ["cluster.instances.0.count=3"])
    assert isinstance(scenario.file.cluster, dict)
    assert scenario.file.cluster["instances"][0]["count"] == 3


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("b.2", "found '2': accepted: an item of a list of 2"),
        ("b.-1", "found '-1'"),
        ("b.x", "found 'x'"),
        ("a.b.c", "found 'a': accepted: a key that holds a mapping"),
    ],
)
def test_a_key_that_leads_nowhere_is_refused(key: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        set_key({"a": 1, "b": [1, 2]}, key, 0, field="--set")


def test_points_share_nothing_of_what_they_set(tmp_path: Path) -> None:
    inputs = read_inputs(write_scenario(tmp_path))
    instance: dict[str, Any] = {"model": "test/tiny", "device": "TESTGPU"}
    first = inputs.scenario({"cluster": {"instances": [instance]}, "cluster.instances.0.count": 3})
    assert isinstance(first.file.cluster, dict)
    assert first.file.cluster["instances"][0]["count"] == 3
    assert "count" not in instance
    assert "count" not in inputs.document.value["cluster"]["instances"][0]


def test_progress_says_what_is_left() -> None:
    assert progress_text(Progress(10), 5.0) == "0 of 10 points"
    assert progress_text(Progress(10, n_done=6, n_known=2, n_failed=1), 8.0) == "6 of 10 points, 1 failed, 8 s left"
    assert progress_text(Progress(10, n_done=10), 8.0) == "10 of 10 points"
