"""A workload of many clients, each with a course, a burstiness and lengths of its own: arrivals and requests drawn.

In a window a client's requests come by a renewal process of its law, at its rate. The process is stationary: a window
begins somewhere within a gap, as a window of the client's real life does, so that on average exactly rate times length
requests come whatever the law (Cox, Renewal Theory, 2.4 and 2.6: the equilibrium process). Where the window begins, the
gap is one of the length-biased law, and what is left of it is uniform within it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from traces.decoding import sha256
from traces.errors import InputError
from traces.steps import Floats, Ints
from traces.trace import Trace, TraceRow

MOST_REQUESTS = 5e7


@dataclass(frozen=True, slots=True)
class Law:
    """Token counts, or numbers of images, by probability.

    Attributes:
        values: [n], ascending.
        cumulative: [n] the probability of each or less; the last is 1.
    """

    values: Ints
    cumulative: Floats

    def draw(self, n: int, rng: np.random.Generator) -> Ints:
        """[n] of them."""
        at = np.searchsorted(self.cumulative, rng.random(n), side="right")
        return self.values[np.minimum(at, len(self.values) - 1)]


@dataclass(frozen=True, slots=True)
class Lengths:
    """What a request holds.

    Attributes:
        text: tokens of the prompt.
        parts: for each other kind of content, how many of it a prompt has, and the tokens of each.
        output: tokens of the answer.
    """

    text: Law
    parts: tuple[tuple[Law, Law], ...]
    output: Law

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """[n] prompts and [n] answers, drawn apart."""
        prompts = self.text.draw(n, rng).copy()
        for count, tokens in self.parts:
            of = np.repeat(np.arange(n), count.draw(n, rng))
            np.add.at(prompts, of, tokens.draw(len(of), rng))
        return prompts, self.output.draw(n, rng)


@dataclass(frozen=True, slots=True)
class Windows:
    """A client's course.

    Attributes:
        start_s: [n] of each window, ascending, evenly.
        length_s: of each.
        rate_per_s: [n] requests; 0: none.
        law: [n] Gamma or Weibull; empty where there are no requests.
        shape: [n] of the law.
    """

    start_s: Ints
    length_s: int
    rate_per_s: Floats
    law: tuple[str, ...]
    shape: Floats

    def within(self, start_s: float, end_s: float) -> list[int]:
        """Those that the span touches."""
        touched = (self.start_s < end_s) & (self.start_s + self.length_s > start_s)
        return [int(i) for i in np.flatnonzero(touched)]


@dataclass(frozen=True, slots=True)
class Client:
    """One client.

    Attributes:
        number: its name.
        windows: its course.
        lengths: by start of a window; None where they are not known.
    """

    number: int
    windows: Windows
    lengths: dict[int, Lengths | None]


@dataclass(frozen=True, slots=True)
class ClientPool:
    """Clients that send together.

    Attributes:
        source: where they are from.
        clients: all with the same windows.
        sha256: digest of all files that were read.
        notes: what was assumed of them.
    """

    source: str
    clients: tuple[Client, ...]
    sha256: str
    notes: tuple[str, ...]


def clients_trace(pool: ClientPool, start_s: float, end_s: float, seed: int, rate_per_s: float | None = None) -> Trace:
    """Requests of all clients from `start_s`, which becomes second 0, to `end_s`; a client is a session.

    What a client does in a window depends on the seed and on nothing else that happens: a longer span begins as a
    shorter one does.

    Args:
        pool: the clients.
        start_s, end_s: the span, within the windows.
        seed: of what is drawn.
        rate_per_s: of all together, over the span; every client's rate is changed by the same factor. None: theirs.

    Raises:
        InputError: the span or the rate cannot be had.
    """
    clients = pool.clients
    _check_span(clients[0].windows, start_s, end_s)
    active = [
        (client, i, lengths)
        for client in clients
        for i in client.windows.within(start_s, end_s)
        if client.windows.rate_per_s[i] and (lengths := client.lengths[int(client.windows.start_s[i])]) is not None
    ]
    unknown = sum(one is None for client in clients for one in client.lengths.values())
    theirs_per_s = sum(_expected(client.windows, i, start_s, end_s) for client, i, _ in active) / (end_s - start_s)
    factor = _factor(theirs_per_s, rate_per_s, end_s - start_s)
    drawn = [_drawn(client, i, lengths, factor, seed) for client, i, lengths in active]
    arrival_s, number, prompts, outputs = (np.concatenate(part) for part in zip(*drawn, strict=True))
    arrival_s = arrival_s - start_s
    kept = (arrival_s >= 0) & (arrival_s < end_s - start_s)
    served = kept & (prompts > 0) & (outputs > 0)
    rows = _rows(arrival_s[served], number[served], prompts[served], outputs[served])
    what = f"clients of {pool.source}, seconds {start_s:g} to {end_s:g}, {len(clients)} of them, seed {seed}"
    notes = [what, _rates_note(theirs_per_s, factor), *pool.notes, *_NOTES]
    if unknown:
        notes.append(f"{unknown} windows of clients were left out: requests, but no lengths are stated of them")
    if empty := int(kept.sum() - served.sum()):
        notes.append(f"{empty} requests of 0 prompt or 0 output tokens were left out: there is nothing to serve")
    if not rows:
        raise InputError("no request was drawn", file=pool.source, accepted="a longer span, or a higher --rate")
    return Trace(rows, None, what, sha256(f"{pool.sha256} {what}".encode()), tuple(notes))


_NOTES = (
    "each client's requests in a window come by a stationary renewal process of the law and shape stated of it (not of "
    "the cv that was counted), a number that is drawn, too; ServeGen itself places the number that the rate says",
    "prompts and answers are drawn apart: only how often each length occurs is stated; ServeGen itself draws both with "
    "one number, so that the longest prompts have the longest answers",
    "a session is a client; no prefixes are stated, and none are shared",
)


def _check_span(windows: Windows, start_s: float, end_s: float) -> None:
    first_s, last_s = int(windows.start_s[0]), int(windows.start_s[-1]) + windows.length_s
    for field, found in (("--start", start_s), ("--end", end_s)):
        if not first_s <= found <= last_s:
            raise InputError(field=field, found=found, accepted=f"a second from {first_s} to {last_s}, as the clients'")
    if end_s <= start_s:
        raise InputError(field="--end", found=end_s, accepted=f"more than --start, {start_s:g}")


def _expected(windows: Windows, i: int, start_s: float, end_s: float) -> float:
    """Requests of a client in a window, as far as it lies in the span."""
    begin_s = int(windows.start_s[i])
    return float(windows.rate_per_s[i]) * (min(begin_s + windows.length_s, end_s) - max(begin_s, start_s))


def _factor(theirs_per_s: float, rate_per_s: float | None, span_s: float) -> float:
    """What every rate is multiplied with. Raises InputError."""
    if theirs_per_s == 0:
        accepted = "a span in which clients send something whose length is stated"
        raise InputError("no client sends anything", field="--start", accepted=accepted)
    if rate_per_s is not None and not 0 < rate_per_s < math.inf:
        raise InputError(field="--rate", found=rate_per_s, accepted="requests per second, above 0")
    wanted_per_s = theirs_per_s if rate_per_s is None else rate_per_s
    if wanted_per_s * span_s > MOST_REQUESTS:
        message = f"about {wanted_per_s * span_s:.0f} requests"
        raise InputError(message, field="--end", accepted=f"a span or a --rate with at most {MOST_REQUESTS:.0e}")
    return wanted_per_s / theirs_per_s


def _rates_note(theirs_per_s: float, factor: float) -> str:
    stated = f"the clients' rates add up to {theirs_per_s:.6g} requests per second"
    return stated if factor == 1 else f"{stated}; each is multiplied by {factor:.6g}"


def _drawn(client: Client, i: int, lengths: Lengths, factor: float, seed: int) -> tuple[Floats, Ints, Ints, Ints]:
    """A client's arrivals in a whole window, its number, and lengths, each [n]."""
    windows = client.windows
    begin_s = int(windows.start_s[i])
    rng = np.random.default_rng([seed, client.number, begin_s])
    rate_per_s = float(windows.rate_per_s[i]) * factor
    brought = renewals(rate_per_s * windows.length_s, windows.law[i], float(windows.shape[i]), rng)
    prompts, outputs = lengths.draw(len(brought), rng)
    return begin_s + brought / rate_per_s, np.full(len(brought), client.number), prompts, outputs


