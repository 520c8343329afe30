"""A user's own simulator: what it is asked, what of its answers is kept, and how it may fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harness.running.simulate import simulate_scenario
from profiles.catalog import BUNDLED, find_device, find_model
from profiles.external import Simulator, external_profile, priced_s
from profiles.operators import Gemm
from profiles.roofline import roofline_profile
from tests.harness.scenarios import write_scenario
from traces.errors import EngineError, InputError

SHAPES = [Gemm(m, 64, 64, "bfloat16") for m in (1, 2, 1)]

LOGGING = """\
import json, pathlib, sys
question = json.load(sys.stdin)
with pathlib.Path("calls").open("a") as calls:
    calls.write(f"{len(question['shapes'])}\\n")
json.dump({"time_s": [1e-6 * shape.get("m", 1) for shape in question["shapes"]]}, sys.stdout)
"""


def simulator(folder: Path, program: str = LOGGING, **changes: object) -> Simulator:
    """The command `program`, as a file beside a cache."""
    (folder / "price.py").write_text(program)
    options = {"timeout_s": 30.0, "cache": "cache", "depends_on": (), **changes}
    return Simulator((sys.executable, "price.py"), folder=folder, **options)  # type: ignore[arg-type]


def calls(folder: Path) -> list[int]:
    """How many shapes each call was asked for."""
    return [int(line) for line in (folder / "calls").read_text().split()]


def test_alike_shapes_are_asked_once_and_answers_are_kept(tmp_path: Path) -> None:
    command = simulator(tmp_path)
    assert priced_s(command, "D", SHAPES) == pytest.approx([1e-6, 2e-6, 1e-6])
    assert priced_s(command, "D", [*SHAPES, Gemm(9, 64, 64, "bfloat16")])[3] == pytest.approx(9e-6)
    assert priced_s(command, "D", SHAPES[:2]) == pytest.approx([1e-6, 2e-6])
    assert calls(tmp_path) == [2, 1]


def test_an_answer_is_forgotten_when_the_program_its_data_or_the_device_is_another(tmp_path: Path) -> None:
    (tmp_path / "rates").write_text("1")
    command = simulator(tmp_path, depends_on=("rates",))
    priced_s(command, "D", SHAPES)
    priced_s(command, "E", SHAPES)
    (tmp_path / "rates").write_text("2")
    priced_s(command, "D", SHAPES)
    (tmp_path / "price.py").write_text(LOGGING + "# another\n")
    priced_s(command, "D", SHAPES)
    assert calls(tmp_path) == [2, 2, 2, 2]


def test_a_scenario_asks_once_for_all_layers_and_steps(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, n_requests=6)
    simulator(tmp_path)
    source = f"external, external: {{command: [{sys.executable}, price.py], cache: cache}}"
    override = f"cluster={{instances: [{{model: test/tiny, device: MY-NPU, source: {source}}}]}}"
    for _ in range(2):
        simulation, _ = simulate_scenario(scenario, [override])
    assert len(calls(tmp_path)) == 1
    assert any("priced by the external simulator" in note for note in simulation.capture.meta.notes)


def test_the_example_prices_like_a_machine_of_its_kind(tmp_path: Path) -> None:
    """Never faster than the roofline of its own peaks, and at most ten times as slow where arithmetic rules."""
    examples = Path(__file__).parents[2] / "docs" / "examples"
    command = Simulator((sys.executable, "external_simulator.py"), 60.0, str(tmp_path), (), examples)
    model = find_model("meta-llama/Llama-3.1-8B", [BUNDLED])
    tables = external_profile(command, "SYSTOLIC-64", model, "bfloat16").tables[1]
    assert tables.dense["gate_up_proj"].time_s[0] > 2 * 4096 * 28672 / 1e12
    peak = 2 * 64 * 128 * 128 * 1e9
    bound_s = 2 * 16384 * 4096 * 28672 / peak
    assert (
        bound_s < tables.dense["gate_up_proj"].time_s[list(tables.dense["gate_up_proj"].x).index(16384)] < 2 * bound_s
    )
    assert tables.attention.time_s.min() > 0


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('no such kernel')", "failed with exit code 1: no such kernel"),
        ("raise SystemExit(7)", "failed with exit code 7: it wrote nothing to stderr"),
        ("print('{')", "the answer of .* is not JSON"),
        ("print('')", "the answer of .* is not JSON"),
        ("print('[1, 2]')", "the answer of .*accepted: a mapping with keys"),
        ("print('{\"time_s\": [1]}')", "has 1 times: accepted: 2, one for each shape"),
        ('print(\'{"time_s": [1, "2"]}\')', r"field 'time_s\[1\]'"),
        (
            "print('{\"time_s\": [1, -2]}')",
            r"field 'time_s': of .*.m.:2.*: found -2.0: accepted: a finite time above 0",
        ),
        ("print('{\"time_s\": [0, 1]}')", "found 0.0"),
        ("print('{\"time_s\": [1, NaN]}')", "a finite number"),
        ("print('{\"times\": [1, 2]}')", "field 'times': is unknown"),
        ("import time; time.sleep(60)", r"took longer than 0.5 s for 2 shapes \(timeout_s\)"),
    ],
)
def test_a_simulator_that_fails_is_an_engine_that_fails(tmp_path: Path, program: str, message: str) -> None:
    command = simulator(tmp_path, program, timeout_s=0.5 if "sleep" in program else 30.0)
    with pytest.raises(EngineError, match=message):
        priced_s(command, "D", SHAPES)
    assert not (tmp_path / "cache").exists()


def test_what_the_user_got_wrong_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="field 'command': no such command: found 'no-such-program'"):
        priced_s(Simulator(("no-such-program",), 1.0, "cache", (), tmp_path), "D", SHAPES)
    with pytest.raises(InputError, match=r"field 'command': cannot be started \(embedded null byte"):
        priced_s(Simulator(("no\0program",), 1.0, "cache", (), tmp_path), "D", SHAPES)
    with pytest.raises(InputError, match="rates: no such file"):
        priced_s(simulator(tmp_path, depends_on=("rates",)), "D", SHAPES)
    command = simulator(tmp_path)
    priced_s(command, "D", SHAPES)
    file = command.answers_file("D")
    file.write_text(json.dumps(dict.fromkeys(json.loads(file.read_text()), -1)))
    with pytest.raises(InputError, match=r"cache.*json: field 'time_s'.*found -1.0"):
        priced_s(command, "D", SHAPES)
    file.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        priced_s(command, "D", SHAPES)


def test_it_is_asked_in_the_words_of_the_documentation(tmp_path: Path) -> None:
    program = LOGGING.replace(
        'with pathlib.Path("calls")',
        'pathlib.Path("asked").write_text(json.dumps(question))\nwith pathlib.Path("calls")',
    )
    model = find_model("Qwen/Qwen3-30B-A3B-Instruct-2507", [BUNDLED])
    external_profile(simulator(tmp_path, program), "MY-NPU", model, "bfloat16")
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked["schema_version"] == "servetwin.operators/1"
    assert asked["device"] == "MY-NPU"
    fields = {shape["kind"]: sorted(shape) for shape in asked["shapes"]}
    text = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text()
    for kind, names in fields.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{kind}` |"))
        assert all(f"`{name}`" in row for name in names if name != "kind")


def test_a_roofline_and_a_simulator_have_one_grid(tmp_path: Path) -> None:
    model = find_model("meta-llama/Llama-3.1-8B", [BUNDLED])
    ours = external_profile(simulator(tmp_path), "D", model, "bfloat16").tables[1]
    bound = roofline_profile(find_device("H100", [BUNDLED]), model, "bfloat16").tables[1]
    assert list(ours.dense["o_proj"].x) == list(bound.dense["o_proj"].x)
