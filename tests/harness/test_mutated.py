"""Examples with one key made wrong, drawn by a seed: each is read, or refused in one line that names the file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.deploy.asked import read_cluster
from harness.descriptions.scenario import read_scenario
from tests.harness.scenarios import EXAMPLES
from traces.errors import InputError

DROPPED = object()
WRONG: tuple[Any, ...] = (DROPPED, None, [], {}, {"x": 1}, [1], True, "", "ü\0", 0, -1, 2**70, 1e300, float("nan"))
N_DRAWN = 250


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every key and item of a document stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*at, key)
        yield from places(item, (*at, key))


def changed(document: Any, at: tuple[str | int, ...], wrong: Any) -> Any:
    """A copy with something else there, under a name that is nearly its own, or without it."""
    copy = deepcopy(document)
    holder = copy
    for key in at[:-1]:
        holder = holder[key]
    if wrong is DROPPED:
        del holder[at[-1]]
    else:
        holder[at[-1]] = wrong
    return copy


def drawn() -> list[tuple[str, tuple[str | int, ...], Any]]:
    """Examples, places in them, and what is to stand there."""
    documents = {file.name: yaml.safe_load(file.read_text()) for file in sorted(EXAMPLES.glob("*.yaml"))}
    cases = [(name, at, wrong) for name, document in documents.items() for at in places(document) for wrong in WRONG]
    return random.Random(17).sample(cases, N_DRAWN)


def test_what_is_wrong_is_refused_in_one_line(tmp_path: Path) -> None:
    refused, unclear = 0, []
    for number, (name, at, wrong) in enumerate(drawn()):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(changed(yaml.safe_load((EXAMPLES / name).read_text()), at, wrong)))
        try:
            read_cluster(read_scenario(file))
        except InputError as error:
            refused += 1
            if error.file is None or "\n" in str(error):
                unclear.append((name, at, wrong, str(error)))
        except Exception as error:
            pytest.fail(f"{name} with {wrong!r} at {at}: {error!r}")
    assert not unclear
    assert refused > N_DRAWN / 2
