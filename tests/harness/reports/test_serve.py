"""A run as vLLM's metrics: what a scraper of vLLM reads from it is what the run holds."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client import generate_latest as plain_text
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from collectors.server.metric_names import Reading, read_metrics
from harness.reports.serve import Replayed, serve, write_openmetrics
from harness.reports.vllm_metrics import VllmMetrics
from tests.harness.reports.runs import run
from traces.capture import Capture
from traces.errors import CollectorError, InputError
from traces.metrics import summary

REAL = Path(__file__).parents[2] / "collectors" / "server" / "metrics" / "vllm-0.32.txt"
"""What a real vLLM 0.32 said."""


def text_at(capture: Capture, time_s: float) -> str:
    now_s = [0.0]
    replayed = Replayed(VllmMetrics(capture), lambda: now_s[0], 1.0)
    now_s[0] = time_s
    registry = CollectorRegistry()
    registry.register(replayed)
    return plain_text(registry).decode()


def read_at(capture: Capture, time_s: float) -> Reading:
    return read_metrics(text_at(capture, time_s))


def test_at_its_end_it_has_counted_the_whole_run() -> None:
    capture = run()
    figures, values = summary(capture), read_at(capture, 1e6).values["0"]
    assert values["prompt_tokens"] == figures["prompt_tokens"]
    assert values["generation_tokens"] == figures["output_tokens"]
    assert values["request_success.length"] == 60
    assert values["time_to_first_token_seconds_sum"] / 60 == pytest.approx(figures["metrics"]["ttft_s"]["mean"])
    assert values["e2e_request_latency_seconds_sum"] / 60 == pytest.approx(figures["metrics"]["e2el_s"]["mean"])
    assert values["inter_token_latency_seconds_count"] == figures["output_tokens"] - 60
    assert values["num_requests_running"] == 0
    assert values["iteration_tokens_sum"] == figures["prompt_tokens"] + figures["output_tokens"]


def test_before_it_begins_nothing_is_counted() -> None:
    values = read_at(run(), -1.0).values["0"]
    assert set(values.values()) == {0.0}


def test_between_it_has_counted_what_is_over() -> None:
    capture = run()
    values = read_at(capture, 0.7).values["0"]
    assert values["request_success"] == sum((o.finish_s or 9) <= 0.7 for o in capture.outcomes)
    assert values["generation_tokens"] == sum(t <= 0.7 for o in capture.outcomes for t in o.token_times_s or ())
    assert values["num_requests_running"] > 0
    assert 0 < values["kv_cache_usage_perc"] < 1


def test_names_labels_and_buckets_are_those_of_a_real_one() -> None:
    def series(text: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, labels in re.findall(r"^(vllm:\w+)\{(.*)\} ", text, flags=re.MULTILINE):
            found.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
        return found

    real, ours = series(REAL.read_text()), series(text_at(run(), 1.0))
    ours = {name: labels for name, labels in ours.items() if not name.endswith("_bucket")}
    assert len(ours) > 25
    for name, labels in ours.items():
        assert name in real, name
        assert labels <= real[name], name


def test_the_options_that_are_known_are_told() -> None:
    capture = run()
    meta = msgspec.structs.replace(capture.meta, engine_options={"block_size": 16, "enable_prefix_caching": True})
    info = read_at(replace(capture, meta=meta), 0.0).info["0"]
    assert info == {"block_size": "16", "num_gpu_blocks": "200", "enable_prefix_caching": "True"}


def test_engines_are_counted_apart() -> None:
    capture = run()
    outcomes = tuple(msgspec.structs.replace(o, instance=i % 2) for i, o in enumerate(capture.outcomes))
    values = read_at(replace(capture, outcomes=outcomes, steps=None), 1e6).values
    assert values["0"]["request_success"] == values["1"]["request_success"] == 30


def test_what_was_not_measured_is_left_out() -> None:
    capture = run()
    outcomes = tuple(msgspec.structs.replace(o, cached_tokens=None, token_times_s=None) for o in capture.outcomes)
    values = read_at(replace(capture, outcomes=outcomes, steps=None), 1e6).values["0"]
    assert "prefix_cache_hits" not in values
    assert "prefix_cache_queries" not in values
    assert "generation_tokens" not in values
    assert "kv_cache_usage_perc" not in values
    assert values["prompt_tokens"] > 0


def test_it_is_served_where_a_dashboard_looks(tmp_path: Path) -> None:
    with serve(run(), port=0, speed=1e9) as serving:
        with urllib.request.urlopen(serving.url) as answer:
            assert read_metrics(answer.read().decode()).values["0"]["request_success"] == 60
        port = int(serving.url.split(":")[2].split("/")[0])
        with pytest.raises(CollectorError, match=r"cannot listen at 127\.0\.0\.1"), serve(run(), port=port):
            pass
    with pytest.raises(InputError, match="'--speed': found 0"), serve(run(), port=0, speed=0):
        pass


def test_colons_stay_in_names_whatever_a_scraper_prefers() -> None:
    with serve(run(), port=0) as serving:
        asked = urllib.request.Request(serving.url, headers={"Accept": "application/openmetrics-text;version=1.0.0"})
        with urllib.request.urlopen(asked) as answer:
            assert b"\nvllm:num_requests_running{" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(serving.url.replace("metrics", "health"))


def test_the_whole_run_is_a_file_with_times(tmp_path: Path) -> None:
    n = write_openmetrics(run(), tmp_path / "run.om", at="2026-01-31T12:00:00Z", every_s=0.5)
    text = (tmp_path / "run.om").read_text()
    assert text.endswith("# EOF\n")
    readings = [_reading(text, f" {1769860800.0 + 0.5 * i}") for i in range(n)]
    tokens = [reading["vllm:generation_tokens"].samples[0].value for reading in readings]
    assert tokens[0] == 0
    assert tokens == sorted(tokens)
    assert tokens[-1] == summary(run())["output_tokens"]
    write_openmetrics(run(), tmp_path / "again.om", at="2026-01-31T12:00:00", every_s=0.5)
    assert (tmp_path / "again.om").read_text() == text
    with pytest.raises(InputError, match="'--at': found 'noon': accepted: a time as"):
        write_openmetrics(run(), tmp_path / "other.om", at="noon")


def _reading(text: str, time: str) -> dict[str, Family]:
    """One reading, by the strict parser; of several it takes the second for a repetition of the first."""
    lines = [line for line in text.splitlines() if line.startswith("#") or line.endswith(time)]
    return {family.name: family for family in text_string_to_metric_families("\n".join(lines) + "\n")}
