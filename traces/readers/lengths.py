"""Tables of arrivals and lengths alone: BurstGPT's, Vidur's and SplitwiseSim's CSV files.

BurstGPT        Timestamp, Session ID, Elapsed time, Model, Request tokens, Response tokens, Total tokens, Log Type
                seconds from day 0; a request that failed has 0 response tokens; version 1.0 lacks the sessions
Vidur           arrived_at (s), num_prefill_tokens, num_decode_tokens; some files have no arrivals
SplitwiseSim    request_id, request_type, application_id, arrival_timestamp (s), batch_size, prompt_size, token_size
"""

from __future__ import annotations

from collections.abc import Iterator

from traces.errors import InputError
from traces.readers.source import Numbered, Source
from traces.readers.table import Cells, cells, has_columns
from traces.trace import TraceRow

BURSTGPT = ("Timestamp", "Model", "Request tokens", "Response tokens")
BURSTGPT_SESSION = "Session ID"
BURSTGPT_MORE = ("Total tokens", "Log Type")
VIDUR = ("num_prefill_tokens", "num_decode_tokens")
VIDUR_ARRIVAL = "arrived_at"
SPLITWISE = ("request_id", "request_type", "arrival_timestamp", "prompt_size", "token_size")
SPLITWISE_GENERATION = 2
"""The only type of request that SplitwiseSim has (its README)."""


def is_burstgpt(first_line: bytes) -> bool:
    """Whether a file that starts with this line is of BurstGPT."""
    return has_columns(first_line, BURSTGPT)


def is_vidur(first_line: bytes) -> bool:
    """Whether a file that starts with this line is one of Vidur's."""
    return has_columns(first_line, VIDUR)


def is_splitwise(first_line: bytes) -> bool:
    """Whether a file that starts with this line is one of SplitwiseSim's."""
    return has_columns(first_line, SPLITWISE)


def burstgpt_rows(source: Source) -> Iterator[Numbered]:
    """Rows of BurstGPT, of all its models together; an id is the number of its row, from "0". Raises InputError."""
    source.notes.append(
        "Timestamp is taken as seconds since day 0; requests of 0 response tokens are those that failed"
    )
    source.notes.append("requests of every Model and Log Type are kept")
    for number, row in enumerate(cells(source, BURSTGPT, (BURSTGPT_SESSION, *BURSTGPT_MORE))):
        prompt_tokens, output_tokens = row.count("Request tokens"), row.count("Response tokens")
        if "Total tokens" in row.text and row.count("Total tokens") != prompt_tokens + output_tokens:
            raise row.error("Total tokens", f"{prompt_tokens + output_tokens}, request and response tokens together")
        request = _row(row, number, "Timestamp", prompt_tokens, output_tokens, row.text.get(BURSTGPT_SESSION) or None)
        if not source.empty(row.line, prompt_tokens, output_tokens):
            yield row.line, request


def vidur_rows(source: Source) -> Iterator[Numbered]:
    """Rows of a Vidur trace; an id is the number of its row, from "0". Raises InputError."""
    known = (VIDUR_ARRIVAL, "num_total_tokens", "pd_ratio")
    for number, row in enumerate(cells(source, VIDUR, known)):
        if number == 0:
            _say_arrivals(source, row, (*VIDUR, *known))
        prompt_tokens, output_tokens = row.count(VIDUR[0]), row.count(VIDUR[1])
        if "num_total_tokens" in row.text and row.count("num_total_tokens") != prompt_tokens + output_tokens:
            raise row.error("num_total_tokens", f"{prompt_tokens + output_tokens}, prefill and decode tokens together")
        arrival = VIDUR_ARRIVAL if VIDUR_ARRIVAL in row.text else None
        request = _row(row, number, arrival, prompt_tokens, output_tokens)
        if not source.empty(row.line, prompt_tokens, output_tokens):
            yield row.line, request


def _say_arrivals(source: Source, row: Cells, known: tuple[str, ...]) -> None:
    """Say what arrivals there are. Raises InputError where they may stand in a column that is not known."""
    if VIDUR_ARRIVAL in row.text:
        source.notes.append(f"{VIDUR_ARRIVAL} is taken as seconds since the trace began")
        return
    if other := [name for name in row.text if name and name not in known]:
        accepted = f"it, or a file of lengths alone; here are {', '.join(other)}, too, which --map can name"
        raise InputError("is missing", file=source.path, line=1, field=VIDUR_ARRIVAL, accepted=accepted)
    source.notes.append(
        "states no arrivals: every request arrives at second 0, as suits a closed loop; `trace synth --like` gives "
        "requests of these lengths at a rate"
    )


def splitwise_rows(source: Source) -> Iterator[Numbered]:
    """Rows of a SplitwiseSim trace; ids are its request_id. Raises InputError."""
    source.notes.append("arrival_timestamp is taken as seconds since the trace began")
    for row in cells(source, SPLITWISE, ("application_id", "batch_size")):
        if row.count("request_type") != SPLITWISE_GENERATION:
            raise row.error("request_type", f"{SPLITWISE_GENERATION}, generative inference")
        if row.text.get("batch_size", "1") not in ("1", "1.0"):
            raise row.error("batch_size", "1: a request that is several is not known here")
        prompt_tokens, output_tokens = row.count("prompt_size"), row.count("token_size")
        request = _row(row, row.count("request_id"), "arrival_timestamp", prompt_tokens, output_tokens)
        if not source.empty(row.line, prompt_tokens, output_tokens):
            yield row.line, request


def _row(
    row: Cells, number: int, arrival: str | None, prompt_tokens: int, output_tokens: int, session: str | None = None
) -> TraceRow:
    return TraceRow(
        request_id=str(number),
        arrival_s=0.0 if arrival is None else row.seconds(arrival),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        session_id=session,
    )
