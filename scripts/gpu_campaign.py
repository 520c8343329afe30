"""Measure a device that is there for 20 minutes: everything the twin needs of it, in order of value.

    python3 gpu_campaign.py --payload /tmp/payload --work /tmp/campaign --out OUT     # a GPU host without a network
    python3 scripts/gpu_campaign.py --work /tmp/campaign --out OUT                    # vLLM and servetwin are installed
    .venv/bin/python scripts/gpu_campaign.py --engine-python .venv-engine/bin/python --work W --out OUT       # on a CPU

Run again with the same --work, it does what is left; with --resume-from and an earlier --out, on a fresh host too.
docs/campaign.md says what it measures, and how the payload is made and carried.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collectors.campaign.parts import Part, PartRecord

PIECE = re.compile(r"payload\.tar\.xz\.(\d+)of(\d+)")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_HOST_IP": "127.0.0.1",
}
"""Of everything that is started: nothing looks for a network, and the sampler is the one without another package."""


def refuse(why: str) -> NoReturn:
    """End with what is wrong, as a command that was asked for something wrong does: exit code 2."""
    sys.stderr.write(f"error: {why}\n")
    sys.exit(2)


def unpack_payload(payload: Path, site: Path) -> None:
    """Unpack the pieces of a payload, once. Exits with 2 when one is missing or damaged."""
    if (site / ".complete").exists():
        return
    if not (payload / "payload.json").is_file():
        refuse(f"{payload}: has no payload.json; carry the first piece there")
    pieces = {int(match[1]): file for file in payload.iterdir() if (match := PIECE.fullmatch(file.name))}
    count = max((int(match[2]) for file in pieces.values() if (match := PIECE.fullmatch(file.name))), default=1)
    if missing := sorted(set(range(1, count + 1)) - set(pieces)):
        refuse(f"{payload}: pieces {missing} of {count} are missing; carry them there first")
    sums = json.loads((payload / "payload.json").read_text())["sha256"]
    whole = site.with_name("payload.tar.xz")
    site.mkdir(parents=True, exist_ok=True)
    with whole.open("wb") as stream:
        for number in sorted(pieces):
            data = pieces[number].read_bytes()
            if hashlib.sha256(data).hexdigest() != sums[pieces[number].name]:
                refuse(f"{pieces[number]}: is damaged; carry it there again")
            stream.write(data)
    with tarfile.open(whole) as tar:
        tar.extractall(site, filter="fully_trusted")
    whole.unlink()
    (site / ".complete").touch()


def begin_again_within(site: Path, begun_s: float) -> None:
    """Start this program anew with what the payload brought on its path; does not return."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "SERVETWIN_SITE": str(site), "SERVETWIN_BEGUN_S": str(begun_s)}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def host_facts(engine_python: Path) -> dict[str, Any]:
    """What the engine's Python finds here: device, versions, and which parts of vLLM load."""
    ran = subprocess.run(
        [str(engine_python), "-m", "collectors.campaign.device_rates", "--facts"],
        check=False,
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        sys.exit(f"{engine_python} cannot measure here:\n{ran.stderr.strip()[-2000:]}")
    facts: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return facts


def power_sensors(asked: list[str], on_gpu: bool) -> tuple[tuple[str, ...], str]:
    """The sensors to record, and a word about them. Those that are asked for must be there; exits otherwise."""
    from collectors.power.sensors import close_all, open_sensors
    from traces.errors import ServetwinError

    sensors = asked or (["nvml"] if on_gpu else [])
    if not sensors or sensors == ["none"]:
        return (), "not recorded"
    try:
        close_all(open_sensors(sensors, print))
    except ServetwinError as error:
        if asked:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(error.exit_code)
        print(f"no power is recorded: {error}", flush=True)
        return (), f"not recorded: {error}"
    return tuple(sensors), ", ".join(sensors)


def chosen_parts(parts: list[Part], only: list[str]) -> list[Part]:
    """The parts that are asked for; all when none is. Exits with 2 for a name that is none."""
    names = [part.name for part in parts]
    if unknown := sorted(set(only) - set(names)):
        refuse(f"no parts {', '.join(unknown)}; there are: {', '.join(names)}")
    return [part for part in parts if not only or part.name in only]


def run(chosen: argparse.Namespace, begun_s: float) -> tuple[PartRecord, ...]:
    """Check the host, plan, and run what is left of the budget, which `begun_s` (monotonic) is the beginning of."""
    import collectors
    from collectors.campaign.device_rates import EXPERTS, FLASH_ATTENTION
    from collectors.campaign.parts import Campaign, guarded_python, unpack_bundles
    from collectors.campaign.plan import SCALES, Host, plan
    from collectors.operators.provenance import default_device
    from traces.formats import read_any_trace

    work: Path = chosen.work.absolute()
    (work / "done").mkdir(parents=True, exist_ok=True)
    project = str(Path(collectors.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
    os.environ.update({**ENVIRONMENT, "PYTHONPATH": path, "VLLM_CACHE_ROOT": str(work / "cache")})
    facts = host_facts(chosen.engine_python)
    print(json.dumps(facts.get("gpu", facts["cpu"])), json.dumps(facts["packages"]), flush=True)
    print(json.dumps(facts["imports"], indent=1), flush=True)
    on_gpu = "gpu" in facts
    flags, experts = list(chosen.engine_flag), True
    if on_gpu and facts["imports"][FLASH_ATTENTION] != "ok":
        flags.append("--attention-backend=TRITON_ATTN")
        print(f"no FlashAttention here: {flags[-1]}", flush=True)
    if on_gpu and facts["imports"][EXPERTS] != "ok":
        experts = False
        print("no kernels of mixtures of experts here: models with experts are left out", flush=True)
    facts["engine_flags"] = flags
    sensors, facts["power"] = power_sensors(chosen.sensor, on_gpu)
    host = Host(
        work=work,
        engine_python=guarded_python(chosen.engine_python.absolute(), work / "engine-python"),
        device=chosen.device or default_device(facts),
        sensors=sensors,
        engine_flags=tuple(flags),
        experts=experts,
        workload=None if chosen.workload is None else read_any_trace(chosen.workload),
    )
    if chosen.resume_from is not None:
        print("complete already:", ", ".join(unpack_bundles(chosen.resume_from, work / "done")) or "nothing")
    parts = chosen_parts(plan(SCALES[chosen.scale or ("full" if on_gpu else "tiny")], host), chosen.only)
    campaign = Campaign(work, chosen.out, facts, file_bytes=chosen.file_mib << 20)
    return campaign.run(parts, begun_s + chosen.budget_s - time.monotonic())


def main() -> None:
    """Run the campaign; exits with 3 when a part failed, so that a caller notices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where it works; the same again to go on")
    parser.add_argument("--out", type=Path, required=True, help="what is to be carried home")
    parser.add_argument("--payload", type=Path, help="folder with all pieces of a payload (scripts/gpu_payload.py)")
    parser.add_argument("--resume-from", type=Path, help="an earlier --out: its parts are complete")
    parser.add_argument("--budget-s", type=float, default=1200.0, help="seconds from start to end; default: 20 minutes")
    parser.add_argument("--scale", choices=("full", "tiny"), help="default: full on a GPU, tiny on a CPU")
    parser.add_argument("--only", action="append", default=[], help="one part; may be repeated; default: all")
    parser.add_argument("--engine-python", type=Path, default=Path(sys.executable), help="of the engine's environment")
    parser.add_argument(
        "--engine-flag", action="append", default=[], help="a further flag of vLLM, as --engine-flag=-x"
    )
    parser.add_argument("--device", help="the device's name in scenarios; default: as it names itself")
    parser.add_argument("--sensor", action="append", default=[], help="of power; default: nvml on a GPU; none: none")
    parser.add_argument("--workload", type=Path, help="a trace to send in place of drawn requests")
    parser.add_argument("--file-mib", type=int, default=15, help="most MiB of a file in --out")
    chosen = parser.parse_args()
    site, begun_s = chosen.work.absolute() / "site", time.monotonic()
    if chosen.payload is not None:
        if os.environ.get("SERVETWIN_SITE") != str(site):
            unpack_payload(chosen.payload, site)
            begin_again_within(site, begun_s)
        begun_s = float(os.environ.get("SERVETWIN_BEGUN_S", begun_s))
    records = run(chosen, begun_s)
    for record in records:
        took = "" if record.took_s is None else f"{record.took_s:7.1f} s"
        print(f"{record.name:<24}{record.status:<14}{took}")
    if any(record.status == "failed" for record in records):
        sys.exit(3)


if __name__ == "__main__":
    main()
