"""The table of docs/conformance.md: our scheduler against those of many vLLM versions, each by its own rules.

    .venv/bin/python -m tests.conformance.versions [--scenarios 100] [--work out/conformance] [VERSION]...

Takes about a minute a version. The engine's environment must be there (scripts/install_engine.sh): its interpreter and
its libraries run every version, of which only the Python files are needed. They are taken from the package index
(300 MB each, unpacked to 50) into the work folder; the version that is installed comes first and is not downloaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.conformance.cases import read_cases
from tests.conformance.compare import difference
from tests.conformance.count import as_known, counted
from tests.conformance.judge import Judge
from tests.conformance.mismatch import reported

VERSIONS = (
    "0.19.0",
    "0.19.1",
    "0.20.2",
    "0.21.0",
    "0.22.1",
    "0.23.0",
    "0.24.0",
    "0.25.1",
    "0.26.0",
    "0.27.1",
    "0.28.0",
    "0.29.0",
    "0.30.0",
    "0.31.0",
    "0.33.0",
)

MOST_SHOWN = 1
"""Of the scenarios of one version that differ; each shown is made small and kept."""

EXTRAS = ("gguf", "diskcache")
"""Pure Python packages that older versions import when they start, and that the engine's environment lacks."""


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description="Compare our scheduler with those of vLLM versions.")
    parser.add_argument("--scenarios", type=int, default=100, help="random scenarios for each version")
    parser.add_argument("--work", type=Path, default=Path("out/conformance"), help="where versions are kept")
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    arguments = parser.parse_args()
    print("| vLLM | scenarios | steps | preemptions | prefix hits | kept cases | differing scenarios |")
    print("|---|---|---|---|---|---|---|")
    print(row(arguments.scenarios, []), flush=True)
    extras = fetched_extras(arguments.work)
    for version in arguments.versions:
        print(row(arguments.scenarios, [fetched(version, arguments.work), extras]), flush=True)


def row(n_scenarios: int, paths: list[Path]) -> str:
    """One version's line; what differs goes to stderr."""
    with Judge(paths=paths) as judge:
        counts, differing = counted(judge, n_scenarios)
        scenarios = [case.scenario for case in read_cases().values()]
        cases = [scenario for scenario in scenarios if as_known(scenario, judge.version) == scenario]
        differing += [case for case in cases if difference(case, judge.verdict(case)) is not None]
        for scenario in differing[:MOST_SHOWN]:
            sys.stderr.write(f"{judge.version}: {reported(judge, scenario)}\n")
    names = ("scenarios", "steps", "preemptions", "prefix hits")
    cells = [judge.version, *(f"{counts[name]:,}" for name in names), str(len(cases)), str(len(differing))]
    return f"| {' | '.join(cells)} |"


def fetched(version: str, work: Path) -> Path:
    """A folder with the Python files of a version, under the name of a CPU build, which its own code looks for."""
    folder = work / f"vllm-{version}"
    if folder.exists():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        wheels = Path(temporary)
        pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels), f"vllm=={version}")
        (wheel,) = wheels.glob("vllm-*.whl")
        unpacked = wheels / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            names = [
                name for name in archive.namelist() if name.endswith((".py", ".json")) and name.startswith("vllm/")
            ]
            archive.extractall(unpacked, names)
        metadata = unpacked / f"vllm-{version}+cpu.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        unpacked.rename(folder)
    return folder


def fetched_extras(work: Path) -> Path:
    """A folder with the packages that only older versions need."""
    folder = work / "extras"
    if not folder.exists():
        pip("install", "--no-deps", "--target", str(folder), *EXTRAS)
    return folder


def pip(*arguments: str) -> None:
    """Run pip; raises CalledProcessError."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
