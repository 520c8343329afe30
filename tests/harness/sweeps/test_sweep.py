"""Studies from outside: what they write, what they go on from, and what goes wrong in one point alone."""

from __future__ import annotations

import csv
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.running.simulate import simulate_scenario
from harness.sweeps.pareto import flat
from harness.sweeps.sweep import sweep
from harness.sweeps.trials import Progress
from tests.command_line import COMMAND, ok, servetwin
from tests.harness.sweeps.studies import DYING, WRITTEN, contents, points_of, reported, write_study, written
from traces.errors import InputError


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


def lines_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_every_point_is_what_simulate_says(study: Path, tmp_path: Path) -> None:
    swept = sweep(study, tmp_path / "out", workers=1)
    for point in points_of(swept):
        overrides = [f"{key}={value}" for key, value in point["overrides"].items()]
        _, figures = simulate_scenario(tmp_path / "scenario.yaml", overrides)
        del figures["wall_s"], figures["scenario"]
        assert flat(point["figures"]) == flat(figures)
    assert [tuple(point["overrides"].values()) for point in points_of(swept)] == [(2, 1), (2, 2), (8, 1), (8, 2)]


def test_the_folder_holds_tables_a_picture_and_the_record(study: Path, tmp_path: Path) -> None:
    swept = sweep(study, tmp_path / "out", workers=1)
    assert set(WRITTEN) < set(contents(tmp_path / "out"))
    rows = lines_of(tmp_path / "out" / "results.csv")
    assert [row["point"] for row in rows] == ["0", "1", "2", "3"]
    assert {float(row["e2el_s.p90"]) for row in rows} == {
        p["figures"]["metrics"]["e2el_s"]["p90"] for p in points_of(swept)
    }
    best = lines_of(tmp_path / "out" / "pareto.csv")
    assert [float(row["e2el_s.p90"]) for row in best] == sorted(float(row["e2el_s.p90"]) for row in best)
    assert {row["point"] for row in best} == {row["point"] for row in rows if row["is_front"] == "true"}


