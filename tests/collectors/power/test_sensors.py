"""What is read of NVML, RAPL, exporters and commands that are all fake, and what absence is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from collectors.power.command import CommandSensor, command_sensor, dcmi_watts, ipmi_sensor, last_number
from collectors.power.exporter import dcgm_sensor, tpu_sensor
from collectors.power.nvml import NvmlSensor
from collectors.power.rapl import RaplSensor
from collectors.power.reading import Measured, Sensor
from collectors.power.sensors import close_all, open_sensors
from tests.collectors.power.power_files import FakeGpu, FakeNvml, fake_exporter, rapl_tree
from traces.errors import CollectorError, InputError

DCGM = """\
# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="10",UUID="GPU-c",device="nvidia10",modelName="NVIDIA H200"} 80.5
DCGM_FI_DEV_POWER_USAGE{gpu="2",UUID="GPU-b",device="nvidia2",modelName="NVIDIA H200",pod="x"} 75.25
DCGM_FI_DEV_POWER_USAGE{gpu="2",UUID="GPU-b",device="nvidia2",modelName="NVIDIA H200",pod="y"} 75.25
# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="10",UUID="GPU-c",modelName="NVIDIA H200"} 9223372036854775794
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="2",UUID="GPU-b",device="nvidia2",modelName="NVIDIA H200"} 2500
DCGM_FI_DEV_GPU_TEMP{gpu="2",UUID="GPU-b"} 40
"""

DCMI = """
    Instantaneous power reading:                   412 Watts
    Minimum during sampling period:                  9 Watts
    Maximum during sampling period:               1300 Watts
    Average power reading over sample period:      380 Watts
    IPMI timestamp:                           Thu Jan  1 00:00:00 1970
    Sampling period:                          00000005 Seconds.
    Power reading state is:                   activated
