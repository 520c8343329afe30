"""The walk of docs/devices.md, as it stands there: a new accelerator in data alone, and it is simulated."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.pages import ROOT, shown_and_printed

PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")


def files_of_the_page() -> dict[str, str]:
    """Every YAML block, by the name that stands before it."""
    return dict(re.findall(r"`([\w/.-]+\.yaml)`[^`]*(?:`[^`]*`[^`]*)*?```yaml\n(.*?)```", PAGE, flags=re.DOTALL))


def test_a_new_accelerator_is_under_forty_lines_of_data_and_no_code(tmp_path: Path) -> None:
    files = files_of_the_page()
    assert list(files) == ["my/devices/example-npu.yaml", "npu.yaml"]
    lines = sum(len(text.splitlines()) for text in files.values())
    assert f"{len(files)} files, {lines} lines, no code" in PAGE.replace("two files", "2 files")
    assert lines < 40
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shown, printed = shown_and_printed("devices.md", tmp_path)
    assert printed == shown
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert meta["device"] == "EXAMPLE-NPU"
    assert any("800 Tflop/s bfloat16; 4000 GB/s (EXAMPLE-NPU: Example Corp datasheet" in note for note in meta["notes"])
