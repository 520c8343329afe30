"""When requests leave: by the clock, after a session's last answer, or as seats get free; and what a stop leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from collectors.client.load import Pacing, chains, send_trace
from collectors.client.log import ClientHistory, ClientLog, read_client_log
from collectors.client.request import ClientRecord, Target
from tests.collectors.fake_server import FakeServer, serving
from traces.errors import CollectorError, InputError
from traces.trace import Trace, TraceRow, checked_rows


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving() as fake:
        yield fake


def row(name: str, arrival_s: float = 0.0, session: str | None = None, delay_s: float | None = None) -> TraceRow:
    return TraceRow(
        request_id=name, arrival_s=arrival_s, prompt_tokens=8, output_tokens=2, session_id=session, delay_s=delay_s
    )


async def run(
    server: FakeServer, folder: Path, *rows: TraceRow, pacing: Pacing | None = None, stop: asyncio.Event | None = None
) -> dict[str, ClientRecord]:
    log = ClientLog(folder / "client.jsonl")
    trace = Trace(rows, None, "test", "sha256:0")
    target = Target(server.url, "model", timeout_s=5.0)
    records = await send_trace(trace, target, pacing or Pacing(), log, stop or asyncio.Event())
    log.close()
    return {record.request_id: record for record in records}


async def test_it_sends_by_the_clock_and_waits_for_no_answer(server: FakeServer, tmp_path: Path) -> None:
    """The server answers nobody until all four are there: a client that waits for an answer would never end."""
    server.together = 4
    records = await run(server, tmp_path, *(row(f"ok-{i}", 0.01 * i) for i in range(4)))
    assert all(record.error is None for record in records.values())
    assert all(record.late_s >= 0 for record in records.values())


async def test_time_is_scaled(server: FakeServer, tmp_path: Path) -> None:
    records = await run(server, tmp_path, row("ok-0"), row("ok-1", 4.0), pacing=Pacing(time_scale=0.01))
    assert records["ok-1"].due_s - records["ok-0"].due_s == pytest.approx(0.04)


async def test_a_closed_loop_has_so_many_under_way_and_never_more(server: FakeServer, tmp_path: Path) -> None:
    rows = [row(f"ok-{i}", 100.0 * i) for i in range(9)]  # arrivals mean nothing
    records = await run(server, tmp_path, *rows, pacing=Pacing(concurrency=3))
    assert server.most_under_way == 3
    assert [record.error for record in records.values()] == [None] * 9


async def test_an_agents_next_call_waits_for_its_last_answer(server: FakeServer, tmp_path: Path) -> None:
    rows = [
        row("ok-a0", 0.0, "a"),
        row("ok-b0", 0.0, "b"),
        row("ok-a1", 0.0, "a", delay_s=0.05),
        row("ok-a2", 0.0, "a", delay_s=0.0),
        row("ok-b1", 0.01, "b"),
    ]
    records = await run(server, tmp_path, *rows)
    first, second, third = (records[f"ok-a{i}"] for i in range(3))
    assert first.end_s is not None
    assert second.end_s is not None
    assert first.end_s + 0.05 <= second.due_s <= (second.sent_s or 0)
    assert second.end_s <= third.due_s
    assert records["ok-b1"].due_s - records["ok-b0"].due_s == pytest.approx(0.01)


def test_rows_are_chained_within_their_session_only() -> None:
    rows = [row("a0", session="a"), row("x"), row("a1", session="a", delay_s=0.0), row("a2", session="a")]
    assert [[r.request_id for r in chain] for chain in chains(rows)] == [["a0", "a1"], ["x"], ["a2"]]


@pytest.mark.parametrize("session", [None, "b"])
def test_a_delay_needs_something_to_follow(session: str | None) -> None:
    with pytest.raises(InputError, match="session_id"):
        checked_rows([row("a0", session="a"), row("x"), row("b0", session=session, delay_s=1.0)], "t", [1, 2, 3])


async def test_warm_up_is_sent_first_and_not_recorded(server: FakeServer, tmp_path: Path) -> None:
    server.models = ("model",)
    rows = [row("ok-0"), row("ok-1")]
    await run(server, tmp_path, *rows, pacing=Pacing(warm_up=2))
    assert list(server.asked) == ["warm-up-0", "warm-up-1", "ok-0", "ok-1"]
    assert server.asked["warm-up-0"]["prompt"] != server.asked["ok-0"]["prompt"]
    assert set(read_client_log(tmp_path / "client.jsonl").records) == {"ok-0", "ok-1"}


async def test_a_stop_gives_up_what_is_under_way_and_sends_nothing_more(server: FakeServer, tmp_path: Path) -> None:
    stop = asyncio.Event()
    rows = [row("ok"), row("stall"), row("late", 1000.0)]

    async def stop_once_two_are_there() -> None:
        while len(server.answered) < 1 or "stall" not in server.asked:
            await asyncio.sleep(0.01)
        stop.set()

    waiting = asyncio.create_task(stop_once_two_are_there())
    records = await run(server, tmp_path, *rows, stop=stop)
    await waiting
    assert records["ok"].error is None
    assert records["stall"].error == "stopped before the answer ended"
    assert (records["late"].error, records["late"].sent_s) == ("not sent", None)
    assert set(read_client_log(tmp_path / "client.jsonl").records) == {"ok", "stall"}


async def test_the_journal_says_what_the_records_say(server: FakeServer, tmp_path: Path) -> None:
    records = await run(server, tmp_path, row("ok"), row("busy", 0.01), row("cut", 0.02))
    history = read_client_log(tmp_path / "client.jsonl")
    assert history.records == records
    assert history.lags_s
    assert history.origin_s == records["ok"].due_s


async def test_a_journal_that_was_cut_off_still_has_the_tokens_that_came(tmp_path: Path) -> None:
    log = ClientLog(tmp_path / "client.jsonl")
    log.begin(10.0)
    record = ClientRecord("a", 10.0, 10.1)
    log.sent(record)
    watching = asyncio.create_task(log.watch())
    record.token_times_s += [10.2, 10.3]
    await asyncio.sleep(0.03)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    log.close()
    (read,) = read_client_log(tmp_path / "client.jsonl").records.values()
    assert read.token_times_s == [10.2, 10.3]
    assert read.error == "the recording was cut off before it ended"


def test_a_journal_without_a_start_is_refused(tmp_path: Path) -> None:
    ClientLog(tmp_path / "client.jsonl").close()
    with pytest.raises(CollectorError, match="before the first request was sent"):
        read_client_log(tmp_path / "client.jsonl")


@pytest.mark.parametrize(
    ("late_s", "lags_s", "slow"),
    [
        (0.02, (0.0,), None),
        (0.03, (0.0,), "sent requests"),
        (0.0, (0.03,), "stamped tokens"),
        (0.0, (*(0.0,) * 40, 0.6), "stamped tokens"),
        (0.0, (*(0.0,) * 40, 0.3), None),
    ],
)
def test_the_client_says_when_it_was_the_bottleneck(late_s: float, lags_s: tuple[float, ...], slow: str | None) -> None:
    """With a median TTFT and E2EL of 0.5 s it may be 25 ms late on average, and 250 ms in one case of a hundred."""
    records = {str(i): ClientRecord(str(i), 1.0, 1.0 + late_s, [1.5 + late_s]) for i in range(10)}
    history = ClientHistory(0.0, records, lags_s, 0.0)
    found = history.bottleneck(only_witness=True)
    beside_the_engine = history.bottleneck(only_witness=False)
    assert beside_the_engine == (found if slow == "sent requests" else None)
    assert (found is None) == (slow is None)
    assert found is None or slow in found
