"""A prefill and a decode server of vLLM on this machine's loopback, a core each, behind our proxy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from collectors.engine import recorder_path
from collectors.local.server import STOP_TIMEOUT_S, local_server
from traces.errors import EngineError

PROXY_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers that run.

    Attributes:
        url: of the proxy before them.
        steps: the file that the prefill server's step recorder writes; the decode server's has `.1` behind it.
        transfers: the file that the decode server's transfer recorder writes.
    """

    url: str
    steps: Path
    transfers: Path


def has_nixl(python: Path, nixl: Path | None = None) -> bool:
    """Whether an engine's Python can load NIXL, from a folder if one is given."""
    path = {"PYTHONPATH": str(nixl)} if nixl is not None else {}
    command = [str(python), "-c", "import nixl._api"]
    return subprocess.run(command, env={**os.environ, **path}, capture_output=True, check=False).returncode == 0


@contextmanager
def local_pair(
    python: Path, model: Path, folder: Path, *, flags: Sequence[str] = (), nixl: Path | None = None
) -> Iterator[Pair]:
    """Serve a model folder under the name `model`, prefill and decode apart, and end all of it afterwards.

    Args:
        python: interpreter of the environment that vLLM is installed in.
        model: the model's folder.
        folder: for logs and what the recorders write; there must be no such files yet.
        flags: of both servers.
        nixl: a folder that NIXL is installed in; None: it is in the environment.

    Raises:
        EngineError: a server or the proxy ended or did not answer in time.
    """
    steps, transfers = folder / "steps.jsonl", folder / "transfers.jsonl"
    with ExitStack() as stack:
        urls = [
            stack.enter_context(
                local_server(
                    python,
                    model,
                    folder / f"{role}.log",
                    flags=[*flags, "--scheduler-cls", "recorder.RecordingScheduler", *_connector(role)],
                    environment={
                        "PYTHONPATH": os.pathsep.join(map(str, (recorder_path().parent, *([nixl] if nixl else ())))),
                        "SERVETWIN_STEPS": f"{steps}{'.1' if role == 'consumer' else ''}",
                        "SERVETWIN_TRANSFERS": f"{transfers}{'.prefill' if role == 'producer' else ''}",
                        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
                        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(_free_port()),
                        "VLLM_CPU_OMP_THREADS_BIND": str(core),
                    },
                )
            )
            for role, core in (("producer", 0), ("consumer", 1))
        ]
        prefill, decode = urls
        yield Pair(stack.enter_context(_proxy(prefill, decode, folder / "proxy.log")), steps, transfers)


def _connector(role: str) -> list[str]:
    """Flags for KV over NIXL between CPU engines."""
    config = {
        "kv_connector": "NixlConnector",
        "kv_connector_module_path": "small_host",
        "kv_role": f"kv_{role}",
        "kv_buffer_device": "cpu",
    }
    return ["--kv-transfer-config", json.dumps(config)]


@contextmanager
def _proxy(prefill: str, decode: str, log: Path) -> Iterator[str]:
    """The proxy as a process of its own, so that it does not share the client's event loop."""
    port = _free_port()
    command = [sys.executable, "-m", "collectors.local.apart_proxy", "--port", str(port)]
    root = str(Path(__file__).resolve().parents[2])
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--prefill", prefill, "--decode", decode], cwd=root, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + PROXY_TIMEOUT_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"the proxy does not answer:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
