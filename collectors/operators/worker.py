"""Times shots inside a vLLM worker: loaded with `worker_extension_cls`, called by `collective_rpc`.

A shot is a batch of synthetic requests, each `(new_tokens, history)`, given to vLLM's own worker without the scheduler,
through `execute_model` and `sample_tokens`, which every backend's worker has. What the history's KV blocks hold does
not matter for time. With a timer, a step with timers around the model's modules is followed by one without; that needs
`enforce_eager`, because compiled graphs call no module hooks. Without a timer nothing here is torch's.

Runs in the engine's environment: beside vLLM it imports the standard library and modules that need torch alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from vllm import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from collectors.operators.kernels import leading
from collectors.operators.routing import expert_blocks, gates_of, routed
from collectors.operators.timers import ProfilerTimer, TimedCall, Timer, timer_of, watched

OPERATORS = {
    "embed_tokens": "embedding",
    "input_layernorm": "layernorm",
    "post_attention_layernorm": "layernorm",
    "norm": "final_layernorm",
    "self_attn": "self_attn",
    "qkv_proj": "qkv_proj",
    "q_norm": "qk_norm",
    "k_norm": "qk_norm",
    "rotary_emb": "rotary_emb",
    "attn": "attention",
    "o_proj": "o_proj",
    "gate_up_proj": "gate_up_proj",
    "act_fn": "act_fn",
    "down_proj": "down_proj",
    "logits_processor": "lm_head",
}
"""Operator by module name in vLLM's Llama-like models (0.32 `model_executor/models/{llama,qwen3,mixtral}.py`).

