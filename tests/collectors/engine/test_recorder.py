"""The step recorder over a stand-in for vLLM's scheduler; tests/live has it over the real one."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from collectors.engine import recorder_path
from collectors.engine.step_file import Recording, read_recordings
from collectors.local.small_model import write_small_model
from simulator.scheduling.options import EngineOptions
from traces.errors import CollectorError

FIRST, SECOND = "cmpl-a-0-00000001", "cmpl-b-0-00000002"


class Scheduler:
    """The part of vLLM's scheduler that the recorder leans on; it hands out the plans that a test gives it."""

    def __init__(self, vllm_config: Any) -> None:
        self.requests: dict[str, Request] = {}
        self.block_size = 16
        pool = SimpleNamespace(num_gpu_blocks=65, get_num_free_blocks=lambda: 60)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.plans: list[Any] = []

    def get_request_counts(self) -> tuple[int, int]:
        return len(self.requests), 0

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request

    def schedule(self) -> Any:
        return self.plans.pop(0)

    def update_from_output(self, scheduler_output: Any, model_runner_output: dict[str, int]) -> Any:
        outputs = []
        for request_id, count in model_runner_output.items():
            request = self.requests[request_id]
            request.num_output_tokens += count
            reason = request.reason if request.is_finished() else None
            tokens = SimpleNamespace(request_id=request_id, new_token_ids=[4001] * count, finish_reason=reason)
            outputs.append(tokens)
        return {0: SimpleNamespace(outputs=outputs)}

    def finish_requests(self, request_ids: Any, finished_status: Any) -> list[Request]:
        ids = (
            list(self.requests)
            if request_ids is None
            else [request_ids]
            if isinstance(request_ids, str)
            else request_ids
        )
        ended = [self.requests.pop(request_id) for request_id in ids]
        for request in ended:
            request.reason = finished_status
        return ended

    def shutdown(self) -> None:
        """Nothing to end."""


class AsyncScheduler(Scheduler):
    """As vLLM's: a subclass."""


class DiffusionScheduler(Scheduler):
    """vLLM has one of its own for diffusion models, and names it elsewhere."""


@dataclass
class Request:
    """A request as vLLM hands it to the scheduler, token ids and all."""

    request_id: str
    max_tokens: int = 2
    prompt_token_ids: tuple[int, ...] = (4001, 4002, 4003, 4004)
    block_hashes: list[bytes] = field(default_factory=lambda: [b"\0\0\0\0\0\0\1\2secret hash"])
    arrival_time: float = 1_000_000.5
    num_preemptions: int = 0
    num_output_tokens: int = 0
    priority: int = 3
    reason: str = "length"

    pooling_params: object = None
    mm_features: tuple[object, ...] = ()

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    def is_finished(self) -> bool:
        return self.num_output_tokens == self.max_tokens

    def get_finished_reason(self) -> str:
        return self.reason


def config(*, async_scheduling: bool) -> Any:
    """A VllmConfig with what the header names."""
    scheduler = SimpleNamespace(
        max_num_seqs=8,
        max_num_batched_tokens=256,
        enable_chunked_prefill=True,
        long_prefill_token_threshold=0,
        scheduler_reserve_full_isl=True,
        async_scheduling=async_scheduling,
        scheduler_cls="recorder.RecordingScheduler",
        get_scheduler_cls=lambda: AsyncScheduler if async_scheduling else Scheduler,
    )
    cache = SimpleNamespace(gpu_memory_utilization=0.9, enable_prefix_caching=True, cache_dtype="auto")
    model = SimpleNamespace(
        model="m", served_model_name="m", max_model_len=512, enforce_eager=True, dtype="torch.bfloat16"
    )
    return SimpleNamespace(
        scheduler_config=scheduler,
        cache_config=cache,
        model_config=model,
        parallel_config=SimpleNamespace(data_parallel_index=0),
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=[]),
    )


