"""The transfer recorder as a decode server loads it: a folder to put on its PYTHONPATH, with nothing to install."""

from __future__ import annotations

from pathlib import Path

from collectors.engine import recorder_path

FILES = ("recorder.py", "transfer_recorder.py", "small_host.py")


def write_transfer_recorder(folder: Path) -> None:
    """Write the recorders into a folder, which is made when it is not there: that of steps lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).write_text(recorder_path().with_name(name).read_text())
