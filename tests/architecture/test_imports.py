"""The house's one-way order: traces < profiles < simulator < calibrate; collectors beside them; harness on top."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BELOW = {
    "traces": set(),
    "profiles": {"traces"},
    "simulator": {"traces", "profiles"},
    "collectors": {"traces", "profiles"},
    "calibrate": {"traces", "profiles", "simulator"},
    "harness": {"traces", "profiles", "simulator", "collectors", "calibrate"},
}


FLOORS = {
    "simulator": ("network", "kv", "scheduling", "steps", "power"),
    "collectors": ("engine", "client", "server", "power", "operators", "local", "recording", "campaign"),
    "harness": ("descriptions", "deploy", "terminal", "running", "scoring", "gate", "sweeps", "reports"),
}
"""Folders inside a package, from the ground up; each knows those before it, and none what lies beside them."""

FREE_OF_FLOORS = {
    "simulator.user_class",
    "collectors.host",
    "collectors.interrupts",
    "collectors.journal",
    "collectors.request_ids",
    "harness.cost",
    "harness.files",
}
"""Files beside the folders that these may import: they import nothing of their package themselves."""


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("folder", BELOW)
def test_imports_run_downward_only(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        upward = (imported(file) & BELOW.keys()) - BELOW[folder] - {folder}
        assert not upward, f"{file.relative_to(ROOT)} imports {upward}"


@pytest.mark.parametrize(("package", "folder"), [(package, name) for package in FLOORS for name in FLOORS[package]])
def test_folders_of_a_package_import_downward_only(package: str, folder: str) -> None:
    below = FLOORS[package][: FLOORS[package].index(folder) + 1]
    files = sorted((ROOT / package / folder).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if module.split(".")[0] == package and module not in FREE_OF_FLOORS:
                assert module.split(".")[1] in below, f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("name", sorted(FREE_OF_FLOORS))
def test_a_file_below_the_floors_imports_nothing_of_its_package(name: str) -> None:
    assert name.split(".")[0] not in imported(ROOT / f"{name.replace('.', '/')}.py")


@pytest.mark.parametrize("name", ["recorder", "small_host", "stat_logger", "transfer_recorder"])
def test_what_is_dropped_into_a_server_needs_nothing_of_ours(name: str) -> None:
    assert not imported(ROOT / "collectors" / "engine" / f"{name}.py") & BELOW.keys()


LOADED_BY_A_WORKER = {"worker", "kernels", "routing", "timers"}


@pytest.mark.parametrize("name", sorted(LOADED_BY_A_WORKER))
def test_what_a_worker_loads_needs_torch_and_vllm_alone(name: str) -> None:
    tree = ast.parse((ROOT / "collectors" / "operators" / f"{name}.py").read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for module in names:
        top = module.split(".")[0]
        ours = module.removeprefix("collectors.operators.") in LOADED_BY_A_WORKER
        assert top in sys.stdlib_module_names or top in ("torch", "vllm") or ours, module


def test_the_base_install_has_neither_torch_nor_vllm() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    dependencies = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    assert "torch>" not in dependencies
    assert "vllm>" not in dependencies
