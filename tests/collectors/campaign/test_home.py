"""A campaign's way to a host without a network and home again: the payload's pieces, and the import."""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from collectors.campaign.parts import Campaign, CampaignRecord, Part, PartRecord, write_bundles
from collectors.campaign.plan import GIVEN
from traces.capture import Capture, read_capture, write_capture

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


gpu_payload, gpu_campaign, import_campaign = map(script, ("gpu_payload", "gpu_campaign", "import_campaign"))


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A payload of three pieces, carried into one folder."""
    site = tmp_path / "packed"
    (site / "package").mkdir(parents=True)
    (site / "package" / "module.py").write_text("answer = 42\n")
    gpu_payload.compress(site, tmp_path / "whole", 0)
    size = (tmp_path / "whole").stat().st_size
    for piece in gpu_payload.cut(tmp_path / "whole", tmp_path / "payload", size // 3 + 1):
        for file in piece.parent.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_payload_arrives_as_it_left(pieces: Path) -> None:
    assert len(list(pieces.glob("payload.tar.xz.*of3"))) == 3
    gpu_campaign.unpack_payload(pieces, pieces / "site")
    assert (pieces / "site" / "package" / "module.py").read_text() == "answer = 42\n"


def test_a_missing_piece_and_a_damaged_one_are_said(pieces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(payload: Path) -> str:
        with pytest.raises(SystemExit) as ended:
            gpu_campaign.unpack_payload(payload, pieces / "site")
        assert ended.value.code == 2
        return capsys.readouterr().err

    second = pieces / "payload.tar.xz.2of3"
    data = second.read_bytes()
    second.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "2of3: is damaged" in refused(pieces)
    second.unlink()
    assert "pieces [2] of 3 are missing" in refused(pieces)
    assert "has no payload.json" in refused(pieces / "nowhere")


def test_the_payload_leaves_out_what_other_devices_need() -> None:
    left_out = gpu_payload.LEFT_OUT
    for name in ("vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", "vllm/vllm-rs", "vllm/third_party/deep_gemm/__init__.py"):
        assert left_out.match(name)
    for name in ("vllm/v1/engine/core.py", "vllm-0.26.0.dist-info/METADATA", "vllm/third_party/pynvml.py"):
        assert not left_out.match(name)


def test_a_package_that_needs_what_is_nowhere_is_named(tmp_path: Path) -> None:
    requirements = (
        "torch",  # of the host
        "There_Too>=1",
        "there-too>=2",
        "nowhere>=0.4",
        "windows-only; sys_platform == 'win32'",
        "old-only; python_version < '3.12'",
        "optional; extra == 'more'",
    )
    for name, lines in (("needy", requirements), ("there-too", ()), ("vllm", ("flashinfer",))):
        info = tmp_path / f"{name.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in lines)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{needs}")
    assert list(gpu_payload.unmet(tmp_path)) == [
        "needy needs there-too>=2, and there is 1.5",
        "needy needs nowhere>=0.4, which is not there",
    ]


def test_the_budget_begins_with_the_program_and_not_with_its_first_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[float] = []

    def run(_: Campaign, parts: Sequence[Part], budget_s: float) -> tuple[PartRecord, ...]:
        budgets.append(budget_s)
        return ()

    monkeypatch.setattr(gpu_campaign, "host_facts", lambda _: {"cpu": "a CPU", "packages": {}, "imports": {}})
    monkeypatch.setattr(Campaign, "run", run)
    for name in (*gpu_campaign.ENVIRONMENT, "PYTHONPATH", "VLLM_CACHE_ROOT"):
        monkeypatch.setenv(name, "")
    command = ["gpu_campaign.py", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--budget-s", "100"]
    command += ["--payload", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("SERVETWIN_SITE", str(tmp_path / "work" / "site"))  # begun anew within it, 30 s ago
    monkeypatch.setenv("SERVETWIN_BEGUN_S", str(time.monotonic() - 30.0))
    gpu_campaign.main()
    assert budgets[0] == pytest.approx(70.0, abs=10.0)


def carried(folder: Path, captures: dict[str, Capture], *more: PartRecord) -> Path:
    """What a campaign with these captures, and parts that came to nothing, has to be carried home."""
    archives = []
    for name, capture in captures.items():
        write_capture(capture, folder / name / "capture")
        archives.append(folder / f"{name}.tar.gz")
        with tarfile.open(archives[-1], "w:gz") as tar:
            tar.add(folder / name, ".")
    out = folder / "out"
    out.mkdir()
    write_bundles(archives, out, MIB)
    parts = (*(PartRecord(name=name, status="complete", took_s=1.0) for name in captures), *more)
    host = {"gpu": {"name": "A GPU", "driver": "1", "cuda": "13"}, "packages": {"vllm": "0.26.0"}}
    (out / "campaign.json").write_bytes(msgspec.json.encode(CampaignRecord(host=host, parts=parts)))
    return out


@pytest.fixture(scope="module")
def capture() -> Capture:
    return read_capture(ROOT / "harness" / "bundled" / "captures" / "saturated-1")


def test_a_capture_comes_home_smaller_and_with_a_card(tmp_path: Path, capture: Capture) -> None:
    out = carried(tmp_path, {"llama-saturated-1": capture}, PartRecord(name="moe-burst", status="no time left"))
    refused = import_campaign.bring_home(out, tmp_path / "captures", tmp_path / "profiles", MIB, [])
    assert [(one.name, one.reason) for one in refused] == [("moe-burst", "no time left")]
    home = read_capture(tmp_path / "captures" / "llama-saturated-1")
    assert all(one.client_token_times_s is None for one in home.outcomes)
    assert [one.token_times_s for one in home.outcomes] == [one.token_times_s for one in capture.outcomes]
    assert home.meta.notes == (*capture.meta.notes, import_campaign.CLIENT_NOTE)
    card = (tmp_path / "captures" / "CARD.md").read_text()
    assert card.startswith("# Measured on A GPU, driver 1, CUDA 13\n")
    assert "| llama-saturated-1 | 132 |" in card


def test_what_may_not_be_committed_is_refused_with_the_reason(tmp_path: Path, capture: Capture) -> None:
    def noted(**changes: object) -> Capture:
        meta = msgspec.structs.replace(capture.meta, **changes)
        return Capture(meta, capture.trace, capture.outcomes, capture.steps)

    captures = {"given": noted(notes=(GIVEN,)), "unsound": noted(reasons=("a clock was set",)), "large": capture}
    out = carried(tmp_path, captures)
    refused = import_campaign.bring_home(out, tmp_path / "captures", tmp_path / "profiles", 1000, [])
    reasons = {one.name: one.reason for one in refused}
    assert reasons["given"] == GIVEN
    assert reasons["unsound"] == "must not be scored: a clock was set"
    assert reasons["large"].endswith("MiB, more than 0.000953674")
    assert [path.name for path in (tmp_path / "captures").iterdir()] == ["CARD.md"]


def test_the_levels_of_the_bare_device_are_those_around_its_work(tmp_path: Path) -> None:
    from tests.collectors.power.power_files import ORIGIN_S, gauge, times

    def watts(at_s: float) -> float:
        return 600.0 if 25 <= at_s <= 35 else 120.0 if 35 < at_s <= 53 else 75.0

    gauge(tmp_path / "power.jsonl", times(0, 80), watts)
    windows = {"copy": [ORIGIN_S + 25, ORIGIN_S + 30], "matmul_bfloat16": [ORIGIN_S + 30, ORIGIN_S + 35]}
    rates = {name: {"window_s": window} for name, window in windows.items()}
    (tmp_path / "device.json").write_text(json.dumps(rates))
    _, levels = import_campaign.device_facts(tmp_path)
    own = levels.components["gpu0"]
    assert (own.idle.median_w, own.standby.median_w, own.active.median_w) == (75.0, 120.0, 600.0)
