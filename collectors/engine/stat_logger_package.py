"""The stat logger as vLLM finds it: a folder to put on the server's PYTHONPATH, with nothing to install."""

from __future__ import annotations

from pathlib import Path

from collectors.engine import recorder_path

NAME = "servetwin_stat_logger"
ENTRY_POINT = "servetwin"
"""What VLLM_PLUGINS has to list, where it is set."""


def write_stat_logger(folder: Path) -> None:
    """Write the stat logger into a folder, which is made when it is not there.

    `importlib.metadata` finds the entry points of any `.dist-info` folder on the path (Python packaging: entry points
    specification); METADATA needs no more than a name and a version. The recorder's file is there because the stat
    logger writes with its code; it can be loaded from there as `servetwin_recorder.RecordingScheduler` too.
    """
    info = folder / f"{NAME}-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.py").write_text(Path(__file__).with_name("stat_logger.py").read_text())
    (folder / "servetwin_recorder.py").write_text(recorder_path().read_text())
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[vllm.stat_logger_plugins]\n{ENTRY_POINT} = {NAME}:StatLogger\n")
