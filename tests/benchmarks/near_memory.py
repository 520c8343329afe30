"""Prints the table of docs/near_memory.md: LLMServingSim's three runs of figure 10, and the same here."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, `tests` is not on the path
from tests.measured_near_memory import CASES, peer, simulated


def main() -> None:
    """Run all three."""
    with TemporaryDirectory() as folder:
        for case in CASES:
            for name, one in (("servetwin", simulated(case, Path(folder))), ("LLMServingSim", peer(case))):
                energy = ", ".join(f"{part} {joules:,.0f}" for part, joules in one.energy_j.items())
                print(
                    f"{case:9} {name:14} {one.duration_s:6.2f} s {one.output_tokens_per_s:6.0f} tokens/s "
                    f"{one.total_j:9,.0f} J {one.total_j / (256 * 512):.4f} J/token: {energy}"
                )


if __name__ == "__main__":
    main()
