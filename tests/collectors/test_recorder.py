"""The step recorder over a stand-in for vLLM's scheduler; tests/live has it over the real one."""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from collectors import recorder_path
from collectors.join import Recording, read_recording
from simulator.options import EngineOptions

FIRST, SECOND = "cmpl-a-0-00000001", "cmpl-b-0-00000002"


class Scheduler:
    """The part of vLLM's scheduler that the recorder leans on; it hands out the plans that a test gives it."""

    def __init__(self, vllm_config: Any) -> None:
        self.requests: dict[str, Request] = {}
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.block_size = 16
        pool = SimpleNamespace(num_gpu_blocks=65, get_num_free_blocks=lambda: 60)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.plans: list[Any] = []

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request

    def schedule(self) -> Any:
        return self.plans.pop(0)

    def update_from_output(self, scheduler_output: Any, model_runner_output: dict[str, int]) -> None:
        for request_id, count in model_runner_output.items():
            self.requests[request_id].num_output_tokens += count

    def finish_requests(self, request_ids: Any, finished_status: Any) -> None:
        for request_id in request_ids:
            self.requests.pop(request_id).reason = finished_status

    def shutdown(self) -> None:
        """Nothing to end."""


class AsyncScheduler(Scheduler):
    """As vLLM's: a subclass."""


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
    reason: str = "length"

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


def plan(new: dict[str, int], *, first: dict[str, int], later: dict[str, int], preempted: tuple[str, ...] = ()) -> Any:
    """A SchedulerOutput: tokens to compute by request, and those computed before for requests new and known."""
    return SimpleNamespace(
        num_scheduled_tokens=new,
        scheduled_new_reqs=[SimpleNamespace(req_id=rid, num_computed_tokens=n) for rid, n in first.items()],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(later), num_computed_tokens=list(later.values())),
        preempted_req_ids=set(preempted),
    )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recorder's file, loaded as the server loads it, with a vLLM that has only a version and the schedulers."""
    vllm: Any = ModuleType("vllm")
    vllm.__version__ = "0.32.0"
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    for name in ("vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, kind in (("scheduler", Scheduler), ("async_scheduler", AsyncScheduler)):
        module = ModuleType(name)
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, f"vllm.v1.core.sched.{name}", module)
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


def recorded(scheduler: Any, file: Path) -> Recording:
    scheduler.shutdown()
    return read_recording(file)


def test_each_output_is_put_to_the_step_that_was_planned_for_it(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingAsyncScheduler(config(async_scheduling=True))
    two_in_flight(scheduler)
    one, two = recorded(scheduler, steps).steps
    assert one.requests == ((FIRST, 4, 0), (SECOND, 1, 3))
    assert one.tokens == ((FIRST, 1), (SECOND, 1))
    assert two.requests == ((FIRST, 1, 4), (SECOND, 1, 4))
    assert two.tokens == ((FIRST, 1),)
    assert two.preempted == ("cmpl-c-0-00000003",)
    assert one.kv_blocks == 4
    assert one.schedule_begin_ns <= one.schedule_end_ns <= two.schedule_begin_ns <= one.output_ns <= two.output_ns


def test_a_request_is_written_when_it_ends(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingAsyncScheduler(config(async_scheduling=True))
    two_in_flight(scheduler)
    recording = recorded(scheduler, steps)
    one, two = recording.steps
    assert recording.requests.keys() == {"a"}
    request = recording.requests["a"]
    assert (request.prompt_tokens, request.output_tokens, request.cached_tokens, request.reason) == (4, 2, 0, "length")
    assert (request.scheduled_ns, request.first_token_ns) == (one.schedule_begin_ns, one.output_ns)
    assert request.last_token_ns == two.output_ns <= request.end_ns
    assert request.block_hashes == (0x0102,)


@pytest.mark.parametrize("named", [None, SECOND, [SECOND], {SECOND}], ids=["all", "one", "list", "set"])
def test_a_request_that_its_client_left_is_written_too(recorder: ModuleType, steps: Path, named: Any) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    scheduler.add_request(Request(SECOND))
    scheduler.finish_requests(named, "abort")
    request = recorded(scheduler, steps).requests["b"]
    assert (request.reason, request.output_tokens, request.scheduled_ns) == ("abort", 0, None)


def test_no_token_id_is_written(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    two_in_flight(scheduler)
    recorded(scheduler, steps)
    text = steps.read_text()
    assert "4001,4002" not in text
    assert "secret" not in text
    assert b"secret".hex() not in text


def test_what_was_recorded_is_on_disk_without_an_orderly_end(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    two_in_flight(scheduler)
    for _ in range(100):
        if steps.read_bytes().count(b"\n") == 4:
            break
        time.sleep(0.05)
    assert len(read_recording(steps).steps) == 2
    scheduler.shutdown()


def test_the_header_names_the_options_as_vllm_does(recorder: ModuleType, steps: Path) -> None:
    scheduler = recorder.RecordingScheduler(config(async_scheduling=False))
    header = recorded(scheduler, steps).header
    assert (header.vllm_version, header.num_gpu_blocks) == ("0.32.0", 65)
    assert header.options.keys() <= set(EngineOptions.__struct_fields__)
    assert header.options["max_num_seqs"] == 8
    assert header.options["dtype"] == "bfloat16"
    assert header.options["async_scheduling"] is False


@pytest.mark.parametrize("version", ["0.25.1", "0.33.0", "1.0.0"])
def test_a_vllm_it_does_not_know_is_refused_before_anything_is_written(
    recorder: ModuleType, steps: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(sys.modules["vllm"], "__version__", version)
    with pytest.raises(RuntimeError, match=rf"knows vLLM 0\.26 to 0\.32; this is {version}"):
        recorder.RecordingScheduler(config(async_scheduling=False))
    assert not steps.exists()


@pytest.mark.parametrize(
    ("asynchronous", "loaded", "message"),
    [
        (True, "RecordingScheduler", r"schedules asynchronously: load recorder\.RecordingAsyncScheduler"),
        (False, "RecordingAsyncScheduler", r"schedules synchronously: load recorder\.RecordingScheduler"),
    ],
)
def test_the_wrong_one_of_the_two_is_refused(
    recorder: ModuleType, steps: Path, asynchronous: bool, loaded: str, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        getattr(recorder, loaded)(config(async_scheduling=asynchronous))
    assert not steps.exists()
