"""The stat logger, found and loaded as vLLM does it, over stand-ins for vLLM's statistics; tests/live has real ones."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from collectors.engine.stat_logger_package import ENTRY_POINT, write_stat_logger
from collectors.engine.stats_log import StatsLog, read_stats
from simulator.scheduling.options import EngineOptions
from traces.errors import CollectorError, InputError

LOADED = ("servetwin_stat_logger", "servetwin_recorder")


class AggregateStatLoggerBase:
    """As vLLM's: nothing in it is called."""


@dataclass
class Finished:
    """vLLM's FinishedRequestStats, of a request that went through all stages."""

    request_id: str = "cmpl-a-0"
    finish_reason: str = "length"
    e2e_latency: float = 3.0
    num_prompt_tokens: int = 64
    num_preemptions: int = 1
    num_generation_tokens: int = 8
    max_tokens_param: int | None = 8
    queued_time: float = 0.5
    prefill_time: float = 0.25
    inference_time: float = 2.25
    decode_time: float = 2.0
    num_cached_tokens: int = 32


@dataclass
class Iteration:
    """vLLM's IterationStats."""

    finished_requests: list[Finished] = field(default_factory=list)
    iteration_timestamp: float = 1003.0
    num_prompt_tokens: int = 64
    num_generation_tokens: int = 3
    num_preempted_reqs: int = 1
    time_to_first_tokens_iter: list[float] = field(default_factory=lambda: [0.75])


def scheduler_stats() -> Any:
    """vLLM's SchedulerStats."""
    return SimpleNamespace(
        num_running_reqs=3,
        num_waiting_reqs=2,
        num_skipped_waiting_reqs=1,
        kv_cache_usage=0.5,
        prefix_cache_stats=SimpleNamespace(queries=64, hits=32),
    )


def config(api_server: int = 0) -> Any:
    """A VllmConfig with what the header names."""
    scheduler = SimpleNamespace(
        max_num_seqs=8,
        max_num_batched_tokens=256,
        enable_chunked_prefill=True,
        long_prefill_token_threshold=0,
        scheduler_reserve_full_isl=True,
        async_scheduling=False,
    )
    cache = SimpleNamespace(
        gpu_memory_utilization=0.9,
        enable_prefix_caching=True,
        cache_dtype="auto",
        num_gpu_blocks=65,
        block_size=16,
    )
    model = SimpleNamespace(
        model="m", served_model_name="m", max_model_len=512, enforce_eager=True, dtype="torch.bfloat16"
    )
    return SimpleNamespace(
        scheduler_config=scheduler,
        cache_config=cache,
        model_config=model,
        parallel_config=SimpleNamespace(_api_process_rank=api_server),
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=[]),
    )


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stat logger's class, found by its entry point in a folder on the path, beside a vLLM of names alone."""
    vllm: Any = ModuleType("vllm")
    vllm.__version__ = "0.32.0"
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    for name in ("vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    loggers: Any = ModuleType("vllm.v1.metrics.loggers")
    loggers.AggregateStatLoggerBase = AggregateStatLoggerBase
    monkeypatch.setitem(sys.modules, "vllm.v1.metrics.loggers", loggers)
    write_stat_logger(tmp_path / "stat-logger")
    monkeypatch.syspath_prepend(str(tmp_path / "stat-logger"))
    (entry,) = entry_points(group="vllm.stat_logger_plugins", name=ENTRY_POINT)
    yield entry.load()
    for name in LOADED:
        sys.modules.pop(name, None)


@pytest.fixture
def stats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stat logger is told to write."""
    file = tmp_path / "stats.jsonl"
    monkeypatch.setenv("SERVETWIN_STATS", str(file))
    return file


def end(logger: Any) -> None:
    """What the server's end brings; vLLM has no call for it."""
    if logger._log is not None:
        logger._close(logger._log)


def told(logger: Any, file: Path) -> StatsLog:
    end(logger)
    return read_stats(file)


def wait_for(file: Path, text: bytes) -> None:
    deadline_s = time.monotonic() + 30
    while text not in file.read_bytes():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_it_is_the_class_that_vllm_asks_for(kind: Any) -> None:
    assert issubclass(kind, AggregateStatLoggerBase)


def test_an_iteration_has_what_vllm_counts(kind: Any, stats: Path) -> None:
    logger = kind(config(), [0, 1])
    logger.record(scheduler_stats(), Iteration(), None, engine_idx=1)
    (iteration,) = told(logger, stats).iterations
    assert (iteration.engine, iteration.n_running, iteration.n_waiting) == (1, 3, 3)
    assert (iteration.kv_cache_usage, iteration.prefix_cache_queries, iteration.prefix_cache_hits) == (0.5, 64, 32)
    assert (iteration.prompt_tokens, iteration.generation_tokens, iteration.n_preempted) == (64, 3, 1)
    assert iteration.ttft_s == (0.75,)
    assert iteration.logger_ns > 0
    assert abs(iteration.wall_ns - time.time_ns()) < 60e9


def test_what_vllm_does_not_send_is_none(kind: Any, stats: Path) -> None:
    logger = kind(config(), [0])
    logger.record(None, Iteration())
    logger.record(scheduler_stats(), None)
    first, second = told(logger, stats).iterations
    assert (first.n_running, first.kv_cache_usage, first.prompt_tokens) == (None, None, 64)
    assert (second.n_running, second.prompt_tokens, second.n_preempted) == (3, None, None)


def test_a_request_has_its_stages(kind: Any, stats: Path) -> None:
    logger = kind(config(), [0])
    logger.record(scheduler_stats(), Iteration([Finished(), Finished("chatcmpl-b"), Finished("other")]))
    requests = told(logger, stats).requests
    assert requests.keys() == {"a", "b", "other"}
    one = requests["a"]
    assert (one.arrival_wall_s, one.end_wall_s, one.e2e_s) == (1000.0, 1003.0, 3.0)
    assert (one.queued_s, one.prefill_s, one.decode_s, one.inference_s) == (0.5, 0.25, 2.0, 2.25)
    assert (one.prompt_tokens, one.output_tokens, one.max_tokens, one.cached_tokens) == (64, 8, 8, 32)
    assert (one.num_preemptions, one.reason) == (1, "length")


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ({"queued_time": -12.0, "prefill_time": 0.0, "inference_time": 0.0, "decode_time": 0.0}, (None,) * 4),
        ({"prefill_time": -12.5, "inference_time": -12.5, "decode_time": 0.0}, (0.5, None, None, None)),
        ({"num_generation_tokens": 0, "decode_time": 0.0, "inference_time": 0.25}, (0.5, 0.25, 0.0, 0.25)),
    ],
    ids=["never scheduled", "no token", "pooling"],
)
def test_a_stage_that_was_not_reached_is_none(
    kind: Any, stats: Path, given: dict[str, Any], stages: tuple[float | None, ...]
) -> None:
    logger = kind(config(), [0])
    logger.record(None, Iteration([Finished(**given)]))
    one = told(logger, stats).requests["a"]
    assert (one.queued_s, one.prefill_s, one.decode_s, one.inference_s) == stages


