"""What a scenario says, key by key, as `--set` would say it, and where several say something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from harness.descriptions.cluster import cluster_document
from harness.descriptions.scenario import Scenario

UNSAID = "not said"
"""Of a key that a scenario leaves to its default."""


def written(scenario: Scenario) -> dict[str, Any]:
    """What the user wrote, overrides applied, with the cluster's description in place; ready for JSON.

    Raises InputError when the cluster's file cannot be read.
    """
    whole = {**scenario.requested, "cluster": cluster_document(scenario).value}
    value: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(whole))
    return value


def by_key(value: Any, prefix: str = "") -> dict[str, Any]:
    """Values by keys such as `engine.max_num_seqs` and `cluster.instances.0.count`; a list of values is one value."""
    if isinstance(value, dict) and value:
        inner = value.items()
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        inner = {str(i): one for i, one in enumerate(value)}.items()
    else:
        return {prefix.removesuffix("."): value}
    return {key: found for name, one in inner for key, found in by_key(one, f"{prefix}{name}.").items()}


def differing(several: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Keys that are not the same in all, in the order of their first appearance, and what each has, in words."""
    keys = dict.fromkeys(key for one in several for key in one)
    found = {key: [text_of(one[key]) if key in one else UNSAID for one in several] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def text_of(value: Any) -> str:
    """A value as it would stand after `--set key=`; a text as it is."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
