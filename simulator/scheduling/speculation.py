"""Speculative decoding: what is drafted, how much of it is accepted, and what was drafted and accepted so far.

A drafter proposes k tokens behind a request's last one; the model computes all of them in one step and keeps those
that it would have said itself, up to the first that it would not, and one token of its own behind them. Of the
drafter nothing is simulated but what it costs: how many of its tokens are accepted is measured, and drawn here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from traces.errors import InputError

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]

FIELD = "engine.speculative_config"

LOOKS_AHEAD = ("eagle", "eagle3", "mtp", "draft_model")
"""Methods whose drafter has a KV cache of its own, in the same blocks."""

READS_HIDDEN_STATES = ("eagle", "eagle3", "mtp")
"""Methods whose drafter needs the model's hidden states of the tokens before (vLLM: `use_eagle`)."""


class SpeculativeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's `speculative_config`, as far as it changes a prediction, and what was measured of the drafter.

    An acceptance rate of position i is unconditional: the share of all drafts of which the first i + 1 tokens were
    accepted. So does vLLM count: `vllm:spec_decode_num_accepted_tokens_per_pos` of a position over
    `vllm:spec_decode_num_drafts`.

    Attributes:
        method: who drafts.
        num_speculative_tokens: tokens of a draft.
        model: name of the model that drafts, whose profile says what that takes; `draft_model` alone.
        acceptance_rates: measured, by position; they do not increase. With the standard rejection sampling.
        rejection_sample_method: `synthetic`: vLLM itself accepts at random, by the next two.
        synthetic_acceptance_rates: as `acceptance_rates`.
        synthetic_acceptance_length: mean tokens of a step, 1 to 1 + num_speculative_tokens, in place of rates.
        draft_s: measured seconds that drafting adds to a step; in place of `model`.
        draft_rate: share of a request's steps for which the lookup finds a draft; `ngram` alone, others always draft.
        disable_eagle_block_drop: do not compute the last block of a prefix hit again for the drafter's sake.
    """

    method: Literal["ngram", "eagle", "eagle3", "mtp", "draft_model"]
    num_speculative_tokens: Annotated[int, msgspec.Meta(ge=1, le=64)]
    model: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    acceptance_rates: tuple[Probability, ...] | None = None
    rejection_sample_method: Literal["standard", "synthetic"] = "standard"
    synthetic_acceptance_rates: tuple[Probability, ...] | None = None
    synthetic_acceptance_length: Annotated[float, msgspec.Meta(ge=1)] | None = None
    draft_s: Annotated[float, msgspec.Meta(ge=0, le=60)] | None = None
    draft_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    disable_eagle_block_drop: bool = False

    @property
    def num_lookahead_tokens(self) -> int:
        """Slots beyond the step's tokens for the drafter's KV (vLLM 0.32 config/vllm.py, same name)."""
        return self.num_speculative_tokens if self.method in LOOKS_AHEAD else 0

    @property
    def draft_slots(self) -> int:
        """Tokens of the budget that drafting for a request takes (vLLM 0.32: `max_num_new_slots_for_drafting`)."""
        return int(self.method == "draft_model")

    @property
    def drops_last_block(self) -> bool:
        """Whether the last block of a prefix hit is computed again (vLLM 0.32: `use_eagle_block_drop`)."""
        return self.method in READS_HIDDEN_STATES and not self.disable_eagle_block_drop

    @property
    def drops_last_chunk(self) -> bool:
        """Whether the last chunk that a KV tier has of a prompt is computed again.

        vLLM 0.32 `v1/core/kv_cache_utils.py::_annotate_eagle_groups`, `kv_connector/v1/offloading/scheduler.py`: of the
        models here only an MTP module's layers are known as a drafter's.
        """
        return self.method == "mtp" and self.drops_last_block

    @property
    def step_tokens(self) -> int:
        """Token slots that a step of a decode takes, those of the drafter behind it among them.

        vLLM 0.32 `v1/core/sched/scheduler.py`, whose loads leave so many free: `_spec_decode_step_blocks`.
        """
        return 1 + self.num_speculative_tokens + self.num_lookahead_tokens

    @property
    def rates(self) -> tuple[float, ...]:
        """Unconditional acceptance by position, [num_speculative_tokens]."""
        if self.rejection_sample_method == "standard":
            assert self.acceptance_rates is not None
            return self.acceptance_rates
        if self.synthetic_acceptance_rates is not None:
            return self.synthetic_acceptance_rates
        # vLLM 0.32 config/speculative.py, `_acceptance_length_to_rates`: as many whole tokens as there are.
        assert self.synthetic_acceptance_length is not None
        drafted = self.synthetic_acceptance_length - 1
        return tuple(min(max(drafted - i, 0.0), 1.0) for i in range(self.num_speculative_tokens))


def slots_ahead(config: SpeculativeConfig | None, *, asynchronous: bool) -> int:
    """Token slots that a request may take beyond its last computed token.

    Those of its drafts and of its drafter; with asynchronous scheduling a second step is planned as if all drafts of
    the first were accepted.
    """
    if config is None:
        return 0
    return config.num_speculative_tokens * (1 + asynchronous) + config.num_lookahead_tokens


def check_speculation(config: SpeculativeConfig | None, *, asynchronous: bool, threshold: int, budget: int) -> None:
    """Raise InputError, with the field, for what does not go together or vLLM refuses.

    Args:
        config: of the engine; None: it does not speculate.
        asynchronous: whether it plans a step while one runs.
        threshold: its long_prefill_token_threshold.
        budget: its max_num_batched_tokens.
    """
    if config is None:
        return
    k = config.num_speculative_tokens
    _check_rates(config)
    if config.model is not None and config.method != "draft_model":
        raise InputError(
            "cannot be priced: a drafter by this method is no model by itself",
            field=f"{FIELD}.model",
            found=config.model,
            accepted="method draft_model with it, or draft_s in its place",
        )
    if (config.model is None) == (config.draft_s is None):
        also = " or model, and not both" if config.method == "draft_model" else ""
        accepted = f"measured seconds that drafting adds to a step{also}"
        raise InputError(field=f"{FIELD}.draft_s", found=config.draft_s, accepted=accepted)
    if config.method == "ngram" and asynchronous:
        raise InputError(
            "vLLM refuses asynchronous scheduling with this method",
            field="engine.async_scheduling",
            found=True,
            accepted="false with speculative_config.method ngram",
        )
    if (config.method == "ngram") != (config.draft_rate is not None):
        raise InputError(
            "is the share of steps for which a lookup finds a draft; no other method fails to draft",
            field=f"{FIELD}.draft_rate",
            found=config.draft_rate,
            accepted="above 0 to 1 with method ngram, and nothing with others",
        )
    if config.disable_eagle_block_drop and config.method not in READS_HIDDEN_STATES:
        raise InputError(
            "has no effect", field=f"{FIELD}.disable_eagle_block_drop", found=True, accepted="it with eagle methods"
        )
    if budget < 1 + k + config.draft_slots:
        raise InputError(
            "has no room for one token and its draft: vLLM 0.32 would wait for it for ever",
            field="engine.max_num_batched_tokens",
            found=budget,
            accepted=f"at least {1 + k + config.draft_slots}",
        )
    if 0 < threshold <= k:
        raise InputError(
            "vLLM 0.32 fails where it cuts a request that it had padded to the length of a draft",
            field="engine.long_prefill_token_threshold",
            found=threshold,
            accepted=f"0, or above num_speculative_tokens {k}",
        )


def check_drafters_apart(configs: Iterable[SpeculativeConfig | None]) -> None:
    """Raise InputError where KV goes between engines of drafters that keep KV of their own, and not the same.

    vLLM 0.32 `kv_connector/v1/nixl/metadata.py::_get_speculative_compatibility_factors`, and the same number of layers.

    Args:
        configs: of all prefill and decode engines.
    """
    methods = {None if one is None or one.method not in LOOKS_AHEAD else one.method for one in configs}
    if len(methods) > 1:
        found = ", ".join(sorted(str(method).lower() for method in methods))
        accepted = "one of them for prefill and decode engines: the drafter's KV goes with the model's"
        raise InputError(field=f"{FIELD}.method", found=found, accepted=accepted)


def _check_rates(config: SpeculativeConfig) -> None:
    """One statement of the acceptance, of the right length, that does not increase."""
    k, is_synthetic = config.num_speculative_tokens, config.rejection_sample_method == "synthetic"
    stated = {
        "acceptance_rates": config.acceptance_rates,
        "synthetic_acceptance_rates": config.synthetic_acceptance_rates,
        "synthetic_acceptance_length": config.synthetic_acceptance_length,
    }
    names = [name for name in stated if name.startswith("synthetic") == is_synthetic]
    for name, value in stated.items():
        if value is not None and name not in names:
            other = "standard" if is_synthetic else "synthetic"
            accepted = f"rejection_sample_method {other} with it"
            raise InputError("has no effect", field=f"{FIELD}.{name}", found=value, accepted=accepted)
    given = [name for name in names if stated[name] is not None]
    if len(given) != 1:
        found = " and ".join(given) or None
        raise InputError(field=f"{FIELD}.{names[0]}", found=found, accepted=f"one of {', '.join(names)}")
    if config.synthetic_acceptance_length is not None:
        if config.synthetic_acceptance_length > k + 1:
            length = config.synthetic_acceptance_length
            raise InputError(field=f"{FIELD}.{given[0]}", found=length, accepted=f"1 to {k + 1}")
        return
    rates = config.rates
    if len(rates) != k:
        found = f"{len(rates)} rates"
        raise InputError(field=f"{FIELD}.{given[0]}", found=found, accepted=f"{k}, one of each position")
    for i in range(1, k):
        if rates[i] > rates[i - 1]:
            raise InputError(
                "increases: a draft's first tokens are accepted whenever those behind them are",
                field=f"{FIELD}.{given[0]}.{i}",
                found=rates[i],
                accepted=f"at most {rates[i - 1]}, that of the position before; rates are unconditional",
            )


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How many tokens of a draft are accepted: drawn by request and place in its answer, whatever is scheduled when.

    Attributes:
        rates: unconditional, by position.
        draft_rate: share of places for which there is a draft.
        seed: of all draws.
    """

    rates: tuple[float, ...]
    draft_rate: float
    seed: int

    def accepted(self, request: int, position: int) -> int:
        """Tokens that a whole draft behind the answer's first `position` tokens has right; `request`: its index."""
        drawn = uniform(self.seed, 0, request, position)
        return sum(drawn < rate for rate in self.rates)

    def drafts(self, request: int, position: int) -> int:
        """Tokens of the draft that is made there: all, or none."""
        if self.draft_rate < 1 and uniform(self.seed, 1, request, position) >= self.draft_rate:
            return 0
        return len(self.rates)


