"""Flags of `vllm serve` that are no engine options here: an error about one says where it stands."""

from __future__ import annotations

from collections.abc import Sequence

from traces.decoding import Document

_OF_INSTANCE = "a key of an instance, as cluster.instances.0.{} (docs/cluster.md)"

STANDS_AS = {
    **{
        name: _OF_INSTANCE.format(name)
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel")
    },
    "disable_custom_all_reduce": "an instance's collectives: {disable_custom_all_reduce: true} (docs/network.md)",
    "num_gpu_blocks_override": "num_gpu_blocks",
    "quantization": "dtype: fp8 or nvfp4, which are those of the weights; no other quantization is modelled",
    "kv_transfer_config": "role of instances and kv_transfer (docs/cluster.md), or kv_tiers (docs/kv_tiers.md)",
    "kv_offloading_size": "kv_tiers of the cluster, like: OffloadingConnector (docs/kv_tiers.md)",
}
"""vLLM's flags, by the names of its `EngineArgs`, and what says the same here."""


def check_engine_keys(document: Document, at: Sequence[str | int], options: object) -> None:
    """Raise InputError, with file and line, for a flag that stands elsewhere among the options at `at`.

    What is no mapping is for the document's own types to say.
    """
    for name in options if isinstance(options, dict) else ():
        if name in STANDS_AS:
            raise document.error([*at, name], "stands elsewhere", accepted=STANDS_AS[name])