def plan(
    new: dict[str, int],
    *,
    first: dict[str, int],
    later: dict[str, int],
    preempted: tuple[str, ...] = (),
    drafts: dict[str, list[int]] | None = None,
    encoder_inputs: dict[str, list[int]] | None = None,
) -> Any:
    """A SchedulerOutput: tokens to compute by request, and those computed before for requests new and known."""
    return SimpleNamespace(
        num_scheduled_tokens=new,
        scheduled_new_reqs=[SimpleNamespace(req_id=rid, num_computed_tokens=n) for rid, n in first.items()],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(later), num_computed_tokens=list(later.values())),
        preempted_req_ids=set(preempted),
        scheduled_spec_decode_tokens=drafts or {},
        scheduled_encoder_inputs=encoder_inputs or {},
    )


ALONE = """
import importlib.util, os, sys, time, types
vllm = sys.modules["vllm"] = types.ModuleType("vllm")
vllm.__version__ = "0.32.0"
spec = importlib.util.spec_from_file_location("recorder", os.environ["RECORDER"])
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
def wait(until):
    deadline_s = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
"""
"""The beginning of a program that has the recorder's file and a process of its own."""


def run_alone(folder: Path, code: str) -> str:
    """Run a program that writes steps.jsonl. Returns what it said on stderr."""
    ran = subprocess.run(
        [sys.executable, "-c", ALONE + dedent(code), str(folder / "steps.jsonl")],
        env={**os.environ, "RECORDER": str(recorder_path())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recorder's file, loaded as the server loads it, with a vLLM that has only a version and the schedulers."""
    vllm: Any = ModuleType("vllm")
    vllm.__version__ = "0.32.0"
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    spec = importlib.util.spec_from_file_location("recorder", recorder_path())
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the recorder is told to write."""
    file = tmp_path / "steps.jsonl"
    monkeypatch.setenv("SERVETWIN_STEPS", str(file))
    return file


def two_in_flight(scheduler: Any) -> None:
    """Two steps, the second planned before the first came back, as with asynchronous scheduling."""
    scheduler.add_request(Request(FIRST))
    scheduler.add_request(Request(SECOND))
    scheduler.plans = [
        plan({FIRST: 4, SECOND: 1}, first={FIRST: 0, SECOND: 3}, later={}),
        plan({FIRST: 1, SECOND: 1}, first={}, later={FIRST: 4, SECOND: 4}, preempted=("cmpl-c-0-00000003",)),
        plan({}, first={}, later={}),
    ]
    one, two, _ = scheduler.schedule(), scheduler.schedule(), scheduler.schedule()
    scheduler.update_from_output(one, {FIRST: 1, SECOND: 1})
    scheduler.update_from_output(two, {FIRST: 1})


def lines(file: Path, kind: str) -> list[dict[str, Any]]:
    """The recorder's lines of a kind, every one of them whole."""
    found = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    return [line for line in found if line["kind"] == kind]


def recorded(scheduler: Any, file: Path) -> Recording:
    scheduler.shutdown()
    (recording,) = read_recordings(file)
    return recording


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", ["RecordingScheduler", "RecordingAsyncScheduler"])
def test_a_server_gets_the_scheduler_it_would_have_had(
    recorder: ModuleType, steps: Path, asynchronous: bool, name: str
) -> None:
    scheduler = getattr(recorder, name)(config(async_scheduling=asynchronous))
    assert type(scheduler) is (AsyncScheduler if asynchronous else Scheduler)
    assert recorded(scheduler, steps).header.options["async_scheduling"] is asynchronous


def test_each_output_is_put_to_the_step_that_was_planned_for_it(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=True))
    two_in_flight(scheduler)
    one, two = recorded(scheduler, steps).steps
    assert one.requests == ((FIRST, 4, 0), (SECOND, 1, 3))
    assert one.tokens == ((FIRST, 1), (SECOND, 1))
    assert two.requests == ((FIRST, 1, 4), (SECOND, 1, 4))
    assert two.tokens == ((FIRST, 1),)
    assert two.preempted == ("cmpl-c-0-00000003",)
    assert one.kv_blocks == 4
    assert one.schedule_begin_ns <= one.schedule_end_ns <= two.schedule_begin_ns <= one.output_ns <= two.output_ns
    assert one.recorder_ns is not None
    assert one.recorder_ns > 0


def test_a_request_is_written_when_it_ends(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=True))
    two_in_flight(scheduler)
    recording = recorded(scheduler, steps)
    one, two = recording.steps
    assert recording.requests.keys() == {"a"}
    request = recording.requests["a"]
    assert (request.prompt_tokens, request.output_tokens, request.cached_tokens, request.reason) == (4, 2, 0, "length")
    assert (request.scheduled_ns, request.first_token_ns) == (one.schedule_begin_ns, one.output_ns)
    assert request.last_token_ns == two.output_ns <= request.end_ns
    assert (request.block_hashes, request.priority) == ((0x0102,), 3)


