"""One request to an OpenAI-compatible server: sent, timed token by token, and recorded whatever becomes of it.

The length of the answer is pinned (`ignore_eos`, `max_tokens`), so that a simulation can serve the same. No text is
kept, neither sent nor received, and of a server's error no message that quotes the prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

import msgspec

from collectors.client.prompts import prompt_text, prompt_token_ids
from traces.errors import InputError
from traces.trace import Trace, TraceRow

if TYPE_CHECKING:
    import aiohttp

Api = Literal["completions", "chat"]
APIS: tuple[str, ...] = get_args(Api)
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}

MOST_OF_A_MESSAGE = 200
"""Characters of a server's error that are kept."""


def base_url(url: str) -> str:
    """Scheme, host, port and path of a server; a user's name and password, if there, are not for a journal.

    Raises InputError when it is no such address.
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        parts, is_one = urlsplit(""), False
    if not is_one or parts.username is not None or parts.query:
        raise InputError(field="--url", found=url, accepted="the server's address, as http://127.0.0.1:8000")
    return url.rstrip("/")


@dataclass(slots=True)
class ClientRecord:
    """What the client saw of one request. Times are seconds of this host's monotonic clock.

    Attributes:
        request_id: as in the trace; the server is given it as X-Request-Id.
        due_s: when it was to be sent.
        sent_s: when it was sent; None when it never was.
        token_times_s: when each piece of the answer came; a server that streams token by token sends one a piece.
        end_s: when the answer was over, well or not; None when it was not.
        prompt_tokens: as the server counted; None when it did not say.
        output_tokens: likewise.
        cached_tokens: prompt tokens from the prefix cache, as the server counted; None when it did not say.
        status: HTTP status; None without an answer.
        reason: the server's word for the answer's end ("length", "stop"); None when it gave none.
        error: what went wrong; None when nothing did.
    """

    request_id: str
    due_s: float
    sent_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)
    end_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    status: int | None = None
    reason: str | None = None
    error: str | None = None

    @property
    def late_s(self) -> float:
        """How long after its time it was sent."""
        return 0.0 if self.sent_s is None else self.sent_s - self.due_s


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how to ask it.

    Attributes:
        url: its address, without a path.
        model: the model's name there.
        api: completions, with token ids as the prompt, or chat, with words.
        words: also completions get words and not token ids.
        vocab_size: token ids are drawn below it.
        timeout_s: a request that brings nothing for so long has stalled.
        seed: of the prompts.
        api_key: sent as a bearer token and written nowhere; None: none is sent.
        extra: further fields of every request's body.
    """

    url: str
    model: str
    api: Api = "completions"
    words: bool = False
    vocab_size: int = 1000
    timeout_s: float = 300.0
    seed: int = 0
    api_key: str | None = field(default=None, repr=False)
    extra: dict[str, Any] = field(default_factory=dict)

    def prompt(self, row: TraceRow, trace: Trace) -> str | list[int]:
        """The row's prompt as this target is given it."""
        if self.words or self.api == "chat":
            return prompt_text(row, trace, self.seed)
        return prompt_token_ids(row, trace, self.vocab_size, self.seed)

    def body(self, row: TraceRow, trace: Trace) -> bytes:
        """The request's body, encoded."""
        prompt = self.prompt(row, trace)
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.api == "chat" else {"prompt": prompt}
        answer = {"max_tokens": row.output_tokens, "ignore_eos": True, "temperature": 0}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        scheduling = {"priority": row.priority} if row.priority else {}
        return msgspec.json.encode({"model": self.model, **asked, **answer, **stream, **scheduling, **self.extra})

    def headers(self, request_id: str | None = None) -> dict[str, str]:
        """The headers that a request to this target carries."""
        headers = {} if request_id is None else {"X-Request-Id": request_id, "Content-Type": "application/json"}
        return headers if self.api_key is None else {**headers, "Authorization": f"Bearer {self.api_key}"}


async def send(
    session: aiohttp.ClientSession,
    target: Target,
    body: bytes,
    record: ClientRecord,
    sent: Callable[[ClientRecord], None] = lambda record: None,
) -> None:
    """Send a request and take its answer into the record; `sent` is told the moment it has left. Raises nothing."""
    record.sent_s = time.monotonic()
    sent(record)
    headers = target.headers(record.request_id)
    try:
        async with session.post(target.url + PATHS[target.api], data=body, headers=headers) as answer:
            record.status = answer.status
            if answer.status != 200:
                record.error = f"HTTP {answer.status}: {_message(await answer.text(), body, target)}"
                return
            stream = _Stream(record, body, target)
            async for line in answer.content:
                stream.take(line)
            stream.end()
    except TimeoutError:
        record.error = "stalled: nothing came within the time-out"
    except Exception as error:  # one request's trouble, of whatever kind, must not end the others
        record.error = f"{type(error).__name__}: {_message(str(error), body, target)}"
    finally:
        record.end_s = time.monotonic()


class _Stream:
    """Takes in the events of one answer."""

    def __init__(self, record: ClientRecord, body: bytes, target: Target) -> None:
        self._record = record
        self._body = body
        self._target = target
        self._done = False
        self._last_was_empty = False

    def take(self, line: bytes) -> None:
        """Take in one line of the stream."""
        if not line.startswith(b"data: "):
            return
        if line.startswith(b"data: [DONE]"):
            self._done = True
            return
        now_s = time.monotonic()
        event = msgspec.json.decode(line[6:], type=dict[str, Any])
        if event.get("error"):
            self._record.error = f"error in the stream: {_message(str(event['error']), self._body, self._target)}"
        for choice in event.get("choices") or ():
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else delta.get("content")
            self._record.reason = choice.get("finish_reason") or self._record.reason
            if not (delta is not None and "role" in delta and not text):  # a chat answer announces its role first
                self._record.token_times_s.append(now_s)
                self._last_was_empty = not text and choice.get("finish_reason") is not None
        if usage := event.get("usage"):
            self._record.prompt_tokens = usage.get("prompt_tokens")
            self._record.output_tokens = usage.get("completion_tokens")
            self._record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")

    def end(self) -> None:
        """The stream is over: was the answer?"""
        times_s = self._record.token_times_s
        if self._last_was_empty and self._record.output_tokens == len(times_s) - 1:
            times_s.pop()  # some servers say why they ended in a piece of its own
        if not self._done and self._record.error is None:
            self._record.error = "the stream ended before the answer did"


def _message(text: str, body: bytes, target: Target) -> str:
    """A server's message, shortened; without the key, and not at all when it quotes the prompt."""
    sent = msgspec.json.decode(body, type=dict[str, Any])
    prompt = sent.get("prompt") or sent["messages"][0]["content"]
    opening = prompt[:12] if isinstance(prompt, str) else ", ".join(map(str, prompt[:3]))
    if opening in text or opening.replace(" ", "") in text:
        return "(a message that quotes the prompt)"
    return (text.replace(target.api_key, "***") if target.api_key else text)[:MOST_OF_A_MESSAGE]
