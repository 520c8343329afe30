"""Print what each recorded change did, what the twin predicts that it does, and how far two recordings of it are apart.

    .venv/bin/python tests/benchmarks/what_if.py
    .venv/bin/python tests/benchmarks/what_if.py --folder x    # as scripts/record_what_if.py --out x has written it

Changes are after over before, less 1. Measured and predicted ones are between second recordings, of which the
calibration has seen the side before; noise is the ratio of the first recordings over that of the second, less 1: what
no twin of one can do better at the other. `--markdown` prints the table of a page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.gate.figures import key_of
from harness.gate.suite import Entry, read_suite
from harness.scoring.change import Change, Changes, changes
from harness.scoring.compare import Validation
from harness.scoring.validate import validate
from harness.terminal.console import console, table
from harness.terminal.words import interval, percent

FIGURES = ("ttft.mean", "ttft.p90", "tpot.mean", "itl.mean", "e2el.mean", "output_tokens_per_s")
ROOT = Path(__file__).resolve().parents[2]
NOTHING_FITTED = "calibration=null"
COLUMNS = ("change", "figure", "measured", "95 % interval", "calibrated on the base", "nothing fitted", "noise")


def validated(entry: Entry, number: int, *overrides: str) -> Validation:
    """A scenario of the suite against its first or its second recording."""
    assert entry.capture is not None
    found = validate(
        entry.scenario,
        entry.capture.with_name(f"{entry.capture.name.rpartition('-')[0]}-{number}"),
        [*entry.overrides, *overrides],
        score_fitted=entry.score_fitted and NOTHING_FITTED not in overrides,
        draws=1,
        under_load=entry.change_from is not None,
    )
    if not found.result["valid"]:
        sys.exit(f"{entry.name}, recording {number}: not comparable: {'; '.join(found.result['reasons'])}")
    return found


def rows(suite: Path) -> Iterator[tuple[str, ...]]:
    """A row per change and figure."""
    entries = {entry.name: entry for entry in read_suite(suite).entries}
    before = entries["base"]
    base = validated(before, 2), validated(before, 2, NOTHING_FITTED)
    first = validated(before, 1, NOTHING_FITTED)
    for entry in entries.values():
        if entry.change_from is None:
            continue
        calibrated = changes(base[0], validated(entry, 2))
        bare = changes(base[1], validated(entry, 2, NOTHING_FITTED))
        again = changes(first, validated(entry, 1, NOTHING_FITTED))
        for figure in FIGURES:
            yield entry.name, figure, *cells(figure, calibrated, bare, again)


def cells(figure: str, calibrated: Changes, bare: Changes, again: Changes) -> Sequence[str]:
    """The measured change with its interval, both predictions with the errors of their ratios, the noise."""
    fitted, unfitted, other = (found.figures[key_of(figure)] for found in (calibrated, bare, again))
    if not (isinstance(fitted, Change) and isinstance(unfitted, Change) and isinstance(other, Change)):
        return ("–",) * (len(COLUMNS) - 2)
    bounds = "" if fitted.measured_ci95 is None else interval(list(fitted.measured_ci95))
    predicted = [f"{percent(one.predicted_change)} ({percent(one.error)})" for one in (fitted, unfitted)]
    noise = (1 + other.measured_change) / (1 + fitted.measured_change) - 1
    return percent(fitted.measured_change), bounds, *predicted, percent(noise)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "what_if", help="as the script wrote it")
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    if not (chosen.folder / "captures").is_dir():
        sys.exit(f"no captures in {chosen.folder}; record them with scripts/record_what_if.py")
    found = list(rows(chosen.folder / "suite.yaml"))
    if not chosen.markdown:
        console().print(table("Changes: measured, and predicted (the ratio's error)", list(COLUMNS), found))
        return
    for line in (COLUMNS, ["---"] * len(COLUMNS), *found):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
