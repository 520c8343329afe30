"""What a step has to give where tokens are drafted, and what a request is given of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request computes in a step.

    Attributes:
        tokens: of all kinds.
        drafts: those of them that were drafted.
        padded: whether the drafts only fill a new decode up to the length of the others: none is accepted.
    """

    tokens: int
    drafts: int = 0
    padded: bool = False


@dataclass(slots=True)
class Budget:
    """What is left of a step: tokens of the model, and of its inputs, of which a drafter may need more."""

    tokens: int
    inputs: int
    slots: int

    @property
    def most(self) -> int:
        """Most tokens that the next request can be given."""
        return min(self.tokens, self.inputs - self.slots)

    def take(self, tokens: int) -> None:
        """A request computes so many."""
        self.tokens -= tokens
        self.inputs -= tokens + self.slots

    def give_back(self, tokens: int) -> None:
        """It does not, after all."""
        self.tokens += tokens
        self.inputs += tokens + self.slots


@dataclass(frozen=True, slots=True)
class Limits:
    """What limits the first step of requests that are admitted in one plan.

    Attributes:
        budget: what is left of the step.
        threshold: most tokens of one request; 0: none.
        pads: whether decodes are padded to the length of a draft.
        others_run: whether others are in the step that ran before.
    """

    budget: Budget
    threshold: int
    pads: bool
    others_run: bool
