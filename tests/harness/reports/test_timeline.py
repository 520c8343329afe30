"""The timeline holds every step and request, in slices that nest as Perfetto asks."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.deploy.unprofiled import deploy_calibrated
from harness.descriptions.scenario import read_scenario
from harness.reports.timeline import REQUESTS, STEPS, Cut, timeline, write_timeline
from harness.running.predicted import run as simulate_deployed
from tests.harness.reports.runs import compared, run
from traces.errors import InputError
from traces.formats import read_any_trace
from traces.outcome import Outcome, Status

Event = dict[str, Any]


def slices(events: list[Event], name: str = "") -> list[Event]:
    return [event for event in events if event["ph"] == "X" and event["name"].startswith(name)]


def ends(event: Event) -> int:
    return int(event["ts"] + event["dur"])


def test_every_step_is_there_with_its_batch() -> None:
    capture = run()
    steps = [event for event in slices(timeline(capture)) if event["tid"] == STEPS]
    assert capture.steps is not None
    assert len(steps) == len(capture.steps)
    assert steps[0]["name"] == "prefill 20"
    assert steps[0]["args"]["batch"] == "0: 20"
    assert ends(steps[-1]) == round(capture.steps.end_s[-1] * 1e6)


def test_a_requests_stages_are_inside_it_and_touch() -> None:
    capture = run()
    events = timeline(capture)
    (whole,) = slices(events, "request 7")
    at = events.index(whole)
    queue, prefill, decode = events[at + 1 : at + 4]
    assert [event["name"] for event in (queue, prefill, decode)] == ["queue", "prefill", "decode"]
    assert whole["ts"] == queue["ts"]
    assert (ends(queue), ends(prefill), ends(decode)) == (prefill["ts"], decode["ts"], ends(whole))
    assert whole["args"]["prompt_tokens"] == capture.outcomes[7].prompt_tokens


def test_slices_of_a_thread_never_overlap() -> None:
    outer = [event for event in slices(timeline(run())) if event["name"] not in ("queue", "prefill", "decode")]
    by_thread: dict[tuple[int, int], list[Event]] = {}
    for event in outer:
        by_thread.setdefault((event["pid"], event["tid"]), []).append(event)
    for events in by_thread.values():
        assert all(ends(a) <= b["ts"] for a, b in pairwise(events))
    most = max(run().steps.n_running + run().steps.n_waiting)  # type: ignore[union-attr]
    assert len([thread for thread in by_thread if thread[1] >= REQUESTS]) <= most + 2


def test_processes_are_instances_and_requests_that_come_from_another_are_shown() -> None:
    scenario = read_scenario(Path(__file__).parents[3] / "docs" / "examples" / "prefill_decode.yaml")
    trace = read_any_trace(scenario.trace_path)
    simulation, _ = simulate_deployed(deploy_calibrated(scenario, None, None), trace, record_batches=True)
    events = timeline(simulation.capture)
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["instance 0", "instance 1"]
    moved = [event for event in slices(events) if "from instance 0" in event["name"]]
    assert len(moved) == 90
    assert {event["pid"] for event in moved} == {1}
    assert all(event["dur"] > 0 for event in moved)


def test_counters_follow_queues_and_series() -> None:
    capture = compared().measured
    assert capture is not None
    counters = [event for event in timeline(capture) if event["ph"] == "C"]
    assert {event["name"] for event in counters} == {"requests", "KV blocks", "power_w"}
    assert set(counters[0]["args"]) == {"running", "waiting"}


def test_a_cut_leaves_out_what_is_over_and_what_has_not_begun() -> None:
    events = slices(timeline(run(), Cut(0.5, 0.6)))
    assert 0 < len(events) < len(slices(timeline(run())))
    assert all(event["ts"] <= 600_000 or event["name"] in ("prefill", "decode") for event in events)
    with pytest.raises(InputError, match=r"nothing happens in this time: found '1000 to inf s'"):
        timeline(run(), Cut(1000))


def test_a_request_that_only_its_client_saw_is_shown_by_the_clients_clock() -> None:
    seen = Outcome(
        request_id="a",
        status=Status.FINISHED,
        prompt_tokens=1,
        output_tokens=2,
        arrival_s=0.0,
        sent_s=1.0,
        client_first_token_s=2.0,
        client_finish_s=3.0,
    )
    capture = replace(run(), outcomes=(seen,), steps=None, series={})
    events = timeline(capture)
    assert events[0]["args"]["name"] == "requests of no known instance"
    assert [(e["name"], e["ts"], e["dur"]) for e in slices(events)] == [
        ("request a", 1_000_000, 2_000_000),
        ("decode", 2_000_000, 1_000_000),
    ]


def test_a_request_that_was_refused_has_no_stages() -> None:
    refused = msgspec.structs.replace(
        run().outcomes[0], status=Status.REJECTED, scheduled_s=None, first_token_s=None, finish_s=None
    )
    events = slices(timeline(replace(run(), outcomes=(refused,), steps=None, series={})), "")
    assert [(event["name"], event["dur"], event["args"]["status"]) for event in events] == [
        ("request 0", 0, "rejected")
    ]


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_the_file_is_json_and_always_the_same(tmp_path: Path, name: str) -> None:
    n_events = write_timeline(run(), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    value = json.loads(gzip.decompress(data) if name.endswith("gz") else data)
    assert len(value["traceEvents"]) == n_events
    assert value["otherData"]["model"] == "model"
    write_timeline(run(), tmp_path / f"again.{name}")
    assert (tmp_path / f"again.{name}").read_bytes() == data
    with pytest.raises(InputError, match="already exists"):
        write_timeline(run(), tmp_path / name)
