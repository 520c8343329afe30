"""The gate: every scenario of a suite simulated and judged. `servetwin check` is a thin skin over `check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from harness.descriptions.inputs import sources_digest
from harness.gate.baseline import Baseline, Stored, baseline_text, read_baseline
from harness.gate.canary import judge_canary
from harness.gate.change import judge_change
from harness.gate.drift import judge_drift
from harness.gate.fidelity import judge_fidelity
from harness.gate.figures import OF_CHANGE
from harness.gate.inputs import changes, other_tolerances, with_inputs
from harness.gate.observe import Observed, observe, with_changes
from harness.gate.suite import Entry, Suite, read_suite
from harness.gate.tolerance import Tolerance, parse_fail_on
from harness.gate.verdict import MEASURED, Checked, InputChange, ScenarioCheck, Since, Status, Verdict
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
        fail_on: `FIGURE:TOLERANCE` of every scenario with a capture, over the suite's; `change.FIGURE:TOLERANCE` of
            every scenario that is a change of another.
        overrides: of every scenario's keys.
        update_baseline: why what is found becomes the new baseline; None: it does not. What drift and canary would
            fail is accepted then; fidelity and changes are not.
        progress: told the name of each scenario before it is simulated.

    Raises:
        InputError: suite, scenario, capture or baseline cannot be used; no baseline is there yet.
        EngineError: vLLM's own scheduler is asked for and is not there.
    """
    suite = read_suite(suite_path)
    asked = parse_fail_on(fail_on)
    _check_asked(asked, suite)
    baseline = _baseline(suite, update_baseline, overrides)
    observed: dict[str, Observed] = {}
    for entry in suite.entries:
        progress(entry.name)
        found = observe(_with(entry, asked), overrides)
        observed[entry.name] = replace(found, stored=with_inputs(found.stored, entry, overrides))
    observed = {entry.name: with_changes(entry, observed) for entry in suite.entries}
    before, sources = {} if baseline is None else baseline.scenarios, f"sha256:{sources_digest()}"
    scenarios = [_judged(_with(entry, asked), observed, suite, before, overrides, asked) for entry in suite.entries]
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


def _check_asked(asked: Mapping[str, Tolerance], suite: Suite) -> None:
    """Raise InputError for a `--fail-on` without effect."""
    of_change = [name for name in asked if name.startswith(OF_CHANGE)]
    if len(of_change) < len(asked) and not any(entry.capture for entry in suite.entries):
        raise InputError("has no effect: no scenario of the suite has a capture", field="--fail-on")
    if of_change and not any(entry.change_from for entry in suite.entries):
        message = "has no effect: no scenario of the suite has change_from"
        raise InputError(message, field=f"--fail-on {of_change[0]}")


def _with(entry: Entry, asked: Mapping[str, Tolerance]) -> Entry:
    """The scenario with what `--fail-on` asks for over its own tolerances."""
    if entry.capture is None:
        return entry
    own = {name: tolerance for name, tolerance in asked.items() if not name.startswith(OF_CHANGE)}
    fidelity = {**entry.fidelity, **own}
    if entry.change_from is None:
        return replace(entry, fidelity=fidelity)
    of_change = {name.removeprefix(OF_CHANGE): asked[name] for name in asked if name not in own}
    return replace(entry, fidelity=fidelity, change={**entry.change, **of_change})


def _judged(
    entry: Entry,
    observed: Mapping[str, Observed],
    suite: Suite,
    baseline: Mapping[str, Stored],
    overrides: Sequence[str],
    asked: Mapping[str, Tolerance],
) -> ScenarioCheck:
    verdicts = _measured(entry, observed, baseline)
    inputs: tuple[InputChange, ...] = ()
    tolerances: tuple[InputChange, ...] = ()
    notes = list(observed[entry.name].notes)
    before, now = baseline.get(entry.name), observed[entry.name].stored
    failed = {verdict.name for verdict in verdicts if verdict.status is Status.FAILED}
    if before is not None:
        verdicts += judge_drift(now, before, entry.drift, entry.drift_default)
        verdicts += judge_canary(now, before)
        inputs, tolerances = changes(now, before, overrides), other_tolerances(entry, before, asked, failed)
        kept = {"keys of the scenario": before.keys, "tolerances": before.tolerances}
        if lacking := [what for what, value in kept.items() if value is None]:
            notes.append(f"the baseline keeps no {' and no '.join(lacking)}: --update-baseline makes one that does")
    elif suite.baseline is not None:
        verdicts.append(Verdict("drift", "scenario", Status.NEW, why="the baseline does not know it"))
    return ScenarioCheck(entry.name, tuple(verdicts), tuple(notes), inputs, tolerances, entry.change_from)


def _measured(entry: Entry, observed: Mapping[str, Observed], baseline: Mapping[str, Stored]) -> list[Verdict]:
    """The verdicts against what was measured; none without a capture. Errors before are of the same captures."""
    own = observed[entry.name]
    if own.validation is None:
        return []
    before = baseline.get(entry.name)
    if before is not None and not _same_capture(entry.name, observed, baseline):
        before = None
    verdicts = judge_fidelity(own.validation.result, entry.fidelity, {} if before is None else before.errors)
    if own.changes is None or entry.change_from is None:
        return verdicts
    of_same = (
        before is not None
        and (before.keys or {}).get("change_from") == entry.change_from
        and _same_capture(entry.change_from, observed, baseline)
    )
    errors = before.changes if before is not None and of_same else {}
    return verdicts + judge_change(own.changes, entry.change, errors if isinstance(errors, dict) else {})


def _same_capture(name: str, observed: Mapping[str, Observed], baseline: Mapping[str, Stored]) -> bool:
    before = baseline.get(name)
    return before is not None and before.inputs.get("capture") == observed[name].stored.inputs["capture"]


def _lost(name: str) -> ScenarioCheck:
    why = "lost: the baseline knows it, the suite does not have it"
    return ScenarioCheck(name, (Verdict("drift", "scenario", Status.FAILED, why=why),))


def _accepted(scenario: ScenarioCheck, reason: str) -> ScenarioCheck:
    """The same once the baseline has been updated."""
    verdicts = tuple(
        replace(verdict, status=Status.ACCEPTED, why=f"accepted: {reason}")
        if verdict.status is Status.FAILED and verdict.gate not in MEASURED
        else verdict
        for verdict in scenario.verdicts
    )
    return replace(scenario, verdicts=verdicts)