def acceptance_of(config: SpeculativeConfig, seed: int) -> Acceptance:
    """The draws for an engine's drafter."""
    return Acceptance(config.rates, 1.0 if config.draft_rate is None else config.draft_rate, seed)


_MASK = (1 << 64) - 1


def uniform(*key: int) -> float:
    """A number in [0, 1) that depends on the key alone.

    SplitMix64 over the words of the key: its increment, and the finalizer of Stafford's "mix 13" (Steele, Lea, Flood:
    Fast splittable pseudorandom number generators, OOPSLA 2014, section 4).
    """
    state = 0
    for word in key:
        state = (state ^ word) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


@dataclass(slots=True)
class Speculation:
    """What was drafted and accepted, counted as vLLM's metrics `vllm:spec_decode_*` do.

    Attributes:
        num_drafts: drafts that were verified.
        num_draft_tokens: their tokens.
        num_accepted_tokens: those that were accepted.
        num_accepted_tokens_per_pos: by position in the draft.
    """

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_tokens_per_pos: list[int]

    def observe(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Count a draft."""
        self.num_drafts += 1
        self.num_draft_tokens += num_draft_tokens
        self.num_accepted_tokens += num_accepted_tokens
        for i in range(num_accepted_tokens):
            self.num_accepted_tokens_per_pos[i] += 1

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens that a step with a draft brought, its own included, on the average; None: there was no draft."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else None

    def figures(self) -> dict[str, Any]:
        """The same as summary.json has it."""
        return {
            "num_drafts": self.num_drafts,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_tokens": self.num_accepted_tokens,
            "num_accepted_tokens_per_pos": self.num_accepted_tokens_per_pos,
            "mean_acceptance_length": self.mean_acceptance_length,
        }

    def note(self) -> str:
        """The same in words."""
        if not self.num_drafts:
            return "speculative decoding: nothing was drafted"
        per_position = ", ".join(f"{count / self.num_drafts:.3f}" for count in self.num_accepted_tokens_per_pos)
        return (
            f"speculative decoding: {self.num_accepted_tokens} of {self.num_draft_tokens} drafted tokens accepted in "
            f"{self.num_drafts} drafts, mean acceptance length {self.mean_acceptance_length:.2f}, by position "
            f"{per_position}"
        )


def no_speculation(k: int) -> Speculation:
    """Counts of drafts of k tokens, all zero."""
    return Speculation(0, 0, 0, [0] * k)


def together(counts: Iterable[Speculation | None]) -> Speculation | None:
    """All counts summed up; None where nobody speculates."""
    total: Speculation | None = None
    for one in counts:
        if one is None:
            continue
        if total is None:
            total = no_speculation(0)
        total.num_drafts += one.num_drafts
        total.num_draft_tokens += one.num_draft_tokens
        total.num_accepted_tokens += one.num_accepted_tokens
        mine, theirs = total.num_accepted_tokens_per_pos, one.num_accepted_tokens_per_pos
        mine += [0] * (len(theirs) - len(mine))
        for i, count in enumerate(theirs):
            mine[i] += count
    return total
