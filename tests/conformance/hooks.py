"""The step recorder and the stat logger inside many vLLM versions: what they write against what happened.

    .venv/bin/python -m tests.conformance.hooks [--scenarios 50] [--work out/conformance] [VERSION]...

prints a row for each version, as `tests.conformance.versions` does for our scheduler, and needs the same. The version's
own scheduler runs random scenarios with the recorder on it; of the stat logger it is told whether it takes a request
that ended from the version's own statistics.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from collectors.engine.stat_logger_package import write_stat_logger
from collectors.engine.stats_log import read_stats
from collectors.engine.step_file import Recording, read_recordings
from simulator.scheduling.oracle import Oracle
from simulator.scheduling.spec import SchedulerSpec
from tests.conformance.count import seeded_scenario
from tests.conformance.engine import ENGINE, ROOT
from tests.conformance.judge import QUIET
from tests.conformance.scenario import Scenario, State, states_of
from tests.conformance.versions import VERSIONS, fetched, fetched_extras
from traces.errors import CollectorError

COUNTED = ("scenarios", "steps", "requests", "preemptions", "aborts", "differing scenarios")
COLUMNS = ("vLLM", *COUNTED, "stat logger")


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description="Run the step recorder inside the schedulers of vLLM versions.")
    parser.add_argument("--scenarios", type=int, default=50, help="random scenarios for each version")
    parser.add_argument("--work", type=Path, default=Path("out/conformance"), help="where versions are kept")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    arguments = parser.parse_args()
    extras = fetched_extras(arguments.work)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for version in (None, *arguments.versions):
        paths = [] if version is None else [fetched(version, arguments.work), extras]
        row = hooked(arguments.scenarios, paths)
        cells = [f"{row[name]:,}" if isinstance(row[name], int) else row[name] for name in COLUMNS]
        print(f"| {' | '.join(cells)} |", flush=True)


def hooked(n_scenarios: int, paths: Sequence[Path] = ()) -> dict[str, Any]:
    """A row, by its columns; what differs goes to stderr.

    Args:
        n_scenarios: random ones, by seeds from 0 on.
        paths: hold another version of vllm than the engine's environment does.

    Raises:
        CalledProcessError: vLLM failed, or the recorder could not be attached.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_stat_logger(Path(folder))
        ran = subprocess.run(
            [ENGINE, "-c", "from tests.conformance.hooks import inside; inside()", str(n_scenarios)],
            cwd=ROOT,
            env={**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT, folder]))},
            stdout=subprocess.PIPE,
            check=True,
        )
    row: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return row


def inside() -> None:
    """Beside vLLM: run the scenarios, and print the row as JSON."""
    import vllm

    version = vllm.__version__
    counts = Counter(dict.fromkeys(COUNTED, 0))
    for seed in range(int(sys.argv[1])):
        scenario = seeded_scenario(seed, version)
        states, recording = recorded(scenario)
        differences = list(differing(scenario, states, recording))
        if differences:
            sys.stderr.write(f"{version}, seed {seed}: {'; '.join(differences)}\n")
        counts["scenarios"] += 1
        counts["steps"] += len(recording.steps)
        counts["requests"] += len(recording.requests)
        counts["preemptions"] += sum(len(step.preempted) for step in recording.steps)
        counts["aborts"] += sum(request.reason == "abort" for request in recording.requests.values())
        counts["differing scenarios"] += bool(differences)
    print(json.dumps({"vLLM": version, **counts, "stat logger": stat_logged()}))


def recorded(scenario: Scenario) -> tuple[list[State], Recording]:
    """What vLLM's scheduler did, and what the recorder wrote of it."""
    from collectors.engine.recorder import Log, Recorder, header, own_class

    oracle = Oracle(SchedulerSpec(scenario.options, scenario.num_gpu_blocks, scenario.max_model_len))
    theirs = oracle.scheduler
    config = theirs.vllm_config
    config.scheduler_config.async_scheduling = scenario.options.async_scheduling  # which a CPU's platform turned off
    kind: type = type(theirs)
    assert own_class(config) is kind
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "steps.jsonl")
        Recorder(theirs, Log(str(file)), header(config, theirs))
        states = list(states_of(scenario, oracle))
        theirs.shutdown()
        (recording,) = read_recordings(file)
    return states, recording


