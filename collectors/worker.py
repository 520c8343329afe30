"""Times a model's operators inside a vLLM worker: loaded with `worker_extension_cls`, called by `collective_rpc`.

A shot is a batch of synthetic requests, each `(new_tokens, history)`, given to vLLM's own model runner without the
scheduler. What the history's KV blocks hold does not matter for time. A step with timers around the model's modules
(host timers on a CPU, events on a GPU) is followed by one without. Needs `enforce_eager`: compiled graphs call no
module hooks.

This file imports the standard library, torch and vLLM alone, because it runs in the engine's environment.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

OPERATORS = {
    "embed_tokens": "embedding",
    "input_layernorm": "layernorm",
    "post_attention_layernorm": "layernorm",
    "norm": "final_layernorm",
    "self_attn": "self_attn",
    "qkv_proj": "qkv_proj",
    "rotary_emb": "rotary_emb",
    "attn": "attention",
    "o_proj": "o_proj",
    "gate_up_proj": "gate_up_proj",
    "act_fn": "act_fn",
    "down_proj": "down_proj",
    "logits_processor": "lm_head",
}
"""Operator by module name in vLLM's Llama-like models (0.32 `model_executor/models/llama.py`); `self_attn` is a sum."""


class OperatorTimer:
    """Mixed into vLLM's worker."""

    def time_shot(self, shot: list[list[int]], warm_ups: int) -> dict[str, Any]:
        """Run a shot `warm_ups` times, then once with timers and once without.

        The first run brings the requests in, as a scheduler does with new ones. Every further run, the one without
        timers always among them, computes the same tokens again for requests that the worker knows, as in a decode
        step.

        Returns:
            Microseconds: `step_us` without timers, `instrumented_us` with them, and `operators`, a time for each layer,
            of those whose hooks fired.
        """
        requests = {f"shot-{i}": (new_tokens, history) for i, (new_tokens, history) in enumerate(shot)}
        first, again = _step_of_new(requests, self._blocks(requests)), _step_again(requests)
        steps = [first, *[again] * warm_ups]
        for step in steps[:-1]:
            self._run(step)
        samples: dict[str, list[float]] = {}
        timers = self._attach(samples)
        try:
            instrumented_us = self._run(steps[-1])
        finally:
            for timer in timers:
                timer.remove()
        self._read_events()
        step_us = self._run(again)
        self.model_runner.execute_model(_step_of_none(set(requests)))
        seen = {operator: values for operator, values in samples.items() if values}
        return {"step_us": step_us, "instrumented_us": instrumented_us, "operators": seen}

    def worker_facts(self) -> dict[str, Any]:
        """Versions and settings that a profile records."""
        return {
            "torch": str(torch.__version__),
            "torch_threads": torch.get_num_threads(),
            "device_type": self.device.type,
        }

    def _run(self, step: SchedulerOutput) -> float:
        """One step; microseconds until its tokens are on the host."""
        begun_ns = time.perf_counter_ns()
        output = self.model_runner.execute_model(step)
        if output is None:
            output = self.model_runner.sample_tokens(None)
        if hasattr(output, "get_output"):
            output.get_output()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter_ns() - begun_ns) / 1e3

    def _blocks(self, requests: dict[str, tuple[int, int]]) -> dict[str, tuple[list[int], ...]]:
        """KV blocks for each request, by KV cache group. Raises ValueError when there are too few."""
        tables = self.model_runner.input_batch.block_table.block_tables
        sizes = [table.block_size * getattr(table, "blocks_per_kv_block", 1) for table in tables]
        free = [1] * len(sizes)  # block 0 is the null block
        blocks = {}
        for name, (new_tokens, history) in requests.items():
            counts = [-(-(new_tokens + history) // size) for size in sizes]
            blocks[name] = tuple(list(range(first, first + n)) for first, n in zip(free, counts, strict=True))
            free = [first + n for first, n in zip(free, counts, strict=True)]
        there_are = self.model_runner.kv_cache_config.num_blocks
        if max(free) > there_are:
            raise ValueError(f"shot needs {max(free)} KV blocks with the null block, there are {there_are}")
        return blocks

    def _attach(self, samples: dict[str, list[float]]) -> list[Any]:
        """Timers around every module that is an operator; those of one name share their samples."""
        runner = self.model_runner
        modules = [(OPERATORS.get(path.rsplit(".", 1)[-1]), m) for path, m in runner.get_model().named_modules()]
        if isinstance(runner.sampler, torch.nn.Module):
            modules.append(("sampler", runner.sampler))
        self._events: list[tuple[list[float], Any, Any]] = []
        timer = self._gpu_timer if self.device.type == "cuda" else self._host_timer
        handles = []
        for operator, module in modules:
            if operator is not None:
                handles += timer(module, samples.setdefault(operator, []))
        return handles

    def _host_timer(self, module: Any, samples: list[float]) -> list[Any]:
        begun_ns = [0]

        def before(*_: Any) -> None:
            begun_ns[0] = time.perf_counter_ns()

        def after(*_: Any) -> None:
            ended_ns = time.perf_counter_ns()
            samples.append((ended_ns - begun_ns[0]) / 1e3)

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def _gpu_timer(self, module: Any, samples: list[float]) -> list[Any]:
        begun: list[Any] = []

        def event() -> Any:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
            return now

        def before(*_: Any) -> None:
            begun.append(event())

        def after(*_: Any) -> None:
            self._events.append((samples, begun.pop(), event()))

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def _read_events(self) -> None:
        """Read the events of a step that has ended; on a CPU there are none."""
        for samples, begun, ended in self._events:
            samples.append(begun.elapsed_time(ended) * 1e3)


def _step_of_new(requests: dict[str, tuple[int, int]], blocks: dict[str, tuple[list[int], ...]]) -> SchedulerOutput:
    """A scheduler's output that brings the requests in."""
    greedy = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1)
    new = [
        NewRequestData(
            req_id=name,
            prompt_token_ids=[3] * (new_tokens + history),
            mm_features=[],
            sampling_params=greedy,
            pooling_params=None,
            block_ids=blocks[name],
            num_computed_tokens=history,
            lora_request=None,
        )
        for name, (new_tokens, history) in requests.items()
    ]
    return _step(new, CachedRequestData.make_empty(), requests, set())


def _step_again(requests: dict[str, tuple[int, int]]) -> SchedulerOutput:
    """A scheduler's output that takes the requests back to their history, without what they have put out since."""
    known = CachedRequestData.make_empty()
    known.req_ids = list(requests)
    known.new_block_ids = [None] * len(requests)
    known.num_computed_tokens = [history for _, history in requests.values()]
    known.num_output_tokens = [0] * len(requests)
    return _step([], known, requests, set())


def _step_of_none(ended: set[str]) -> SchedulerOutput:
    """A scheduler's output that takes the requests out of the worker's batch."""
    return _step([], CachedRequestData.make_empty(), {}, ended)


def _step(
    new: list[NewRequestData], known: CachedRequestData, requests: dict[str, tuple[int, int]], ended: set[str]
) -> SchedulerOutput:
    tokens = {name: new_tokens for name, (new_tokens, _) in requests.items()}
    return SchedulerOutput(
        scheduled_new_reqs=new,
        scheduled_cached_reqs=known,
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_spec_decode_tokens={},
        scheduled_encoder_inputs={},
        finished_req_ids=ended,
        free_encoder_mm_hashes=[],
    )
