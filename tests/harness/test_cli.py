"""The commands from outside: what they write, and how they refuse."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from harness.descriptions.scenario import read_scenario
from harness.files import new_file, replace_file
from tests.command_line import as_process, ok, servetwin
from tests.edits import edit
from tests.harness.scenarios import EXAMPLES, write_scenario
from traces.capture import read_capture
from traces.errors import InputError


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return write_scenario(tmp_path)


def test_simulate_writes_a_capture_and_its_summary(scenario: Path, tmp_path: Path) -> None:
    printed = ok("simulate", scenario, "--out", tmp_path / "run")
    assert "TTFT" in printed
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert figures["n_finished"] == 40
    assert figures["metrics"]["ttft_s"]["p50"] > 0
    assert figures["steps"] >= figures["events"] > 0
    assert read_capture(tmp_path / "run").meta.kind == "simulated"


def test_simulate_twice_gives_the_same_bytes(scenario: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert as_process("simulate", scenario, "--out", tmp_path / name).returncode == 0
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "outcomes.parquet" in files
    for name in files:
        if name != "summary.json":
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_twin_validated_against_itself_has_no_error(scenario: Path, tmp_path: Path) -> None:
    ok("simulate", scenario, "--out", tmp_path / "run")
    printed = ok("validate", scenario, "--capture", tmp_path / "run", "--out", tmp_path / "check")
    assert "VALID over 40 requests" in printed
    result = json.loads((tmp_path / "check" / "validation.json").read_text())
    assert result["valid"] is True
    assert result["n_scored"] == 40
    assert result["metrics"]["e2el_s"]["mean"] == {
        "measured": result["metrics"]["e2el_s"]["mean"]["simulated"],
        "simulated": result["metrics"]["e2el_s"]["mean"]["simulated"],
        "error": 0.0,
        "ci95": [0.0, 0.0],
    }
    assert result["paired"]["ttft_s"]["mape"] == 0
    assert result["metrics"]["ttft_s"]["p99"] is None  # 40 requests have none
    assert result["series"]["power_w"] is None
    assert set(result) >= {"metrics", "paired", "stages", "series", "notes", "provenance", "wall_s", "reasons"}


def test_a_contradiction_between_scenario_and_capture_makes_it_invalid(scenario: Path, tmp_path: Path) -> None:
    ok("simulate", scenario, "--out", tmp_path / "run")
    arguments = ["--capture", tmp_path / "run", "--out", tmp_path / "check", "--set", "engine.max_num_seqs=8"]
    assert "configuration mismatch: max_num_seqs 8 simulated, 16 measured" in ok("validate", scenario, *arguments)
    assert json.loads((tmp_path / "check" / "validation.json").read_text())["valid"] is False


def test_the_report_is_one_file_that_needs_no_network(scenario: Path, tmp_path: Path) -> None:
    ok("simulate", scenario, "--out", tmp_path / "run")
    ok("validate", scenario, "--capture", tmp_path / "run", "--out", tmp_path / "check")
    page = (tmp_path / "check" / "report.html").read_text()
    assert len(page) < 6_000_000
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
    assert '<script type="application/json" id="data-charts">{"' in page
    assert "distribution-ttft_s" in page
    assert "series-n_running" in page


def test_a_run_of_which_nothing_finishes_has_a_summary(tmp_path: Path) -> None:
    printed = ok("simulate", EXAMPLES / "power.yaml", "--set", "deadline_s=0.001", "--out", tmp_path / "run")
    assert "\n90 of 90 requests aborted: the figures are of the 0 that finished\nn_requests 90, n_finished 0" in printed
    assert "slo met by 0 of 90 requests\n" in printed
    assert re.search(r"^cost [\d.]+ USD$", printed, flags=re.MULTILINE)


def test_an_option_changes_the_result(scenario: Path, tmp_path: Path) -> None:
    ok("simulate", scenario, "--out", tmp_path / "wide")
    ok("simulate", scenario, "--out", tmp_path / "narrow", "--set", "engine.max_num_seqs=1")
    wide, narrow = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("wide", "narrow"))
    assert narrow["metrics"]["queue_s"]["mean"] > wide["metrics"]["queue_s"]["mean"]


def test_the_looking_commands(scenario: Path, tmp_path: Path) -> None:
    assert json.loads(ok("trace", "show", tmp_path / "requests.jsonl", "--json"))["requests"] == 40
    ok("trace", "import", tmp_path / "requests.jsonl", "--out", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "requests.jsonl").read_bytes()
    ok("profile", "import", tmp_path / "bundle", "--out", tmp_path / "imported")
    rows = json.loads(ok("profile", "list", "--profiles", tmp_path / "imported", "--json"))
    assert rows[0]["device"] == "TESTGPU"
    assert "qkv_proj: 2 points to 64 tokens" in ok("profile", "show", tmp_path / "profiles" / "tiny")
    assert "attention" in ok("profile", "diff", tmp_path / "profiles" / "tiny", rows[0]["path"])
    ok("simulate", scenario, "--out", tmp_path / "run")
    assert "simulated" in ok("capture", "show", tmp_path / "run")
    ok("report", tmp_path / "run")
    assert "distribution-ttft_s" in (tmp_path / "run" / "report.html").read_text()
    ok("collect", "recorder", "--out", tmp_path / "recorder.py")
    compile((tmp_path / "recorder.py").read_text(), "recorder.py", "exec")
    assert "Python" in ok("doctor")


def test_it_says_its_version() -> None:
    assert ok("--version") == f"servetwin {version('servetwin')}\n"


@pytest.mark.parametrize("command", ["simulate", "validate", "trace show", "profile import", "capture import", "demo"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert "Example: servetwin" in ok(*command.split(), "--help")


WRONG = {
    "a missing trace": (lambda f: (f / "requests.jsonl").unlink(), r"requests.jsonl: no such file"),
    "an empty trace": (lambda f: (f / "requests.jsonl").write_text(""), r"requests.jsonl: is empty"),
    "a trace with a header alone": (
        lambda f: (f / "requests.jsonl").write_text('{"schema":"servetwin.trace/1"}\n'),
        r"requests.jsonl: holds no requests",
    ),
    "a bad JSON line": (
        edit("requests.jsonl", '{"request_id":"3"', '{"request_id":"3'),
        r"requests.jsonl:5: is not JSON",
    ),
    "a negative count": (
        edit("requests.jsonl", '"prompt_tokens":33', '"prompt_tokens":-33'),
        r"requests.jsonl:3: field 'prompt_tokens': found -33: accepted: int >= 1",
    ),
    "a NaN arrival": (
        edit("requests.jsonl", '"arrival_s":0.01', '"arrival_s":NaN'),
        r"requests.jsonl:3: field 'arrival_s': found nan",
    ),
    "unsorted arrivals": (
        edit("requests.jsonl", '"arrival_s":0.02', '"arrival_s":9.0'),
        r"requests.jsonl:5: field 'arrival_s': found 0.03: accepted: arrivals in ascending order",
    ),
    "an unknown field": (
        edit("requests.jsonl", '"prompt_tokens"', '"prompt_token"'),
        r"requests.jsonl:2: field 'prompt_token': is unknown: accepted: 'prompt_tokens'",
    ),
    "a file of no known format": (
        lambda f: (f / "requests.jsonl").write_text("a,b\n1,2\n"),
        r"requests.jsonl:1: is of no known format",
    ),
    "a missing key": (
        edit("scenario.yaml", "trace: requests.jsonl", "seed: 1"),
        r"scenario.yaml:1: field 'trace': is missing",
    ),
    "an unknown key": (
        edit("scenario.yaml", "seqs: 16", "seq: 16"),
        r"field 'engine.max_num_seq': is unknown.*'max_num_seqs'",
    ),
    "an unknown key at the top": (
        edit("scenario.yaml", "profiles:", "profile:"),
        r"scenario.yaml:6: field 'profile': is unknown: accepted: 'profiles'",
    ),
    "a wrong type": (
        edit("scenario.yaml", "seqs: 16", "seqs: many"),
        r"scenario.yaml:8: field 'engine.max_num_seqs': found 'many'",
    ),
    "a value out of range": (
        edit("scenario.yaml", "seqs: 16", "seqs: 0"),
        r"scenario.yaml:8: .*found 0: accepted: int >= 1",
    ),
    "a broken file": (edit("scenario.yaml", "engine:", "engine: ["), r"scenario.yaml:\d+: is not YAML"),
    "an unknown model": (
        edit("scenario.yaml", "test/tiny", "test/tinny"),
        r"scenario.yaml:4: no profile of TESTGPU / test/tinny",
    ),
    "an unknown device": (
        edit("scenario.yaml", "TESTGPU", "TESTGPV"),
        r"scenario.yaml:4: no profile of TESTGPV.*there are: TESTGPU",
    ),
    "a missing profiles folder": (
        edit("scenario.yaml", "[profiles]", "[nowhere]"),
        r"nowhere: field 'profiles': no such folder",
    ),
    "a profile without an operator": (
        edit("profiles/tiny/profile.json", '"down_proj"', '"up_proj"'),
        r"dense.csv:\d+: field 'operator': found 'down_proj'",
    ),
    "an engine of another kind that is not known": (
        edit("scenario.yaml", "    - model", "    - {model: a, device: b}\n    - model"),
        r"scenario.yaml:4: no profile of b / a / bfloat16 / kv auto: accepted: a measured one",
    ),
    "devices that nothing ties together": (
        edit("scenario.yaml", "device: TESTGPU", "device: TESTGPU\n      tensor_parallel_size: 2"),
        r"scenario.yaml:4: field 'fabric': is missing: accepted: the links between devices, as fabric: {kind: sw",
    ),
    "experts in a dense model": (
        edit("scenario.yaml", "device: TESTGPU", "device: TESTGPU\n      enable_expert_parallel: true"),
        r"scenario.yaml:6: field 'enable_expert_parallel': found True: accepted: false: test/tiny has no experts",
    ),
    "an unknown router": (
        edit("scenario.yaml", "engine:", "routing: round_robbin\nengine:"),
        r"field 'routing': is unknown: found 'round_robbin': accepted: 'round_robin' is the nearest",
    ),
    "options that contradict": (
        edit("scenario.yaml", "tokens: 256", "tokens: 8"),
        r"scenario.yaml:9: field 'engine.max_num_batched_tokens': found 8: accepted: at least max_num_seqs 16",
    ),
    "a key that stands twice": (
        edit("scenario.yaml", "engine:", "seed: 1\nseed: 2\nengine:"),
        r"scenario.yaml:8: is not YAML \(the key 'seed' stands twice\)",
    ),
    "an empty path": (
        edit("scenario.yaml", "requests.jsonl", '""'),
        r"scenario.yaml:1: field 'trace': found ''",
    ),
    "a negative seed": (edit("scenario.yaml", "engine:", "seed: -1\nengine:"), r"scenario.yaml:7: field 'seed'"),
    "a negative overhead": (
        edit("scenario.yaml", "engine:", "overhead: {source: x, host_step_s: -0.1}\nengine:"),
        r"scenario.yaml:7: field 'overhead.host_step_s': found -0.1",
    ),
    "an overhead in milliseconds": (
        edit("scenario.yaml", "engine:", "overhead: {source: x, host_step_s: 250}\nengine:"),
        r"found 250: accepted: float <= 60.0",
    ),
    "an overhead from nowhere": (
        edit("scenario.yaml", "engine:", "overhead: {host_step_s: 0.1}\nengine:"),
        r"scenario.yaml:7: field 'overhead.source': is missing",
    ),
    "KV blocks that cannot be predicted": (
        edit("scenario.yaml", "  num_gpu_blocks: 200\n", ""),
        r"yaml:5: field 'device': its memory is not described.*found 'TESTGPU': accepted: engine.num_gpu_blocks",
    ),
    "a model whose size nobody knows": (
        lambda f: (f / "profiles/models/test/tiny/config.json").unlink(),
        r"scenario.yaml:4: field 'model': found 'test/tiny'",
    ),
    "a calibration that is not there": (
        edit("scenario.yaml", "engine:", "calibration: x.json\nengine:"),
        r"x.json: no such file",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gives_one_clear_error_and_no_output(scenario: Path, tmp_path: Path, case: str) -> None:
    damage, message = WRONG[case]
    damage(tmp_path)
    ran = servetwin("simulate", scenario, "--out", tmp_path / "run")
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert re.search(message, ran.stderr), ran.stderr
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".run*"))


def test_an_output_folder_is_never_overwritten(scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    ran = as_process("simulate", scenario, "--out", tmp_path / "run")
    assert ran.returncode == 2
    assert "already exists" in ran.stderr
    assert (tmp_path / "run" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "command",
    [
        "simulate {0}/nowhere.yaml --out",
        "simulate {0}/nowhere.yaml --stream --out",
        "validate {0}/nowhere.yaml --capture {0} --out",
        "validate {0}/nowhere.yaml --capture {0} --steps --out",
        "calibrate {0}/nowhere.yaml --capture {0} --out",
        "trace import {0}/nowhere --out",
        "report {0}/nowhere --out",
    ],
)
def test_an_output_that_exists_is_told_before_the_work_is_done(tmp_path: Path, command: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    ran = servetwin(*command.format(tmp_path).split(), tmp_path / "taken")
    assert ran.returncode == 2
    assert "taken: already exists" in ran.stderr


def test_what_the_system_says_of_a_file_is_one_line(scenario: Path, tmp_path: Path) -> None:
    for name in ("x" * 300, tmp_path / ("y" * 300) / "below"):
        ran = servetwin("trace", "show", name)
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
        assert "File name too long" in ran.stderr
    edit("scenario.yaml", "trace: requests.jsonl", 'trace: "re\\0quests.jsonl"')(tmp_path)
    ran = servetwin("simulate", scenario, "--out", tmp_path / "run")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert "cannot be read (embedded null byte)" in ran.stderr


def test_what_stands_in_a_file_does_nothing_to_the_terminal(scenario: Path, tmp_path: Path) -> None:
    edit("scenario.yaml", "model: test/tiny", 'model: "tiny\\e[31m\\u202e"')(tmp_path)
    ran = servetwin("simulate", scenario, "--out", tmp_path / "run")
    assert ran.returncode == 2
    assert ran.stderr.isascii()
    assert "tiny\\x1b[31m\\u202e" in ran.stderr


def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_file(tmp_path / "page.html") as file:
            file.symlink_to("/dev/full")
            file.write_text("x")

    with pytest.raises(InputError, match=r"page.html: cannot be written \(No space left on device"):
        write()
    (tmp_path / "old.html").write_text("old")
    with pytest.raises(InputError, match=r"below: cannot be written \(Not a directory"):
        replace_file(tmp_path / "old.html" / "below", b"x")
    assert [file.name for file in tmp_path.iterdir()] == ["old.html"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.max_num_seqs", "accepted: key=value"),
        ("engine.max_seqs=4", "'max_num_seqs' is the nearest known name"),
        ("seed.deep=4", "accepted: int"),
        ("engine.max_num_seqs=[", "is not YAML"),
        ("seed=-1", "accepted: int >= 0"),
        ("routing={}", "field 'routing.name': accepted: a router's name"),
        ("cluster.routing={cache_threshold: 1}", "field 'routing.name': accepted: a router's name"),
        ("cluster.instances.0.count=100000", "accepted: int <= 65536"),
        ("cluster=''", "field 'cluster'"),
        ("overhead={source: x, device_step_s: .nan}", "field 'overhead.device_step_s': found nan"),
        ("overhead={source: x, device_step_s: .inf}", "field 'overhead.device_step_s': found inf"),
    ],
)
def test_a_wrong_override_is_named(scenario: Path, tmp_path: Path, override: str, message: str) -> None:
    ran = servetwin("simulate", scenario, "--out", tmp_path / "run", "--set", override)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", ["engine=&a [*a]", "engine=" + "[" * 3000])
def test_an_override_without_end_is_refused(scenario: Path, override: str) -> None:
    with pytest.raises(InputError, match="field '--set engine': is not YAML"):
        read_scenario(scenario, [override])


def test_an_override_leaves_an_alias_of_the_same_mapping_alone(scenario: Path, tmp_path: Path) -> None:
    edit("scenario.yaml", "    - model", "    - &tiny\n      model")(tmp_path)
    edit("scenario.yaml", "profiles:", "    - *tiny\nprofiles:")(tmp_path)
    cluster = read_scenario(scenario, ["cluster.instances.0.count=3"]).file.cluster
    assert isinstance(cluster, dict)
    assert [one.get("count") for one in cluster["instances"]] == [3, None]


def test_a_number_means_the_same_in_the_file_and_in_an_override(scenario: Path, tmp_path: Path) -> None:
    override = "overhead={source: x, host_step_s: 1e-3}"
    ok("simulate", scenario, "--out", tmp_path / "run", "--set", override)
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize(
    "command",
    ["simulate {0}/scenario.yaml", "trace import {0}/requests.jsonl", "collect recorder", "trace synth --requests 3"],
)
def test_an_output_that_cannot_be_written_is_an_input_error(scenario: Path, tmp_path: Path, command: str) -> None:
    ran = servetwin(*command.format(tmp_path).split(), "--out", scenario / "below" / "run")
    assert ran.returncode == 2, ran.stderr
    assert "below/run: cannot be written" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_blocks_that_the_scenario_calls_null_are_taken_from_the_capture(scenario: Path, tmp_path: Path) -> None:
    ok("simulate", scenario, "--out", tmp_path / "run")
    override = "engine.num_gpu_blocks=null"
    ok("validate", scenario, "--capture", tmp_path / "run", "--out", tmp_path / "check", "--set", override)
    assert read_capture(tmp_path / "check" / "simulated").meta.num_gpu_blocks == 200
    assert json.loads((tmp_path / "check" / "validation.json").read_text())["valid"] is True


def test_a_demo_replaces_an_earlier_demo_and_nothing_else(tmp_path: Path) -> None:
    ok("demo", "--out", tmp_path / "demo", "--load", "light")
    ok("demo", "--out", tmp_path / "demo", "--load", "light")
    (tmp_path / "demo" / "mine.txt").write_text("precious")
    ran = servetwin("demo", "--out", tmp_path / "demo", "--load", "light")
    assert ran.returncode == 2
    assert "already exists" in ran.stderr
    assert (tmp_path / "demo" / "mine.txt").read_text() == "precious"


def test_a_demo_does_not_replace_a_validation(scenario: Path, tmp_path: Path) -> None:
    ok("simulate", scenario, "--out", tmp_path / "run")
    ok("validate", scenario, "--capture", tmp_path / "run", "--out", tmp_path / "check")
    assert servetwin("demo", "--out", tmp_path / "check", "--load", "light").returncode == 2
    assert (tmp_path / "check" / "validation.json").is_file()


def test_the_demo_shows_both_recordings(tmp_path: Path) -> None:
    assert "2nd recording   noise floor" in ok("demo", "--out", tmp_path / "demo", "--load", "light")
    result = json.loads((tmp_path / "demo" / "validation.json").read_text())
    assert result["second_recording"]["paired"]["e2el_s"]["mape"] != result["paired"]["e2el_s"]["mape"] > 0


def test_the_profiler_speaks_for_itself(tmp_path: Path) -> None:
    """This Python has no vLLM, which is enough to see how the profiler's refusals and failures come out."""
    arguments = ["collect", "operators", "--model", tmp_path, "--model-name", "m", "--out", tmp_path / "out"]
    ran = servetwin(*arguments, "--engine-python", tmp_path / "nowhere")
    assert ran.returncode == 2
    assert "nowhere: field '--engine-python': no such file" in ran.stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    ran = as_process(*arguments, "--engine-python", sys.executable)
    assert ran.returncode == 2
    assert "already exists" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_usage_errors_exit_2(tmp_path: Path) -> None:
    assert servetwin("simulate").returncode == 2
    assert servetwin("nonsense").returncode == 2
    assert servetwin("validate", tmp_path / "x.yaml", "--capture", tmp_path, "--out", tmp_path / "o").returncode == 2
