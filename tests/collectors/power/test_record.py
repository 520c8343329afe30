"""The recorder: what a kill, a full disk, an interrupt and a slow or failing sensor leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from collectors.journal import Journal
from collectors.power.power_file import read_power
from collectors.power.reading import Component, Measured, Reading
from collectors.power.record import Recorder, next_turn, record_power, until_interrupted
from collectors.power.records import SCHEMA
from tests.collectors.power.power_files import FakeGpu, FakeNvml, fake_exporter, header, rapl_tree
from tests.command_line import COMMAND
from traces.errors import CollectorError, InputError

ROOT = Path(__file__).resolve().parents[3]
COMMAND_LINE = [*COMMAND, "collect"]


class FakeSensor:
    """Counts its readings; sets `enough` after so many, and does what `act` does before each."""

    def __init__(self, name: str, enough: threading.Event, n: int, act: Any = None) -> None:
        self.name = name
        self.components = (Component(name=name, kind="command"),)
        self.n_read = 0
        self.closed = threading.Event()
        self._enough = enough
        self._n = n
        self._act = act

    def read(self) -> Reading:
        self.n_read += 1
        if self.n_read >= self._n:
            self._enough.set()
        if self._act is not None:
            self._act(self)
        return {self.name: Measured(float(self.n_read))}

    def close(self) -> None:
        self.closed.set()


def quiet(_: str) -> None: ...


def header_of(*sensors: FakeSensor) -> dict[str, Any]:
    """What the header says beside the clocks."""
    facts = [{"name": one.name, "components": [{"name": one.name, "kind": "command"}]} for one in sensors]
    return {"rate_hz": 1000.0, "boot_id": None, "sensors": facts}


def run(path: Path, stop: threading.Event, *sensors: FakeSensor) -> Recorder:
    with Journal(path, SCHEMA, quiet, **header_of(*sensors)) as journal:
        recorder = Recorder(sensors, journal, 1000.0, quiet)
        recorder.run(None, stop)
    return recorder


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def once_sampled(path: Path, components: set[str]) -> threading.Event:
    """An event that is set once the file has a sample of each component."""
    stop = threading.Event()

    def watch() -> None:
        while not path.exists() or not components <= {line.get("component") for line in lines(path)}:
            time.sleep(0.02)
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    return stop


def test_a_sensor_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    stop = threading.Event()

    def hang(sensor: FakeSensor) -> None:
        sensor.closed.wait()
        raise CollectorError("cut off")

    slow, quick = FakeSensor("slow", threading.Event(), 1, hang), FakeSensor("quick", stop, 50)
    recorder = run(tmp_path / "p", stop, slow, quick)
    recording = read_power(tmp_path / "p")
    assert recording.components["quick"].n_tries >= 50
    assert "slow" not in recording.components  # its one reading was cut off by the end, which is no failure
    assert recording.notes[0] == "slow: no sample was taken"
    assert (recorder.progress["quick"].n_failed, recorder.progress["slow"].n_failed) == (0, 0)


@pytest.mark.parametrize(
    ("turn", "elapsed_s", "following"), [(0, 0.05, 1), (3, 0.2999, 4), (3, 0.31, 4), (3, 0.45, 5), (3, 2.0, 21)]
)
def test_turns_that_a_slow_reading_misses_are_not_made_up_for(turn: int, elapsed_s: float, following: int) -> None:
    assert next_turn(turn, elapsed_s, 10.0) == following


def test_a_failing_sensor_is_recorded_as_failing_and_said_once(tmp_path: Path) -> None:
    stop = threading.Event()
    said: list[str] = []

    def fail_twice(sensor: FakeSensor) -> None:
        if sensor.n_read in (3, 4):
            raise CollectorError("the bus is busy")

    sensor = FakeSensor("pdu", stop, 8, fail_twice)
    with Journal(tmp_path / "p", SCHEMA, quiet, **header_of(sensor)) as journal:
        recorder = Recorder([sensor], journal, 1000.0, said.append)
        recorder.run(None, stop)
    assert said == ["pdu: no reading (the bus is busy); trying on", "pdu: reads again"]
    power = read_power(tmp_path / "p").components["pdu"]
    assert power.failures == {"the bus is busy": 2}
    assert 0.0 not in power.power_w
    assert recorder.progress["pdu"].n_failed == 2


def test_an_error_that_no_sensor_should_raise_ends_the_recording_and_is_raised(tmp_path: Path) -> None:
    def broken(_: FakeSensor) -> None:
        raise ZeroDivisionError

    sensors = FakeSensor("a", threading.Event(), 1, broken), FakeSensor("b", threading.Event(), 1)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "p", threading.Event(), *sensors)
    assert all(sensor.closed.is_set() for sensor in sensors)


def test_all_sensors_of_a_host_into_one_file(tmp_path: Path) -> None:
    rapl = rapl_tree(tmp_path / "rapl", {"intel-rapl:0": ("package-0", 900_000), "intel-rapl:0:0": ("dram", 7)})
    nvml = FakeNvml([FakeGpu(), FakeGpu(90_000, None)])
    said: list[str] = []
    parts = {"gpu0", "gpu1", "package-0", "dram-0", "tpu0", "command"}
    with fake_exporter('chip_power{chip="0"} 80\n') as exporter:
        recording = record_power(
            tmp_path / "p",
            ["nvml", "rapl", f"tpu={exporter.url}#chip_power", "command=echo 12"],
            rate_hz=50,
            stop=once_sampled(tmp_path / "p", parts),
            report=said.append,
            rapl_root=rapl,
            nvml=nvml,
        )
    assert recording.components.keys() == parts
    assert recording.components["gpu1"].power_w[0] == 90.0
    assert recording.components["gpu1"].component.device == "Fake GPU"
    assert said[0] == "recording nvml: gpu0 (Fake GPU), gpu1 (Fake GPU)"
    assert nvml.n_open == 0
    first = lines(tmp_path / "p")[1]
    assert first.keys() == {"kind", "time_ns", "sensor", "component", "watts", "joules"}


def test_a_recording_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    path, said = tmp_path / "p", list[str]()
    for _ in range(2):
        recording = record_power(path, ["command=echo 5"], for_s=0.25, report=said.append)
    assert [line["kind"] for line in lines(path)].count("header") == 2
    assert len(recording.clocks) == 2
    assert f"{path}: goes on behind what is there" in said


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("my notes\n", "is no recording of power"),
        ("no line at all", "is no recording of power"),
        (header("gpu0", kind="gpu").replace(" ", "") + "\n", r"boot_id"),
        (header("gpu0", rate_hz=5.0).replace(" ", "") + "\n", r"rate_hz.*5.0.*accepted: 10.0; a new file"),
        (header("gpu0", schema="servetwin.metrics/1").replace(" ", "") + "\n", "schema"),
    ],
)
def test_a_file_that_holds_something_else_is_left_as_it_is(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "p"
    path.write_text(content)
    with pytest.raises(InputError, match=match):
        record_power(path, ["command=echo 5"], for_s=0.1)
    assert path.read_text() == content


def test_another_sensor_of_the_same_component_needs_a_new_file(tmp_path: Path) -> None:
    """Else the recording could not be read."""
    path, dcgm = tmp_path / "p", 'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="a"} 80\n'
    record_power(path, ["nvml"], stop=once_sampled(path, {"gpu0"}), report=quiet, nvml=FakeNvml([FakeGpu()]))
    before = path.read_bytes()
    with fake_exporter(dcgm) as exporter, pytest.raises(InputError, match=r"sensors, gpu0.*nvml.*dcgm.*; a new file"):
        record_power(path, [f"dcgm={exporter.url}"], report=quiet)
    assert path.read_bytes() == before


def test_two_recorders_do_not_share_a_file(tmp_path: Path) -> None:
    path, stop, failed = tmp_path / "p", threading.Event(), []

    def second(line: str) -> None:
        if line.startswith("recording"):
            try:
                record_power(path, ["command=echo 6"], for_s=0.1)
            except CollectorError as error:
                failed.append(str(error))
            stop.set()

    record_power(path, ["command=echo 5"], stop=stop, report=second)
    assert failed == [f"{path}: is being recorded into by another process"]


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, float("nan"), 1e6])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate_hz: float) -> None:
    with pytest.raises(InputError, match="--rate-hz"):
        record_power(tmp_path / "p", ["command=echo 5"], rate_hz=rate_hz)


def test_nothing_is_written_when_a_sensor_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match="--sensor rapl"):
        record_power(tmp_path / "p", ["rapl"], rapl_root=tmp_path)
    assert not (tmp_path / "p").exists()


def test_a_place_that_cannot_be_written_is_said_and_the_sensors_are_closed(tmp_path: Path) -> None:
    nvml = FakeNvml([FakeGpu()])
    with pytest.raises(CollectorError, match="No such file or directory"):
        record_power(tmp_path / "no" / "p", ["nvml"], nvml=nvml)
    assert nvml.n_open == 0


def test_a_full_disk_is_said_at_once_and_is_an_error_in_the_end(tmp_path: Path) -> None:
    full, said = tmp_path / "p", list[str]()
    full.symlink_to("/dev/full")
    with pytest.raises(CollectorError, match="bytes could not be written"):
        record_power(full, ["command=echo 5"], for_s=0.2, report=said.append)
    assert "No space left on device" in said[0]


def collect(path: Path, *options: str) -> subprocess.Popen[str]:
    """The command, in a process of its own, once it has recorded for a while."""
    words = [*COMMAND_LINE, "power", "--out", str(path), "--sensor", "command=echo 50", "--rate-hz", "100", *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    before = path.stat().st_size if path.exists() else 0
    while not path.exists() or path.stat().st_size < before + 3000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_recording_with_its_summary(tmp_path: Path, number: signal.Signals) -> None:
    process = collect(tmp_path / "p", "--json")
    process.send_signal(number)
    printed, complained = process.communicate()
    assert process.returncode == 0, complained
    facts = json.loads(printed)["components"]["command"]
    assert (facts["max_w"], facts["failed"]) == (50.0, 0)
    assert facts["tries"] == len(lines(tmp_path / "p")) - 1


def test_a_recording_that_was_killed_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "p"
    process = collect(path)
    process.kill()
    process.communicate()
    with path.open("a") as stream:
        stream.write('{"kind":"sample","time_ns":')  # as a kill in the middle of a write leaves it
    killed = read_power(path).components["command"]
    assert killed.n_tries >= 20
    process = collect(path)
    process.send_signal(signal.SIGINT)
    printed, complained = process.communicate()
    assert process.returncode == 0, complained
    assert "goes on behind what is there" in complained
    assert "command" in printed
    both = read_power(path)
    assert len(both.clocks) == 2
    assert both.components["command"].n_tries > killed.n_tries
    between = both.components["command"].energy(killed.end_s, both.clocks[1].monotonic_s)
    assert between.coverage == 0


def test_power_show_prints_what_a_file_holds(tmp_path: Path) -> None:
    stop = once_sampled(tmp_path / "p", {"command"})
    record_power(tmp_path / "p", ["command=echo 40"], stop=stop, report=quiet)
    words = [*COMMAND_LINE, "power-show", str(tmp_path / "p")]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "40.0" in shown
    assert "gauge" in shown


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        (["--sensor", "geiger"], 2, "accepted: auto, nvml"),
        (["--sensor", "command=exit 4"], 3, "exit code 4"),
        (["--sensor", "command=echo 1", "--for", "10"], 2, "accepted: a duration"),
        (["--sensor", "command=echo 1", "--rate-hz", "0"], 2, "--rate-hz"),
    ],
)
def test_the_command_refuses_with_a_code_and_a_reason(
    tmp_path: Path, options: list[str], code: int, match: str
) -> None:
    words = [*COMMAND_LINE, "power", "--out", str(tmp_path / "p"), *options]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert match in ran.stderr
    assert not (tmp_path / "p").exists()


def test_the_second_interrupt_acts_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    with until_interrupted() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(10)
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before