def differing(scenario: Scenario, states: Sequence[State], recording: Recording) -> Iterator[str]:
    """What the recorder's lines say otherwise than it happened."""
    steps, requests = recording.steps, recording.requests
    batches = tuple(state.batch for state in states if state.batch)
    preempted = Counter(name for state in states for name in state.preempted)
    cached: dict[str, int] = {}
    for name, _, computed in (part for batch in batches for part in batch):
        cached.setdefault(name, computed)
    came: Counter[str] = Counter()
    for step in steps:
        came.update(dict(step.tokens))
    lengths = {str(i): (arrival.prompt, arrival.output) for i, arrival in enumerate(scenario.arrivals)}
    options, asked = recording.header.options, scenario.options
    for what, happened, told in (
        ("trouble", (), recording.trouble),
        ("blocks", scenario.num_gpu_blocks, recording.header.num_gpu_blocks),
        *((name, getattr(asked, name), options[name]) for name in ("max_num_seqs", "block_size", "async_scheduling")),
        ("batches", batches, tuple(step.requests for step in steps)),
        ("preemptions", preempted, Counter(name for step in steps for name in step.preempted)),
        ("preemptions of requests", preempted, +Counter({name: r.num_preemptions for name, r in requests.items()})),
        ("lengths", lengths, {name: (r.prompt_tokens, r.max_tokens) for name, r in requests.items()}),
        ("tokens", came, +Counter({name: r.output_tokens for name, r in requests.items()})),
        (
            "finished",
            {name for state in states for name in state.finished},
            {name for name, request in requests.items() if request.reason in ("length", "stop")},
        ),
        ("prefix hits", cached, {name: r.cached_tokens for name, r in requests.items() if r.scheduled_ns is not None}),
    ):
        if happened != told:
            yield f"{what}: {happened} happened, {told} was told"


def stat_logged() -> str:
    """`equal` when the stat logger takes a request that ended as the version's own statistics have it, else why not."""
    from servetwin_stat_logger import StatLogger  # type: ignore[import-not-found]
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats, SchedulerStats

    scenario = seeded_scenario(0, "0.19.0")
    oracle = Oracle(SchedulerSpec(scenario.options, scenario.num_gpu_blocks, scenario.max_model_len))
    iteration, request = IterationStats(), FinishedRequestStats(finish_reason=FinishReason.LENGTH)
    request.request_id = "cmpl-a-0"
    request.e2e_latency, request.queued_time, request.prefill_time, request.decode_time = 9.0, 1.0, 3.0, 5.0
    request.num_prompt_tokens, request.num_generation_tokens, request.num_cached_tokens = 70, 20, 16
    iteration.finished_requests.append(request)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SERVETWIN_STATS"] = str(Path(folder, "stats.jsonl"))
        logger = StatLogger(oracle.scheduler.vllm_config, [0])
        logger.record(scheduler_stats=SchedulerStats(), iteration_stats=iteration, engine_idx=0)
        if logger._log is not None:
            logger._close(logger._log)
        try:
            (told,) = read_stats(Path(folder, "stats.jsonl")).requests.values()
        except CollectorError as error:
            return str(error).rpartition(": ")[2]
    assert told.id == request.request_id
    assert (told.e2e_s, told.queued_s, told.prefill_s, told.decode_s) == (9.0, 1.0, 3.0, 5.0)
    assert (told.prompt_tokens, told.output_tokens, told.cached_tokens) == (70, 20, 16)
    return "equal"


if __name__ == "__main__":
    main()
