"""What a part of a campaign runs, as a process of its own: a load with the power drawn meanwhile, or the bare device.

python -m collectors.campaign.measure capture --url URL --trace FILE --steps FILE --out DIR ...
python -m collectors.campaign.measure device --engine-python PYTHON --out DIR ...
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from collectors.campaign.parts import die_with_parent
from collectors.client.load import Pacing
from collectors.client.log import read_client_log
from collectors.client.request import Target
from collectors.engine.step_file import sizes
from collectors.journal import say
from collectors.power.power_file import read_power
from collectors.power.record import record_power
from collectors.power.series import power_series
from collectors.recording.folder import About, finish_recording, new_recording
from collectors.recording.replay import record_replay
from traces.capture import Capture, write_capture
from traces.errors import CollectorError, ServetwinError
from traces.outcome import Status
from traces.trace import Trace, read_trace

RATE_HZ = 20.0
"""Readings of power in a second."""

AROUND_S = 2.0
"""Power is recorded so long before a load and after it."""


def measure_capture(trace: Trace, target: Target, about: About, out: Path, sensors: Sequence[str]) -> Capture:
    """Send a load, with a warm-up request before it, and write the folder `out/capture` with power among its series.

    Power is kept as it was recorded too, in `out/power.jsonl`. Raises CollectorError when a request was not served.
    """
    recording = new_recording(out / "capture", about, trace)
    with power_recorded(out / "power.jsonl", sensors):
        time.sleep(AROUND_S if sensors else 0.0)
        asyncio.run(record_replay(trace, target, Pacing(warm_up=1), recording))
        time.sleep(AROUND_S if sensors else 0.0)
    capture = finish_recording(recording)
    if lost := sum(outcome.status is not Status.FINISHED for outcome in capture.outcomes):
        raise CollectorError(f"{lost} requests were not served: {'; '.join(capture.meta.reasons)}")
    if sensors:
        origin_s = read_client_log(recording / "client.jsonl").origin_s
        capture = with_power(capture, out / "power.jsonl", origin_s)
    write_capture(capture, out / "capture")
    shutil.rmtree(recording)
    return capture


def with_power(capture: Capture, recorded: Path, origin_s: float) -> Capture:
    """The capture with power among its series, on its own clock."""
    return replace(capture, series={**capture.series, **power_series(read_power(recorded), origin_s)})


def measure_device(
    engine_python: Path, out: Path, sensors: Sequence[str], idle_s: float, busy_s: float, rest_s: float
) -> None:
    """Power at rest, under copies and matrix products, and at rest again; and the rates of the two, `out/device.json`.

    Args:
        engine_python: of the environment with torch.
        out: folder to write into.
        sensors: as `--sensor` takes them; none: rates alone.
        idle_s: at rest before anything is computed.
        busy_s: of copies, and again of products.
        rest_s: at rest afterwards: as long as clocks stay up, and longer.
    """
    with power_recorded(out / "power.jsonl", sensors):
        time.sleep(idle_s)
        command = [str(engine_python), "-m", "collectors.campaign.device_rates", "--seconds", str(busy_s)]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
        if ran.returncode:
            raise CollectorError(f"the device's rates could not be measured:\n{ran.stderr.strip()[-2000:]}")
        time.sleep(rest_s)
    rates = json.loads(ran.stdout.splitlines()[-1])
    (out / "device.json").write_text(json.dumps(rates, indent=1) + "\n")


@contextmanager
def power_recorded(out: Path, sensors: Sequence[str]) -> Iterator[None]:
    """Within it, power is recorded; not at all without sensors. Raises what the recording raised, at its end."""
    if not sensors:
        yield
        return
    stop, failed = threading.Event(), []

    def record() -> None:
        try:
            record_power(out, sensors, rate_hz=RATE_HZ, stop=stop)
        except ServetwinError as error:
            failed.append(error)

    thread = threading.Thread(target=record, name="power")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def _capture(chosen: argparse.Namespace) -> None:
    about = About(
        model=chosen.model_name,
        device=chosen.device,
        recorded_at=datetime.date.today().isoformat(),
        steps=str(chosen.steps),
        skipped_bytes=sizes(chosen.steps),  # of the loads before
        notes=tuple(chosen.note),
    )
    target = Target(chosen.url, "model", vocab_size=chosen.vocab_size, seed=chosen.seed)
    capture = measure_capture(read_trace(chosen.trace), target, about, chosen.out, chosen.sensor)
    say(f"{len(capture.outcomes)} requests; {'; '.join(capture.meta.reasons) or 'may be scored'}")


def _device(chosen: argparse.Namespace) -> None:
    measure_device(chosen.engine_python, chosen.out, chosen.sensor, chosen.idle_s, chosen.busy_s, chosen.rest_s)


def main() -> None:
    """Measure what the command line names."""
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    capture, device = kinds.add_parser("capture"), kinds.add_parser("device")
    for kind, run in ((capture, _capture), (device, _device)):
        kind.set_defaults(run=run)
        kind.add_argument("--out", type=Path, required=True, help="folder to write into")
        kind.add_argument("--sensor", action="append", default=[], help="of power; default: none is recorded")
    capture.add_argument("--url", required=True, help="the server")
    capture.add_argument("--trace", type=Path, required=True, help="what to send")
    capture.add_argument("--steps", type=Path, required=True, help="the file that the server's recorder writes")
    capture.add_argument("--model-name", required=True, help="the model's name in scenarios")
    capture.add_argument("--device", required=True, help="the device's name in scenarios")
    capture.add_argument("--vocab-size", type=int, required=True, help="token ids are drawn below it")
    capture.add_argument("--seed", type=int, default=0, help="of the prompts")
    capture.add_argument("--note", action="append", default=[], help="what a reader should know")
    device.add_argument("--engine-python", type=Path, required=True, help="of the environment with torch")
    device.add_argument("--idle-s", type=float, required=True, help="at rest first")
    device.add_argument("--busy-s", type=float, required=True, help="of copies, and of products")
    device.add_argument("--rest-s", type=float, required=True, help="at rest afterwards")
    chosen = parser.parse_args()
    try:
        chosen.run(chosen)
    except ServetwinError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
