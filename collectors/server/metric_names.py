"""One name for each quantity that vLLM, SGLang and TGI count, and what one text of /metrics says of them.

The names are those of vLLM 0.32 without `vllm:`. Values of labels that say nothing of an engine are added up; a model's
name, an engine's and a finish reason are all that is read of labels.

Sources: vLLM 0.32 and 0.7 v1/metrics/loggers.py and 0.6 engine/metrics.py; SGLang srt/observability/
metrics_collector.py; TGI docs/source/reference/metrics.md and router/src/server.rs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from traces.errors import CollectorError, InputError, shorten

SERVERS = {"vllm:": "vllm", "sglang:": "sglang", "tgi_": "tgi"}
"""What a server's own metrics begin with."""

WHOLE_SERVER = ""
"""The engine of a value that a server gives for all of its engines together."""

PROCESS_START = "process_start_time_seconds"

Kind = Literal["counter", "amount", "ratio"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity and what servers call it.

    Attributes:
        name: ours.
        kind: a counter only grows while its server runs; amounts of several engines add up; ratios (0 to 1) do not.
        spellings: the servers' names without `_total`; of several that one server gives, the first counts.
        by: label whose values are also kept apart, as `name.value`.
        in_tokens: vLLM before 0.8 counted it in KV blocks, and its HELP text says so; converted to tokens.
    """

    name: str
    kind: Kind
    spellings: tuple[str, ...]
    by: str | None = None
    in_tokens: bool = False


def _counter(name: str, *spellings: str, by: str | None = None, in_tokens: bool = False) -> Metric:
    return Metric(name, "counter", spellings, by, in_tokens)


def _histogram(name: str, *spellings: str) -> tuple[Metric, Metric]:
    """Its sum and its count; buckets are too coarse to be of use and are not read."""
    total, count = (_counter(f"{name}_{part}", *(f"{s}_{part}" for s in spellings)) for part in ("sum", "count"))
    return total, count


METRICS: tuple[Metric, ...] = (
    Metric(
        "num_requests_running",
        "amount",
        ("vllm:num_requests_running", "sglang:num_running_reqs", "tgi_batch_current_size"),
    ),
    Metric("num_requests_waiting", "amount", ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "tgi_queue_size")),
    # All three are ratios, whatever "perc" says; none counts blocks that are cached and free to be evicted.
    Metric(
        "kv_cache_usage_perc", "ratio", ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
    ),
    _counter("prompt_tokens", "vllm:prompt_tokens", "sglang:prompt_tokens", "tgi_request_input_length_sum"),
    _counter("prompt_tokens_cached", "vllm:prompt_tokens_cached", "sglang:cached_tokens"),
    _counter(
        "generation_tokens", "vllm:generation_tokens", "sglang:generation_tokens", "tgi_request_generated_tokens_sum"
    ),
    _counter("num_preemptions", "vllm:num_preemptions", "sglang:num_retracted_requests"),
    _counter("prefix_cache_queries", "vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries", in_tokens=True),
    _counter("prefix_cache_hits", "vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits", in_tokens=True),
    _counter("external_prefix_cache_queries", "vllm:external_prefix_cache_queries"),
    _counter("external_prefix_cache_hits", "vllm:external_prefix_cache_hits"),
    _counter(
        "request_success", "vllm:request_success", "sglang:num_requests", "tgi_request_success", by="finished_reason"
    ),
    _counter("admission_rejections", "vllm:admission_rejections"),
    _counter("corrupted_requests", "vllm:corrupted_requests"),
    _counter("spec_decode_num_drafts", "vllm:spec_decode_num_drafts"),
    _counter("spec_decode_num_draft_tokens", "vllm:spec_decode_num_draft_tokens"),
    _counter("spec_decode_num_accepted_tokens", "vllm:spec_decode_num_accepted_tokens"),
    *_histogram(
        "time_to_first_token_seconds", "vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"
    ),
    # Per token. SGLang's time_per_output_token_seconds was per token in some versions, per request in others, and
    # TGI's mean_time_per_token_duration includes the prefill: neither is read.
    *_histogram(
        "inter_token_latency_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
    ),
    *_histogram("request_time_per_output_token_seconds", "vllm:request_time_per_output_token_seconds"),
    *_histogram(
        "e2e_request_latency_seconds",
        "vllm:e2e_request_latency_seconds",
        "sglang:e2e_request_latency_seconds",
        "tgi_request_duration",
    ),
    *_histogram(
        "request_queue_time_seconds",
        "vllm:request_queue_time_seconds",
        "sglang:queue_time_seconds",
        "tgi_request_queue_duration",
    ),
    *_histogram(
        "request_inference_time_seconds", "vllm:request_inference_time_seconds", "tgi_request_inference_duration"
    ),
    *_histogram("request_prefill_time_seconds", "vllm:request_prefill_time_seconds"),
    *_histogram("request_decode_time_seconds", "vllm:request_decode_time_seconds"),
    *_histogram(
        "request_prompt_tokens",
        "vllm:request_prompt_tokens",
        "sglang:prompt_tokens_histogram",
        "tgi_request_input_length",
    ),
    *_histogram(
        "request_generation_tokens",
        "vllm:request_generation_tokens",
        "sglang:generation_tokens_histogram",
        "tgi_request_generated_tokens",
    ),
    *_histogram("request_prefill_kv_computed_tokens", "vllm:request_prefill_kv_computed_tokens"),
    # Tokens of each engine step: the count is the number of steps that brought tokens out.
    *_histogram("iteration_tokens", "vllm:iteration_tokens_total"),
)

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}

INFO_LABELS: Mapping[str, Mapping[str, str]] = {
    "vllm:cache_config_info": {
        name: name
        for name in (
            "block_size",
            "num_gpu_blocks",
            "num_gpu_blocks_override",
            "enable_prefix_caching",
            "prefix_caching_hash_algo",
            "gpu_memory_utilization",
            "cache_dtype",
            "kv_cache_memory_bytes",
            "kv_cache_size_tokens",
        )
    },
    "sglang:cache_config_info": {"page_size": "block_size", "num_pages": "num_pages"},
}
"""Labels that describe the KV cache, and our names for them. SGLang's pages do not include a null block."""

INFO_VALUES: Mapping[str, str] = {
    "sglang:page_size": "block_size",
    "sglang:num_pages": "num_pages",
    "sglang:max_total_num_tokens": "kv_cache_size_tokens",
    "sglang:context_len": "max_model_len",
}
"""The same, given as values."""

_SPELLINGS = {
    spelling.removesuffix("_sum").removesuffix("_count") for metric in METRICS for spelling in metric.spellings
} | {*INFO_LABELS, *INFO_VALUES}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one text of /metrics says.

    Attributes:
        server: vllm, sglang or tgi.
        model: the model that it is of; None when the server does not name it.
        values: by engine, then by our names. Histograms have `_sum` and `_count`.
        info: by engine, what describes its KV cache.
        unknown: the server's own metrics that have no name of ours.
        process_start_s: when the server's process started (Unix seconds); None when it does not say.
    """

    server: str
    model: str | None
    values: dict[str, dict[str, float]]
    info: dict[str, dict[str, str]]
    unknown: frozenset[str] = field(default_factory=frozenset)
    process_start_s: float | None = None


def read_metrics(text: str, model: str | None = None) -> Reading:
    """Read a text of /metrics.

    Args:
        text: in Prometheus' format.
        model: whose values to read, where the server serves several.

    Raises:
        CollectorError: it is no such text, or holds nothing of a known server.
        InputError: it is of several models and none is named, or of others than the one named.
    """
    lines = [line for line in text.split("\n") if "_bucket{" not in line]
    try:
        families = list(text_string_to_metric_families("\n".join(lines)))
    except ValueError as error:
        raise CollectorError(f"/metrics holds no Prometheus metrics ({shorten(str(error))})") from None
    own = [family for family in families if _server(family.name) and not family.name.endswith("_created")]
    if not own:
        raise CollectorError(
            "/metrics holds nothing of vLLM, SGLang or TGI; was vLLM started with --disable-log-stats, "
            "or SGLang without --enable-metrics?"
        )
    model = _the_model(own, model)
    found = {_bare(sample, family): dict[str, list[Sample]]() for family in own for sample in family.samples}
    for family in own:
        for engine, sample in _of_model(family.samples, model):
            found[_bare(sample, family)].setdefault(engine, []).append(sample)
    info = _info(found)
    start = [sample.value for family in families if family.name == PROCESS_START for sample in family.samples]
    return Reading(
        server=_server(own[0].name) or "",
        model=model,
        values=_values(found, {family.name for family in own if "blocks" in family.documentation}, info),
        info=info,
        unknown=frozenset(name for family in own if (name := _base(family)) not in _SPELLINGS),
        process_start_s=start[0] if start else None,
    )


def _server(name: str) -> str | None:
    return next((server for prefix, server in SERVERS.items() if name.startswith(prefix)), None)


def _base(family: Family) -> str:
    """A family's name; where the text does not say of what type it is, the parser leaves a sample's ending at it."""
    if family.type == "unknown" and family.name not in _SPELLINGS:
        for ending in ("_total", "_sum", "_count"):
            if family.name.endswith(ending):
                return family.name.removesuffix(ending)
    return family.name


def _bare(sample: Sample, family: Family) -> str:
    """A sample's name as spellings have it."""
    return sample.name if family.type == "histogram" else sample.name.removesuffix("_total")


def _the_model(own: Iterable[Family], model: str | None) -> str | None:
    models = sorted({s.labels["model_name"] for family in own for s in family.samples if "model_name" in s.labels})
    if model is None and len(models) > 1:
        raise InputError("is missing, as /metrics is of several", field="model", accepted=", ".join(models))
    if model is not None and models and model not in models:
        raise InputError("is not in /metrics", field="model", found=model, accepted=", ".join(models))
    return model if model is not None else next(iter(models), None)


def _of_model(samples: Iterable[Sample], model: str | None) -> Iterator[tuple[str, Sample]]:
    """The model's samples with their engines, of the first rank of each engine alone.

    All tensor- and pipeline-parallel ranks of an SGLang engine count the same requests, and its queues by priority
    stand beside their sum, which has an empty priority.
    """
    kept = [
        (s.labels.get("engine", s.labels.get("dp_rank", WHOLE_SERVER)), _rank(s), s)
        for s in samples
        if s.labels.get("model_name", model) == model and not s.labels.get("priority")
    ]
    first: dict[str, tuple[int, int]] = {}
    for engine, rank, _ in kept:
        first[engine] = min(rank, first.get(engine, rank))
    return ((engine, sample) for engine, rank, sample in kept if rank == first[engine])


def _rank(sample: Sample) -> tuple[int, int]:
    pipeline, tensor = (sample.labels.get(label, "") for label in ("pp_rank", "tp_rank"))
    return int(pipeline) if pipeline.isdigit() else 0, int(tensor) if tensor.isdigit() else 0


def _info(found: Mapping[str, Mapping[str, list[Sample]]]) -> dict[str, dict[str, str]]:
    info: dict[str, dict[str, str]] = {}
    for name, labels in INFO_LABELS.items():
        for engine, samples in found.get(name, {}).items():
            given = samples[0].labels
            info.setdefault(engine, {}).update({ours: given[label] for label, ours in labels.items() if label in given})
    for name, ours in INFO_VALUES.items():
        for engine, samples in found.get(name, {}).items():
            info.setdefault(engine, {})[ours] = f"{samples[0].value:.0f}"
    return info


def _values(
    found: Mapping[str, Mapping[str, list[Sample]]], in_blocks: set[str], info: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for metric in METRICS:
        spelling = next((spelling for spelling in metric.spellings if found.get(spelling)), None)
        if spelling is None:
            continue
        for engine, samples in found[spelling].items():
            factor = _block_size(info, engine) if metric.in_tokens and spelling in in_blocks else 1
            finite = [sample for sample in samples if math.isfinite(sample.value)]
            if factor is None or not finite:
                continue
            of_engine = values.setdefault(engine, {})
            of_engine[metric.name] = factor * sum(sample.value for sample in finite)
            for sample in finite:
                if part := sample.labels.get(metric.by or ""):
                    of_engine[f"{metric.name}.{part}"] = of_engine.get(f"{metric.name}.{part}", 0.0) + sample.value
    return values


def _block_size(info: Mapping[str, Mapping[str, str]], engine: str) -> int | None:
    """Tokens per KV block of an engine; None when the server does not say."""
    size = {**info.get(WHOLE_SERVER, {}), **info.get(engine, {})}.get("block_size", "")
    return int(size) if size.isdigit() else None