def test_several_answers_to_one_request_are_all_kept(kind: Any, stats: Path) -> None:
    """vLLM ends the answers of n > 1 under one id."""
    logger = kind(config(), [0])
    logger.record(None, Iteration([Finished(num_generation_tokens=n) for n in (1, 2, 3)]))
    requests = told(logger, stats).requests
    assert {name: request.output_tokens for name, request in requests.items()} == {
        "a": 1,
        "cmpl-a-0": 2,
        "cmpl-a-0#2": 3,
    }


def test_a_vllm_that_does_not_count_a_requests_preemptions(kind: Any, stats: Path) -> None:
    logger = kind(config(), [0])
    finished = SimpleNamespace(**{k: v for k, v in vars(Finished()).items() if k != "num_preemptions"})
    logger.record(None, Iteration([finished]))  # type: ignore[list-item]
    assert told(logger, stats).requests["a"].num_preemptions is None


def test_a_rejection_is_written(kind: Any, stats: Path) -> None:
    logger = kind(config(), [0])
    logger.record_admission_rejection("max_num_queued_reqs")
    assert [rejection.reason for rejection in told(logger, stats).rejections] == ["max_num_queued_reqs"]


def test_the_header_and_the_summary(kind: Any, stats: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = kind(config(), [0, 1])
    logger.log_engine_initialized()
    logger.record(scheduler_stats(), Iteration([Finished()]))
    with caplog.at_level(logging.INFO, logger="vllm.servetwin"):
        header = told(logger, stats).header
    assert (header.vllm_version, header.num_gpu_blocks, header.model) == ("0.32.0", 65, "m")
    assert (header.engines, header.api_server) == ((0, 1), 0)
    assert header.options.keys() <= set(EngineOptions.__struct_fields__)
    summary = json.loads(stats.read_text().splitlines()[-1])
    assert (summary["n_iterations"], summary["n_requests"], summary["n_lost"]) == (1, 1, 0)
    assert summary["logger_ns"] > 0
    assert "servetwin stat logger: 1 iterations, " in caplog.text


def test_each_api_server_writes_a_file_of_its_own(kind: Any, stats: Path) -> None:
    for rank in (0, 2):
        end(kind(config(rank), [0]))
    assert read_stats(stats.with_name("stats.jsonl.2")).header.api_server == 2
    assert read_stats(stats).header.api_server == 0


@pytest.mark.parametrize("version", ["0.19.1", "0.34.0"])
def test_a_vllm_it_does_not_know_serves_on(
    kind: Any, stats: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    monkeypatch.setattr(sys.modules["vllm"], "__version__", version)
    with caplog.at_level(logging.WARNING):
        logger = kind(config(), [0])
    assert [record.getMessage() for record in caplog.records] == [
        "servetwin stat logger: off, nothing is recorded: "
        f"servetwin knows vLLM 0.20 to 0.33; this is {version}; the server runs without it"
    ]
    logger.record(scheduler_stats(), Iteration())
    logger.record_admission_rejection("max_num_queued_reqs")
    with pytest.raises(CollectorError, match=f"the stat logger was off: servetwin knows vLLM .* this is {version}"):
        read_stats(stats)
    monkeypatch.setenv("SERVETWIN_STRICT", "1")
    with pytest.raises(RuntimeError, match="SERVETWIN_STRICT=1 asks for no start without it"):
        kind(config(), [0])


def test_statistics_of_another_vllm_end_the_recording_and_not_the_server(
    kind: Any, stats: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = kind(config(), [0])
    logger.record(scheduler_stats(), Iteration())
    for _ in range(3):
        logger.record(SimpleNamespace(), Iteration())
    assert caplog.text.count("the server goes on without it") == 1
    wait_for(stats, b"stopped")
    read = read_stats(stats)
    assert len(read.iterations) == 1
    (note,) = read.notes
    assert note.startswith("the stat logger stopped while the server went on: AttributeError: ")


def test_a_full_disk_is_said_and_does_not_hurt_the_server(
    kind: Any, stats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats.symlink_to("/dev/full")
    logger = kind(config(), [0])
    logger.record(scheduler_stats(), Iteration([Finished()]))
    end(logger)
    said = capsys.readouterr().err
    assert said.count("No space left on device") == 1
    assert "bytes could not be written, 0 records were lost" in said


def test_lost_records_are_noted(kind: Any, stats: Path) -> None:
    end(kind(config(), [0]))
    with stats.open("a") as stream:
        stream.write('{"kind":"lost","from_ns":1,"to_ns":2,"records":{"request":2,"iteration":7}}\n')
    assert read_stats(stats).notes == ("records were lost while the file could not be written: 7 iteration, 2 request",)


def test_a_second_start_goes_on_behind_the_first(kind: Any, stats: Path) -> None:
    for _ in range(2):
        logger = kind(config(), [0])
        logger.record(None, Iteration())
        end(logger)
        with stats.open("a") as stream:
            stream.write('{"kind":"iteration","eng')
    assert len(read_stats(stats).iterations) == 2
    assert stats.read_text().count('"kind":"header"') == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind":"iteration","engine":0', "stats.jsonl:2: is not JSON"),
        ('{"kind":"step","engine":0}', "stats.jsonl:2: field 'kind': found 'step'"),
        ('{"kind":"iteration","engine":0,"wall_ns":1,"monotonic_ns":1}', "field 'logger_ns': is missing"),
        ('{"kind":"rejection","wall_ns":1,"monotonic_ns":1,"reason":3}', "field 'reason': found 3: accepted: str"),
        (
            '{"kind":"iteration","engine":0,"wall_ns":1,"monotonic_ns":1,"logger_ns":1,"n_running":-1}',
            "field 'n_running': found -1",
        ),
    ],
    ids=["cut", "kind", "missing", "type", "range"],
)
def test_a_line_that_is_not_the_stat_loggers_is_an_error(kind: Any, stats: Path, line: str, message: str) -> None:
    end(kind(config(), [0]))
    whole = stats.read_text().splitlines(keepends=True)
    stats.write_text("".join([whole[0], line + "\n"]))
    with pytest.raises(InputError) as error:
        read_stats(stats)
    assert message in str(error.value)


def test_a_file_without_a_header_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "stats.jsonl").write_text("")
    with pytest.raises(CollectorError, match="holds no header"):
        read_stats(tmp_path / "stats.jsonl")
    with pytest.raises(InputError, match="no such file"):
        read_stats(tmp_path / "none.jsonl")
