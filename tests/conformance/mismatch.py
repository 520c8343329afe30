"""A scenario in which ours does otherwise than vLLM's: it is made small, kept, and printed as a script."""

from __future__ import annotations

from pathlib import Path

import msgspec

from simulator.scheduling.options import EngineOptions
from tests.conformance.cases import CASES, keep
from tests.conformance.compare import difference
from tests.conformance.judge import Judge
from tests.conformance.scenario import Scenario
from tests.conformance.shrink import smallest
from traces.errors import EngineError

SCRIPT = '''\
"""{title}

Run it where vllm is installed: PYTHONPATH=. .venv-engine/bin/python THIS_FILE
"""

import msgspec

from tests.conformance.compare import difference
from tests.conformance.judge import judged
from tests.conformance.scenario import Scenario

SCENARIO = """
{scenario}
"""

scenario = msgspec.json.decode(SCENARIO, type=Scenario)
print(difference(scenario, judged(scenario)) or "no difference")
'''

SHOWN_BY = "shown by\n\n"


def reported(judge: Judge, scenario: Scenario, folder: Path = CASES) -> str:
    """Make it small, and keep it for every later run. Returns the first difference, and a script that shows it."""

    def differs(simpler: Scenario) -> bool:
        try:
            return difference(simpler, judge.verdict(simpler)) is not None
        except EngineError:  # vLLM refuses it
            return False

    small = smallest(scenario, differs)
    verdict = judge.verdict(small)
    found = str(difference(small, verdict))
    file = keep(small, verdict.version, verdict.states, found, folder)
    return f"{found}\nkept as {file}; {SHOWN_BY}{script(small, found)}"


def script(scenario: Scenario, title: str) -> str:
    """A file that runs the scenario through both and prints the first difference."""
    return SCRIPT.format(title=title, scenario=_pretty(scenario))


def _pretty(scenario: Scenario) -> str:
    """A scenario as JSON, without options that have their default."""
    plain, defaults = msgspec.to_builtins(scenario), msgspec.to_builtins(EngineOptions())
    plain["options"] = {name: value for name, value in plain["options"].items() if value != defaults[name]}
    return msgspec.json.format(msgspec.json.encode(plain), indent=1).decode()
