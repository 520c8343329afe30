"""vLLM's own scheduler as a process: it runs in the engine's environment and is asked over a pipe.

    PYTHONPATH=. .venv-engine/bin/python -m tests.conformance.judge

writes vLLM's version, then reads one scenario a line, as JSON, and writes one line for each: what vLLM did, or an
error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from simulator.scheduling.oracle import Oracle
from simulator.scheduling.spec import SchedulerSpec
from simulator.scheduling.speculation import Speculation
from tests.conformance.elsewhere import OfVllm
from tests.conformance.engine import ENGINE, ROOT
from tests.conformance.scenario import Scenario, State, cached_blocks, states_of
from traces.errors import EngineError

QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
"""What vLLM reads when it is imported."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What vLLM did in a scenario.

    Attributes:
        version: vLLM's version.
        states: of each tick.
        cached: blocks that each request would find in the prefix cache when all is over.
        speculation: drafts, drafted tokens and accepted ones, by vLLM's count; None where nothing is drafted.
        error: what vLLM's scheduler failed with; None when it did not.
    """

    version: str = ""
    states: tuple[State, ...] = ()
    cached: tuple[int, ...] = ()
    speculation: tuple[int, int, int] | None = None
    error: str | None = None


class Judge:
    """The process, for use in a `with` block.

    Attributes:
        version: vLLM's version.
    """

    def __init__(self, python: Path = ENGINE, paths: Sequence[Path] = ()) -> None:
        """Start it; `paths` hold another version of vllm than the environment does."""
        self._process = subprocess.Popen(
            [python, "-m", "tests.conformance.judge"],
            cwd=ROOT,
            env={**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.version = msgspec.json.decode(self._answer(), type=str)

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def verdict(self, scenario: Scenario) -> Verdict:
        """Run a scenario. Raises EngineError when vLLM's scheduler fails in it, or the process does."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(scenario) + b"\n")
        self._process.stdin.flush()
        verdict = msgspec.json.decode(self._answer(), type=Verdict)
        if verdict.error is not None:
            raise EngineError(f"vLLM's scheduler failed: {verdict.error}")
        return verdict

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"the judge ended with status {self._process.wait()}")
        return line


def draft_counts(speculation: Speculation | None) -> tuple[int, int, int] | None:
    """Drafts, drafted tokens and accepted ones."""
    if speculation is None:
        return None
    return speculation.num_drafts, speculation.num_draft_tokens, speculation.num_accepted_tokens


def in_a_pipeline(theirs: Any, stages: int) -> None:
    """Have vLLM's scheduler plan for so many stages and its second model runner, without their devices."""
    theirs.use_pp, theirs.use_v2_model_runner = True, True
    theirs.pp_size = theirs.decode_stagger = stages


def judged(scenario: Scenario) -> Verdict:
    """A scenario run through the installed vLLM's scheduler, in this process."""
    try:
        oracle = Oracle(SchedulerSpec(scenario.options, scenario.num_gpu_blocks, scenario.max_model_len))
        if scenario.pipeline_parallel_size > 1:
            in_a_pipeline(oracle.scheduler, scenario.pipeline_parallel_size)
        elsewhere = None if all(arrival.elsewhere is None for arrival in scenario.arrivals) else OfVllm(oracle)
        states = tuple(states_of(scenario, oracle, elsewhere))
        counts = draft_counts(oracle.speculation)
        return Verdict(
            version=oracle.version, states=states, cached=cached_blocks(scenario, oracle), speculation=counts
        )
    except Exception as error:
        return Verdict(error=f"{type(error).__name__}: {error}")


def main() -> None:
    """Answer until the pipe is closed. What vLLM prints goes to stderr."""
    answers: Any = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import vllm

    answers.write(msgspec.json.encode(vllm.__version__) + b"\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(msgspec.json.encode(judged(msgspec.json.decode(line, type=Scenario))) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
