"""From what lies on disk to a page: a capture, a validation, a calibration, a sweep, or several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from calibrate.calibration import read_calibration
from harness.files import new_file
from harness.reports.calibration_page import calibration_page
from harness.reports.capture_page import capture_page
from harness.reports.page import Page
from harness.reports.side_by_side import captures_page, validations_page
from harness.reports.sweep_page import RESULTS, read_sweep, sweep_page
from harness.reports.validation_page import Compared, validation_page
from traces.capture import Capture, read_capture
from traces.decoding import decode_json, read_bytes
from traces.errors import InputError
from traces.metrics import summary

Kind = Literal["capture", "validation", "calibration", "sweep"]

VALIDATION, SUMMARY, ATTRIBUTION = "validation.json", "summary.json", "attribution.json"
KNOWN = "a capture, a validation, a sweep, or a calibration file"


def kind_of(path: Path) -> Kind:
    """What lies there. Raises InputError when it is nothing that has a page."""
    if path.is_file():
        return "calibration"
    if (path / VALIDATION).is_file():
        return "validation"
    if (path / RESULTS).is_file():
        return "sweep"
    if (path / "meta.json").is_file():
        return "capture"
    raise InputError("has no report" if path.is_dir() else "no such folder or file", file=path, accepted=KNOWN)


def report(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Write a page for each of what lies at `paths`, or one of all side by side as `out`. Returns what was written.

    Without `out` a folder's page is its report.html, and a calibration file's stands beside it. A page that is there
    already is written anew; `out` must not exist.

    Raises:
        InputError: something cannot be read, has no page, or is of another kind than what it should stand beside.
    """
    if out is not None:
        html = page_of(paths).html()
        with new_file(out) as file:
            file.write_text(html, encoding="utf-8")
        return [out]
    pages = [(_place(path), page_of([path]).html()) for path in paths]  # all of them, before one is written
    for file, html in pages:
        file.write_text(html, encoding="utf-8")
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


def read_validation(folder: Path) -> Compared:
    """A validation with both its runs. Raises InputError when it cannot be read."""
    result = _json(folder / VALIDATION)
    measured = read_capture(folder / "measured") if (folder / "measured").is_dir() else None
    attribution = _json(folder / ATTRIBUTION) if (folder / ATTRIBUTION).is_file() else None
    return Compared(result, measured, read_capture(folder / "simulated"), attribution)


def _side_by_side(paths: Sequence[Path], kinds: Sequence[Kind]) -> Page:
    if len(set(kinds)) > 1 or kinds[0] not in ("capture", "validation"):
        found = ", ".join(f"{path.name} ({kind})" for path, kind in zip(paths, kinds, strict=True))
        raise InputError("cannot stand side by side", found=found, accepted="captures, or validations")
    names = _names(paths)
    if kinds[0] == "capture":
        return captures_page(dict(zip(names, map(read_capture, paths), strict=True)))
    return validations_page(dict(zip(names, map(read_validation, paths), strict=True)))


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
    return _json(folder / SUMMARY) if (folder / SUMMARY).is_file() else summary(capture)


def _json(file: Path) -> dict[str, Any]:
    return decode_json(read_bytes(file), dict[str, Any], file=file)
