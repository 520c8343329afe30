"""Files of a result: all of them are written, or none is touched."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness.gate.benchmark import benchmark as to_benchmark
from harness.gate.causes import as_json
from harness.gate.junit import junit as to_junit
from harness.gate.markdown import markdown as to_markdown
from harness.gate.verdict import Checked
from traces.errors import InputError


def outputs_of(
    checked: Checked,
    *,
    junit: Path | None = None,
    markdown: Path | None = None,
    result: Path | None = None,
    benchmark: Path | None = None,
    history: tuple[Path, str] | None = None,
) -> dict[Path, str]:
    """The texts of a result by the files that they are for, the new baseline included.

    `history` is such a file and all that it is to hold. Raises InputError when two of them are for one file.
    """
    wanted = (
        (junit, to_junit),
        (markdown, to_markdown),
        (result, lambda found: json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n"),
        (benchmark, to_benchmark),
        *(() if history is None else ((history[0], lambda found: history[1]),)),
    )
    texts = {} if checked.baseline is None else dict([checked.baseline])
    for path, make in wanted:
        if path is None:
            continue
        if path in texts:
            raise InputError("is to hold two outputs", file=path, accepted="a file for each")
        texts[path] = make(checked)
    return texts


def write_outputs(texts: Mapping[Path, str]) -> None:
    """Write each text to its file, over an earlier one. Raises InputError when one cannot be; then none has changed."""
    written: list[tuple[str, Path]] = []
    try:
        for path, text in texts.items():
            written.append((_beside(path, text), path))
        for part, path in written:
            Path(part).replace(path)
    finally:
        for part, _ in written:
            Path(part).unlink(missing_ok=True)


def _beside(path: Path, text: str) -> str:
    """Write the text to a new file beside `path`. Returns its name."""
    if path.is_dir():
        raise InputError("is a folder", file=path, accepted="a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(part).chmod(0o666 & ~umask)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", file=path) from None
    return part
