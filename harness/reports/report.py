"""From what lies on disk to a page: of a capture, validation, calibration, sweep or check, or of several of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from calibrate.calibration import read_calibration
from harness.files import new_file, refuse_taken_file, replace_file
from harness.gate.result import Kept, read_results
from harness.reports.calibration_page import calibration_page
from harness.reports.calibrations_page import calibrations_page
from harness.reports.capture_page import capture_page
from harness.reports.captures_page import captures_page
from harness.reports.check_page import check_page
from harness.reports.page import Page
from harness.reports.side_by_side import validations_page
from harness.reports.sweep_page import RESULTS, read_sweep, sweep_page
from harness.reports.sweeps_page import sweeps_page
from harness.reports.validation_page import Compared, validation_page
from traces.capture import Capture, read_capture
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError
from traces.metrics import summary

Kind = Literal["capture", "validation", "calibration", "sweep", "check"]

VALIDATION, SUMMARY, ATTRIBUTION = "validation.json", "summary.json", "attribution.json"
NEEDED = ("n_requests", "n_finished", "n_left_out", "requests", "metrics")
"""Figures of a summary that pages cannot do without."""
KNOWN = "a capture, a validation, a sweep, a calibration file, or a result of `check`"


def kind_of(path: Path) -> Kind:
    """What lies there. Raises InputError when it is nothing that has a page."""
    if path.is_file():
        return "check" if _is_of_check(path) else "calibration"
    if (path / VALIDATION).is_file():
        return "validation"
    if (path / RESULTS).is_file():
        return "sweep"
    if (path / "meta.json").is_file():
        return "capture"
    raise InputError("has no report" if path.is_dir() else "no such folder or file", file=path, accepted=KNOWN)


class _Peek(msgspec.Struct):
    """What tells a result of `check` from a calibration."""

    suite: str | None = None


def _is_of_check(file: Path) -> bool:
    """Whether a file is a result of `check`, or a history of them. Raises InputError when it is no JSON."""
    return file.suffix == ".jsonl" or decode_json(read_bytes(file), _Peek, file=file).suite is not None


def report(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Write a page for each of what lies at `paths`, or one of all side by side as `out`. Returns what was written.

    Without `out` a folder's page is its report.html, and a file's stands beside it. A page that is there
    already is written anew; `out` must not exist.

    Raises:
        InputError: something cannot be read, has no page, or is of another kind than what it should stand beside.
    """
    if out is not None:
        refuse_taken_file(out)
        html = page_of(paths).html()
        with new_file(out) as file:
            file.write_text(html, encoding="utf-8")
        return [out]
    pages = [(_place(path), page_of([path]).html()) for path in paths]  # all of them, before one is written
    for file, html in pages:
        replace_file(file, html.encode())
    return [file for file, _ in pages]


def page_of(paths: Sequence[Path]) -> Page:
    """The page of one thing, or of several of a kind side by side. Raises InputError as `report`."""
    kinds = [kind_of(path) for path in paths]
    if len(paths) > 1:
        return _side_by_side(paths, kinds)
    (path,), (kind,) = paths, kinds
    match kind:
        case "capture":
            capture = read_capture(path)
            return capture_page(capture, _figures(path, capture))
        case "validation":
            return validation_page(read_validation(path))
        case "calibration":
            return calibration_page(path.name, read_calibration(path))
        case "sweep":
            return sweep_page(path.name, read_sweep(path))
        case "check":
            return check_page(path.name, read_results(path))


def read_validation(folder: Path) -> Compared:
    """A validation with both its runs. Raises InputError when it cannot be read."""
    result = _json(folder / VALIDATION)
    measured = read_capture(folder / "measured") if (folder / "measured").is_dir() else None
    attribution = _json(folder / ATTRIBUTION) if (folder / ATTRIBUTION).is_file() else None
    return Compared(result, measured, read_capture(folder / "simulated"), attribution)


def _side_by_side(paths: Sequence[Path], kinds: Sequence[Kind]) -> Page:
    if len(set(kinds)) > 1:
        found = ", ".join(f"{path.name} ({kind})" for path, kind in zip(paths, kinds, strict=True))
        raise InputError("cannot stand side by side", found=found, accepted="several of one kind")
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise InputError("is named twice", file=path, accepted="each once")
    by_name = dict(zip(_names(paths), paths, strict=True))
    match kinds[0]:
        case "capture":
            captures = {name: read_capture(path) for name, path in by_name.items()}
            return captures_page(captures, {name: _figures(by_name[name], found) for name, found in captures.items()})
        case "validation":
            return validations_page({name: read_validation(path) for name, path in by_name.items()})
        case "calibration":
            return calibrations_page({name: read_calibration(path) for name, path in by_name.items()})
        case "sweep":
            return sweeps_page({name: read_sweep(path) for name, path in by_name.items()})
        case "check":
            return check_page(list(by_name)[-1], _one_history(paths))


def _one_history(paths: Sequence[Path]) -> list[Kept]:
    """The results in all files, in their order. Raises InputError when they are of different suites."""
    results = [kept for path in paths for kept in read_results(path)]
    if len(suites := dict.fromkeys(kept.suite for kept in results)) > 1:
        raise InputError(", ".join(suites), accepted="checks of one suite")
    return results


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with those above them as far as that tells them apart."""
    for depth in range(1, 4):
        names = ["/".join(path.absolute().parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _place(path: Path) -> Path:
    return path.with_suffix(".html") if path.is_file() else path / "report.html"


def _figures(folder: Path, capture: Capture) -> dict[str, Any]:
    """What a simulation said of itself, which knows energy and cost; else what the capture's requests say."""
    if not (folder / SUMMARY).is_file():
        return summary(capture)
    said = _json(folder / SUMMARY)
    if missing := [name for name in NEEDED if name not in said]:
        accepted = "a summary as `simulate` writes it"
        raise InputError("is missing", file=folder / SUMMARY, field=missing[0], accepted=accepted)
    return said


def _json(file: Path) -> dict[str, Any]:
    return decode_json(read_bytes(file), dict[str, Any], file=file)
