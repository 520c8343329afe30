"""Scraping /metrics: names of several servers, counters across restarts, and a server that does not answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from collectors.server.metric_names import METRICS, read_metrics
from collectors.server.scrape import Scrape, Scraper
from collectors.server.scrape_file import Scrapes, read_scrapes, series_of
from tests.collectors.server.attached import MetricsServer, metrics_journal, serving, text, vllm_text
from traces.errors import CollectorError, InputError
from traces.windows import grid_like

S = 10**9


# What a text says


def test_a_text_of_vllm_0_32() -> None:
    reading = read_metrics(text("vllm-0.32"))
    assert (reading.server, reading.model) == ("vllm", "model")
    values = reading.values["0"]
    assert (values["prompt_tokens"], values["generation_tokens"]) == (456, 50)
    assert (values["prefix_cache_queries"], values["prefix_cache_hits"]) == (456, 192)
    assert (values["request_success"], values["request_success.length"], values["request_success.abort"]) == (10, 10, 0)
    assert (values["time_to_first_token_seconds_count"], values["inter_token_latency_seconds_count"]) == (10, 40)
    assert (values["iteration_tokens_count"], values["iteration_tokens_sum"]) == (42, 314)
    assert reading.values[""] == {"admission_rejections": 0}
    assert reading.info["0"]["num_gpu_blocks"] == "64"
    assert reading.process_start_s == pytest.approx(1795246567.01)
    assert "vllm:engine_sleep_state" in reading.unknown
    assert not any(name.startswith(("http_", "process_")) or name.endswith("_created") for name in reading.unknown)


def test_older_names_and_units_of_vllm() -> None:
    reading = read_metrics(text("vllm-0.7"))
    values = reading.values["0"]
    assert values["kv_cache_usage_perc"] == 0.25
    assert (values["prefix_cache_queries"], values["prefix_cache_hits"]) == (640, 160)  # 40 and 10 blocks of 16 tokens
    assert (values["inter_token_latency_seconds_sum"], values["inter_token_latency_seconds_count"]) == (0.5, 84)
    assert reading.unknown == frozenset()


def test_blocks_of_unknown_size_are_not_taken_for_tokens() -> None:
    without_size = text("vllm-0.7").replace('block_size="16",', "")
    values = read_metrics(without_size).values["0"]
    assert "prefix_cache_queries" not in values
    assert values["prompt_tokens"] == 700


def test_two_engines_and_both_spellings_of_one_value() -> None:
    values = read_metrics(text("vllm-0.9-two-engines")).values
    assert [values[engine]["generation_tokens"] for engine in "01"] == [100, 40]
    assert [values[engine]["kv_cache_usage_perc"] for engine in "01"] == [0.2, 0.6]
    assert [values[engine]["prefix_cache_hits"] for engine in "01"] == [16, 32]


def test_sglang_counts_each_rank_and_priority_once() -> None:
    reading = read_metrics(text("sglang-0.5"))
    assert reading.server == "sglang"
    assert [reading.values[engine]["num_requests_running"] for engine in "01"] == [4, 6]
    assert [reading.values[engine]["kv_cache_usage_perc"] for engine in "01"] == [0.3, 0.5]
    assert reading.values[""]["prompt_tokens"] == 1000
    assert reading.values[""]["prompt_tokens_cached"] == 100
    assert reading.info["1"] == {"block_size": "64"}
    assert reading.unknown == {"sglang:gen_throughput", "sglang:time_per_output_token_seconds"}


def test_tgi_has_no_labels() -> None:
    reading = read_metrics(text("tgi-3"))
    assert (reading.server, reading.model) == ("tgi", None)
    values = reading.values[""]
    assert (values["num_requests_running"], values["num_requests_waiting"], values["request_success"]) == (5, 2, 8)
    assert (values["prompt_tokens"], values["generation_tokens"]) == (900, 160)
    assert (values["e2e_request_latency_seconds_sum"], values["request_queue_time_seconds_sum"]) == (12.5, 0.5)
    # Its mean time per token includes the prefill, and is nobody's TPOT.
    assert "tgi_request_mean_time_per_token_duration" in reading.unknown


def test_a_text_without_types_is_read_as_well() -> None:
    bare = "\n".join(line for line in text("vllm-0.32").split("\n") if not line.startswith("#"))
    assert read_metrics(bare).values == read_metrics(text("vllm-0.32")).values


def test_of_several_models_one_must_be_named() -> None:
    both = (
        'vllm:prompt_tokens_total{engine="0",model_name="a"} 1\nvllm:prompt_tokens_total{engine="0",model_name="b"} 2\n'
    )
    with pytest.raises(InputError, match="accepted: a, b"):
        read_metrics(both)
    with pytest.raises(InputError, match="found 'c': accepted: a, b"):
        read_metrics(both, "c")
    assert read_metrics(both, "b").values == {"0": {"prompt_tokens": 2}}


@pytest.mark.parametrize("garbage", ["<html>hello</html>", "vllm:prompt_tokens_total{ 3", "a\x00b c d", ""])
def test_what_is_no_text_of_metrics_is_refused(garbage: str) -> None:
    with pytest.raises(CollectorError, match="/metrics holds no"):
        read_metrics(garbage)


def test_no_spelling_stands_for_two_values() -> None:
    spellings = [spelling for metric in METRICS for spelling in metric.spellings if not spelling.startswith("tgi_")]
    assert len(spellings) == len(set(spellings))


# Scraping


async def scraped(server: MetricsServer, path: Path, times: int, **options: float) -> Scrapes:
    """So many scrapes of a server, one after the other."""
    reports: list[str] = []
    with metrics_journal(path) as journal:
        async with aiohttp.ClientSession() as session, serving(server):
            scraper = Scraper(session, server.url, journal, report=reports.append, **options)
            for _ in range(times):
                await scraper.scrape()
            await scraper.told()
    return read_scrapes(path)


async def test_a_server_in_trouble_is_scraped_on(tmp_path: Path) -> None:
    server = MetricsServer(answers=[vllm_text(100), 500, "<html>", vllm_text(160)])
    scrapes = await scraped(server, tmp_path / "m", 4)
    assert scrapes.delta("generation_tokens") == 60
    assert len(scrapes.time_s) == 2
    assert scrapes.notes == ("2 of 4 scrapes of /metrics failed, the first with: HTTP 500",)


async def test_no_answer_in_time_is_a_record(tmp_path: Path) -> None:
    server = MetricsServer(answers=[vllm_text(1), asyncio.Event().wait, vllm_text(3)])
    scrapes = await scraped(server, tmp_path / "m", 3, answer_within_s=0.1)
    assert scrapes.delta("generation_tokens") == 2
    assert scrapes.notes == ("1 of 3 scrapes of /metrics failed, the first with: no answer within 0.1 s",)


async def test_slow_scrapes_are_skipped_and_never_pile_up(tmp_path: Path) -> None:
    async def slow() -> str:
        await asyncio.sleep(0.2)
        return vllm_text(5)

    server = MetricsServer(answers=[slow, slow, vllm_text(9)])
    stop = asyncio.Event()
    with metrics_journal(tmp_path / "m", every_s=0.02) as journal:
        async with aiohttp.ClientSession() as session, serving(server):
            running = asyncio.create_task(Scraper(session, server.url, journal).run(stop, 0.02))
            await server.asked_times(4)
            stop.set()
            await running
    scrapes = read_scrapes(tmp_path / "m")
    assert server.at_once == 1
    assert scrapes.delta("generation_tokens") == 4
    (note,) = scrapes.notes
    assert "scrapes of /metrics were skipped, as others took up to" in note
    assert int(note.split()[0]) >= 10


async def test_a_server_that_goes_and_comes_back_is_said_once_each(tmp_path: Path) -> None:
    reports: list[str] = []
    server = MetricsServer(answers=[vllm_text(10)])
    with metrics_journal(tmp_path / "m") as journal:
        async with aiohttp.ClientSession() as session:
            async with serving(server):
                scraper = Scraper(session, server.url, journal, report=reports.append)
                await scraper.scrape()
            await scraper.scrape()
            await scraper.scrape()
            server.answers = [vllm_text(4, start_s=2e9)]
            async with serving(server, int(server.url.rsplit(":", 1)[1])):
                await scraper.scrape()
                await scraper.told()
    assert [report.split("/metrics ")[1][:10] for report in reports] == ["cannot be ", "can be scr"]
    scrapes = read_scrapes(tmp_path / "m")
    assert scrapes.delta("generation_tokens") == 4
    assert "2 of 4 scrapes of /metrics failed" in scrapes.notes[0]
    assert "the server restarted 1 times" in scrapes.notes[1]


async def test_what_the_server_tells_of_itself_is_kept_by_name(tmp_path: Path) -> None:
    config = {
        "scheduler_config": {"max_num_seqs": 16, "max_num_batched_tokens": 256, "policy": "fcfs"},
        "cache_config": {"block_size": 32, "num_gpu_blocks": 64, "cache_dtype": "auto"},
        "model_config": {"dtype": "torch.bfloat16", "enforce_eager": True, "model": "/secret/path"},
        "compilation_config": {"cudagraph_capture_sizes": [1, 2]},
    }
    told = {"vllm_config": config, "vllm_env": {"VLLM_API_TOKEN": "hush"}}
    server = MetricsServer(
        answers=[text("vllm-0.32")], paths={"/version": '{"version": "0.32.0"}', "/server_info": json.dumps(told)}
    )
    scrapes = await scraped(server, tmp_path / "m", 1)
    assert scrapes.told is not None
    assert scrapes.told.engine == "vllm 0.32.0"
    assert scrapes.engine_options() == {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "block_size": 32,
        "kv_cache_dtype": "auto",
        "dtype": "bfloat16",
        "enforce_eager": True,
    }
    assert scrapes.num_gpu_blocks() == 64
    written = (tmp_path / "m").read_text()
    assert "secret" not in written
    assert "hush" not in written


@pytest.mark.parametrize(
    ("parallel", "device_type", "kept"),
    [
        ({"tensor_parallel_size": 2, "disable_custom_all_reduce": True}, "cuda", None),
        ({"tensor_parallel_size": 2, "disable_custom_all_reduce": False}, "cuda", {"tensor_parallel_size": 2}),
        ({"tensor_parallel_size": 2, "disable_custom_all_reduce": True}, "cpu", {"tensor_parallel_size": 2}),
        ({"tensor_parallel_size": 1, "disable_custom_all_reduce": True}, "cuda", {}),
        ({"tensor_parallel_size": 1, "pipeline_parallel_size": 2}, "cuda", {"pipeline_parallel_size": 2}),
        ({"data_parallel_size": 2, "enable_expert_parallel": True}, "cpu", None),
        ({"data_parallel_size": 2, "data_parallel_external_lb": True}, "cuda", {}),
        ({"data_parallel_size": 1, "enable_expert_parallel": False}, "cuda", {}),
    ],
)
async def test_how_an_engine_is_spread_over_devices_is_kept_where_it_is(
    tmp_path: Path, parallel: dict[str, object], device_type: str, kept: dict[str, object] | None
) -> None:
    config = {"parallel_config": parallel, "device_config": {"device_type": device_type}}
    paths = {"/server_info": json.dumps({"vllm_config": config})}
    scrapes = await scraped(MetricsServer(answers=[text("vllm-0.32")], paths=paths), tmp_path / "m", 1)
    assert scrapes.told is not None
    assert scrapes.told.options == (parallel if kept is None else kept)


async def test_a_server_that_tells_nothing_is_known_by_its_metrics(tmp_path: Path) -> None:
    scrapes = await scraped(MetricsServer(answers=[text("vllm-0.32")]), tmp_path / "m", 2)
    assert scrapes.told is not None
    assert (scrapes.told.engine, scrapes.told.options) == ("vllm", {})
    assert scrapes.engine_options() == {
        "block_size": 32,
        "gpu_memory_utilization": 0.92,
        "enable_prefix_caching": True,
        "kv_cache_dtype": "auto",
    }
    assert scrapes.num_gpu_blocks() == 64
    assert "vllm:engine_sleep_state" in scrapes.notes[0]


async def test_sglangs_version_is_taken_and_its_key_is_not(tmp_path: Path) -> None:
    server = MetricsServer(
        answers=[text("sglang-0.5")], paths={"/get_server_info": '{"version": "0.5.1", "api_key": "hush"}'}
    )
    scrapes = await scraped(server, tmp_path / "m", 2)
    assert scrapes.told is not None
    assert scrapes.told.engine == "sglang 0.5.1"
    assert "hush" not in (tmp_path / "m").read_text()
    assert scrapes.engines == ("0", "1")
    assert scrapes.engine_options() == {"block_size": 64}
    assert scrapes.notes[-1] == "sglang counts tokens when a request is over: no series of tokens per second is kept"


# What is made of the scrapes


def recorded(path: Path, *scrapes: tuple[float, str], every_s: float = 1.0) -> Scrapes:
    """Texts scraped at given seconds."""
    with metrics_journal(path, every_s) as journal:
        for time_s, metrics in scrapes:
            reading = read_metrics(metrics)
            at_ns = int(time_s * S)
            journal.append(
                Scrape(
                    begin_ns=at_ns - 1000,
                    end_ns=at_ns + 1000,
                    status=200,
                    process_start_s=reading.process_start_s,
                    values=reading.values,
                )
            )
        journal.append({"kind": "described", "server": reading.server, "model": None, "info": {}, "unknown": []})
    return read_scrapes(path)


def test_a_counter_that_fell_counts_from_zero_again(tmp_path: Path) -> None:
    texts = [vllm_text(tokens).split("\n", 2)[2] for tokens in (100, 150, 20, 50)]  # without the process' start
    scrapes = recorded(tmp_path / "m", *enumerate(texts))
    assert scrapes.delta("generation_tokens") == 50 + 20 + 30
    assert scrapes.series("generation_tokens")[1].tolist() == [0, 50, 70, 100]
    assert scrapes.notes == ("the server restarted 1 times; what it counted after the last scrape before is lost",)


def test_all_counters_start_anew_when_one_shows_that_the_server_did(tmp_path: Path) -> None:
    before, after = vllm_text(100, queries=10, hits=0), vllm_text(30, queries=40, hits=0)
    scrapes = recorded(tmp_path / "m", (0, before), (1, after))
    assert (scrapes.delta("generation_tokens"), scrapes.delta("prefix_cache_queries")) == (30, 40)


def test_a_later_process_is_a_restart_even_if_no_counter_fell(tmp_path: Path) -> None:
    scrapes = recorded(tmp_path / "m", (0, vllm_text(10)), (1, vllm_text(30, start_s=2e9)))
    assert scrapes.delta("generation_tokens") == 30


def test_a_sum_that_is_rounded_differently_is_no_restart(tmp_path: Path) -> None:
    scrapes = recorded(tmp_path / "m", (0, vllm_text(0.1 + 0.2)), (1, vllm_text(0.3)), (2, vllm_text(1.3)))
    assert scrapes.delta("generation_tokens") == pytest.approx(1.0)
    assert scrapes.notes == ()


def test_answers_of_two_servers_in_turn_are_noticed(tmp_path: Path) -> None:
    texts = [vllm_text(10 + i, start_s=1e9 + i % 2) for i in range(4)]
    (note,) = recorded(tmp_path / "m", *enumerate(texts)).notes
    assert "several servers in turn" in note


def test_engines_are_kept_apart_and_added_up(tmp_path: Path) -> None:
    first = text("vllm-0.9-two-engines")
    second = first.replace("100.0", "130.0").replace("40.0", "41.0")
    scrapes = recorded(tmp_path / "m", (0, first), (1, second))
    assert scrapes.engines == ("0", "1")
    assert scrapes.delta("generation_tokens") == 31
    assert [scrapes.delta("generation_tokens", engine) for engine in ("0", "1", "2")] == [30, 1, None]
    assert scrapes.series("num_requests_running")[1].tolist() == [8, 8]
    assert scrapes.series("num_requests_running", "1")[1].tolist() == [5, 5]
    assert scrapes.series("kv_cache_usage_perc")[1] == pytest.approx([0.4, 0.4])


def test_a_counter_that_appears_late_had_counted_nothing(tmp_path: Path) -> None:
    first = vllm_text(1).replace("vllm:prefix_cache_hits_total{", "vllm:other{")
    scrapes = recorded(tmp_path / "m", (0, first), (1, vllm_text(1, hits=32)))
    assert scrapes.delta("prefix_cache_hits") == 32


def test_what_was_not_scraped_is_none_and_what_cannot_be_is_an_error(tmp_path: Path) -> None:
    scrapes = recorded(tmp_path / "m", (0, vllm_text(1)), (1, vllm_text(2)))
    assert scrapes.delta("num_preemptions") is None
    assert len(scrapes.series("num_preemptions")[0]) == 0
    with pytest.raises(ValueError, match="'generation_tokens' is the nearest known name"):
        scrapes.delta("generated_tokens")
    with pytest.raises(ValueError, match="num_requests_running is not a counter"):
        scrapes.delta("num_requests_running")
    assert recorded(tmp_path / "once", (0, vllm_text(1))).delta("generation_tokens") is None


def test_series_stand_at_ends_of_equal_windows(tmp_path: Path) -> None:
    tokens = (0, 100, 300, 400, 400)
    scrapes = recorded(
        tmp_path / "m",
        *[(10 + i + 0.01 * (i == 2), vllm_text(n, running=i, queries=n, hits=n / 4)) for i, n in enumerate(tokens)],
        (14.3, vllm_text(400, running=9, queries=400, hits=100)),
    )
    series = series_of(scrapes, origin_s=10)
    assert set(series) == {"n_running", "output_tokens_per_s", "prefix_hit_rate"}
    rate = series["output_tokens_per_s"]
    assert rate.time_s == pytest.approx([1, 2, 3, 4])
    assert rate.value == pytest.approx([100, 200, 100, 0], abs=2)
    assert grid_like(rate) is not None
    assert series["n_running"].value.tolist() == [1, 2, 3, 4]
    assert series["prefix_hit_rate"].value == pytest.approx([0.25] * 3)


def test_windows_without_scrapes_are_left_out(tmp_path: Path) -> None:
    scrapes = recorded(tmp_path / "m", *[(t, vllm_text(10 * t, running=t)) for t in (0, 1, 2, 6, 7)])
    series = series_of(scrapes, origin_s=0)
    assert series["output_tokens_per_s"].time_s.tolist() == [1, 2, 7]
    assert np.array_equal(series["n_running"].time_s, [1, 2, 6, 7])


def test_no_rate_is_made_of_what_is_counted_at_the_end(tmp_path: Path) -> None:
    scrapes = recorded(tmp_path / "m", *[(t, text("tgi-3")) for t in range(3)])
    assert scrapes.engines == ("0",)
    assert scrapes.delta("generation_tokens", "0") == 0
    assert set(series_of(scrapes, 0)) == {"n_running", "n_waiting"}


def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    recorded(tmp_path / "m", (0, vllm_text(1)), (1, vllm_text(5)))
    with (tmp_path / "m").open("a") as stream:
        stream.write('{"kind":"scrape","begin_ns":12')
    assert read_scrapes(tmp_path / "m").delta("generation_tokens") == 4


def test_a_journal_without_scrapes_has_nothing_in_it(tmp_path: Path) -> None:
    metrics_journal(tmp_path / "m").close()
    scrapes = read_scrapes(tmp_path / "m")
    assert (scrapes.engines, scrapes.server, scrapes.delta("prompt_tokens")) == ((), None, None)
    assert series_of(scrapes, 0) == {}
    assert (scrapes.engine_options(), scrapes.num_gpu_blocks()) == ({}, None)
    (tmp_path / "empty").write_text("")
    with pytest.raises(CollectorError, match="holds no header"):
        read_scrapes(tmp_path / "empty")
    (tmp_path / "bad").write_text('{"kind":"scrape","begin_ns":"x","end_ns":1}\n')
    with pytest.raises(InputError, match="bad:1"):
        read_scrapes(tmp_path / "bad")
