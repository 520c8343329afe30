"""Which reader reads which profile: the one place that knows every format of operator profiles.

A format is told by the files in a folder, at any depth; a tree may hold several.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profiles import llmservingsim, llmservingsim_artifact, vidur
from profiles.llmservingsim_artifact import Imported
from profiles.vidur_network import read_network
from traces.errors import InputError, nearest

PROFILE_FORMATS = {
    "llmservingsim": "folders with a meta.yaml",
    "llmservingsim-older": "folders <hardware>/<org>/<model>/tp<N> with a layers.csv",
    "llmservingsim-older-published": "the same, with LLMServingSim's predictions in place of an engine's kernels",
    "vidur": "folders <device>/<org>/<model> with an mlp.csv and an attention.csv",
}
"""What a folder of each format holds, by name."""

_PUBLISHED = "llmservingsim-older-published"
"""Only where it is asked for by name: the files are the same."""


def import_any_profiles(
    source: Path, configs: dict[str, dict[str, Any]], format: str | None = None, network: Path | None = None
) -> Imported:
    """Every profile at or below a folder, of any known format or of the one that is named.

    `configs` are Hugging Face configs by model name, put into the profiles they fit. `network` is a folder of times
    between devices, which Vidur keeps apart. Raises InputError.
    """
    if format is not None and format not in PROFILE_FORMATS:
        raise InputError("unknown profile format", found=format, accepted=nearest(format, PROFILE_FORMATS))
    if not source.is_dir():
        raise InputError("is not a folder" if source.exists() else "no such folder", file=source)
    there = [format] if format else [name for name in PROFILE_FORMATS if name != _PUBLISHED and _holds(source, name)]
    if not there:
        accepted = "; ".join(f"{what} ({name})" for name, what in PROFILE_FORMATS.items())
        raise InputError("holds no profile of a known format", file=source, accepted=accepted)
    if network is not None and there != ["vidur"]:
        raise InputError(field="--network", found=str(network), accepted=f"none for {', '.join(there)}, only for vidur")
    imported = Imported([], [])
    for name in there:
        if name == "llmservingsim":
            imported.profiles.extend(llmservingsim.import_profiles(source, configs))
        elif name == "vidur":
            between = None if network is None else read_network(network)
            imported.profiles.extend(vidur.import_profiles(source, configs, between))
        else:
            found = llmservingsim_artifact.import_profiles(source, configs, as_published=name == _PUBLISHED)
            imported.profiles.extend(found.profiles)
            imported.left_out.extend(found.left_out)
    return imported


def _holds(source: Path, format: str) -> bool:
    if format == "llmservingsim":
        return any(source.rglob("meta.yaml"))
    if format == "vidur":
        return any(vidur.has_profile(file.parent) for file in source.rglob("mlp.csv"))
    return any(llmservingsim_artifact.has_profile(file.parent) for file in source.resolve().rglob("layers.csv"))
