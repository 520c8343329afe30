"""Devices and links from YAML: every number has a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles.catalog import BUNDLED
from profiles.device import read_device, read_link
from traces.errors import InputError

DEVICE = """\
name: D
memory_bytes: 8.0e10
tdp_w: 700
sources: {memory_bytes: a datasheet, tdp_w: another}
"""
LINK = """\
name: L
bandwidth_bytes_per_s: 4.5e11
latency_s: 2.0e-6
sources: {bandwidth_bytes_per_s: a datasheet, latency_s: measured}
"""


def test_what_is_not_said_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(DEVICE)
    device = read_device(tmp_path / "d.yaml")
    assert (device.memory_bytes, device.tdp_w, device.memory_bandwidth_bytes_per_s) == (8e10, 700, None)


def test_a_link_has_bandwidth_and_latency(tmp_path: Path) -> None:
    (tmp_path / "l.yaml").write_text(LINK)
    link = read_link(tmp_path / "l.yaml")
    assert (link.bandwidth_bytes_per_s, link.latency_s) == (4.5e11, 2e-6)


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (DEVICE, ", tdp_w: another", "", r"field 'sources.tdp_w': is missing"),
        (DEVICE, "another", "' '", r"field 'sources.tdp_w': is missing"),
        (DEVICE, "8.0e10", "-1", r"d.yaml:2: field 'memory_bytes'"),
        (DEVICE, "tdp_w: 700", "tpd_w: 700", r"d.yaml:3: field 'tpd_w': is unknown.*tdp_w"),
        (DEVICE, "memory_bytes: 8.0e10\n", "", r"field 'memory_bytes'"),
        (LINK, ", latency_s: measured", "", r"field 'sources.latency_s': is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, old: str, new: str, message: str) -> None:
    (tmp_path / "d.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        (read_device if text is DEVICE else read_link)(tmp_path / "d.yaml")


def test_bundled_devices_go_by_names_of_their_own() -> None:
    devices = [read_device(file) for file in sorted(BUNDLED.glob("devices/*.yaml"))]
    names = [name for device in devices for name in (device.name, *device.aliases)]
    assert len(names) == len(set(names))
    assert {"A100-80GB", "A6000", "H100", "H200", "L40S", "RTX4090", "RTXPRO6000"} <= set(names)


def test_bundled_devices_are_of_plausible_size() -> None:
    """A slip of a thousand, or GB taken for GiB twice, would show."""
    for file in BUNDLED.glob("devices/*.yaml"):
        device = read_device(file)
        assert 16 * 2**30 <= device.memory_bytes < 288 * 2**30
        assert device.memory_bandwidth_bytes_per_s is not None
        assert 5e11 < device.memory_bandwidth_bytes_per_s < 1e13
        assert all(1e14 < peak < 1e16 for peak in device.peak_flops_per_s.values())
