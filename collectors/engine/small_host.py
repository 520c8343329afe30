"""vLLM's NixlConnector, with our recorder of transfers, on a host of few cores: the name for kv_connector_module_path.

Two things take the cores of a small host from the model. vLLM 0.32 moves the worker's main thread to the last core of
the host, so that it reads KV beside OpenMP's threads (`nixl/base_worker.py`: `rsv_cores_for_kv`); where OpenMP has one
thread, that is the main thread, and all engines compute on that core: it is put back to where it was. And NIXL's Python
gives its progress thread no pause (`nixl/_api.py`: `pthrDelay = 0`), which then takes a core of its own: it gets one.

`transfer_recorder.py` and `recorder.py` must lie beside this file.
"""

from __future__ import annotations

import os
from typing import Any

import transfer_recorder

PAUSE_US = 200
"""Between two looks of NIXL's progress thread: an engine's own looks, once a step, are 50 times as far apart."""


class NixlConnector(transfer_recorder.NixlConnector):  # type: ignore[misc]
    """The same connector, which leaves the host's cores as they were."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        """As vLLM's."""
        cores = os.sched_getaffinity(0)
        pause_progress_thread()
        super().__init__(vllm_config, role, kv_cache_config)
        os.sched_setaffinity(0, cores)


def pause_progress_thread() -> None:
    """Let every NIXL agent of this process have a pause in its progress thread."""
    import nixl._api as api

    own = api.nixlBind.nixlAgent

    def agent(name: str, config: Any) -> Any:
        config.pthrDelay = PAUSE_US
        return own(name, config)

    api.nixlBind.nixlAgent = agent
