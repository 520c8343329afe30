"""The notes that decide whether figures may be used are printed: each is made where it is made, and found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibrate.whole_step import Unpriced
from harness.cli import app
from harness.running.simulate import simulate_scenario
from harness.terminal.caveats import MOST_LINES, note_lines
from harness.terminal.summary import arrival_lines, unfinished_lines
from simulator.memory import memory_account
from simulator.scheduling.options import EngineOptions
from simulator.steps.correction import CorrectedModel
from simulator.steps.step_time import Overhead
from tests.calibrate.test_whole_step import fitted
from tests.harness.scenarios import EXAMPLES, write_scenario
from tests.simulator.plans import decode_plan
from tests.simulator.test_memory import small
from traces.capture import CaptureMeta

OUT = Path("run")


def lines_of(*notes: str, device: str = "D", model: str = "m") -> list[str]:
    meta = CaptureMeta(kind="simulated", engine="servetwin", device=device, model=model, clock="", notes=notes)
    return note_lines(meta, OUT)


def printed_of(scenario: Path, overrides: Sequence[str] = ()) -> list[str]:
    simulation, _ = simulate_scenario(scenario, overrides)
    return note_lines(simulation.capture.meta, OUT)


def test_steps_beyond_the_profile_stand_first_with_their_share(tmp_path: Path) -> None:
    first, *_ = printed_of(write_scenario(tmp_path))
    notes = simulate_scenario(tmp_path / "scenario.yaml")[0].capture.meta.notes
    assert any("priced beyond" in note for note in notes)
    assert first.startswith("note: ")
    assert "%) priced beyond the profile's measured range: " in first


def test_the_axis_with_the_largest_share_leads_and_others_follow() -> None:
    part = "steps priced beyond the profile's measured range"
    notes = f"2 of 73 {part}: experts: fewer reached", f"40 of 73 {part}: tokens", f"drafter: 1 of 100 {part}: heads"
    assert lines_of(*notes, "another") == [
        "note: 40 of 73 steps (54.8%) priced beyond the profile's measured range: tokens; experts: fewer reached "
        "(2.7%); drafter: heads (1.0%)",
        "1 more note in run/meta.json",
    ]


def test_steps_outside_of_what_was_fitted_are_found() -> None:
    model = fitted()[1].corrected(Unpriced())
    assert isinstance(model, CorrectedModel)
    model.count(decode_plan(4, 300), 5)
    model.count(decode_plan(100, 300), 2)
    (line,) = lines_of(*model.notes())
    assert line.startswith("note: 2 of 7 steps (28.6%) lie outside the range that the calibration was fitted on: ")
    assert "requests per step" in line


def test_operators_that_take_longer_than_their_whole_steps_are_told() -> None:
    usual, below = (Overhead(device_step_s=step_s, source="s").note() for step_s in (1e-3, -1e-3))
    assert lines_of(usual) == ["1 note in run/meta.json"]
    assert lines_of(below) == [f"note: {below}"]


def test_a_roofline_is_said_to_be_a_bound_and_blocks_to_be_predicted() -> None:
    bound, collectives, blocks, more = printed_of(EXAMPLES / "tensor_parallel.yaml")
    assert (
        bound
        == "note: a roofline from the datasheet, a bound and not a measurement; validated: a bound; against no run"
    )
    assert collectives.startswith("note: collectives of 2 ranks are not measured: ")
    assert blocks.startswith("note: 14429 KV blocks predicted: ")
    assert more.endswith(" more notes in run/meta.json")


@pytest.mark.skipif(not find_spec("aiconfigurator_core"), reason="needs the extra aiconfigurator")
def test_aiconfigurators_times_are_said_to_lack_the_host() -> None:
    first, *_ = printed_of(EXAMPLES / "aiconfigurator.yaml")
    assert first.startswith("note: operators of aiconfigurator-core ")
    assert "; no sampler, no host; validated: TPOT 18 % too fast" in first


def test_an_external_simulators_times_are_said_to_be_its() -> None:
    first, *_ = printed_of(EXAMPLES / "external_simulator.yaml")
    assert first.startswith("note: operators priced by the external simulator ")


def test_engines_that_are_not_alike_have_no_finding() -> None:
    note = "a roofline from the datasheet, a bound and not a measurement: 1 Tflop/s"
    assert lines_of(note, device="H100, H200") == [f"note: {note.partition(':')[0]}"]


def test_what_vllm_would_refuse_stands_before_all() -> None:
    options = EngineOptions(max_num_batched_tokens=64, max_num_seqs=4, enforce_eager=True, max_model_len=100_000)
    refused, blocks, *_ = lines_of(*memory_account(small(), "d", 3e6, options).notes())
    assert refused.startswith("note: vLLM would not start: ")
    assert " KV blocks predicted: " in blocks


def test_there_are_few_lines_and_every_note_is_counted() -> None:
    notes = [f"{n} KV blocks predicted: much" for n in range(9)]
    printed = lines_of(*notes, "3 requests rejected; their outcomes carry the reason")
    assert len(printed) == MOST_LINES + 1
    assert printed[-1] == "3 more notes in run/meta.json"
    assert lines_of() == []
    assert lines_of("another") == ["1 note in run/meta.json"]


def test_requests_that_did_not_finish_are_said_first() -> None:
    ended = {"finished": 148, "rejected": 249, "aborted": 3, "failed": 0}
    figures = {"n_requests": 400, "n_finished": 148, "requests": ended}
    (line,) = unfinished_lines(figures)
    assert line == "249 of 400 requests rejected, 3 aborted: the figures are of the 148 that finished"
    assert unfinished_lines({"n_requests": 1, "n_finished": 1, "requests": {"finished": 1, "rejected": 0}}) == []


def test_rates_stand_side_by_side() -> None:
    there = {"halfway": 5, "at_last_arrival": 19, "is_steady": False}
    figures = {"requests_offered_per_s": 2.0, "in_system": there, "metrics": {"requests_per_s": 1.5}}
    rates, growing = arrival_lines(figures)
    assert rates == "requests per second: 2 offered to the last arrival, 1.5 served to the last finish"
    assert growing.startswith("not steady: 19 requests in the system at the last arrival, 5 halfway")
    few = figures | {"in_system": {"halfway": 5, "at_last_arrival": 9, "is_steady": None}}
    _, untold = arrival_lines(few)
    assert untold.startswith(
        "too few requests to tell whether the engines kept up: 9 in the system at the last arrival, 5"
    )
    kept_up = figures | {"in_system": {"halfway": 5, "at_last_arrival": 6, "is_steady": True}, "n_requests": 21}
    drained = kept_up | {"metrics": {"requests_per_s": 1.5, "duration_s": 14.0}}
    assert arrival_lines(drained) == [
        rates,
        "steady: the engines kept up, 6 requests in the system at the last arrival, 5 halfway; served counts the 4 s "
        "after the last arrival too",
    ]
    # What is served no slower than it was offered needs no word, nor do requests that came last and did not finish.
    assert len(arrival_lines(kept_up | {"metrics": {"requests_per_s": 2.1, "duration_s": 10.0}})) == 1
    assert len(arrival_lines(kept_up | {"metrics": {"requests_per_s": 1.5, "duration_s": 9.0}})) == 1
    nothing = {"metrics": {"requests_per_s": None}, "in_system": there | {"is_steady": True}}
    assert arrival_lines(figures | nothing) == ["requests per second: 2 offered to the last arrival, none served"]
    assert arrival_lines(figures | {"requests_offered_per_s": None}) == []


def test_the_command_prints_them_below_its_table(tmp_path: Path) -> None:
    scenario, out = write_scenario(tmp_path), tmp_path / "run"
    words = ["simulate", str(scenario), "--out", str(out), "--set", "engine.max_model_len=150"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    figures = json.loads((out / "summary.json").read_text())
    n_rejected = figures["requests"]["rejected"]
    assert n_rejected > 0
    below = lines[next(i for i, line in enumerate(lines) if line.startswith(" decode time")) + 1 :]
    assert next(line for line in below if line.strip()).startswith(f"{n_rejected} of 40 requests rejected: ")
    assert any(line.startswith("requests per second: 100 offered") for line in below)
    assert any(line.startswith("note: ") and "priced beyond" in line for line in below)
    assert below[-1].endswith(f" in {out / 'meta.json'}")


def test_seats_and_tokens_that_nobody_states_are_told() -> None:
    unsaid = printed_of(EXAMPLES / "defaults.yaml")
    assert [line for line in unsaid if "vllm serve" in line] == [
        "note: defaults of vllm serve on H100 with 79.11 GiB, which nothing states otherwise: "
        "async_scheduling True, block_size 16, max_num_batched_tokens 8192, max_num_seqs 1024"
    ]
    stated = ["engine.max_num_seqs=256", "engine.max_num_batched_tokens=2048"]
    assert not any("vllm serve" in line for line in printed_of(EXAMPLES / "defaults.yaml", stated))