@pytest.mark.parametrize("named", [None, SECOND, [SECOND], {SECOND}], ids=["all", "one", "list", "set"])
def test_a_request_that_its_client_left_is_written_too(recorder: ModuleType, steps: Path, named: Any) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.add_request(Request(SECOND))
    scheduler.finish_requests(named, "abort")
    request = recorded(scheduler, steps).requests["b"]
    assert (request.reason, request.output_tokens, request.scheduled_ns) == ("abort", 0, None)


def test_up_to_vllm_0_25_those_that_ended_are_told_by_id_and_client(
    recorder: ModuleType, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_now = Scheduler.finish_requests

    def finish_requests(self: Scheduler, request_ids: Any, finished_status: Any) -> list[tuple[str, int]]:
        return [(request.request_id, 0) for request in of_now(self, request_ids, finished_status)]

    monkeypatch.setattr(Scheduler, "finish_requests", finish_requests)
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.add_request(Request(SECOND))
    scheduler.finish_requests([SECOND], "abort")
    recording = recorded(scheduler, steps)
    assert recording.requests["b"].reason == "abort"
    assert recording.trouble == ()


def test_no_token_id_is_written(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    two_in_flight(scheduler)
    recorded(scheduler, steps)
    text = steps.read_text()
    assert re.search(r"(?<!\d)4001(?!\d)", text) is None  # a time may hold these digits
    assert "secret" not in text
    assert b"secret".hex() not in text


def test_what_was_recorded_is_on_disk_without_an_orderly_end(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    two_in_flight(scheduler)
    for _ in range(100):
        if steps.read_bytes().count(b"\n") == 4:
            break
        time.sleep(0.05)
    assert len(read_recordings(steps)[0].steps) == 2
    scheduler.shutdown()


def test_the_header_names_the_options_as_vllm_does(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    header = recorded(scheduler, steps).header
    assert (header.vllm_version, header.num_gpu_blocks) == ("0.32.0", 65)
    assert header.options.keys() <= set(EngineOptions.__struct_fields__)
    assert header.options["max_num_seqs"] == 8
    assert header.options["dtype"] == "bfloat16"


@pytest.mark.parametrize(("device_type", "kept"), [("cuda", {"disable_custom_all_reduce": True}), ("cpu", {})])
def test_the_header_says_how_the_engine_is_spread_over_devices(
    recorder: ModuleType, steps: Path, device_type: str, kept: dict[str, bool]
) -> None:
    spread = config(async_scheduling=False)
    spread.device_config = SimpleNamespace(device_type=device_type)
    parallel = {"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "disable_custom_all_reduce": True}
    parallel["enable_expert_parallel"] = True
    spread.parallel_config = SimpleNamespace(data_parallel_index=0, **parallel)
    options = recorded(recorder.RecordingScheduler(spread), steps).header.options
    alone = options.keys() - recorder.engine_options(config(async_scheduling=False), 16).keys()
    assert {name: options[name] for name in alone} == {
        "tensor_parallel_size": 2,
        "enable_expert_parallel": True,
        **kept,
    }


def test_each_data_parallel_rank_writes_a_file_of_its_own(recorder: ModuleType, steps: Path) -> None:
    for rank in (0, 1, 11):
        ranked = config(async_scheduling=False)
        ranked.parallel_config.data_parallel_index = rank
        recorder.RecordingScheduler(ranked).shutdown()
    assert {file.name for file in steps.parent.iterdir()} == {"steps.jsonl", "steps.jsonl.1", "steps.jsonl.11"}
    assert [
        header["engine"]["data_parallel_index"] for header in lines(steps.with_name("steps.jsonl.11"), "header")
    ] == [11]


def test_a_diffusion_model_gets_its_own_scheduler(
    recorder: ModuleType, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = config(async_scheduling=False)
    theirs.diffusion_config = SimpleNamespace()
    assert type(recorder.RecordingScheduler(theirs)) is Scheduler  # a vLLM that has none
    for name in ("vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module: Any = ModuleType("diffusion_scheduler")
    module.DiffusionScheduler = DiffusionScheduler
    monkeypatch.setattr(sys.modules["vllm.v1.core.sched"], "diffusion_scheduler", module, raising=False)
    assert type(recorder.RecordingScheduler(theirs)) is DiffusionScheduler


@pytest.mark.parametrize("version", ["0.18.1", "0.34.0", "1.0.0", "unknown"])
def test_a_vllm_it_does_not_know_serves_on_and_says_why_nothing_is_recorded(
    recorder: ModuleType,
    steps: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: str,
) -> None:
    monkeypatch.setattr(sys.modules["vllm"], "__version__", version)
    with caplog.at_level(logging.WARNING):
        scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    assert [record.getMessage() for record in caplog.records] == [
        "servetwin recorder: off, nothing is recorded: "
        f"servetwin knows vLLM 0.19 to 0.33; this is {version}; the server runs without it"
    ]
    assert not scheduler.__dict__.keys() & set(recorder.CALLS)
    two_in_flight(scheduler)
    with pytest.raises(CollectorError, match=f"the recorder was off: servetwin knows vLLM .* this is {version}"):
        read_recordings(steps)
    monkeypatch.setenv("SERVETWIN_STRICT", "1")
    with pytest.raises(RuntimeError, match=f"this is {version}; SERVETWIN_STRICT=1"):
        recorder.RecordingScheduler(config(async_scheduling=False))


@pytest.mark.parametrize("name", ["get_request_counts", "finish_requests", "kv_cache_manager"])
def test_a_scheduler_without_what_it_needs_is_left_alone(
    recorder: ModuleType, steps: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Other(Scheduler):
        def __getattribute__(self, wanted: str) -> Any:
            if wanted == name:
                raise AttributeError(f"no attribute {name!r}")
            return super().__getattribute__(wanted)

    theirs = config(async_scheduling=False)
    theirs.scheduler_config.get_scheduler_cls = lambda: Other
    scheduler = recorder.RecordingScheduler(theirs)
    assert not scheduler.__dict__.keys() & set(recorder.CALLS)
    assert [f"no attribute '{name}'" in line["reason"] for line in lines(steps, "refused")] == [True]
    assert lines(steps, "header") == []


def test_a_file_that_cannot_be_written_is_no_reason_not_to_serve(
    recorder: ModuleType, steps: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVETWIN_STEPS", str(steps.parent / "none" / "steps.jsonl"))
    two_in_flight(recorder.RecordingScheduler(config(async_scheduling=False)))
    assert "off, nothing is recorded: FileNotFoundError: [Errno 2] No such file or directory" in caplog.text


def test_a_file_of_someone_else_is_not_touched(
    recorder: ModuleType, steps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps.write_text("my notes, and a line that does not end")
    recorder.RecordingScheduler(config(async_scheduling=False))
    assert steps.read_text() == "my notes, and a line that does not end"
    assert "the file holds something else; name a new one" in caplog.text


def test_two_servers_do_not_write_one_file(recorder: ModuleType, steps: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = recorder.RecordingScheduler(config(async_scheduling=False))
    recorder.RecordingScheduler(config(async_scheduling=False))
    assert "another process is recording into this file" in caplog.text
    two_in_flight(first)
    assert len(recorded(first, steps).steps) == 2


def test_an_error_of_its_own_ends_the_recording_and_not_the_server(
    recorder: ModuleType, steps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.add_request(Request(FIRST))
    scheduler.plans = [SimpleNamespace(num_scheduled_tokens={FIRST: 4})] * 2  # a plan of another vLLM
    for _ in range(2):
        scheduler.update_from_output(scheduler.schedule(), {FIRST: 1})
    assert scheduler.requests[FIRST].num_output_tokens == 2
    assert not scheduler.__dict__.keys() & set(recorder.CALLS)
    assert caplog.text.count("the server goes on without it") == 1
    for _ in range(100):
        if b"stopped" in steps.read_bytes():
            break
        time.sleep(0.05)
    (trouble,) = recorded(scheduler, steps).trouble
    assert "the recorder stopped while the server went on: in scheduled: AttributeError" in trouble
    assert lines(steps, "summary") == []


def test_what_an_error_says_of_a_prompt_is_not_repeated(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.add_request(Request(FIRST, block_hashes=[["token 4001"]]))  # type: ignore[list-item]
    scheduler.finish_requests([FIRST], "abort")
    for _ in range(100):
        if b"stopped" in steps.read_bytes():
            break
        time.sleep(0.05)
    (stopped,) = lines(steps, "stopped")
    assert stopped["reason"].startswith("in finished: ")
    assert "4001" not in steps.read_text()


def test_vllms_own_errors_pass_untouched(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    with pytest.raises(IndexError, match="pop from empty list"):
        scheduler.schedule()
    assert recorded(scheduler, steps).trouble == ()


def test_a_full_disk_is_said_and_does_not_hurt_the_server(
    recorder: ModuleType, steps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps.symlink_to("/dev/full")
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    two_in_flight(scheduler)
    scheduler.shutdown()
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "could not be written" in said


def test_beyond_a_bound_lines_are_counted_and_not_kept(
    recorder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "KEPT_BYTES", 200)
    write, full = recorder.os.write, [True]
    file = tmp_path / "steps.jsonl"

    def no_space(descriptor: int, data: bytes) -> int:
        if full[0]:
            raise OSError(28, "No space left on device")
        return int(write(descriptor, data))

    monkeypatch.setattr(recorder.os, "write", no_space)
    log = recorder.Log(str(file))
    for i in range(20):
        log.put({"kind": "step", "index": i})
    full[0] = False
    log.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [line["index"] for line in lines if line["kind"] == "step"]
    assert kept == list(range(len(kept)))
    assert [line["records"] for line in lines if line["kind"] == "lost"] == [{"step": 20 - len(kept)}]


def test_a_disk_with_room_again_gets_every_line_once(tmp_path: Path) -> None:
    """A real limit of the kernel's: writes fail half way through a line, and go on there later."""
    out = run_alone(
        tmp_path,
        """
        import resource
        line = {"kind": "step", "index": 0, "text": "x" * 100}
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        log = recorder.Log(sys.argv[1])
        for i in range(100):
            log.put(line | {"index": i}, urgent=True)
        wait(lambda: log._failing)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.close()
        """,
    )
    assert out.count("cannot be written (File too large); the server goes on, lines are kept") == 1
    assert out.count("written again; 0 records were lost") == 1
    assert [line["index"] for line in lines(tmp_path / "steps.jsonl", "step")] == list(range(100))


def test_after_a_kill_all_but_the_last_second_is_there(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    writing = subprocess.Popen(
        [
            sys.executable,
            "-c",
            ALONE + "log = recorder.Log(sys.argv[1])\n"
            "while True: log.put({'kind': 'step', 'index': 0, 'at_ns': recorder.now_ns()}); time.sleep(0.0005)",
            str(file),
        ],
        env={**os.environ, "RECORDER": str(recorder_path())},
    )
    try:
        deadline_s = time.monotonic() + 60
        while not (file.exists() and file.stat().st_size > 200_000):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    finally:
        killed_ns = time.monotonic_ns()
        writing.send_signal(signal.SIGKILL)
        writing.wait()
    assert lines(file, "step")[-1]["at_ns"] > killed_ns - 10**9


def test_a_second_start_goes_on_behind_the_first(recorder: ModuleType, steps: Path) -> None:
    for _ in range(2):
        scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
        two_in_flight(scheduler)
        scheduler.shutdown()
        with steps.open("a") as stream:
            stream.write('{"kind":"step","ind')
    assert steps.read_text().count('"kind":"header"') == 2
    assert len(read_recordings(steps)[0].steps) == 4


def test_lines_are_flushed_while_the_engine_is_busy(recorder: ModuleType, tmp_path: Path) -> None:
    log = recorder.Log(str(tmp_path / "steps.jsonl"))
    begun_s = time.monotonic()
    n = 0
    while (tmp_path / "steps.jsonl").stat().st_size == 0 and time.monotonic() < begun_s + 30:
        log.put({"kind": "step", "index": n})
        n += 1
    assert (tmp_path / "steps.jsonl").stat().st_size > 0
    log.close()


def test_what_recording_takes_is_in_every_step_and_in_the_summary(
    recorder: ModuleType, steps: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock that ticks at each look: the sums are known exactly, and none of them counts vLLM's own time."""
    ticks = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(recorder, "now_ns", lambda: next(ticks))
    with caplog.at_level(logging.INFO, logger="vllm.servetwin"):
        scheduler = recorder.RecordingScheduler(config(async_scheduling=True))
        two_in_flight(scheduler)
        recording = recorded(scheduler, steps)
    (summary,) = lines(steps, "summary")
    costs = [step.recorder_ns or 0 for step in recording.steps]
    assert all(cost > 0 for cost in costs)
    assert summary["recorder_ns"] >= sum(costs)
    assert summary["recorder_p50_us"] == round(min(costs) / 1000)
    assert summary["recorder_p99_us"] == round(max(costs) / 1000)
    one, two = recording.steps
    assert summary["busy_ns"] == two.update_end_ns - one.schedule_begin_ns  # they overlap, and count once
    assert summary["n_steps"] == 2
    share = 100 * sum(costs) / summary["busy_ns"]
    assert f"servetwin recorder: 2 steps, {summary['recorder_p50_us']} us per step (p50), {share:.1f} %" in caplog.text


def test_the_summary_counts_what_was_served(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.add_request(Request(FIRST, pooling_params=object()))
    scheduler.add_request(Request(SECOND, mm_features=(object(),)))
    scheduler.plans = [
        plan(
            {FIRST: 4, SECOND: 4},
            first={FIRST: 0, SECOND: 0},
            later={},
            drafts={SECOND: [1, 2, 3]},
            encoder_inputs={SECOND: [0]},
        )
    ]
    scheduler.update_from_output(scheduler.schedule(), {FIRST: 2, SECOND: 1})
    scheduler.shutdown()
    (step,) = lines(steps, "step")
    assert (step["n_spec_tokens"], step["n_encoder_inputs"]) == (3, 1)
    (ended,) = lines(steps, "request")
    assert ended["features"] == ["pooling"]
    (summary,) = lines(steps, "summary")
    assert summary["features"] == {"pooling": 1, "multimodal": 1}
    assert summary["reasons"] == {"length": 1}
    assert (summary["n_requests"], summary["n_unfinished"]) == (1, 1)
    assert (summary["n_spec_tokens"], summary["n_encoder_inputs"], summary["n_lost"]) == (3, 1, 0)


def test_vllm_ending_all_requests_brings_a_summary_and_no_second_one(recorder: ModuleType, steps: Path) -> None:
    """vLLM kills an engine that is to stop at once before its scheduler's shutdown is called."""
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    two_in_flight(scheduler)
    scheduler.finish_requests([], "abort")
    scheduler.finish_requests(None, "abort")
    scheduler.shutdown()
    (summary,) = lines(steps, "summary")
    assert (summary["n_requests"], summary["n_unfinished"]) == (2, 0)


def test_a_further_piece_of_a_streamed_prompt_is_no_further_request(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.add_request(Request(FIRST, max_tokens=1))
    scheduler.add_request(Request(FIRST, max_tokens=1))
    scheduler.plans = [plan({FIRST: 4}, first={FIRST: 0}, later={})]
    scheduler.update_from_output(scheduler.schedule(), {FIRST: 1})
    scheduler.finish_requests(None, "abort")
    scheduler.shutdown()
    assert [summary["n_prompt_updates"] for summary in lines(steps, "summary")] == [1]


def test_preemptions_of_a_plan_without_tokens_stand_in_the_next_step(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.plans = [
        plan({}, first={}, later={}, preempted=(SECOND,)),
        plan({FIRST: 4}, first={FIRST: 0}, later={}),
    ]
    scheduler.add_request(Request(FIRST))
    scheduler.schedule()
    scheduler.update_from_output(scheduler.schedule(), {FIRST: 1})
    assert [step.preempted for step in recorded(scheduler, steps).steps] == [(SECOND,)]


def test_a_plan_whose_output_never_came_is_not_taken_for_another(recorder: ModuleType, steps: Path) -> None:
    """Python gives a new object the place of one that is gone, and so its identity."""
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.add_request(Request(FIRST))
    shared = plan({FIRST: 4}, first={FIRST: 0}, later={})
    scheduler.plans = [shared, shared]
    scheduler.schedule()
    shared.num_scheduled_tokens = {}
    scheduler.update_from_output(scheduler.schedule(), {FIRST: 1})
    assert recorded(scheduler, steps).steps == []


@pytest.mark.live
@pytest.mark.parametrize(("kind", "name"), [("sync", "Scheduler"), ("async", "AsyncScheduler")])
def test_vllms_own_schedulers_are_recorded_exactly(tmp_path: Path, kind: str, name: str) -> None:
    """Without a model: two steps in flight, preemptions, an abort, a pooled request and drafts, on any machine."""
    python = Path(__file__).resolve().parents[3] / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no engine; run scripts/install_engine.sh")
    model, file = write_small_model(tmp_path / "model", "xs"), tmp_path / "steps.jsonl"
    ran = subprocess.run(
        [python, Path(__file__).with_name("recorded_by_engine.py"), model, kind, "6"],
        env={**os.environ, "PYTHONPATH": str(recorder_path().parent), "SERVETWIN_STEPS": str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    assert (seen["scheduler"], len(seen["calls"])) == (name, 5)
    (recording,) = read_recordings(file)
    assert recording.trouble == ()
    computed: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for step in recording.steps:
        computed.update({rid: n for rid, n, _ in step.requests})
        tokens.update(dict(step.tokens))
        assert 0 < step.kv_blocks < recording.header.num_gpu_blocks
    assert computed == seen["computed"]
    assert tokens == seen["tokens"]
    assert len(recording.steps) == seen["n_steps"]
    assert sum(len(step.preempted) for step in recording.steps) == seen["preempted"] > 0
    assert sum(request.num_preemptions for request in recording.requests.values()) == seen["preempted"]
    assert recording.requests.keys() == {f"r{i}" for i in range(6)}
    assert [recording.requests[f"r{i}"].priority for i in range(6)] == list(range(6))
    for engine_id, count in seen["tokens"].items():
        assert recording.requests[engine_id.split("-")[1]].output_tokens == count
    assert recording.requests["r2"].reason == "abort"
    assert len({request.block_hashes[:2] for request in recording.requests.values()}) == 1  # the prefix they share
    (summary,) = lines(file, "summary")
    assert summary["n_spec_tokens"] == (2 if kind == "sync" else 0)
    assert summary["features"] == ({"pooling": 1} if kind == "sync" else {})