def test_workers_do_not_change_a_byte(study: Path, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        sweep(study, tmp_path / str(n), workers=n)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_a_study_goes_on_where_it_was(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(study, out, workers=1)
    first = contents(out)
    lost = sorted((out / "points").iterdir())[1:3]
    for file in lost:
        file.unlink()
    (out / "study.json").unlink()
    assert [now.n_known for now in reported(study, out)] == [1, 2, 2, 2]
    assert contents(out) == first
    assert reported(study, out)[-1] == Progress(4, n_done=4, n_known=4)
    assert contents(out) == first


def test_only_what_is_new_is_run(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(study, out, workers=1)
    write_study(tmp_path, "grid: {engine.max_num_seqs: [2, 4, 8], cluster.instances.0.count: [1, 2]}")
    assert reported(study, out)[-1] == Progress(6, n_done=6, n_known=4)


@pytest.mark.parametrize("name", ["requests.jsonl", "scenario.yaml", "profiles/tiny/dense.csv"])
def test_what_has_changed_is_run_again(name: str, study: Path, tmp_path: Path) -> None:
    sweep(study, tmp_path / "out", workers=1)
    file = tmp_path / name
    text = file.read_text()
    file.write_text(text + "seed: 1\n" if name == "scenario.yaml" else text.rstrip("\n").rpartition("\n")[0] + "\n")
    assert reported(study, tmp_path / "out")[-1].n_known == 0


def test_a_point_that_cannot_be_served_fails_alone(study: Path, tmp_path: Path) -> None:
    write_study(tmp_path, "grid: {cluster.instances.0.device: [TESTGPU, NOGPU]}\nobjectives: {ttft_s.p50: min}")
    out = tmp_path / "out"
    good, bad = points_of(sweep(study, out, workers=2))
    assert (good["reason"], good["is_front"]) == (None, True)
    assert "no profile of NOGPU" in bad["reason"]
    assert (bad["figures"], bad["is_feasible"], bad["is_front"]) == (None, None, False)
    assert reported(study, out)[-1] == Progress(2, n_done=2, n_known=2, n_failed=1)
    ran = servetwin("sweep", study, "--out", out)
    assert ran.returncode == 0
    assert "2 points, 2 of them from before: 1 on the front, 1 failed" in ran.stdout
    assert "point 1 failed:" in ran.stdout


def test_no_point_at_all_is_an_error_and_no_result(study: Path, tmp_path: Path) -> None:
    sweep(study, tmp_path / "out", workers=1)
    write_study(tmp_path, "grid: {cluster.instances.0.device: [A, B]}")
    ran = servetwin("sweep", study, "--out", tmp_path / "out")
    assert ran.returncode == 2
    assert "none of 2 points has figures; " in ran.stderr
    assert not set(WRITTEN) & set(contents(tmp_path / "out"))


def test_a_worker_that_dies_costs_its_point_once(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweeps_dying.py").write_text(DYING)
    monkeypatch.syspath_prepend(str(tmp_path))
    routers = "[round_robin, 'sweeps_dying:Dies', least_loaded]"
    write_study(
        tmp_path, f"grid: {{routing: {routers}, cluster.instances.0.count: [2, 3]}}\nobjectives: {{ttft_s.p50: min}}"
    )
    out = tmp_path / "out"
    reasons = [point["reason"] for point in points_of(sweep(study, out, workers=2))]
    died = "its process died (signal SIGKILL)"
    assert reasons == [None, None, died, died, None, None]
    # It may have been the machine: what died is tried again.
    assert reported(study, out)[-1] == Progress(6, n_done=6, n_known=4, n_failed=2)


WRONG = {
    "grid: {engine.max_num_seq: [1]}": "yaml:2: field 'grid': makes no scenario of engine.max_num_seq=1: .*num_seqs",
    "grid: {cluster.instances.3.count: [1]}": "found '3': accepted: an item of a list of 1, counted from 0",
    "grid: {seed: [1]}\nobjectives: {ttft_s.p98: min}": "yaml:3: field 'objectives.ttft_s.p98': is no figure: ",
    "grid: {seed: [1]}\nconstraints: {cost.total: {max: 1}}": "'constraints.cost.total': has no value: .* ask for cost",
    "grid: {seed: [1]}\nobjectives: {cost.currency: min}": "has no value: the scenario does not ask for cost",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_all_points_is_said_at_once(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=WRONG[text]):
        sweep(write_study(tmp_path, text), tmp_path / "out", workers=1)
    assert not set(WRITTEN) & set(contents(tmp_path / "out"))


def test_a_study_that_is_wrong_writes_nothing_and_removes_nothing(study: Path, tmp_path: Path) -> None:
    sweep(study, tmp_path / "out")
    before = contents(tmp_path / "out")
    wrong = write_study(tmp_path, "grid: {engine.max_num_seq: [1]}\nobjectives: {ttft_s.p50: min}")
    for out in ("out", "new"):
        with pytest.raises(InputError):
            sweep(wrong, tmp_path / out)
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_left_alone(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already exists: accepted: a new or empty folder, or a study's"):
        sweep(study, tmp_path / "profiles", workers=1)


def test_what_has_no_value_is_on_no_front_and_counted(tmp_path: Path) -> None:
    study = write_study(tmp_path, "grid: {engine.max_num_seqs: [4, 8]}")  # 40 requests have no 99th percentile
    swept = sweep(study, tmp_path / "out", workers=1)
    assert swept.record["front"] == []
    assert "2 points have no value of ttft_s.p99 and are on no front" in swept.record["notes"][0]


def test_a_point_outside_the_constraints_is_on_no_front(tmp_path: Path) -> None:
    text = "grid: {engine.max_num_seqs: [1, 16]}\nobjectives: {num_preemptions: min}\n"
    free = sweep(write_study(tmp_path, text), tmp_path / "free", workers=1)
    means = [point["figures"]["metrics"]["e2el_s"]["mean"] for point in points_of(free)]
    study = write_study(tmp_path, f"{text}constraints: {{e2el_s.mean: {{max: {sum(means) / 2}}}}}\n")
    limited = points_of(sweep(study, tmp_path / "limited", workers=1))
    assert [point["is_feasible"] for point in limited] == [mean < sum(means) / 2 for mean in means]
    assert [point["is_front"] for point in limited] == [point["is_feasible"] for point in limited]
    assert means[0] != means[1]


def test_constraints_have_columns_and_their_misses_are_counted(tmp_path: Path) -> None:
    text = "grid: {cluster.instances.0.count: [1, 2]}\nobjectives: {e2el_s.mean: min}\n"
    points = points_of(sweep(write_study(tmp_path, text), tmp_path / "out", workers=1))
    slow, fast = ((flat(p["figures"])["e2el_s.mean"], flat(p["figures"])["tpot_s.mean"]) for p in points)
    assert fast < slow
    between = f"constraints: {{tpot_s.mean: {{max: {(slow[1] + fast[1]) / 2}}}}}\n"
    printed = ok("sweep", write_study(tmp_path, text + between), "--out", tmp_path / "out")
    (header,) = (line for line in printed.splitlines() if "e2el_s.mean" in line)
    assert header.index("e2el_s.mean") < header.index("tpot_s.mean ≤")
    assert "2 points, 2 of them from before: 1 on the front, 1 beyond the constraints, 0 failed" in printed
    assert "the nearest" not in printed


def test_where_no_point_is_within_the_constraints_the_nearest_is_named(tmp_path: Path) -> None:
    text = "grid: {cluster.instances.0.count: [1, 2]}\nobjectives: {e2el_s.mean: min}\n"
    far = "constraints: {e2el_s.mean: {max: 1.0e-6}, n_finished: {min: 1}}\n"
    printed = ok("sweep", write_study(tmp_path, text + far), "--out", tmp_path / "out")
    assert "Points that no other beats" not in printed
    assert "2 points: 0 on the front, 2 beyond the constraints, 0 failed" in printed
    said = " ".join(printed.split())
    assert "the nearest is point 1, cluster.instances.0.count=2: e2el_s.mean" in said
    assert said.count("(wanted ≤ 1 µs)") == 1
    assert "n_finished" not in said


def test_one_point_is_one_point(tmp_path: Path) -> None:
    study = write_study(tmp_path, "grid: {engine.max_num_seqs: [4]}\nobjectives: {e2el_s.mean: min}\n")
    assert "1 point: 1 on the front, 0 failed" in ok("sweep", study, "--out", tmp_path / "out")


def test_a_trace_can_be_varied_too(tmp_path: Path) -> None:
    text = "grid: {trace: [requests.jsonl, other.jsonl]}\nobjectives: {ttft_s.p50: min}"
    study = write_study(tmp_path, text)
    lines = (tmp_path / "requests.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(lines[:21]))
    whole, part = points_of(sweep(study, tmp_path / "out", workers=2))
    assert whole["figures"]["n_requests"] == 40
    assert 0 < part["figures"]["n_requests"] < 40


def test_an_interrupt_leaves_what_is_done(tmp_path: Path) -> None:
    # So many that they last, however late a busy machine sends the signal.
    study = write_study(tmp_path, f"grid: {{seed: {list(range(4000))}}}\nobjectives: {{ttft_s.p50: min}}")
    out = tmp_path / "out"
    command = [*COMMAND, "sweep", str(study), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        while len(list(out.glob("points/*.json"))) < 3 and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "interrupted; what is done is kept" in said
    kept = len(list(out.glob("points/*.json")))
    assert 3 <= kept < 4000
    assert not set(WRITTEN) & set(contents(out))
    write_study(tmp_path, f"grid: {{seed: {list(range(kept + 2))}}}\nobjectives: {{ttft_s.p50: min}}")
    assert reported(study, out)[-1].n_known == kept


def is_running(process: str) -> bool:
    """Whether it is there, and more than a zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_end_with_the_command(tmp_path: Path) -> None:
    study = write_study(tmp_path, f"grid: {{seed: {list(range(400))}}}\nobjectives: {{ttft_s.p50: min}}")
    command = ["sweep", str(study), "--out", str(tmp_path / "out"), "--workers", "2"]
    with subprocess.Popen([*COMMAND, *command]) as running:
        while len(list((tmp_path / "out").glob("points/*.json"))) < 3 and running.poll() is None:
            time.sleep(0.01)
        workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        running.kill()
    assert len(workers) == 2
    for _ in range(3000):
        if not any(is_running(worker) for worker in workers):
            return
        time.sleep(0.01)
    pytest.fail("workers are left")


def test_the_command_prints_the_front_or_the_record(study: Path, tmp_path: Path) -> None:
    ran = servetwin("sweep", study, "--out", tmp_path / "out", "--workers", 1)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert "4 points: " in ran.stdout
    again = servetwin("sweep", study, "--out", tmp_path / "out", "--json")
    assert again.stdout.startswith("{")
    assert written(tmp_path / "out")["n_points"] == 4
    wrong = servetwin("sweep", study, "--out", tmp_path / "out", "--executor", "cloud")
    assert (wrong.returncode, wrong.stderr) == (2, "error: field '--executor': found 'cloud': accepted: local, ray\n")
