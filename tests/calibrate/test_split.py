"""Parts of captures: who is in, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.split import parse_split
from tests.calibrate.synthetic import bundled
from traces.errors import InputError


def chosen(text: str) -> tuple[np.ndarray, np.ndarray]:
    subject = bundled("saturated")
    split = parse_split(text)
    return split.requests(subject.measured, subject.name), split.steps(subject.measured, subject.name)


def test_first_is_by_arrival_and_its_steps_saw_nobody_else() -> None:
    requests, steps = chosen("first:0.33")
    capture = bundled("saturated").measured
    arrivals_s = np.array([outcome.arrival_s for outcome in capture.outcomes])
    assert requests.sum() == round(0.33 * len(arrivals_s))
    assert arrivals_s[requests].max() <= arrivals_s[~requests].min()
    assert capture.steps is not None
    assert capture.steps.end_s[steps].max() < arrivals_s[~requests].min()


def test_time_is_of_arrivals_and_of_whole_steps() -> None:
    requests, steps = chosen("time:5:10")
    capture = bundled("saturated").measured
    assert capture.steps is not None
    for outcome, own in zip(capture.outcomes, requests, strict=True):
        assert own == (5 <= outcome.arrival_s < 10)
    assert capture.steps.scheduled_s[steps].min() >= 5
    assert capture.steps.end_s[steps].max() <= 10


def test_load_counts_the_others_in_the_engine() -> None:
    requests, steps = chosen("load:0:4")
    capture = bundled("saturated").measured
    assert capture.steps is not None
    for outcome, own in zip(capture.outcomes, requests, strict=True):
        others = sum(
            other.arrival_s < outcome.arrival_s and (other.finish_s or np.inf) > outcome.arrival_s
            for other in capture.outcomes
        )
        assert own == (others <= 4)
    assert ((capture.steps.n_running + capture.steps.n_waiting)[steps] <= 4).all()


def test_a_capture_is_all_in_or_all_out() -> None:
    assert all(mask.all() for mask in chosen("capture:saturated-1"))
    assert not any(mask.any() for mask in chosen("capture:other"))
    assert all(mask.all() for mask in chosen("all"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "first",
        "first:0",
        "first:1.1",
        "first:x",
        "time:5",
        "time:9:5",
        "load:-1:2",
        "load:1:nan",
        "capture:",
        "part:2",
    ],
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="first:SHARE"):
        parse_split(text)
