"""Progress is shown on a terminal and nowhere else, and changes nothing of what it shows."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from collectors.client.load import Pacing
from collectors.client.request import Target
from collectors.recording.folder import About, new_recording
from collectors.recording.replay import record_replay
from harness.running.stream import stream_scenario
from harness.terminal import progress as module
from harness.terminal.progress import n_ended, progress, replay_progress, simulation_progress, stream_progress
from simulator.cluster import Cluster
from simulator.service import Service
from tests.collectors.fake_server import serving
from tests.engines import engine, trace
from tests.harness.scenarios import write_scenario

ROWS = [(0.01 * i, 20, 5) for i in range(40)]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal that can be read."""
    stream = io.StringIO()
    monkeypatch.setattr(
        module, "console", lambda *, stderr: Console(file=stream, force_terminal=True, width=120, color_system=None)
    )
    return stream


def test_a_stream_says_how_far_it_is_and_guesses_how_many_requests_there_are(
    screen: io.StringIO, tmp_path: Path
) -> None:
    scenario = write_scenario(tmp_path)
    with stream_progress() as watch:
        watch(300, 100, 50.0, 0.2)
        watch(400, 0, 50.0, 1.0)
        stream_scenario(scenario, tmp_path / "out", (), watch)
    shown = screen.getvalue()
    assert "300/2000" in shown
    assert "100 in flight, 50.0 s simulated" in shown
    assert "400/400" in shown
    assert "40/40" in shown


def service() -> Service:
    return Service(trace(*ROWS), Cluster((engine(),)), fast_forward=True)


def test_what_is_told_is_shown(screen: io.StringIO) -> None:
    with progress("requests", 40) as tell:
        tell(10, "3 under way")
    assert "requests" in screen.getvalue()
    assert "10/40" in screen.getvalue()
    assert "3 under way" in screen.getvalue()


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("requests", 40) as tell:
        tell(10, "3 under way")
    with simulation_progress() as watch:
        assert watch is None
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_replay_says_how_many_and_how_fast() -> None:
    class Log:
        n_sent, n_ended, n_failed, output_tokens = 12, 9, 1, 0

    told: list[tuple[float, str]] = []
    replay_progress(lambda done, said: told.append((done, said)))(Log())  # type: ignore[arg-type]
    assert told == [(9, "3 under way, 0 tokens/s, 1 failed")]


async def test_a_replay_is_shown_while_it_runs_and_at_its_end(tmp_path: Path) -> None:
    shown: list[tuple[int, int, int]] = []
    about = About(model="model", device=None, recorded_at="2026-01-31", steps=None)
    rows = trace(*[(0.01 * i, 9, 4) for i in range(3)])
    async with serving() as server:
        recording = new_recording(tmp_path / "out", about, rows)
        await record_replay(
            rows,
            Target(url=server.url, model="model"),
            Pacing(),
            recording,
            lambda log: shown.append((log.n_sent, log.n_ended, log.output_tokens)),
        )
    assert shown[0] == (0, 0, 0)
    assert shown[-1] == (3, 3, 6)


def test_a_simulation_is_watched_from_beside(screen: io.StringIO) -> None:
    watched, alone = service(), service()
    alone.run()
    before = threading.active_count()
    with simulation_progress() as watch:
        assert watch is not None
        watch(watched)
        watched.run()
    assert "40/40" in screen.getvalue()
    assert "s simulated" in screen.getvalue()
    assert threading.active_count() == before
    assert n_ended(watched) == 40
    assert [rank.record.end_column_s().tolist() for rank in watched.ranks] == [
        rank.record.end_column_s().tolist() for rank in alone.ranks
    ]


def test_nothing_has_ended_before_it_begins() -> None:
    assert n_ended(service()) == 0
