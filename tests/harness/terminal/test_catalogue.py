"""What can be simulated, and how well validated; cards of all that is bundled."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.demo import BUNDLED as LOADS
from harness.doctor import doctor
from harness.terminal.cards import capture_card, digest_of, profile_card
from harness.terminal.catalogue import KINDS, VALIDITY, Findings, catalogue
from profiles.aiconfigurator_tables import DEVICES
from profiles.catalog import BUNDLED, list_profiles
from profiles.profile_folder import read_profile, write_profile
from tests.harness.scenarios import write_scenario
from traces.capture import read_capture
from traces.decoding import decode_yaml

ROOT = Path(__file__).resolve().parents[3]
CARDS = ROOT / "docs" / "cards"
CAPTURES = sorted(folder for folder in (LOADS / "captures").iterdir() if folder.is_dir())
PROFILES = [info.path for info in list_profiles([BUNDLED])]


def ok(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_everything_has_its_source_and_how_well_validated(tmp_path: Path) -> None:
    write_scenario(tmp_path)
    rows = catalogue([tmp_path / "profiles"])
    kinds = {row["kind"] for row in rows}
    assert kinds == set(KINDS) - (set() if find_spec("aiconfigurator_core") else {"aiconfigurator"})
    assert rows[0]["device"] == "TESTGPU"
    assert rows[0]["validated"] == "against no run"
    assert all(row["validated"] and row["section"] for row in rows)
    by_device = {(row["kind"], row["device"]): row for row in rows}
    assert by_device["roofline", "MI300X"]["dtype"] == "bfloat16, float16, fp8"
    assert "E2EL" in by_device["measured", "AMD-EPYC-2vCPU"]["validated"]
    assert ("roofline", "AMD-EPYC-2vCPU") not in by_device  # of which no datasheet is described


def test_the_list_is_a_table_or_json() -> None:
    assert {row["kind"] for row in json.loads(ok("profile", "list", "--kind", "roofline", "--json"))} == {"roofline"}
    table = ok("profile", "list", "--kind", "measured")
    assert "AMD-EPYC-2vCPU" in table
    assert "docs/validity.md" in table
    result = CliRunner().invoke(app, ["profile", "list", "--kind", "guessed"])
    assert result.exit_code == 2


def test_without_the_extra_the_list_and_the_doctor_say_what_it_would_add(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "not installed, would add A100-80GB, B200, "
    for module in [name for name in sys.modules if name.startswith("aiconfigurator_core.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    (line,) = (line for line in ok("profile", "list", "--kind", "measured").splitlines() if line.startswith("aiconf"))
    assert line.startswith(f"aiconfigurator: {said}")
    assert line.endswith("RTXPRO6000: pip install '.[aiconfigurator]', in the clone of servetwin")
    (check,) = (check for check in doctor() if check.name.startswith("aiconfigurator"))
    assert check.ok is None
    assert check.found.startswith(said)


@pytest.mark.skipif(not find_spec("aiconfigurator_core"), reason="needs the extra aiconfigurator")
def test_with_the_extra_there_is_nothing_to_add() -> None:
    assert "not installed" not in ok("profile", "list", "--kind", "measured")


@pytest.mark.parametrize("finding", decode_yaml(VALIDITY, Findings).entries, ids=lambda f: f"{f.kind}-{f.device}")
def test_a_finding_stands_in_the_documentation(finding: object) -> None:
    headings = [line.removeprefix("## ") for line in (ROOT / "docs" / "validity.md").read_text().splitlines()]
    assert finding.section in headings  # type: ignore[attr-defined]


def test_the_first_finding_that_fits_is_not_hidden_by_one_before() -> None:
    seen: set[tuple[str | None, ...]] = set()
    for finding in decode_yaml(VALIDITY, Findings).entries:
        key = finding.kind, finding.source, finding.device, finding.model
        assert key not in seen
        assert (finding.kind, None, None, None) not in seen
        seen.add(key)


@pytest.mark.parametrize("folder", PROFILES, ids=lambda folder: "-".join(folder.parts[-3:]))
def test_every_bundled_profile_has_its_card(folder: Path) -> None:
    """Written by: servetwin profile card FOLDER > docs/cards/profile-DEVICE-MODEL.md"""
    card = profile_card(read_profile(folder))
    assert (CARDS / f"profile-{'-'.join(folder.parts[-3:])}.md").read_text() == card
    assert "licence | Apache-2.0" in card
    assert ok("profile", "card", folder) == card


@pytest.mark.parametrize("folder", CAPTURES, ids=lambda folder: folder.name)
def test_every_bundled_capture_has_its_card(folder: Path) -> None:
    """Written by: servetwin capture card FOLDER > docs/cards/capture-NAME.md"""
    card = capture_card(read_capture(folder), folder)
    assert (CARDS / f"capture-{folder.name}.md").read_text() == card
    for word in ("vllm 0.32.0", "2026-11-21", "max_num_seqs", "tpot: mean", digest_of(folder)):
        assert word in card
    assert ok("capture", "card", folder) == card


def test_there_is_no_card_of_something_else() -> None:
    assert len(list(CARDS.glob("*.md"))) == len(PROFILES) + len(CAPTURES)


def test_a_card_of_ones_own_states_no_licence_that_nobody_gave(tmp_path: Path) -> None:
    write_profile(read_profile(PROFILES[0]), tmp_path / "own")
    assert "| licence | not stated |" in ok("profile", "card", tmp_path / "own")


@pytest.mark.skipif(not find_spec("aiconfigurator_core"), reason="needs the extra aiconfigurator")
def test_types_are_those_that_were_collected() -> None:
    rows = {row["device"]: row["dtype"] for row in catalogue([]) if row["kind"] == "aiconfigurator"}
    assert set(rows) == set(DEVICES)
    assert rows["A100-80GB"] == "bfloat16"
    assert rows["H100"] == "bfloat16, fp8"
    assert rows["B200"] == rows["RTXPRO6000"] == "bfloat16, fp8, nvfp4"


@pytest.mark.skipif(not find_spec("aiconfigurator_core"), reason="needs the extra aiconfigurator")
def test_tables_are_imported_as_a_profile_and_have_a_card(tmp_path: Path) -> None:
    command = ("profile", "import", "aiconfigurator:l40s", "--model", "meta-llama/Llama-3.1-8B")
    ok(*command, "--dtype", "fp8", "--tp", "2", "--out", tmp_path / "p" / "l40s")
    card = ok("profile", "card", tmp_path / "p" / "l40s")
    assert "| licence | Apache-2.0 |" in card
    assert "| device | L40S |" in card
    (row, *_) = json.loads(ok("profile", "list", "--profiles", tmp_path / "p", "--json"))
    assert (row["kind"], row["dtype"], row["source"]) == ("aiconfigurator", "fp8", "aiconfigurator-core 0.12.0")
    assert (row["device"], row["path"]) == ("L40S", str(tmp_path / "p" / "l40s"))
    assert row["validated"].startswith("against no run; sums over 4 and 8 of them ")


@pytest.mark.skipif(not find_spec("aiconfigurator_core"), reason="needs the extra aiconfigurator")
def test_tables_of_experts_are_imported_too(tmp_path: Path) -> None:
    command = ("profile", "import", "aiconfigurator:b200_sxm", "--model", "Qwen/Qwen3-30B-A3B-Instruct-2507")
    ok(*command, "--dtype", "nvfp4", "--tp", "1", "--tp", "4", "--out", tmp_path / "p" / "b200")
    profile = read_profile(tmp_path / "p" / "b200")
    assert sorted(profile.tables) == [1, 4]
    assert "experts" in profile.meta.composition.per_layer
    assert "chosen as power_law_1.2" in ok("profile", "show", tmp_path / "p" / "b200")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("import", "aiconfigurator:l40s", "--out", "o"), "--model"),
        (("import", "somewhere", "--model", "m", "--out", "o"), "aiconfigurator:SYSTEM alone"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["profile", *words])
    assert result.exit_code == 2
    assert message in result.output