`self_attn` is a sum. A block of a gate and experts is `moe`, whatever its name.
"""

MOST_KV_GROUPS = 16
"""KV cache groups of a model, at most."""


class OperatorTimer:
    """Mixed into vLLM's worker."""

    def time_shot(self, shot: list[list[int]], warm_ups: int, timer: str, top_k: int, n_experts: int) -> dict[str, Any]:
        """Run a shot `warm_ups` times, then once with timers, unless `timer` is `none`, and once without.

        The first run brings the requests in, as a scheduler does with new ones. Every further run, the one without
        timers always among them, computes the same tokens again for requests that the worker already knows, as in a
        decode step.

        Args:
            shot: (new_tokens, history) of each request.
            warm_ups: runs before the first that counts.
            timer: `hooks`, `profiler` or `none`; see `collectors.operators.timers`.
            top_k: experts of a token, where gates are to be told what to choose; 0: they choose themselves.
            n_experts: how many experts are then reached; 0: as many as come of random choices.

        Returns:
            Microseconds: `step_us` without timers, `instrumented_us` with them (None without), and `operators`, each
            the sum over its calls.
        """
        requests = {f"shot-{i}": (new_tokens, history) for i, (new_tokens, history) in enumerate(shot)}
        timed = timer_of(timer, self._device_type()) if timer != "none" else None
        warm_ups = max(warm_ups, int(timed is None))  # the step that counts is of known requests
        with self._routed(top_k, n_experts), self._brought_in(requests, warm_ups) as again:
            instrumented_us = None
            if timed is not None:
                with self._watched(timed), timed:
                    instrumented_us = self._run(again())
            step_us = self._run(again())
        operators = timed.totals() if timed is not None else {}
        return {"step_us": step_us, "instrumented_us": instrumented_us, "operators": operators}

    def leading_kernels(self, shot: list[list[int]], top_k: int) -> dict[str, list[str]]:
        """The kernels that take the most time of each operator, by torch's profiler."""
        requests = {f"shot-{i}": (new_tokens, history) for i, (new_tokens, history) in enumerate(shot)}
        timer = ProfilerTimer(self._device_type())
        with self._routed(top_k, 0), self._brought_in(requests, 1) as again, self._watched(timer), timer:
            self._run(again())
        return {operator: leading(kernels) for operator, kernels in sorted(timer.kernels().items())}

    def worker_facts(self) -> dict[str, Any]:
        """What the worker runs on, and which attention it chose."""
        facts: dict[str, Any] = {"device_type": self._device_type(), "worker": type(self).__name__}
        backends = {
            module.attn_backend.get_name()
            for _, module in self._modules()
            if hasattr(getattr(module, "attn_backend", None), "get_name")
        }
        if facts["device_type"] == "cpu":
            import torch

            facts["torch_threads"] = torch.get_num_threads()
        return {**facts, "attention_backend": ", ".join(sorted(backends)) or None}

    def _device_type(self) -> str:
        """As torch names it; `other` where the worker's device is not torch's."""
        return str(getattr(getattr(self, "device", None), "type", "other"))

    def _modules(self) -> list[tuple[str, Any]]:
        """(path, module) of the model; none where it is not of torch modules."""
        model = self.model_runner.get_model() if hasattr(self.model_runner, "get_model") else None
        return list(model.named_modules()) if hasattr(model, "named_modules") else []

    def _run(self, step: SchedulerOutput) -> float:
        """One step; microseconds until its tokens are on the host."""
        begun_ns = time.perf_counter_ns()
        output = self.execute_model(step)
        if output is None:
            output = self.sample_tokens(None)
        if hasattr(output, "get_output"):
            output.get_output()
        if self._device_type() == "cuda":
            import torch

            torch.cuda.synchronize()
        return (time.perf_counter_ns() - begun_ns) / 1e3

    @contextmanager
    def _brought_in(self, requests: dict[str, tuple[int, int]], warm_ups: int) -> Iterator[Any]:
        """The requests in the worker's batch, run once more than `warm_ups`; gives what makes the next step of them."""
        steps = iter([_step_of_new(requests, self._blocks(requests))])

        def again() -> SchedulerOutput:
            new = next(steps, None)
            return new if new is not None else self._step_again(requests)

        try:
            for _ in range(warm_ups):
                self._run(again())
            yield again
        finally:
            self.execute_model(_step_of_none(set(requests)))

    def _step_again(self, requests: dict[str, tuple[int, int]]) -> SchedulerOutput:
        """A scheduler's output that takes the requests back to their history, without what they have put out since.

        vLLM's model runner V2 counts computed tokens on the device too (0.32 `v1/worker/gpu/states.py`).
        """
        states = getattr(self.model_runner, "req_states", None)
        if states is not None:
            for name, (_, history) in requests.items():
                states.num_computed_tokens.stage_write_elem(states.req_id_to_index[name], history)
            states.num_computed_tokens.apply_write()
        known = CachedRequestData.make_empty()
        known.req_ids = list(requests)
        known.new_block_ids = [None] * len(requests)
        known.num_computed_tokens = [history for _, history in requests.values()]
        known.num_output_tokens = [0] * len(requests)
        return _step([], known, requests, set())

    def _blocks(self, requests: dict[str, tuple[int, int]]) -> dict[str, tuple[list[int], ...]]:
        """KV blocks for each request, by KV cache group. Raises ValueError when there are too few."""
        config = getattr(self.model_runner, "kv_cache_config", None)
        if config is None:
            sizes, there_are = [self.cache_config.block_size], self.cache_config.num_gpu_blocks
        else:
            sizes = [group.kv_cache_spec.block_size for group in config.kv_cache_groups]
            there_are = config.num_blocks
        free = [1] * len(sizes)  # block 0 is the null block
        blocks = {}
        for name, (new_tokens, history) in requests.items():
            counts = [-(-(new_tokens + history) // size) for size in sizes]
            blocks[name] = tuple(list(range(first, first + n)) for first, n in zip(free, counts, strict=True))
            free = [first + n for first, n in zip(free, counts, strict=True)]
        if max(free) > there_are:
            raise ValueError(f"shot needs {max(free)} KV blocks with the null block, there are {there_are}")
        return blocks

    @contextmanager
    def _watched(self, timer: Timer) -> Iterator[None]:
        """Within it, every module that is an operator is timed, and the sampler."""
        modules = self._modules()
        operators = [(OPERATORS.get(path.rsplit(".", 1)[-1]), module) for path, module in modules]
        operators += [("moe", block) for _, block in expert_blocks(modules)]
        sampler = getattr(self.model_runner, "sampler", None)
        with ExitStack() as stack:
            if hasattr(sampler, "register_forward_hook"):
                operators.append(("sampler", sampler))
            elif sampler is not None:
                self.model_runner.sampler = TimedCall(sampler, timer, "sampler")
                stack.callback(setattr, self.model_runner, "sampler", sampler)
            stack.enter_context(watched(timer, [(name, module) for name, module in operators if name is not None]))
            yield

    def _routed(self, top_k: int, n_experts: int) -> Any:
        """Within it, the model's gates choose as they are told to."""
        return routed(gates_of(self._modules()), top_k, n_experts) if top_k else nullcontext()


def _step_of_new(requests: dict[str, tuple[int, int]], blocks: dict[str, tuple[list[int], ...]]) -> SchedulerOutput:
    """A scheduler's output that brings the requests in."""
    greedy = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1)
    new = []
    for i, (name, (new_tokens, history)) in enumerate(requests.items()):
        prompt = _token_ids(i, new_tokens + history)
        new.append(
            NewRequestData(
                req_id=name,
                prompt_token_ids=prompt,
                mm_features=[],
                sampling_params=greedy,
                pooling_params=None,
                block_ids=blocks[name],
                num_computed_tokens=history,
                lora_request=None,
                **_known(NewRequestData, prefill_token_ids=prompt),  # for vLLM's model runner V2
            )
        )
    return _step(new, CachedRequestData.make_empty(), requests, set())


TOKENS = [3 + 7919 * i % 997 for i in range(997)]
"""Tokens that differ, as they do in prompts, so that the embedding reads different rows."""


def _token_ids(request: int, n: int) -> list[int]:
    """A prompt; requests begin at different tokens."""
    first = 101 * request % len(TOKENS)
    return (TOKENS * (2 + n // len(TOKENS)))[first : first + n]


def _step_of_none(ended: set[str]) -> SchedulerOutput:
    """A scheduler's output that takes the requests out of the worker's batch."""
    return _step([], CachedRequestData.make_empty(), {}, ended)


def _step(
    new: Sequence[NewRequestData], known: CachedRequestData, requests: dict[str, tuple[int, int]], ended: set[str]
) -> SchedulerOutput:
    tokens = {name: new_tokens for name, (new_tokens, _) in requests.items()}
    return SchedulerOutput(
        scheduled_new_reqs=list(new),
        scheduled_cached_reqs=known,
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_spec_decode_tokens={},
        scheduled_encoder_inputs={},
        finished_req_ids=ended,
        free_encoder_mm_hashes=[],
        **_known(SchedulerOutput, num_common_prefix_blocks=[0] * MOST_KV_GROUPS),  # read until vLLM 0.32
    )


def _known(kind: type[Any], **values: Any) -> dict[str, Any]:
    """Of the values, those whose fields this version of vLLM has."""
    there = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in there}
