"""What a point depends on, as digests of content: a result is used again only where all of it is the same.

Every text in a scenario or its cluster description that names a file counts with that file's content, and so do the
profile folders, the modules of rules of one's own, and servetwin itself, version and sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import msgspec

from harness.descriptions.inputs import files_digest, named_files
from harness.descriptions.scenario import Scenario
from profiles.catalog import with_bundled
from traces.decoding import read_document


class Fingerprints:
    """Fingerprints of a study's points; each file is read once.

    Attributes:
        own: folder of the study's results, which is none of its inputs, wherever it lies.
        code: digest of servetwin's sources.
    """

    def __init__(self, own: Path) -> None:
        self.own = own.resolve()
        self.code = files_digest()
        self._digests: dict[Path, str] = {}
        self._named_by: dict[Path, list[Path]] = {}

    def of(self, scenario: Scenario, first_requests: int | None) -> str:
        """Of a scenario that serves the first so many requests of its trace (None: all). Raises InputError."""
        whole = {
            "scenario": scenario.requested,
            "first_requests": first_requests,
            "inputs": sorted({self._digest(path) for path in self._inputs(scenario)}),
            "version": version("servetwin"),
            "code": self.code,
        }
        return hashlib.sha256(msgspec.json.encode(whole, order="deterministic")).hexdigest()

    def _inputs(self, scenario: Scenario) -> Iterator[Path]:
        """Files and folders that the scenario and its cluster description name."""
        folder = scenario.path.parent
        yield from named_files(scenario.requested, [folder, Path()])
        if isinstance(scenario.file.cluster, str) and (cluster := folder / scenario.file.cluster).is_file():
            if cluster not in self._named_by:
                folders = [cluster.parent, folder, Path()]
                self._named_by[cluster] = list(named_files(read_document(cluster).value, folders))
            yield from self._named_by[cluster]
        yield from with_bundled(scenario.profile_folders)

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = self._fresh(path)
        return self._digests[path]

    def _fresh(self, path: Path) -> str:
        digest = hashlib.sha256()
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and not file.resolve().is_relative_to(self.own):
                name = "" if file == path else file.relative_to(path).as_posix()
                digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()
