"""What vLLM makes of a command line that says nothing but a model and its parallel degree, on the CPU of this machine.

    PYTHONPATH=. .venv-engine/bin/python -m tests.conformance.cpu_config MODEL DEGREE...

prints the options of each degree by their names, as a line of JSON, below what vLLM prints. No engine is started.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Print the options."""
    _, model, *degrees = sys.argv
    print(json.dumps([options(model, int(degree)) for degree in degrees]))


def options(model: str, degree: int) -> dict[str, Any]:
    """Those that are chosen for one degree."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    asked = EngineArgs(model=model, load_format="dummy", tensor_parallel_size=degree)
    config = asked.create_engine_config(UsageContext.OPENAI_API_SERVER)
    scheduler, cache = config.scheduler_config, config.cache_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "async_scheduling": scheduler.async_scheduling,
        "enable_chunked_prefill": scheduler.enable_chunked_prefill,
        "long_prefill_token_threshold": scheduler.long_prefill_token_threshold,
        "scheduler_reserve_full_isl": scheduler.scheduler_reserve_full_isl,
        "watermark": scheduler.watermark,
        "block_size": cache.block_size,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "enable_prefix_caching": cache.enable_prefix_caching,
        "cudagraph_capture_sizes": config.compilation_config.cudagraph_capture_sizes,
    }


if __name__ == "__main__":
    main()
