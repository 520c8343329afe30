"""Where an instance's times are from: asked for by name, with the options of that name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.running.simulate import simulate_scenario
from tests.harness.scenarios import write_scenario
from traces.errors import InputError


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("source: guess", "source': found 'guess': accepted: aiconfigurator, external, measured, roofline"),
        ("source: external", "external': is missing: its command"),
        (
            "source: external, external: {comand: [a]}",
            "external.comand': is unknown: accepted: 'command' is the nearest",
        ),
        ("source: external, external: {command: []}", "external.command': found .*accepted: array of length >= 1"),
        ("source: external, external: {command: [a], timeout_s: 0}", "external.timeout_s': found 0"),
        ("source: aiconfigurator, aiconfigurator: {sytem: l40s}", "aiconfigurator.sytem': is unknown.*'system' is the"),
        ("source: roofline, aiconfigurator: {version: '1'}", "aiconfigurator': has no effect with source roofline"),
        ("external: {command: [a]}", "external': has no effect with source measured"),
        ("source: external, external: {command: [no-such-program]}", "field 'command': no such command"),
    ],
)
def test_what_is_asked_for_wrongly_is_named_with_its_line(tmp_path: Path, said: str, message: str) -> None:
    scenario = write_scenario(tmp_path, n_requests=2)
    text = scenario.read_text().replace("      device: TESTGPU\n", f"      device: TESTGPU\n      {{{said}}}\n")
    text = text.replace(
        "    - model: test/tiny\n      device: TESTGPU\n      {", "    - {model: test/tiny, device: TESTGPU, "
    )
    scenario.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        simulate_scenario(scenario)
    assert caught.value.line == 4


def test_a_measured_profile_is_what_counts_where_nothing_is_asked_for(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, n_requests=4)
    simulation, _ = simulate_scenario(scenario)
    again, _ = simulate_scenario(
        scenario, ["cluster.instances=[{model: test/tiny, device: TESTGPU, source: measured}]"]
    )
    assert simulation.capture.outcomes == again.capture.outcomes
    assert not any("roofline" in note for note in simulation.capture.meta.notes)
