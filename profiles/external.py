"""A user's own simulator of operators: a command that reads shapes as JSON and answers with seconds.

It is called with what it has not priced before, many shapes at once, and its answers are kept in a file that is named
by a digest of all they depend on: the command, the contents of the files that it names, the device. Layers are alike,
and so are most steps, so that a simulation asks for a thousand shapes once and never again.

    stdin   {"schema_version": "servetwin.operators/1", "device": "MY-NPU",
             "shapes": [{"kind": "gemm", "m": 16, "n": 6144, "k": 4096, "dtype": "bfloat16"}, ...]}
    stdout  {"time_s": [0.0000113, ...]}

docs/profiles.md has the kinds of shapes (`profiles.operators`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from profiles.model import ModelSpec
from profiles.operators import Operators, Shape
from profiles.priced import check_times, priced_profile
from profiles.profile import Profile, ProfileMeta
from traces.decoding import decode_json, read_bytes
from traces.errors import EngineError, InputError
from traces.steps import Floats

SCHEMA = "servetwin.operators/1"


class Question(msgspec.Struct, frozen=True):
    """What the command reads."""

    schema_version: str
    device: str
    shapes: list[Shape]


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it writes: seconds, in the order of the shapes."""

    time_s: list[float]


@dataclass(frozen=True, slots=True)
class Simulator:
    """The command and what belongs to it.

    Attributes:
        command: program and arguments; an argument that is a file there is relative to `folder`.
        timeout_s: for all shapes of one call.
        cache: folder in which answers are kept; None: in the user's cache folder.
        depends_on: further files whose contents its answers depend on.
        folder: what paths are relative to; the command runs in it.
    """

    command: tuple[str, ...]
    timeout_s: float
    cache: str | None
    depends_on: tuple[str, ...]
    folder: Path

    def digest(self, device: str) -> str:
        """Of all that its answers depend on. Raises InputError for a file of `depends_on` that is not there."""
        digest = hashlib.sha256(repr((SCHEMA, device, self.command)).encode())
        for word in self.command:
            if (self.folder / word).is_file():
                digest.update(read_bytes(self.folder / word))
        for name in self.depends_on:
            digest.update(name.encode() + read_bytes(self.folder / name))
        return digest.hexdigest()

    def answers_file(self, device: str) -> Path:
        """Where its answers are kept."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(home) / "servetwin" / "operators" if self.cache is None else self.folder / self.cache
        return cache / f"{self.digest(device)}.json"


def external_profile(
    simulator: Simulator,
    device: str,
    model: ModelSpec,
    dtype: str,
    kv_cache_dtype: str = "auto",
    degrees: Sequence[int] = (1,),
) -> Profile:
    """A profile whose operators the user's command prices. Raises InputError, or EngineError when the command fails."""
    command = " ".join(simulator.command)
    digest = simulator.digest(device)
    meta = ProfileMeta(
        device=device,
        model=model.name,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        source=f"external simulator: {command}",
        method="not measured: priced by the command",
        composition=Operators(model, 1, dtype).composition,
        notes=(f"operators priced by the external simulator `{command}`, digest {digest[:12]}",),
        measured={"digest": digest},
    )
    return priced_profile(meta, model, degrees, lambda shapes: priced_s(simulator, device, shapes))


def priced_s(simulator: Simulator, device: str, shapes: Sequence[Shape]) -> Floats:
    """Seconds of each shape, [n], from its earlier answers where there are. Raises InputError, EngineError."""
    file = simulator.answers_file(device)
    answers = decode_json(read_bytes(file), dict[str, float], file=file) if file.exists() else {}
    keys = [msgspec.json.encode(shape).decode() for shape in shapes]
    new = {key: shape for key, shape in zip(keys, shapes, strict=True) if key not in answers}
    if new:
        asked = list(new.values())
        answers |= dict(zip(new, _asked(simulator, device, asked).tolist(), strict=True))
        _keep(answers, file)
    return check_times(shapes, np.array([answers[key] for key in keys]), str(file))


def _asked(simulator: Simulator, device: str, shapes: list[Shape]) -> Floats:
    """The command's own answers. Raises InputError when it cannot be started, EngineError when it fails."""
    name = " ".join(simulator.command)
    question = msgspec.json.encode(Question(SCHEMA, device, shapes))
    try:
        run = subprocess.run(
            simulator.command, input=question, capture_output=True, timeout=simulator.timeout_s, cwd=simulator.folder
        )
    except FileNotFoundError:
        raise InputError("no such command", field="command", found=simulator.command[0]) from None
    except (OSError, ValueError) as error:  # a word with a null byte is a ValueError
        raise InputError(f"cannot be started ({error})", field="command", found=name) from None
    except subprocess.TimeoutExpired:
        message = f"`{name}` took longer than {simulator.timeout_s:g} s for {len(shapes)} shapes (timeout_s)"
        raise EngineError(message) from None
    if run.returncode:
        last = run.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it wrote nothing to stderr"]
        raise EngineError(f"`{name}` failed with exit code {run.returncode}: {last[0]}")
    try:
        times = decode_json(run.stdout, Reply, file=f"the answer of `{name}`").time_s
        if len(times) != len(shapes):
            message, accepted = f"has {len(times)} times", f"{len(shapes)}, one for each shape"
            raise InputError(message, file=f"the answer of `{name}`", field="time_s", accepted=accepted)
        return check_times(shapes, np.array(times, dtype=np.float64), f"the answer of `{name}`")
    except InputError as error:  # its own mistake, not the user's input
        raise EngineError(str(error)) from None


def _keep(answers: dict[str, float], file: Path) -> None:
    """Write the answers, all of them or none: others may read at the same time. Raises InputError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=file.parent, delete=False) as stream:
            stream.write(msgspec.json.encode(answers))
        Path(stream.name).replace(file)
    except OSError as error:
        raise InputError(f"answers cannot be kept there ({error})", file=file, field="cache") from None
