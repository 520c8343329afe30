"""Our data-parallel balancer and its coordinator against vLLM's own, choice by choice, under one virtual clock."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from simulator.scheduling.rules import REFERENCE
from simulator.vllm_dp import Report, VllmBalancer
from traces.trace import TraceRow

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
ROW = TraceRow(request_id="r", arrival_s=0.0, prompt_tokens=64, output_tokens=8)
GAPS_MS = (1, 10, 30, 50, 70, 120, 400, 6000)


class Told:
    """A rank that says what it is given to say."""

    n_running = 0

    def __init__(self) -> None:
        self.n_waiting = 0
        self.reports: list[Report] = []

    def take_reports(self) -> list[Report]:
        reports, self.reports = self.reports, []
        return reports


def random_case(rng: random.Random, *, steps_together: bool) -> dict[str, Any]:
    """Requests and changed counts at random times; of ranks that step together several report at once.

    All times differ modulo 50 ms, of which the coordinator's intervals are multiples: nothing happens at the very
    moment of a word, where either order would be right.
    """
    n_ranks, now_ms, step = rng.randint(2, 4), 0, 0
    events: list[list[Any]] = []
    last = [(0, 0)] * n_ranks  # what a rank that has done nothing has told already
    for remainder in rng.sample(range(1, 50), 49):
        now_ms += 1 + int(rng.choice(GAPS_MS) * rng.random())
        now_ms += (remainder - now_ms) % 50
        if rng.random() < 0.5:
            events.append([now_ms, "send"])
            continue
        step += steps_together
        reporting = range(n_ranks) if steps_together else [rng.randrange(n_ranks)]
        for rank in reporting:
            counts = rng.randint(0, 6), rng.randint(0, 9)
            if counts != last[rank] and rng.random() < 0.7:
                last[rank] = counts
                events.append([now_ms, "report", rank, *counts, rng.random(), step])
    return {"n_ranks": n_ranks, "steps_together": steps_together, "events": events}


def our_choices(case: dict[str, Any], version: tuple[int, int] = REFERENCE) -> list[int]:
    """What our balancer chooses."""
    balancer = VllmBalancer(version, steps_together=case["steps_together"])
    ranks = [Told() for _ in range(case["n_ranks"])]
    chosen = []
    for time_ms, kind, *rest in case["events"]:
        time_s = time_ms / 1000
        if kind == "report":
            rank, waiting, running, kv_usage, _ = rest
            ranks[rank].reports.append(Report(time_s, False, waiting, running, kv_usage))
        else:
            chosen.append(balancer.choose(ROW, (), ranks, time_s))
            ranks[chosen[-1]].n_waiting += 1
    return chosen


def drawn_cases(*, steps_together: bool) -> list[dict[str, Any]]:
    """The same 400 every time."""
    rng = random.Random(0)
    return [random_case(rng, steps_together=steps_together) for _ in range(400)]


@pytest.fixture(scope="module")
def judged() -> dict[bool, list[list[int]]]:
    """What vLLM chooses in each case, of ranks that step together and of ranks that do not."""
    engine = ROOT / ".venv-engine" / "bin" / "python"
    if not engine.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    cases = [case for together in (True, False) for case in drawn_cases(steps_together=together)]
    ran = subprocess.run(
        [str(engine), str(ROOT / "tests" / "conformance" / "balancer.py")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    choices = json.loads(ran.stdout.splitlines()[-1])
    return {True: choices[:400], False: choices[400:]}


@pytest.mark.parametrize("steps_together", [True, False])
def test_it_chooses_as_vllm_s_own(judged: dict[bool, list[list[int]]], steps_together: bool) -> None:
    compared = 0
    for case, theirs in zip(drawn_cases(steps_together=steps_together), judged[steps_together], strict=True):
        assert our_choices(case) == theirs
        compared += len(theirs)
    assert compared > 8000
