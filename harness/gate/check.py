"""The gate: every scenario of a suite simulated and judged. `servetwin check` is a thin skin over `check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from harness.descriptions.inputs import sources_digest
from harness.gate.baseline import Baseline, Stored, baseline_text, read_baseline
from harness.gate.canary import judge_canary
from harness.gate.drift import judge_drift
from harness.gate.fidelity import judge_fidelity
from harness.gate.inputs import changes, other_tolerances, with_inputs
from harness.gate.observe import Observed, observe
from harness.gate.suite import Entry, Suite, read_suite
from harness.gate.tolerance import Tolerance, parse_fail_on
from harness.gate.verdict import Checked, InputChange, ScenarioCheck, Since, Status, Verdict
from traces.errors import InputError


def check(
    suite_path: Path,
    *,
    fail_on: Sequence[str] = (),
    overrides: Sequence[str] = (),
    update_baseline: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Checked:
    """Check a suite: fidelity against its captures, drift and canary against its baseline. Writes nothing.

    Args:
        suite_path: its file.
        fail_on: `FIGURE:TOLERANCE` of every scenario with a capture, over the suite's.
        overrides: of every scenario's keys.
        update_baseline: why what is found becomes the new baseline; None: it does not. What drift and canary would
            fail is accepted then; fidelity is not.
        progress: told the name of each scenario before it is simulated.

    Raises:
        InputError: suite, scenario, capture or baseline cannot be used; no baseline is there yet.
        EngineError: vLLM's own scheduler is asked for and is not there.
    """
    suite = read_suite(suite_path)
    asked = parse_fail_on(fail_on)
    if asked and not any(entry.capture for entry in suite.entries):
        raise InputError("has no effect: no scenario of the suite has a capture", field="--fail-on")
    baseline = _baseline(suite, update_baseline, overrides)
    observed = {}
    for entry in suite.entries:
        progress(entry.name)
        found = observe(_with(entry, asked), overrides)
        observed[entry.name] = replace(found, stored=with_inputs(found.stored, entry, overrides))
    before, sources = {} if baseline is None else baseline.scenarios, f"sha256:{sources_digest()}"
    scenarios = [
        _judged(_with(entry, asked), observed[entry.name], suite, before, overrides, asked) for entry in suite.entries
    ]
    scenarios += [_lost(name) for name in before if name not in observed]
    updated = None
    if update_baseline is not None and suite.baseline is not None:
        stored = {name: each.stored for name, each in observed.items()}
        updated = suite.baseline, baseline_text(stored, update_baseline, sources)
        scenarios = [_accepted(scenario, update_baseline) for scenario in scenarios]
    since = None if baseline is None else _since(baseline, sources)
    return Checked(suite_path.name, version("servetwin"), tuple(scenarios), update_baseline, updated, since)


def _since(baseline: Baseline, sources: str) -> Since:
    return Since(baseline.version, baseline.reason, None if baseline.sources is None else baseline.sources == sources)


def _baseline(suite: Suite, update: str | None, overrides: Sequence[str]) -> Baseline | None:
    """What is to be compared with; None where the suite names no baseline, or it is to be made."""
    if update is None:
        if suite.baseline is not None and not suite.baseline.exists():
            accepted = '--update-baseline "why" makes one'
            raise InputError("there is no baseline yet", file=suite.baseline, accepted=accepted)
        return None if suite.baseline is None else read_baseline(suite.baseline)
    if suite.baseline is None:
        raise InputError("the suite names no baseline", file=suite.path, field="--update-baseline")
    if overrides:
        message = "a baseline is of the suite as it is written"
        raise InputError(message, field="--update-baseline", accepted="no --set beside it")
    if not update.strip():
        raise InputError(field="--update-baseline", found=update, accepted="the reason, in words")
    return read_baseline(suite.baseline) if suite.baseline.exists() else None


def _with(entry: Entry, asked: Mapping[str, Tolerance]) -> Entry:
    return entry if entry.capture is None else replace(entry, fidelity={**entry.fidelity, **asked})


def _judged(
    entry: Entry,
    observed: Observed,
    suite: Suite,
    baseline: Mapping[str, Stored],
    overrides: Sequence[str],
    asked: Mapping[str, Tolerance],
) -> ScenarioCheck:
    verdicts: list[Verdict] = []
    inputs: tuple[InputChange, ...] = ()
    tolerances: tuple[InputChange, ...] = ()
    notes = list(observed.notes)
    before, now = baseline.get(entry.name), observed.stored
    if observed.validation is not None:
        same = before is not None and before.inputs.get("capture") == now.inputs["capture"]
        verdicts += judge_fidelity(observed.validation, entry.fidelity, before.errors if same and before else {})
    failed = {verdict.figure for verdict in verdicts if verdict.status is Status.FAILED}
    if before is not None:
        verdicts += judge_drift(now, before, entry.drift, entry.drift_default)
        verdicts += judge_canary(now, before)
        inputs, tolerances = changes(now, before, overrides), other_tolerances(entry, before, asked, failed)
        kept = {"keys of the scenario": before.keys, "tolerances": before.tolerances}
        if lacking := [what for what, value in kept.items() if value is None]:
            notes.append(f"the baseline keeps no {' and no '.join(lacking)}: --update-baseline makes one that does")
    elif suite.baseline is not None:
        verdicts.append(Verdict("drift", "scenario", Status.NEW, why="the baseline does not know it"))
    return ScenarioCheck(entry.name, tuple(verdicts), tuple(notes), inputs, tolerances)


def _lost(name: str) -> ScenarioCheck:
    why = "lost: the baseline knows it, the suite does not have it"
    return ScenarioCheck(name, (Verdict("drift", "scenario", Status.FAILED, why=why),))


def _accepted(scenario: ScenarioCheck, reason: str) -> ScenarioCheck:
    """The same once the baseline has been updated."""
    verdicts = tuple(
        replace(verdict, status=Status.ACCEPTED, why=f"accepted: {reason}")
        if verdict.status is Status.FAILED and verdict.gate != "fidelity"
        else verdict
        for verdict in scenario.verdicts
    )
    return replace(scenario, verdicts=verdicts)
