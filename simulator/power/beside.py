"""What an engine's steps draw beside its devices, and how long these wait in them: near memory, weights of the host.

A record of steps does not say how long a device waited. It says which requests each step had, and a step-time model
looks at nothing else, so that the same batches are priced once more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.power.run import Beside
from simulator.scheduling.plan import recorded_plans
from simulator.scheduling.request import Request
from simulator.steps.near_memory import NearMemory
from simulator.steps.step_time import StepTimeModel
from simulator.steps.weight_offload import WeightOffload
from traces.steps import Batches, Floats, Ints, Steps
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class ChannelPower:
    """A channel of a memory that computes.

    Attributes:
        n_channels: how many there are.
        idle_w: of each, all the time.
        busy_w: of each while it computes.
    """

    n_channels: int
    idle_w: float
    busy_w: float


@dataclass(frozen=True, slots=True)
class Memories:
    """The memories of one rank beside those of its devices.

    Attributes:
        step_time: of the engine.
        near: what attends for decodes; None: nothing does.
        channels: power of a memory that computes, whether it is used or not; None: there is none, or nobody says.
        has_link: a link leads to it.
        offload: weights in the host's memory; None: none.
        devices: that each bring their share of them.
    """

    step_time: StepTimeModel
    near: NearMemory | None = None
    channels: ChannelPower | None = None
    has_link: bool = False
    offload: WeightOffload | None = None
    devices: int = 1


def beside(rank: int, memories: Memories, steps: Steps, trace: Trace) -> Beside:
    """What a rank's steps draw beside its devices, [n_own] each."""
    own = np.flatnonzero(steps.instance == rank)
    idle_w = {} if memories.channels is None else {"dram": memories.channels.n_channels * memories.channels.idle_w}
    if memories.near is None and memories.offload is None:
        return Beside(rank, np.zeros(len(own)), idle_w=idle_w)
    if steps.batches is None:
        return Beside(rank, np.zeros(len(own)), idle_w=idle_w, unknown=("energy of memories beside the devices",))
    sent = {"dram": np.zeros(len(own)), "links": np.zeros(len(own))}
    drawn: dict[str, Floats] = {}
    unknown: tuple[str, ...] = ()
    if memories.near is not None:
        busy_s, sent_bytes = _near(memories.near, own, steps.batches, trace)
        sent["dram"] += sent_bytes
        sent["links"] += sent_bytes if memories.has_link else 0.0
        if memories.channels is None:
            unknown = ("power of near memory",)
        else:
            drawn["dram"] = busy_s * (memories.channels.busy_w - memories.channels.idle_w)
    if memories.offload is not None:
        n_tokens = steps.n_prefill_tokens[own] + steps.n_decode_tokens[own]
        sizes, at = np.unique(n_tokens, return_inverse=True)
        sent_bytes = np.array([memories.offload.step_bytes(n) for n in sizes.tolist()])[at] * memories.devices
        sent = {name: n_bytes + sent_bytes for name, n_bytes in sent.items()}
    waiting_s = _waiting_s(memories.step_time, own, steps.batches, trace)
    return Beside(rank, waiting_s, drawn, idle_w, sent, unknown)


def _near(near: NearMemory, own: Ints, batches: Batches, trace: Trace) -> tuple[Floats, Floats]:
    """Seconds that channels compute in each step, all of them together, and bytes to and from them."""
    step, entries = _entries(own, batches)
    prompts = np.array([row.prompt_tokens for row in trace.rows])[batches.request[entries]]
    new, computed = batches.new_tokens[entries], batches.computed_tokens[entries]
    kept = prompts >= near.min_prompt_tokens
    taken = kept & (new == 1)
    count = np.bincount(step, taken, len(own))
    tokens = np.bincount(step, taken * computed, len(own))
    written = np.bincount(step, (kept & ~taken) * (new + computed * near.reads_history), len(own))
    sent_bytes = near.num_layers * (near.decode_bytes * count + near.token_bytes * written)
    return near.channel_s(count, tokens), sent_bytes


def _entries(own: Ints, batches: Batches) -> tuple[Ints, Ints]:
    """For each request of each of these steps, the step's place among them and its own place in the batches."""
    counts = np.diff(batches.offsets)[own]
    step = np.repeat(np.arange(len(own)), counts)
    within = np.arange(len(step)) - np.repeat(np.cumsum(counts) - counts, counts)
    return step, batches.offsets[own][step] + within


def _waiting_s(step_time: StepTimeModel, own: Ints, batches: Batches, trace: Trace) -> Floats:
    """Seconds that the devices wait in each step."""
    waits = [np.zeros(0)]
    requests = [Request(row, i, 0, [], 0) for i, row in enumerate(trace.rows)]
    for plan in recorded_plans(batches, own, requests):
        times = step_time.price(plan).operators
        waits.append(np.broadcast_to(0.0 if times is None else times.waiting_s, plan.repeat))
    return np.concatenate(waits)
