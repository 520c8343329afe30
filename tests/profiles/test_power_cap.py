"""What a power cap costs, from a file: linear between what was measured, and nothing beyond it."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from profiles.power_cap import read_cap_table
from traces.errors import InputError

TABLE = "power_fraction,prefill_slowdown,decode_slowdown\n0.5,1.6,1.2\n0.75,1.2,1\n1,1,1\n"


def test_slowdowns_are_linear_between_caps(tmp_path: Path) -> None:
    (tmp_path / "caps.csv").write_text(TABLE)
    table = read_cap_table(tmp_path / "caps.csv")
    slowdown, whole = table.slowdown(0.625), table.slowdown(1.0)
    assert slowdown is not None
    assert whole is not None
    assert (slowdown.prefill, slowdown.decode) == (pytest.approx(1.4), pytest.approx(1.1))
    assert (whole.prefill, whole.decode) == (1.0, 1.0)


@pytest.mark.parametrize("fraction", [0.49, 1.01])
def test_a_cap_that_was_not_measured_is_not_known(tmp_path: Path, fraction: float) -> None:
    (tmp_path / "caps.csv").write_text(TABLE)
    table = read_cap_table(tmp_path / "caps.csv")
    assert table.slowdown(fraction) is None
    assert table.measured() == "0.5 to 1, as caps.csv measured,"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("power_fraction,prefill_slowdown\n", "decode_slowdown.*is missing"),
        ("power_fraction,prefill_slowdown,decode_slowdown\n", "holds no rows"),
        (TABLE.replace("1.6", "0.9"), "prefill_slowdown.*found 0.9.*a cap makes nothing faster"),
        (TABLE.replace("0.75", "0.4"), "power_fraction.*more than the row before"),
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "caps.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_cap_table(tmp_path / "caps.csv")


@pytest.mark.ground_truth
def test_splitwises_capped_device_is_one_row_of_such_a_table(ground_truth: Path, tmp_path: Path) -> None:
    """Its capped H100 is its H100 with prompts 1.3 times as long and tokens as before; the cap itself is not said.

    Its power columns hold 0 for both, which is no power: nothing can be read from them.
    """
    times: dict[tuple[str, ...], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    with (ground_truth / "device-power" / "splitwise_perf_model.csv").open() as file:
        for row in csv.DictReader(file):
            case = tuple(row[name] for name in ("model", "prompt_size", "batch_size", "token_size", "tensor_parallel"))
            times[case][row["hardware"]].append((float(row["prompt_time"]), float(row["token_time"])))
    both = [case for case in times.values() if "h100-80gb-pcap" in case]
    ratios = np.array(
        [np.median(c["h100-80gb-pcap"], axis=0) / np.median(c["h100-80gb"], axis=0) for c in both]
    )  # [n, 2]
    assert len(ratios) == 76
    prefill, decode = np.median(ratios, axis=0)
    (tmp_path / "caps.csv").write_text(
        f"power_fraction,prefill_slowdown,decode_slowdown\n0.5,{prefill},{decode}\n1,1,1\n"
    )
    slowdown = read_cap_table(tmp_path / "caps.csv").slowdown(0.5)
    assert slowdown is not None
    assert ratios[:, 0] == pytest.approx(slowdown.prefill, rel=1e-6)
    assert ratios[:, 1] == pytest.approx(slowdown.decode, rel=1e-6)
    assert (slowdown.prefill, slowdown.decode) == (pytest.approx(1.3), pytest.approx(1.0))
