"""Changes of a real engine that are to be recorded: their suite says what their script records."""

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

from harness.gate.suite import read_suite
from harness.running.simulate import simulate_scenario
from tests.harness.scenarios import write_scenario
from traces.capture import Capture, read_capture, write_capture
from traces.trace import Trace

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "scripts" / "what_if"
SUITE = FOLDER / "suite.yaml"
KEYS = {
    "--max-num-seqs": "max_num_seqs",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--num-gpu-blocks-override": "num_gpu_blocks",
}


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
        assert entry.score_fitted == (one.name == "base")
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
    assert 0.5 < shared / prompts < 0.7
    assert trace.rows[0].arrival_s == 0.0
    assert 35 < trace.rows[-1].arrival_s < 60
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


def test_the_scenario_is_of_the_machine_that_records(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "cpu_name", lambda: "Another-CPU")
    script.describe(tmp_path / "out")
    scenario = yaml.safe_load((tmp_path / "out" / "base.yaml").read_text())
    assert scenario["cluster"]["instances"] == [{"model": "servetwin/llama-s", "device": "Another-CPU"}]
    assert (tmp_path / "out" / "suite.yaml").read_bytes() == SUITE.read_bytes()
