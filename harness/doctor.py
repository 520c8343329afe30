"""Checks the installation: Python, packages, bundled data, and an engine environment where there is one."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from harness.demo import BUNDLED
from harness.terminal.catalogue import missing_tables
from profiles.aiconfigurator_tables import core_version
from profiles.catalog import BUNDLED as PROFILES
from profiles.catalog import list_profiles
from profiles.kept import folder, looked_at
from profiles.profile_folder import read_profile
from traces.capture import read_capture
from traces.errors import ServetwinError


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: ok is None where it is optional and absent."""

    name: str
    ok: bool | None
    found: str


def doctor(engine: Path = Path(".venv-engine")) -> list[Check]:
    """Look at everything; nothing raises."""
    python = platform.python_version()
    checks = [Check("Python", sys.version_info >= (3, 11), python), *_packages()]
    folders = sorted((BUNDLED / "captures").glob("*")) if (BUNDLED / "captures").is_dir() else []
    checks += [
        _readable(f"capture {folder.name}", folder, lambda f: str(read_capture(f).meta.engine)) for folder in folders
    ]
    for info in list_profiles([PROFILES]):
        checks.append(_readable(f"profile {info.key}", info.path, lambda f: read_profile(f).sha256[:18]))
    python_at = engine / "bin" / "python"
    found = str(python_at) if python_at.exists() else "absent; scripts/install_engine.sh installs one"
    checks.append(Check("engine for live tests (optional)", True if python_at.exists() else None, found))
    return [*checks, _aiconfigurator(), _tables()]


def _aiconfigurator() -> Check:
    """Tables of devices that no profile here is of, an extra."""
    missing = missing_tables()
    return Check("aiconfigurator (optional)", None if missing else True, missing or core_version())


def _tables() -> Check:
    """Compiled tables in the user's cache folder; a damaged one costs time and no more."""
    name = "compiled tables (optional)"
    try:
        at = folder()
    except ServetwinError as error:
        return Check(name, False, str(error))
    if at is None or not at.is_dir():
        return Check(name, None, "none kept" if at is None else f"none in {at}")
    n_files, n_damaged = looked_at(at)
    said = f"; {n_damaged} damaged, which are compiled again when they are needed" if n_damaged else ""
    return Check(name, True, f"{n_files} in {at}{said}")


def _packages() -> list[Check]:
    checks = [Check("servetwin", True, version("servetwin"))]
    for requirement in requires("servetwin") or []:
        if "extra ==" in requirement:
            continue
        name = requirement.split(">")[0].split("=")[0].strip()
        try:
            checks.append(Check(name, True, version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, False, f"absent; {requirement} is needed"))
    return checks


def _readable(name: str, folder: Path, read: Callable[[Path], str]) -> Check:
    try:
        return Check(name, True, read(folder))
    except ServetwinError as error:
        return Check(name, False, str(error))
