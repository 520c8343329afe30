"""A real vLLM that computes shots: started without weights, its worker given batches by `worker.py`."""

from __future__ import annotations

from typing import Any

import msgspec

from collectors.operators.options import Options
from collectors.operators.samples import Answer
from collectors.operators.shots import Limits, Shot
from profiles.model import ModelSpec


class VllmEngine:
    """vLLM with dummy weights, its caches and buffers as large as the largest shot: the longest chunk beside decodes.

    The engine has processes of its own. Worker methods are called by name through `collective_rpc`.
    """

    def __init__(self, options: Options, model: ModelSpec, limits: Limits, changes: dict[str, Any]) -> None:
        """Start it.

        Args:
            options: what is measured.
            model: as it is computed.
            limits: of the shots.
            changes: what is different in it from the config.json.
        """
        import vllm

        self._timer = options.timer if options.operators == "modules" else "none"
        self._top_k = model.num_experts_per_tok if options.operators == "modules" else 0
        block_bytes = limits.block_size * model.kv_bytes_per_token(options.kv_dtype)
        self._llm = vllm.LLM(
            str(options.model),
            hf_overrides=changes,
            load_format="dummy",
            dtype=options.dtype,
            kv_cache_dtype=options.kv_cache_dtype,
            enforce_eager=not options.compiled,
            enable_prefix_caching=False,
            max_model_len=limits.max_kv_tokens + limits.max_tokens + 1,
            max_num_seqs=limits.max_requests,
            max_num_batched_tokens=limits.max_tokens + limits.max_requests,
            block_size=limits.block_size,
            kv_cache_memory_bytes=(limits.kv_blocks + 1) * block_bytes,  # one block is the null block
            worker_extension_cls="collectors.operators.worker.OperatorTimer",
        )

    @property
    def name(self) -> str:
        """Engine and version."""
        import vllm

        return f"vllm {vllm.__version__}"

    def time_shot(self, shot: Shot, warm_ups: int) -> Answer:
        """Measure a shot after so many warm-ups."""
        return self.time_batch(shot.requests(), warm_ups, shot.n_experts)

    def time_batch(self, requests: list[list[int]], warm_ups: int, n_experts: int = 0) -> Answer:
        """Measure any batch of (new_tokens, history)."""
        answer = self._call("time_shot", requests, warm_ups, self._timer, self._top_k, n_experts)
        return msgspec.convert(answer, Answer)

    def leading_kernels(self, shot: Shot) -> dict[str, list[str]]:
        """The kernels that take the most time of each operator."""
        return dict(self._call("leading_kernels", shot.requests(), self._top_k))

    def facts(self) -> dict[str, Any]:
        """What the worker runs on."""
        return dict(self._call("worker_facts"))

    def close(self) -> None:
        """Stop the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _call(self, method: str, *arguments: Any) -> Any:
        (answer, *_) = self._llm.collective_rpc(method, args=arguments)
        return answer
