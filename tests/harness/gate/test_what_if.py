"""The bundled changes of a real engine: their suite says what their script records, and the twin is held against it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import yaml

from harness.demo import BUNDLED
from harness.gate.check import check
from harness.gate.suite import read_suite
from harness.gate.verdict import Status
from harness.running.simulate import simulate_scenario
from tests.harness.scenarios import write_scenario
from traces.capture import Capture, read_capture, write_capture
from traces.trace import Trace

FOLDER = BUNDLED / "what_if"
SUITE = FOLDER / "suite.yaml"
ROOT = Path(__file__).resolve().parents[3]
KEYS = {
    "--max-num-seqs": "max_num_seqs",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--num-gpu-blocks-override": "num_gpu_blocks",
}
recorded = pytest.mark.skipif(
    not (FOLDER / "captures").is_dir(), reason="not recorded yet: scripts/record_what_if.py does"
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import record_what_if  # type: ignore[import-not-found]

    return sys.modules[record_what_if.__name__]


def test_the_suite_is_of_what_the_script_records(script: ModuleType) -> None:
    entries = {entry.name: entry for entry in read_suite(SUITE).entries}
    own = [one for one in script.CHANGES if one.name in entries]
    assert [one.name for one in own] == [one.name for one in script.CHANGES]
    for one in own:
        entry = entries[one.name]
        assert entry.capture == FOLDER / "captures" / f"{one.name}-2"
        assert entry.change_from == (None if one.name == "base" else "base")
        said = {flag: value for flag, value in script.SERVERS[one.server].items() if value is not None}
        asked = [f"engine.{KEYS[flag]}={value}" for flag, value in said.items()]
        if "--no-enable-prefix-caching" in script.SERVERS[one.server]:
            asked.append("engine.enable_prefix_caching=false")
        assert list(entry.overrides) == asked
    (other,) = [entry for name, entry in entries.items() if name not in {one.name for one in own}]
    assert other.overrides == ("load.speed=2",)


def test_the_scenario_is_of_the_servers_flags(script: ModuleType) -> None:
    from record_bundled import FLAGS

    flags = FLAGS | script.BASE_FLAGS
    engine = yaml.safe_load((FOLDER / "base.yaml").read_text())["engine"]
    names = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size")
    assert {name: str(engine[name]) for name in names} == {name: flags[f"--{name.replace('_', '-')}"] for name in names}
    assert engine["num_gpu_blocks"] * engine["block_size"] == script.KV_TOKENS


def test_the_load_shares_half_of_its_prompts_and_fits_the_smallest_cache(script: ModuleType) -> None:
    trace = script.base()
    prompts, shared = (
        sum(values) for values in ([r.prompt_tokens for r in trace.rows], [_shared(r) for r in trace.rows])
    )
    assert 0.45 < shared / prompts < 0.6
    assert trace.rows[0].arrival_s == 0.0
    assert 25 < trace.rows[-1].arrival_s < 45
    longest = max(row.prompt_tokens + row.output_tokens for row in trace.rows)
    assert longest < 71 * script.BLOCK_SIZE, "one block is the null block"


def _shared(row: object) -> int:
    hashes: tuple[int, ...] = row.block_hashes  # type: ignore[attr-defined]
    return 32 * len(hashes)


def test_second_recordings_come_in_the_opposite_order_from_new_servers(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine is stood in for by a simulation: what is tested is what is asked of it, and what is kept."""
    run = simulate_scenario(write_scenario(tmp_path))[0].capture
    seen = tuple(msgspec.structs.replace(one, client_token_times_s=one.token_times_s) for one in run.outcomes)
    started: list[dict[str, str | None]] = []
    sent: list[tuple[int, str, float, int]] = []

    @contextmanager
    def server(python: Path, work: Path, name: str, kv_tokens: int, flags: dict[str, str | None]) -> Iterator[int]:
        started.append(flags)
        yield len(started)

    def send(number: int, trace: Trace, out: Path, what: str, seed: int) -> Capture:
        sent.append((number, out.name, trace.rows[-1].arrival_s, seed))
        write_capture(replace(run, outcomes=seen), out)
        return replace(run, outcomes=seen)

    monkeypatch.setattr(script, "recording_server", server)
    monkeypatch.setattr(script, "record_load", send)
    load = script.base(30)
    script.record(script.CHANGES, load, Path("python"), tmp_path, tmp_path / "captures")
    names = [name for _, name, _, _ in sent]
    assert names[:8] == [f"{one.name}-1" for one in script.CHANGES]
    assert names[8:] == [f"{name.removesuffix('-1')}-2" for name in reversed(names[:8])]
    assert len(started) == 9, "the two of the last change follow each other"
    assert all(flags["--max-model-len"] == "2048" for flags in started)
    assert started[4]["--num-gpu-blocks-override"] == "72"
    assert sorted(seed for *_, seed in sent) == list(range(1, 17)), "no two recordings share a prompt"
    lasts = {name: last_s for _, name, last_s, _ in sent}
    assert lasts["speed-2-1"] == pytest.approx(lasts["base-1"] / 2)
    kept = {name: read_capture(tmp_path / "captures" / name) for name in names}
    assert {name for name, one in kept.items() if one.steps is not None} == {"base-1", "base-2"}
    assert all(o.client_token_times_s is None and o.token_times_s for one in kept.values() for o in one.outcomes)


@recorded
def test_it_is_green_and_judges_every_figure_that_it_names() -> None:
    checked = check(SUITE)
    assert {one.name: [v.name for v in one.of(Status.FAILED)] for one in checked.scenarios if not one.passed} == {}
    named = yaml.safe_load(SUITE.read_text())["change"].keys() - {"default"}
    for scenario in checked.scenarios[1:]:
        known = [one for one in scenario.verdicts if one.change is not None and one.tolerance != "report"]
        assert {one.figure for one in known} == named


@recorded
def test_what_was_recorded_is_small_and_of_the_same_requests() -> None:
    folders = sorted((FOLDER / "captures").iterdir())
    assert len(folders) == 16
    served = set()
    for folder in folders:
        capture = read_capture(folder)
        assert not capture.meta.reasons
        assert (capture.steps is not None) == folder.name.startswith("base-")
        size = sum(file.stat().st_size for file in folder.iterdir())
        assert size < (200_000 if capture.steps is not None else 100_000)
        served.add(tuple((row.request_id, row.prompt_tokens, row.output_tokens) for row in capture.trace.rows))
    assert len(served) == 1
    blocks = read_capture(FOLDER / "captures" / "blocks-72-1")
    assert sum(outcome.num_preemptions or 0 for outcome in blocks.outcomes) > 0