def renewals(until: float, law: str, shape: float, rng: np.random.Generator) -> Floats:
    """[n] times below `until` of a stationary renewal process with gaps of mean 1; n is `until` on average.

    Length-biased, a gamma law of shape k is one of shape k + 1 and the same scale; of a Weibull law of shape k, the
    k-th power of x / scale has a gamma law of shape 1 + 1 / k (change of variables in x * density).
    """
    if law == "Gamma":
        gap = rng.gamma(shape + 1, 1 / shape)
    else:
        gap = float(rng.gamma(1 + 1 / shape)) ** (1 / shape) / math.gamma(1 + 1 / shape)
    times = np.array([gap * (1 - rng.random())])
    block = int(until) + 16
    while times[-1] < until:
        gaps = rng.gamma(shape, 1 / shape, block) if law == "Gamma" else _weibull(shape, block, rng)
        times = np.concatenate([times, times[-1] + np.cumsum(gaps)])
    return times[: int(np.searchsorted(times, until))]


def _weibull(shape: float, n: int, rng: np.random.Generator) -> Floats:
    return rng.weibull(shape, n) / math.gamma(1 + 1 / shape)


def _rows(arrival_s: Floats, number: Ints, prompts: Ints, outputs: Ints) -> tuple[TraceRow, ...]:
    order = np.lexsort((number, arrival_s))
    columns = (part[order].tolist() for part in (arrival_s, number, prompts, outputs))
    return tuple(
        TraceRow(request_id=str(i), arrival_s=t, prompt_tokens=p, output_tokens=o, session_id=f"client {c}")
        for i, (t, c, p, o) in enumerate(zip(*columns, strict=True))
    )
