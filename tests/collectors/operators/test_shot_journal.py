"""What was measured survives the run that measured it, and the next one goes on behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from collectors.operators.budget import Plan
from collectors.operators.measure import run_passes
from collectors.operators.samples import Answer
from collectors.operators.shot_journal import Found, Planned, Recorded, ShotJournal, shot_journal
from collectors.operators.shots import Shot
from tests.collectors.operators.shot_answers import answer
from traces.errors import InputError

SHOTS = (Shot(1, 0, 0, 0), Shot(0, 0, 1, 16), Shot(8, 0, 0, 0))
IDENTITY = {"--budget-s": "100.0", "packages": {"vllm": "0.32.0"}}


class Killed(BaseException):
    """Stands in for a signal that no code sees."""


class Device:
    """Answers shots; dies at one of them."""

    def __init__(self, dies_at: int | None = None, shot_s: float = 1.0) -> None:
        self.asked: list[tuple[Shot, int]] = []
        self.now_s = 0.0
        self._dies_at, self._shot_s = dies_at, shot_s

    def fire(self, shot: Shot, warm_ups: int) -> Answer:
        if len(self.asked) == self._dies_at:
            raise Killed
        self.asked.append((shot, warm_ups))
        self.now_s += self._shot_s
        return answer(shot)

    def clock(self) -> float:
        return self.now_s


def run(out: Path, device: Device, budget_s: float = 100.0, passes: int = 4, tp: int = 1) -> Recorded:
    """A run as `measure_profile` makes one, without an engine; gives what is recorded at its end."""
    with shot_journal(out, IDENTITY) as journal:
        if tp not in journal.recorded.by_tp:
            journal.keep(Planned(tp, Plan(SHOTS, passes=passes, pass_s=3.0, every=1)))
        run_passes(budget_s, tp, journal, device.fire, clock=device.clock)
        return journal.recorded


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = Device(dies_at=7), Device()
    with pytest.raises(Killed):
        run(tmp_path / "p", first)
    assert (tmp_path / "p.recording" / "shots.jsonl").is_file()
    recorded = run(tmp_path / "p", second)
    assert len(first.asked) + len(second.asked) == 4 * len(SHOTS)
    assert [len(samples.step_us) for samples in recorded.by_tp[1].samples.values()] == [4, 4, 4]
    assert Counter(shot for shot, warm_ups in second.asked if warm_ups) == Counter(SHOTS)  # each is warmed up again
    assert not (tmp_path / "p.recording").exists()


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "p", Device(dies_at=5))
    file = tmp_path / "p.recording" / "shots.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    second = Device()
    run(tmp_path / "p", second)
    assert len(second.asked) == 4 * len(SHOTS) - 4


def test_the_budget_counts_what_earlier_runs_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "p", Device(dies_at=7), budget_s=9.5)
    second = Device()
    run(tmp_path / "p", second, budget_s=9.5)
    assert 7 + len(second.asked) == 3 * len(SHOTS)
    assert "3 passes of 4" in capsys.readouterr().err


def test_a_device_slower_than_estimated_still_gets_the_fewest_passes(tmp_path: Path) -> None:
    device = Device(shot_s=100.0)
    run(tmp_path / "p", device, budget_s=10.0)
    assert len(device.asked) == 3 * len(SHOTS)


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({**IDENTITY, "--budget-s": "90.0"}, r"shots.jsonl:1: field '--budget-s': differs: found '90.0'.*'100.0'"),
        ({**IDENTITY, "packages": {"vllm": "0.33.0"}}, r"field 'packages': differs: .*0.33.0.*0.32.0"),
        ({**IDENTITY, "cpu": "new"}, r"field 'cpu': differs: found 'new'"),
    ],
)
def test_another_measurement_is_refused_and_told_apart(
    tmp_path: Path, identity: dict[str, object], message: str
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "p", Device(dies_at=2))
    before = (tmp_path / "p.recording" / "shots.jsonl").read_bytes()
    with pytest.raises(InputError, match=message), shot_journal(tmp_path / "p", identity):
        pass
    assert (tmp_path / "p.recording" / "shots.jsonl").read_bytes() == before
    run(tmp_path / "p", Device())


def test_a_run_that_measured_nothing_leaves_nothing(tmp_path: Path) -> None:
    """Neither one whose input is refused, nor one killed before it had a plan, is in the way of the next."""
    with pytest.raises(InputError), shot_journal(tmp_path / "p", IDENTITY):
        raise InputError("the budget is too small")
    assert not (tmp_path / "p.recording").exists()
    folder = tmp_path / "p.recording"
    folder.mkdir()
    (folder / "shots.jsonl").write_text('{"kind":"header","schema":"servetwin.shots/1","identity":{"cpu":"old"}}\n')
    with shot_journal(tmp_path / "p", IDENTITY) as journal:
        assert journal.recorded.by_tp == {}


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with (
        shot_journal(tmp_path / "p", IDENTITY),
        pytest.raises(InputError, match="another run is measuring"),
        shot_journal(tmp_path / "p", IDENTITY),
    ):
        pass


def damaged(change: Callable[[list[str]], list[str]], out: Path) -> None:
    with pytest.raises(Killed):
        run(out, Device(dies_at=2))
    file = out.with_name("p.recording") / "shots.jsonl"
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], *lines[2:]], r"shots.jsonl:2: a shot stands before the plan"),
        (lambda lines: [lines[0], "{", *lines[2:]], r"shots.jsonl:2: is not JSON"),
        (
            lambda lines: [lines[0].replace("shots/1", "shots/9"), *lines[1:]],
            r"shots.jsonl:1: field 'schema': found 'servetwin.shots/9'",
        ),
    ],
)
def test_a_damaged_journal_is_named(change: Callable[[list[str]], list[str]], message: str, tmp_path: Path) -> None:
    damaged(change, tmp_path / "p")
    with pytest.raises(InputError, match=message):
        run(tmp_path / "p", Device())


def test_degrees_and_facts_are_kept_apart(tmp_path: Path) -> None:
    def measure(journal: ShotJournal, dies: bool) -> None:
        for tp in (1, 2):
            if tp not in journal.recorded.by_tp:
                journal.keep(Planned(tp, Plan(SHOTS[:tp], passes=3, pass_s=3.0, every=1)))
            run_passes(100.0, tp, journal, Device(dies_at=2 if dies and tp == 2 else None).fire)
        journal.keep(Found("engine", {"name": "made up"}))

    with pytest.raises(Killed), shot_journal(tmp_path / "p", IDENTITY) as journal:
        measure(journal, dies=True)
    with shot_journal(tmp_path / "p", IDENTITY) as journal:
        assert {tp: measured.n_shots for tp, measured in journal.recorded.by_tp.items()} == {1: 3, 2: 2}
        measure(journal, dies=False)
        assert {tp: measured.n_shots for tp, measured in journal.recorded.by_tp.items()} == {1: 3, 2: 6}
        assert journal.recorded.found == {"engine": {"name": "made up"}}
