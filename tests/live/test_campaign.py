"""The campaign on a real vLLM on this machine's CPU: cut off in the middle, taken up again, and brought home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from collectors.campaign.loads import shape
from collectors.campaign.parts import CampaignRecord, unpack_bundles
from collectors.campaign.plan import TINY
from profiles.profile_folder import read_profile
from tests.live import faults
from traces.capture import Capture, read_capture
from traces.trace import read_trace

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
CAPTURES = ("llama-burst", "llama-knee-1", "llama-saturated-1")
PARTS = ("device", *CAPTURES, "llama-operators")
CUT_OFF_IN = "llama-knee-1"


@dataclass(frozen=True)
class Campaign:
    """A campaign that was killed within a part, and what it had to carry home before and after it was run again."""

    folder: Path
    before: CampaignRecord
    after: CampaignRecord

    def capture(self, part: str) -> Capture:
        """As it was carried home."""
        unpack_bundles(self.folder / "out", self.folder / "home")
        with tarfile.open(self.folder / "home" / f"{part}.tar.gz") as tar:
            tar.extractall(self.folder / "home" / part, filter="data")
        return read_capture(self.folder / "home" / part / "capture")


def record(out: Path) -> CampaignRecord:
    return msgspec.json.decode((out / "campaign.json").read_bytes(), type=CampaignRecord)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    python = ROOT / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    folder = tmp_path_factory.mktemp("campaign")
    work, out = folder / "work", folder / "out"
    command = [sys.executable, ROOT / "scripts" / "gpu_campaign.py", "--scale", "tiny", "--engine-python", python]
    command += ["--work", work, "--out", out, "--sensor", "command=echo 42"]
    command += [word for part in PARTS for word in ("--only", part)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (work / "running" / CUT_OFF_IN / "power.jsonl").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = record(out)
    subprocess.run([*command, "--budget-s", "1800"], check=True)
    home = [sys.executable, ROOT / "scripts" / "import_campaign.py", out]
    ran = subprocess.run([*home, "--captures", folder / "captures", "--profiles", folder / "profiles"], check=False)
    assert ran.returncode in (0, 3)  # 3: a capture was refused
    return Campaign(folder, before, record(out))


def test_a_cut_off_loses_only_the_part_under_way(campaign: Campaign) -> None:
    assert {one.name for one in campaign.before.parts} == {"device", "llama-burst"}
    assert {one.name: one.status for one in campaign.after.parts} == dict.fromkeys(PARTS, "complete")
    assert {one.name for one in campaign.after.parts if one.took_s is None} == {"device", "llama-burst"}


def test_no_engine_is_left_behind(campaign: Campaign) -> None:
    """Not the one of the campaign that was killed, either."""
    mark = os.fsencode(campaign.folder / "work")
    for _ in range(100):
        there = [file for file in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(file)]
        if not there:
            return
        time.sleep(0.1)
    pytest.fail(f"{len(there)} processes are left")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_its_captures_are_sound_and_know_their_power(campaign: Campaign) -> None:
    for part in CAPTURES:
        capture = campaign.capture(part)
        assert faults(capture) == []
        assert (campaign.folder / "captures" / part / "meta.json").exists() == (not capture.meta.reasons)
        assert capture.meta.model == "servetwin/llama-xs"
        assert capture.steps is not None
        power = capture.series["power_w"]
        assert set(power.value) == {42.0}
        assert power.time_s[0] < capture.trace.rows[-1].arrival_s + 5  # by the capture's clock
        assert power.time_s[-1] > max(one.finish_s or 0.0 for one in capture.outcomes)


def test_the_knee_is_a_share_of_what_was_served_at_once(campaign: Campaign) -> None:
    """Of what was asked of the client; when it sent depends on what else the machine does."""
    burst, knee = campaign.capture("llama-burst"), campaign.capture("llama-knee-1")
    per_s = len(burst.outcomes) / max(one.finish_s or 0.0 for one in burst.outcomes)
    asked = read_trace(campaign.folder / "home" / "llama-knee-1" / "trace.jsonl.gz")
    assert len(asked) == len(knee.outcomes) == 16
    one_a_second = shape(TINY.loads, 16)
    for row, drawn in zip(asked.rows, one_a_second.rows, strict=True):
        assert row.arrival_s == pytest.approx(drawn.arrival_s / (0.9 * per_s), rel=1e-3)


def test_each_server_has_the_cache_that_its_loads_ask_for(campaign: Campaign) -> None:
    """Whether a small one runs out depends on how steady the machine was between a burst and the load made of it."""
    blocks = {part: campaign.capture(part).meta.num_gpu_blocks for part in CAPTURES}
    assert blocks["llama-burst"] == blocks["llama-knee-1"]
    assert blocks["llama-saturated-1"] == (blocks["llama-burst"] or 0) // 8


def test_the_operator_profile_came_home(campaign: Campaign) -> None:
    (file,) = (campaign.folder / "profiles").rglob("profile.json")
    profile = read_profile(file.parent)
    assert profile.meta.model == "servetwin/llama-xs"
    assert profile.meta.engine == "vllm 0.32.0"


def test_the_card_says_what_the_device_can_do(campaign: Campaign) -> None:
    card = (campaign.folder / "captures" / "CARD.md").read_text()
    assert "bfloat16 matrix products: " in card
    for part in CAPTURES:
        assert (f"| {part} | 16 |" in card) == (campaign.folder / "captures" / part).exists()