"""


def names(sensor: Sensor) -> list[str]:
    return [component.name for component in sensor.components]


def test_nvml_reads_the_gauge_and_the_counter_of_each_gpu() -> None:
    sensor = NvmlSensor(FakeNvml([FakeGpu(), FakeGpu(100_500, None), FakeGpu(None, 7_000), FakeGpu(None, None)]))
    assert names(sensor) == ["gpu0", "gpu1", "gpu2"]
    assert {component.device for component in sensor.components} == {"Fake GPU"}
    assert sensor.read() == {"gpu0": Measured(250.0, 1000.0), "gpu1": Measured(100.5), "gpu2": Measured(None, 7.0)}


def test_a_lost_gpu_is_a_gap_of_its_own() -> None:
    nvml = FakeNvml([FakeGpu(), FakeGpu()])
    sensor = NvmlSensor(nvml)
    nvml.gpus[1].lost = True
    assert sensor.read() == {"gpu0": Measured(250.0, 1000.0), "gpu1": Measured(error="GPU is lost")}


def test_nvml_is_shut_down_once_and_then_not_read() -> None:
    nvml = FakeNvml([FakeGpu()])
    sensor = NvmlSensor(nvml)
    sensor.close()
    sensor.close()
    assert nvml.n_open == 0
    with pytest.raises(CollectorError, match="closed"):
        sensor.read()


@pytest.mark.parametrize("gpus", [[], [FakeGpu(None, None)]])
def test_gpus_without_power_are_no_sensor(gpus: list[FakeGpu]) -> None:
    with pytest.raises(CollectorError, match=f"finds {len(gpus)} GPUs"):
        NvmlSensor(FakeNvml(gpus))


def test_without_pynvml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("collectors.power.nvml.importlib.import_module", missing)
    with pytest.raises(CollectorError, match=r"'\.\[power\]'"):
        NvmlSensor()


def test_rapl_has_packages_and_dram_and_unwraps_their_counters(tmp_path: Path) -> None:
    zones = {
        "intel-rapl:0": ("package-0", 900_000),
        "intel-rapl:0:0": ("core", 1),
        "intel-rapl:0:1": ("dram", 500),
        "intel-rapl:1": ("package-1", 10),
        "intel-rapl:1:0": ("dram", 20),
        "intel-rapl:2": ("psys", 3),
        "intel-rapl-mmio:0": ("package-0", 4),
    }
    sensor = RaplSensor(rapl_tree(tmp_path, zones))
    assert names(sensor) == ["package-0", "dram-0", "package-1", "dram-1"]
    assert [component.kind for component in sensor.components] == ["cpu", "dram", "cpu", "dram"]
    read = []
    for energy_uj in (950_000, 50_000, 999_999, 0):
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(f"{energy_uj}\n")
        read.append(sensor.read()["package-0"].joules)
    assert read == [0.95, 1.05, 1.999999, 2.0]
    assert sensor.read()["dram-1"] == Measured(joules=20e-6)


def test_rapl_that_may_not_be_read_names_the_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    read_text = Path.read_text

    def root_only(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", root_only)
    with pytest.raises(CollectorError, match=r"energy_uj: no permission to read it; run as root"):
        RaplSensor(tmp_path)


def test_a_counter_that_goes_away_or_is_garbage_is_a_gap(tmp_path: Path) -> None:
    sensor = RaplSensor(rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 1), "intel-rapl:1": ("package-1", 2)}))
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("many\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    errors = [one.error or "" for one in sensor.read().values()]
    assert "holds 'many'" in errors[0]
    assert "No such file" in errors[1]


def test_no_rapl_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match=r"no package or dram among .*/intel-rapl:\*"):
        RaplSensor(rapl_tree(tmp_path, {"intel-rapl:0": ("psys", 1)}))


def test_dcgm_has_each_gpu_once_by_its_index_and_blanks_are_no_values() -> None:
    with fake_exporter(DCGM) as exporter:
        sensor = dcgm_sensor(exporter.url)
        assert names(sensor) == ["gpu2", "gpu10"]
        assert sensor.components[0].device == "NVIDIA H200"
        assert sensor.read() == {"gpu2": Measured(75.25, 2.5), "gpu10": Measured(80.5)}
        assert set(exporter.asked) == {"/metrics"}


def test_what_an_exporter_no_longer_tells_is_a_gap() -> None:
    with fake_exporter(DCGM) as exporter:
        sensor = dcgm_sensor(f"{exporter.url}/metrics")
        exporter.text = 'DCGM_FI_DEV_POWER_USAGE{gpu="2",UUID="GPU-b"} NaN\n'
        errors = [one.error for one in sensor.read().values()]
        assert errors == ["the exporter tells no value of it"] * 2
        exporter.status = 503
        with pytest.raises(CollectorError, match="HTTP 503"):
            sensor.read()
    with pytest.raises(CollectorError, match="no answer"):
        sensor.read()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("node_power_watts 3\nother 4\n", "has no DCGM_FI_DEV_POWER_USAGE or .*; it has node_power_watts"),
        ('DCGM_FI_DEV_POWER_USAGE{device="nvidia0"} 3\n', "no label gpu, but device"),
        ('DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="a"} 3\nDCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="b"} 3\n', "two GPUs"),
        ("DCGM_FI_DEV_POWER_USAGE{gpu= 3\n", "no exposition"),
    ],
)
def test_an_exporter_that_cannot_be_used_says_why(text: str, match: str) -> None:
    with fake_exporter(text) as exporter, pytest.raises(CollectorError, match=match):
        dcgm_sensor(exporter.url)


def test_a_tpu_exporter_is_asked_for_the_gauge_that_is_named() -> None:
    text = 'chip_power{chip="10",host="a"} 90\nchip_power{chip="9",host="a"} 80\nchip_temp{chip="9"} 40\n'
    with fake_exporter(text) as exporter:
        sensor = tpu_sensor(f"{exporter.url}/x/metrics#chip_power")
        assert sensor.read() == {"tpu0": Measured(80.0), "tpu1": Measured(90.0)}
        exporter.text = 'chip_power{chip="10",host="a"} 91\n'
        assert sensor.read() == {"tpu0": Measured(error="the exporter tells no value of it"), "tpu1": Measured(91.0)}
        with pytest.raises(CollectorError, match="no tpu_power; it has chip_power"):
            tpu_sensor(f"{exporter.url}#tpu_power")


@pytest.mark.parametrize(
    "url", ["file://localhost/etc/passwd", "http://[::1", "http://", "127.0.0.1:9400", "http://user:secret@host"]
)
@pytest.mark.parametrize("open_at", [dcgm_sensor, lambda url: tpu_sensor(f"{url}#power")])
def test_an_address_that_is_none_is_refused(url: str, open_at: Callable[[str], Sensor]) -> None:
    with pytest.raises(InputError, match="accepted: the exporter's address"):
        open_at(url)


def test_a_tpu_gauge_must_be_named() -> None:
    with pytest.raises(InputError, match="the gauge's name"):
        tpu_sensor("http://127.0.0.1:8431")


@pytest.mark.parametrize(
    ("printed", "watts"),
    [("123", 123.0), ("P: 12.5 W\n", 12.5), ("0, 250.25\n", 250.25), ("gpu0 1e2", 100.0), ("10-20", 20.0), ("0", 0.0)],
)
def test_watts_are_the_last_number(printed: str, watts: float) -> None:
    assert last_number(printed) == watts


@pytest.mark.parametrize("printed", ["", "N/A", "[Unknown Error]", "-5", "1e999", "gpu0"])
def test_what_is_no_watts_is_a_gap_and_not_zero(printed: str) -> None:
    with pytest.raises(CollectorError, match="accepted: watts"):
        last_number(printed)


@pytest.mark.parametrize(
    "command", ["exit 3", "echo 5; echo no bus >&2; exit 1", "nonesuch-command", "true", "kill -9 $$"]
)
def test_a_command_that_fails_is_a_gap(command: str) -> None:
    with pytest.raises(CollectorError, match=r"exit code|accepted"):
        command_sensor(command).read()


def test_a_command_may_be_a_pipeline() -> None:
    assert command_sensor("echo '20 30' | cut -d' ' -f1").read() == {"command": Measured(20.0)}


def test_closing_ends_a_command_that_hangs_and_all_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    sensor = command_sensor(f"sleep 1000 & echo $! > {started}; wait")
    errors = []

    def read() -> None:
        try:
            sensor.read()
        except CollectorError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while not started.exists() or not started.read_text().strip():
        time.sleep(0.01)
    sensor.close()
    thread.join()
    assert len(errors) == 1
    state = Path("/proc") / started.read_text().strip() / "stat"
    give_up_s = time.monotonic() + 30
    while state.exists() and state.read_text().split()[2] != "Z":  # killed, and waited for by nobody
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def test_ipmi_is_the_instantaneous_power() -> None:
    assert dcmi_watts(DCMI) == 412.0


@pytest.mark.parametrize("printed", [DCMI.replace("activated", "deactivated").replace("412", "0"), "no such command"])
def test_a_controller_that_does_not_measure_is_a_gap(printed: str) -> None:
    with pytest.raises(CollectorError, match=r"deactivated|accepted"):
        dcmi_watts(printed)


@pytest.fixture
def no_ipmitool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.power.command.shutil.which", lambda name: None)


def host_with_ipmitool(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    (folder / "ipmitool").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ipmitool").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_ipmitool_is_run_as_it_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'test "$*" = "dcmi power reading" && echo "Instantaneous power reading: 123 Watts"'
    host_with_ipmitool(tmp_path / "bin", monkeypatch, script)
    sensor = ipmi_sensor()
    assert isinstance(sensor, CommandSensor)
    assert sensor.read() == {"server": Measured(123.0)}


def test_auto_takes_what_is_there_and_says_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host_with_ipmitool(tmp_path / "bin", monkeypatch, "echo 'Could not open device at /dev/ipmi0' >&2; exit 1")
    said: list[str] = []
    nvml = FakeNvml([FakeGpu()])
    opened = open_sensors(["auto"], said.append, rapl_root=tmp_path, nvml=nvml)
    assert [sensor.name for sensor in opened] == ["nvml"]
    assert [line.split(" (")[0] for line in said] == ["not recorded: rapl", "not recorded: ipmi"]
    assert "Could not open device" in said[1]
    close_all(opened)
    assert nvml.n_open == 0


@pytest.mark.usefixtures("no_ipmitool")
def test_auto_and_named_sensors_go_together(tmp_path: Path) -> None:
    said: list[str] = []
    rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    words = ["command=echo 1", "auto", "command=echo 2", "nvml"]
    opened = open_sensors(words, said.append, rapl_root=tmp_path, nvml=FakeNvml([FakeGpu()]))
    assert [sensor.name for sensor in opened] == ["command", "command2", "nvml", "rapl"]
    assert len({component.name for sensor in opened for component in sensor.components}) == 4


@pytest.mark.usefixtures("no_ipmitool")
def test_auto_leaves_out_what_a_named_sensor_gives(tmp_path: Path) -> None:
    said: list[str] = []
    with fake_exporter(DCGM.replace('"10"', '"0"')) as exporter:
        nvml = FakeNvml([FakeGpu()])
        opened = open_sensors([f"dcgm={exporter.url}", "auto"], said.append, rapl_root=tmp_path, nvml=nvml)
        assert [sensor.name for sensor in opened] == ["dcgm"]
        assert said[0] == "not recorded: nvml (dcgm gives gpu0 too)"
        assert nvml.n_open == 0
        with pytest.raises(InputError, match="dcgm gives gpu0 too"):
            open_sensors([f"dcgm={exporter.url}", "nvml"], said.append, rapl_root=tmp_path, nvml=nvml)
        assert nvml.n_open == 0


@pytest.mark.usefixtures("no_ipmitool")
def test_a_host_without_sensors_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match=r"nvml: .*0 GPUs.*; rapl: .*intel-rapl.*; ipmi: no ipmitool") as caught:
        open_sensors(["auto"], rapl_root=tmp_path, nvml=FakeNvml([]))
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("no_ipmitool")
@pytest.mark.parametrize("word", ["rapl", "nvml", "ipmi", "command=exit 1", "dcgm=http://127.0.0.1:9"])
def test_a_named_sensor_that_is_not_there_is_an_error(word: str, tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match=f"--sensor {word}: "):
        open_sensors(["command=echo 1", word], rapl_root=tmp_path, nvml=FakeNvml([]))


@pytest.mark.parametrize("word", ["gpu", "nvml=0", "command=", "command", "dcgm", ""])
def test_a_word_that_is_no_sensor_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accepted: auto, nvml, rapl"):
        open_sensors([word], rapl_root=tmp_path, nvml=FakeNvml([]))


def test_sensors_are_closed_when_a_later_one_fails(tmp_path: Path) -> None:
    nvml = FakeNvml([FakeGpu()])
    with pytest.raises(CollectorError, match="rapl"):
        open_sensors(["nvml", "rapl"], rapl_root=tmp_path, nvml=nvml)
    assert nvml.n_open == 0
