"""DRAM timing files: read as they are, and refused by file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles.dram import find_dram, read_dram
from profiles.model import ModelSpec
from profiles.near_memory import AttentionRate, find_rate
from traces.errors import InputError

TIMING = """\
[dram_structure]
protocol = HBM        ; a comment
bankgroups = 4
banks_per_group = 4
rows = 32768
columns = 64
device_width = 128
[timing]
tCK = 1               # ns
CL = 14
[system]
channel_size = 1024   # MiB
bus_width = 128
[other]
data_rate = 2000      # MT/s
idle_power = 160      # mW
peak_power = 760
"""


def write(folder: Path, text: str = TIMING, name: str = "hbm.ini") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_channel_is_its_ranks_its_bus_and_its_first_byte(tmp_path: Path) -> None:
    channel = read_dram(write(tmp_path))
    # Pages of 64 * 128 bits in 32768 rows of 16 banks: 512 MiB a rank, and 1024 MiB were asked for.
    assert channel.capacity_bytes == 2**30
    assert channel.bandwidth_bytes_per_s == 128 / 8 * 2000e6
    assert channel.read_latency_s == pytest.approx(14e-9)
    assert (channel.idle_w, channel.peak_w) == (pytest.approx(0.16), pytest.approx(0.76))


def test_a_channel_holds_one_rank_at_least_and_only_whole_ones(tmp_path: Path) -> None:
    small = read_dram(write(tmp_path, TIMING.replace("channel_size = 1024", "channel_size = 100")))
    odd = read_dram(write(tmp_path, TIMING.replace("channel_size = 1024", "channel_size = 1500")))
    assert (small.capacity_bytes, odd.capacity_bytes) == (2**29, 2**30)


def test_power_that_is_not_stated_is_not_known(tmp_path: Path) -> None:
    text = TIMING.replace("idle_power = 160", "").replace("peak_power = 760", "")
    channel = read_dram(write(tmp_path, text))
    assert (channel.idle_w, channel.peak_w) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("CL = 14", ""), "hbm.ini: field 'CL': is missing: accepted: a number above 0"),
        (("tCK = 1 ", "tCK = fast "), "hbm.ini:9: field 'tCK': found 'fast': accepted: a number above 0"),
        (("rows = 32768", "rows = 1.5"), "hbm.ini:5: field 'rows': found '1.5': accepted: a whole number"),
        (
            ("bus_width = 128", "bus_width = 100"),
            "field 'bus_width': found '100': accepted: a multiple of device_width",
        ),
        (("peak_power = 760", "peak_power = 1"), "field 'peak_power': found '1': accepted: at least idle_power 160"),
        (("bankgroups = 4", "bankgroups 4"), "hbm.ini:3: found 'bankgroups 4': accepted: key = value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_dram(write(tmp_path, TIMING.replace(*change)))


def test_a_file_is_found_by_its_path_or_by_its_name_in_the_folders(tmp_path: Path) -> None:
    (tmp_path / "pim").mkdir()
    file = write(tmp_path / "pim")
    assert find_dram("pim/hbm.ini", tmp_path / "cluster.yaml", []).path == file
    assert find_dram("hbm", tmp_path / "cluster.yaml", [tmp_path]).path == file
    with pytest.raises(InputError, match=r"'timing': found 'hbn': .*'hbm' is the nearest"):
        find_dram("hbn", tmp_path / "cluster.yaml", [tmp_path])
    with pytest.raises(InputError, match="there are none"):
        find_dram("hbm", tmp_path / "cluster.yaml", [])


@pytest.mark.ground_truth
def test_the_references_files_are_read_as_they_are(ground_truth: Path) -> None:
    files = sorted((ground_truth / "vllm-0.19" / "pim").glob("*.ini"))
    channels = {file.stem: read_dram(file) for file in files}
    figures = {name: (one.capacity_bytes / 2**30, one.bandwidth_bytes_per_s / 1e9) for name, one in channels.items()}
    assert figures == {
        "DDR4_8GB_3200_pim": (8, 25.6),
        "HBM2_1GB_2000_pim": (1, 32),
        "LPDDR4X_2GB_4266_pim": (2, pytest.approx(8.532)),
        "LPDDR5_2GB_6400_pim": (2, 12.8),
    }
    assert all(find_rate(name).num_heads == 32 for name in channels)


def test_a_rate_grows_with_the_width_of_the_query_heads() -> None:
    rate = AttentionRate(request_s=2e-6, token_s=1e-9, num_heads=32, head_dim=128)
    model = ModelSpec("m", 1, 8192, 1, 64, 8, 128, 1)
    assert rate.scaled(model) == AttentionRate(request_s=4e-6, token_s=2e-9, num_heads=64, head_dim=128)
    with pytest.raises(InputError, match=r"'attention': is missing: .*DDR4_8GB_3200_pim"):
        find_rate("DDR9")
