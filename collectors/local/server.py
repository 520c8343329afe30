"""A vLLM server on this machine's loopback, for tests and recordings: started, waited for, and ended again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from traces.errors import EngineError

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 20.0
LOG_TAIL_LINES = 15


@contextmanager
def local_server(
    python: Path,
    model: Path,
    log: Path,
    *,
    flags: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[str]:
    """Serve a model folder under the name `model` and yield the server's URL; ends it, and only it, afterwards.

    Args:
        python: interpreter of the environment that vLLM is installed in.
        model: the model's folder.
        log: file for what the server prints.
        flags: further flags of vLLM's server.
        environment: further environment variables.
        start_timeout_s: most time until it answers.

    Raises:
        EngineError: the server ended or did not answer in time, with the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port), *flags]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **quiet, **(environment or {})},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, url, log, start_timeout_s)
        yield url
    finally:
        _end(process)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows no loopback of ours
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(f"the server ended with exit status {process.returncode}:\n{_tail(log)}")
        try:
            with direct.open(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError as error:  # it holds the answer, open
            error.close()
        except OSError:
            pass
        time.sleep(0.5)
    raise EngineError(f"the server did not answer within {timeout_s:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, which ends the engine processes it started; kill what is left of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
