"""Measure the operator profile of a model with an engine's own kernels, on the device at hand, within a time budget.

Runs inside the engine's environment, with servetwin on its path:

    PYTHONPATH=. .venv-engine/bin/python -m collectors.operators --model DIR --model-name NAME --out DIR --budget-s 170

The whole grid of shots is measured several times over, so that a disturbance meets few samples of any one shot. What
was measured is kept in OUT.recording; run again after an interruption, it goes on. Models are vLLM's Llama-like ones,
dense and with experts; `--operators none` measures whole steps of any model on any of vLLM's backends.
"""

from __future__ import annotations

import sys

from collectors.journal import say
from collectors.operators.measure import measure_profile
from collectors.operators.options import parse
from traces.errors import ServetwinError


def main() -> None:
    """Measure what the command line names and write the profile folder."""
    try:
        measure_profile(parse(description=__doc__))
    except ServetwinError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
