"""Where vLLM's versions differ in what they schedule, as far as this project simulates it.

Each rule was read in vLLM's source on both sides of the version that changed it, and is proved by running that
version's own scheduler (docs/conformance.md has the table). A rule that no version changed is not here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FIRST_PROVED, LAST_PROVED = (0, 19), (0, 33)
"""vLLM versions (major, minor) whose own schedulers were run against the rules; all between them too."""

REFERENCE = (0, 32)
"""The version whose rules are taken where none is named; the live engine of the test suite has it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What one vLLM version does where others do otherwise.

    Attributes:
        version: vLLM's version whose rules these are.
        unfinished_blocks_first: a block that was freed before it was full is reused before any other; up to 0.23 it
            queues up behind all others, as full ones do (v1/core/block_pool.py, `free_blocks`).
        lone_request_unlimited: `long_prefill_token_threshold` does not bind a request that is alone; up to 0.30 it
            does (v1/core/sched/scheduler.py, `num_eligible_reqs`).
        skips_after_idle_victim: under the priority policy, the request behind the one that preempts is left out of the
            step when the victim stood before it and had nothing to compute; up to 0.27 (`victim_index`).
        step_ends_with_own_preemption: under the priority policy, nothing behind a request that preempted itself is
            scheduled in this step; up to 0.32.
    """

    version: tuple[int, int] = REFERENCE
    unfinished_blocks_first: bool = True
    lone_request_unlimited: bool = True
    skips_after_idle_victim: bool = False
    step_ends_with_own_preemption: bool = True

    @property
    def name(self) -> str:
        """`vllm 0.32`."""
        return f"vllm {self.version[0]}.{self.version[1]}"


OPTIONS_SINCE = {
    "watermark": (0, 24),
    "max_num_active_seqs": (0, 31),
    "long_prefill_token_threshold_adaptive": (0, 31),
}
"""Engine options that older versions lack, and the version that brought them (vllm/config/scheduler.py)."""

REFERENCE_RULES = Rules()
"""The rules of the reference version."""


def rules_of(version: tuple[int, int]) -> Rules:
    """The rules of a vLLM version; before the first and after the last that was proved, that one's."""
    return Rules(
        version=min(max(version, FIRST_PROVED), LAST_PROVED),
        unfinished_blocks_first=version >= (0, 24),
        lone_request_unlimited=version >= (0, 31),
        skips_after_idle_victim=version < (0, 28),
        step_ends_with_own_preemption=version < (0, 33),
    )


def rules_notes(version: tuple[int, int]) -> list[str]:
    """What to say of a version that is out of the proved range; nothing of one inside."""
    if FIRST_PROVED <= version <= LAST_PROVED:
        return []
    side = "older" if version < FIRST_PROVED else "newer"
    return [
        f"vLLM {version[0]}.{version[1]} is {side} than those the scheduler was proved against: its rules are taken to "
        f"be those of {rules_of(version).name}"
    ]


def version_of(engine: str | None) -> tuple[int, int] | None:
    """Major and minor version in an engine's name, such as `vllm 0.32.0` or `0.32`; None when it has none."""
    match = re.fullmatch(r"(?:vllm )?(\d+)\.(\d+)(?:\..*|\+.*|)", engine or "")
    return (int(match[1]), int(match[2])) if match else None
