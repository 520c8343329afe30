"""What engines of a cluster are put together with before they serve: tiers, links, handover; and what cannot be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from simulator.cluster import Cluster
from simulator.engine import Engine
from simulator.handover import Handover
from simulator.kv.host_link import HostWay
from simulator.kv.tier_links import NicWay
from simulator.kv.tiers import KVTiers, Tier, new_tier
from simulator.kv_transfer import check_block_sizes
from simulator.network.links import Link
from simulator.network.topology import Place
from simulator.network.transfers import Network
from simulator.rank import Rank
from simulator.scheduling.scheduler import Scheduler
from simulator.scheduling.speculation import check_drafters_apart
from simulator.sessions import Sessions
from simulator.steps.beside_loads import BesideLoads
from simulator.steps.contention import SharedLinks
from simulator.steps.step_time import StepTimeModel
from traces.errors import InputError
from traces.trace import Trace

_APART = ("prefill", "decode")
"""Roles of engines that send KV to each other, the sender first."""


def put_tiers(
    cluster: Cluster,
    engine: Engine,
    ranks: Sequence[Rank],
    places: Mapping[int, tuple[Place, ...]],
    tiers: list[Tier],
    network: Network,
) -> list[HostWay]:
    """Put the KV tiers behind an engine's ranks. Raises InputError where that is not possible.

    Args:
        cluster: whose tiers they are.
        engine: whose ranks these are.
        ranks: without tiers.
        places: devices of each rank, by its number.
        tiers: that there are already; new ones are appended.
        network: the KV between engines.

    Returns:
        The links of each rank to its host, where tiers' KV crosses them.
    """
    if not cluster.kv_tiers or engine.role == "decode":
        return []
    if not engine.options.enable_prefix_caching:
        raise InputError("has no effect without enable_prefix_caching", field="kv_tiers")
    readers = [one for one in cluster.engines if one.role != "decode"]
    kinds = {(one.model, one.kept_kv_bytes_per_token, one.options.block_size) for one in readers}
    if len(kinds) > 1 and any(file.shared for file in cluster.kv_tiers):
        raise InputError("is shared by engines of different models or block sizes", field="kv_tiers")
    crosses_host_link = any(file.link == "host" for file in cluster.kv_tiers)
    if crosses_host_link and engine.host_link is None:
        accepted = "bandwidth_bytes_per_s and latency_s of each device's way to its host, which a tier's KV crosses"
        raise InputError("is missing", field="host_link", accepted=accepted)
    host_ways = []
    for rank in ranks:
        if not isinstance(rank.scheduler, Scheduler):
            raise InputError("is not known to vLLM's scheduler behind this seam", field="kv_tiers")
        own = []
        node = places[rank.number][0].node if places[rank.number] else 0
        for file in cluster.kv_tiers:
            tier = next((tier for tier in tiers if tier.serves(file, node)), None)
            if tier is None:
                tier = new_tier(file, rank.block_size, engine.kept_kv_bytes_per_token, node)
                tiers.append(tier)
            own.append(tier)
        host_way = None
        if crosses_host_link and engine.host_link is not None:
            host_way = HostWay(engine.host_link)
            host_ways.append(host_way)
        way = _nic_way(cluster, places[rank.number], network)
        rank.scheduler.kv_cache_manager.tiers = KVTiers(own, rank.block_size, node, way, host_way)
    return host_ways


def _nic_way(cluster: Cluster, places: tuple[Place, ...], network: Network) -> NicWay | None:
    """The NICs to remote tiers; None where nothing else is on them, or nobody describes them."""
    is_remote = any(file.memory == "remote" for file in cluster.kv_tiers)
    if is_remote and cluster.is_disaggregated and cluster.topology is not None and cluster.topology.has_nics:
        return NicWay(cluster.topology, places, network)
    return None


def beside_loads(cluster: Cluster, ways: Sequence[Sequence[HostWay]]) -> dict[int, BesideLoads]:
    """Step times of engines with KV on the links to their hosts, by instance; `ways`: those links of each engine."""
    return {
        number: BesideLoads(engine.step_time, engine.offload, own)
        for number, (engine, own) in enumerate(zip(cluster.engines, ways, strict=True))
        if own
    }


def shared_links(
    cluster: Cluster, step_times: Sequence[StepTimeModel], of_kv: Collection[Link], network: Network
) -> dict[int, SharedLinks]:
    """Step times of engines that talk over links that KV or other engines' collectives may cross, by instance.

    Args:
        cluster: the engines.
        step_times: of each, with nothing else on the links between devices.
        of_kv: links that KV may cross.
        network: the KV on them.
    """
    crossed = [{link for one in engine.exchanges for link in one.links} for engine in cluster.engines]
    users = Counter(link for links in crossed for link in links)
    talked_over = {link for link, count in users.items() if count > 1}
    return {
        number: SharedLinks(
            step_times[number],
            engine.exchanges,
            of_kv,
            network,
            stages=engine.pipeline_parallel_size,
            talked_over=talked_over,
            ranks=engine.ranks,
            dummy_tokens=_dummy_tokens(engine),
        )
        for number, (engine, links) in enumerate(zip(cluster.engines, crossed, strict=True))
        if not links.isdisjoint(talked_over.union(of_kv))
    }


def _dummy_tokens(engine: Engine) -> int:
    """Tokens that a rank without requests computes beside others (vLLM 0.32 `gpu_worker.py::execute_dummy_batch`)."""
    drafter = engine.options.speculative_config
    return 1 if drafter is None else 1 + drafter.num_speculative_tokens


def new_handover(cluster: Cluster, places: dict[int, tuple[Place, ...]], network: Network) -> Handover | None:
    """KV on its way from prefill to decode engines; None where engines do both. Raises InputError."""
    if not cluster.is_disaggregated:
        return None
    if (other := next((engine for engine in cluster.engines if engine.scheduler != "native"), None)) is not None:
        accepted = "native: KV from other engines is not known to vLLM's scheduler behind this seam"
        raise InputError(field="scheduler", found=other.scheduler, accepted=accepted)
    if cluster.topology is None:
        links = "fabric: {kind: switch, bandwidth_bytes_per_s: 25e9, latency_s: 10e-6}"
        accepted = f"the links over which KV is sent, as {links} (docs/cluster.md)"
        raise InputError("is missing", field="fabric", accepted=accepted)
    check_drafters_apart(engine.options.speculative_config for engine in cluster.engines)
    if len({engine.kv_bytes_per_token for engine in cluster.engines}) > 1:
        accepted = "prefill and decode engines of one model and one kv_cache_dtype"
        raise InputError("KV of one cannot be read by the other", field="instances", accepted=accepted)
    sizes = {role: {one.options.block_size for one in cluster.engines if one.role == role} for role in _APART}
    check_block_sizes(*sizes.values(), is_layer_by_layer=cluster.kv_transfer.when == "layer_by_layer")
    layers = max(engine.num_layers for engine in cluster.engines)
    return Handover(
        cluster.topology,
        places,
        dict(enumerate(one.kept_kv_bytes_per_token for one in cluster.engines for _ in range(one.ranks))),
        cluster.kv_transfer,
        num_layers=layers,
        seed=cluster.seed,
        network=network,
        residual=cluster.kv_residual,
    )


def check_together(cluster: Cluster, ranks: Sequence[Rank]) -> None:
    """Raise InputError for what contradicts itself."""
    for i, failure in enumerate(cluster.failures):
        if failure.instance >= len(cluster.engines):
            accepted = f"0 to {len(cluster.engines) - 1}"
            raise InputError(field=f"failures[{i}].instance", found=failure.instance, accepted=accepted)
        again = [other for other in cluster.failures[:i] if other.instance == failure.instance]
        if any(other.at_s <= failure.at_s < other.at_s + other.for_s for other in again):
            accepted = "a time at which the instance is up, in order of time"
            raise InputError(field=f"failures[{i}].at_s", found=failure.at_s, accepted=accepted)
    transfer = cluster.kv_transfer
    if transfer.kv_load_failure_policy == "fail" and not (cluster.failures or transfer.failure_probability):
        message = "has no effect without failures or a failure_probability"
        raise InputError(message, field="kv_transfer.kv_load_failure_policy", found="fail")
    if cluster.after_failure == "go_on" and not cluster.failures:
        raise InputError("has no effect without failures", field="after_failure", found="go_on")
    sizes = {rank.block_size for rank in ranks}
    if cluster.routing == "prefix_aware" and len(sizes) > 1:
        found = ", ".join(str(size) for size in sorted(sizes))
        raise InputError(field="block_size", found=found, accepted="one size for all behind prefix_aware")


def sessions_of(trace: Trace, cluster: Cluster) -> Sessions | None:
    """What waits for what; None when every request arrives at its time. Raises InputError."""
    after = {row.request_id: row.after for row in trace.rows if row.after is not None}
    if cluster.concurrency is None and not after and all(row.delay_s is None for row in trace.rows):
        if cluster.think_s:
            accepted = "0 without concurrency: thinking is what a seat of a closed loop does"
            raise InputError(field="think_s", found=cluster.think_s, accepted=accepted)
        return None
    return Sessions(
        trace,
        concurrency=cluster.concurrency,
        think_s=cluster.think_s,
        think=cluster.think,
        seed=cluster.seed,
        after=after,
    )
