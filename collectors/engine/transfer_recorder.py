"""Transfer recorder for a live vLLM that reads its prompts' KV from another engine: loaded as its connector, no patch.

    PYTHONPATH=<folder of this file> SERVETWIN_TRANSFERS=transfers.jsonl \\
        python -m vllm.entrypoints.openai.api_server ... --kv-transfer-config \\
        '{"kv_connector": "NixlConnector", "kv_connector_module_path": "transfer_recorder", "kv_role": "kv_consumer"}'

vLLM's own NixlConnector does all the work; three of its worker's public calls are listened to. A line is written for
each request whose KV was read: when it was asked for, when it was last seen under way, when it was found there, its
bytes and descriptors, and how long NIXL says the transfer took. Times are nanoseconds of the worker's monotonic clock.
No block, token or key of a prompt is written. An error in here ends the recording, and the server goes on.

`recorder.py` must lie beside this file; both import the standard library, vLLM and msgspec alone.
"""

from __future__ import annotations

import os
from typing import Any

import recorder
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector as VllmConnector

FIRST_VERSION = (0, 30)
"""vLLM's version from which on a worker is asked for its `get_transfer_results`."""

FIELDS = {
    "bytes_transferred": "n_bytes",
    "num_descriptors": "n_descriptors",
    "transfer_duration": "transfer_s",
    "post_duration": "post_s",
}
"""What NIXL reports of each transfer: `NixlKVConnectorStats` of vLLM 0.32, and the name in our lines."""


class NixlConnector(VllmConnector):  # type: ignore[misc]
    """vLLM's connector under its own name, by which vLLM looks for it, with a recorder beside its worker."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        """As vLLM's; where the recording cannot begin, a warning says so."""
        super().__init__(vllm_config, role, kv_cache_config)
        self._transfers: Transfers | None = None
        if self.connector_worker is None:
            return
        log = None
        try:
            rank = vllm_config.parallel_config.data_parallel_index
            log = recorder.Log(
                recorder.rank_path(os.environ.get("SERVETWIN_TRANSFERS", "servetwin-transfers.jsonl"), rank)
            )
            recorder.check_version(FIRST_VERSION)
            told = {"schema": "servetwin.transfers/1", "vllm_version": vllm.__version__}
            log.put({"kind": "header", **told, **recorder.clocks()})
            self._transfers = Transfers(log)
        except Exception as error:
            recorder.refuse(log, "transfer recorder", error)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """KV is asked for."""
        asked_ns = recorder.now_ns()
        super().start_load_kv(forward_context, **kwargs)
        if self._transfers is not None:
            self._note(self._transfers.asked, self._connector_metadata, asked_ns)

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """vLLM asks what has arrived, once a step."""
        results = super().get_transfer_results(finished_req_ids)
        if self._transfers is not None:
            self._note(self._transfers.found, results)
        return results

    def get_kv_connector_stats(self) -> Any:
        """What NIXL says of the transfers that have ended since it was last asked."""
        stats = super().get_kv_connector_stats()
        if self._transfers is not None:
            self._note(self._transfers.told, stats)
        return stats

    def _note(self, note: Any, *args: Any) -> None:
        assert self._transfers is not None
        try:
            note(*args)
        except Exception as error:
            log, self._transfers = self._transfers.log, None
            reason = f"in {note.__name__}: {recorder.reason_of(error)}"
            log.put({"kind": "stopped", **recorder.clocks(), "reason": reason}, urgent=True)


class Transfers:
    """Transfers under way, and what becomes of them."""

    def __init__(self, log: recorder.Log) -> None:
        self.log = log
        self._under_way: dict[str, dict[str, Any]] = {}
        self._ended: list[dict[str, Any]] = []

    def asked(self, metadata: Any, asked_ns: int) -> None:
        """The step's metadata name the requests whose KV is to be read; posting them is over."""
        posted_ns = recorder.now_ns()
        for request_id, meta in metadata.reqs_to_recv.items():
            n_blocks = sum(map(len, meta.local_block_ids))
            if n_blocks:
                record = {"kind": "transfer", "id": request_id, "n_blocks": n_blocks, "asked_ns": asked_ns}
                self._under_way[request_id] = {**record, "posted_ns": posted_ns, "under_way_ns": None}

    def found(self, results: Any) -> None:
        """vLLM has looked what has arrived."""
        found_ns = recorder.now_ns()
        failed = set(results.failed_recving or ())
        for request_id in list(self._under_way):
            if request_id in results.finished_recving:
                record = self._under_way.pop(request_id)
                self._ended.append({**record, "found_ns": found_ns, "failed": request_id in failed})
            else:
                self._under_way[request_id]["under_way_ns"] = found_ns

    def told(self, stats: Any) -> None:
        """NIXL's own figures of what has ended; those of several requests go by size, as their blocks do."""
        ended, self._ended = sorted(self._ended, key=lambda record: record["n_blocks"]), []
        data = {} if stats is None else stats.data
        columns = [data.get(name) or [] for name in FIELDS]
        rows = sorted(zip(*columns, strict=True))
        whole = len(rows) == len(ended) and not any(record["failed"] for record in ended)
        for i, record in enumerate(ended):
            told = dict(zip(FIELDS.values(), rows[i] if whole else (None,) * len(FIELDS), strict=True))
            self.log.put({**record, **told})
