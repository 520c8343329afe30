"""A whole replay, as a user runs it: into a capture, through an interrupt, a kill, and a server that goes away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from collectors.recording.folder import About, finish_recording, new_recording, read_about
from tests import warm
from tests.collectors.fake_server import FakeServer, serving
from tests.command_line import COMMAND
from traces.capture import Capture, read_capture
from traces.errors import InputError
from traces.metrics import summary
from traces.outcome import Status, as_the_client_saw
from traces.trace import Trace, TraceRow, write_trace


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving() as fake:
        yield fake


def trace_file(folder: Path, *names: str) -> Path:
    rows = [TraceRow(request_id=n, arrival_s=0.01 * i, prompt_tokens=9, output_tokens=4) for i, n in enumerate(names)]
    write_trace(Trace(tuple(rows), None, "test", "sha256:0"), folder / "trace.jsonl")
    return folder / "trace.jsonl"


async def started(
    server: FakeServer, folder: Path, *names: str, options: tuple[str, ...] = (), signalled: bool = False
) -> asyncio.subprocess.Process:
    """A replay; one that is to be signalled is a process of its own."""
    start = COMMAND if signalled else [str(warm.folder() / "servetwin")]
    trace = str(trace_file(folder, *names))
    command = ["collect", "replay", "--url", server.url, "--out", str(folder / "out"), "--trace", trace, *options]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*start, *command, stdout=pipe, stderr=pipe)


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def under_way(server: FakeServer) -> None:
    """Until one request was answered and the other has begun."""
    async with asyncio.timeout(30):
        while "stall" not in server.asked or "ok" not in server.answered:
            await asyncio.sleep(0.02)


async def replayed(server: FakeServer, folder: Path, *names: str, options: tuple[str, ...] = ()) -> tuple[Capture, str]:
    code, _, err = await ended(await started(server, folder, *names, options=options))
    assert code == 0, err
    assert not list(folder.glob("*.recording*"))
    return read_capture(folder / "out"), err


async def test_a_server_without_a_recorder_gives_a_capture_of_the_clients_times(
    server: FakeServer, tmp_path: Path
) -> None:
    capture, _ = await replayed(server, tmp_path, "ok-a", "ok-b", options=("--device", "H200"))
    assert (capture.meta.model, capture.meta.device, capture.meta.engine) == ("model", "H200", None)
    assert all("bottleneck" in reason for reason in capture.meta.reasons)  # a busy machine may slow the client
    assert "all times are the client's; the server's own were not recorded" in capture.meta.notes
    for outcome in capture.outcomes:
        assert (outcome.status, outcome.output_tokens, outcome.cached_tokens) == (Status.FINISHED, 4, 2)
        assert outcome.scheduled_s is None
        assert outcome.arrival_s == outcome.sent_s
        assert outcome.token_times_s == outcome.client_token_times_s
        assert as_the_client_saw(outcome) == outcome
    assert summary(capture)["metrics"]["ttft_s"]["mean"] > 0


async def test_failures_are_outcomes_and_the_capture_says_that_it_is_invalid(
    server: FakeServer, tmp_path: Path
) -> None:
    capture, err = await replayed(server, tmp_path, "ok", "busy", "broken", "cut", options=("--time-scale", "2"))
    assert [o.status for o in capture.outcomes] == [Status.FINISHED, Status.REJECTED, Status.FAILED, Status.FAILED]
    assert "3 requests failed at the client" in capture.meta.reasons[0]
    assert "INVALID" in err


async def test_an_interrupt_keeps_what_was_recorded(server: FakeServer, tmp_path: Path) -> None:
    process = await started(server, tmp_path, "ok", "stall", signalled=True)
    await under_way(server)
    process.send_signal(signal.SIGINT)
    code, _, err = await ended(process)
    assert (code, "INVALID" in err) == (0, True), err
    first, second = read_capture(tmp_path / "out").outcomes
    assert (first.status, second.status) == (Status.FINISHED, Status.ABORTED)
    assert second.reason == "stopped before the answer ended"


async def test_what_a_kill_leaves_is_finished_by_hand_and_the_next_run_starts_beside_it(
    server: FakeServer, tmp_path: Path
) -> None:
    process = await started(server, tmp_path, "ok", "stall", signalled=True)
    await under_way(server)
    await asyncio.sleep(1.2)  # by then everything so far is on disk
    process.kill()
    await ended(process)
    assert not (tmp_path / "out").exists()
    capture = finish_recording(tmp_path / "out.recording")
    assert [o.status for o in capture.outcomes] == [Status.FINISHED, Status.FAILED]
    assert capture.outcomes[1].output_tokens == 2
    assert capture.outcomes[1].reason == "the recording was cut off before it ended"
    beside = new_recording(tmp_path / "out", read_about(tmp_path / "out.recording"))
    assert beside.name == "out.recording-2"


async def test_a_server_that_is_gone_is_an_error_and_leaves_nothing(server: FakeServer, tmp_path: Path) -> None:
    server.url = "http://127.0.0.1:9"
    code, _, err = await ended(await started(server, tmp_path, "ok"))
    assert (code, "does not answer" in err, "Traceback" in err) == (3, True, False)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]


async def test_a_server_that_serves_nothing_is_an_error_and_the_recording_stays(
    server: FakeServer, tmp_path: Path
) -> None:
    code, _, err = await ended(await started(server, tmp_path, "broken-a", "broken-b"))
    assert code == 3
    assert "no request was served (2 requests failed at the client, the first with: HTTP 500: out of order)" in err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.recording" / "client.jsonl").exists()


async def test_which_of_several_models_must_be_said(server: FakeServer, tmp_path: Path) -> None:
    server.models = ("one", "two")
    code, _, err = await ended(await started(server, tmp_path, "ok"))
    assert (code, "accepted: one, two" in err) == (2, True)
    capture, _ = await replayed(server, tmp_path, "ok", options=("--model", "two", "--model-name", "my/two"))
    assert (server.asked["ok"]["model"], capture.meta.model) == ("two", "my/two")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--time-scale", "0"), "accepted: a finite number above 0"),
        (("--time-scale", "nan"), "accepted: a finite number above 0"),
        (("--url", "127.0.0.1:8000"), "field '--url': found '127.0.0.1:8000'"),
        (("--url", "http://127.0.0.1:x"), "accepted: the server's address, as http"),
        (("--url", "http://["), "accepted: the server's address, as http"),
        (("--time-scale", "2", "--concurrency", "3"), "no time scale in a closed loop"),
        (("--extra-body", "[1]"), "--extra-body"),
        (("--api-key-env", "SERVETWIN_NO_SUCH_KEY"), "an environment variable that is set"),
    ],
)
async def test_options_that_make_no_sense_are_refused(
    server: FakeServer, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, _, err = await ended(await started(server, tmp_path, "ok", options=options))
    assert (code, message in err, "Traceback" in err) == (2, True, False), err
    assert server.asked == {}


def test_a_folder_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a recording"):
        finish_recording(tmp_path)
    about = About(model="m", device=None, recorded_at="2026-01-01")
    assert read_about(new_recording(tmp_path / "x", about)) == about
