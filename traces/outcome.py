"""What became of one request: the flat record from which every metric is computed afterwards."""

from __future__ import annotations

import enum

import msgspec


class Status(enum.Enum):
    """How a request ended."""

    FINISHED = "finished"
    """All its tokens came."""
    REJECTED = "rejected"
    """The engine refused it before it was scheduled."""
    ABORTED = "aborted"
    """The client gave up or was stopped."""
    FAILED = "failed"
    """The engine or the connection failed."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of one request. Times are seconds on the capture's clock; None means not measured.

    Attributes:
        request_id: as in the trace.
        status: how it ended.
        prompt_tokens: length of the prompt.
        output_tokens: tokens produced; for a request that did not finish, those that came.
        arrival_s: true arrival: when the engine's front end received it (simulated: the trace's arrival).
        reason: the engine's word for the end ("length", "stop"), or the error.
        instance: index of the engine instance that served it.
        queued_s: when it entered the scheduler's waiting queue.
        scheduled_s: when it was first scheduled.
        first_token_s: when its first token was out of the engine.
        finish_s: when its last token was out of the engine.
        cached_tokens: prompt tokens found in the prefix cache when it was first scheduled.
        num_preemptions: times it was preempted.
        sent_s: when the client sent it, for captures taken by a client.
        client_first_token_s: when its first token reached that client.
        client_finish_s: when its last token reached that client.
        client_token_times_s: when each piece of the answer reached that client; a piece is a token where the server
            streams token by token.
        token_times_s: when each output token was out of the engine, [output_tokens].
    """

    request_id: str
    status: Status
    prompt_tokens: int
    output_tokens: int
    arrival_s: float
    reason: str | None = None
    instance: int | None = None
    queued_s: float | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finish_s: float | None = None
    cached_tokens: int | None = None
    num_preemptions: int | None = None
    sent_s: float | None = None
    client_first_token_s: float | None = None
    client_finish_s: float | None = None
    client_token_times_s: tuple[float, ...] | None = None
    token_times_s: tuple[float, ...] | None = None


def as_the_client_saw(outcome: Outcome) -> Outcome:
    """The outcome with the client's times in place of the engine's: arrival is sending, tokens are pieces received.

    What every load generator reports. Stages inside the engine are not seen from there.
    """
    pieces = outcome.client_token_times_s
    return msgspec.structs.replace(
        outcome,
        arrival_s=outcome.arrival_s if outcome.sent_s is None else outcome.sent_s,
        queued_s=None,
        scheduled_s=None,
        first_token_s=outcome.client_first_token_s,
        finish_s=outcome.client_finish_s,
        token_times_s=pieces if pieces is not None and len(pieces) == outcome.output_tokens else None,
    )
