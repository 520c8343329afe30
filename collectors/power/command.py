"""Watts from a program: ipmitool, which asks the host's management controller, or any command of the user's."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from collectors.power.reading import Component, Measured, Reading
from traces.errors import CollectorError, shorten

ANSWER_WITHIN_S = 10.0
"""A command that takes longer has failed."""

LOOK_EVERY_S = 0.1
"""How soon a running command notices that the sensor is closed."""

IPMITOOL = "ipmitool dcmi power reading"

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_INSTANTANEOUS = re.compile(r"Instantaneous power reading:\s*(\d+)\s*Watts", re.IGNORECASE)
_STATE = re.compile(r"Power reading state is:\s*(\w+)", re.IGNORECASE)


class CommandSensor:
    """A shell command that prints watts."""

    def __init__(self, command: str, name: str, component: Component, parse: Callable[[str], float]) -> None:
        """Nothing is run yet.

        Args:
            command: for the shell.
            name: of the sensor.
            component: the one whose power it is.
            parse: watts of what it prints; raises CollectorError when it cannot tell.
        """
        self.name = name
        self.components = (component,)
        self._command = command
        self._parse = parse
        self._closing = threading.Event()

    def read(self) -> Reading:
        """Run the command. Raises CollectorError when it fails, prints no watts, or takes too long."""
        watts = self._parse(self._run())
        return {self.components[0].name: Measured(watts)}

    def close(self) -> None:
        """End the command if it is running."""
        self._closing.set()

    def _run(self) -> str:
        # A session of its own: an interrupt at the terminal must not reach it, and a pipeline ends as a whole.
        with subprocess.Popen(
            self._command,
            shell=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            give_up_s = time.monotonic() + ANSWER_WITHIN_S
            while True:
                try:
                    printed, complained = child.communicate(timeout=LOOK_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    if self._closing.is_set() or time.monotonic() > give_up_s:
                        with suppress(ProcessLookupError):
                            os.killpg(child.pid, signal.SIGKILL)
                        raise CollectorError(f"no answer within {ANSWER_WITHIN_S:g} s") from None
        if child.returncode:
            last = complained.strip().splitlines()[-1:]
            raise CollectorError(f"exit code {child.returncode}{f' ({shorten(last[0])})' if last else ''}")
        return printed


def command_sensor(command: str, name: str = "command") -> CommandSensor:
    """Any command whose last number on stdout is watts; its component has the sensor's name."""
    return CommandSensor(command, name, Component(name=name, kind="command"), last_number)


def ipmi_sensor(command: str = IPMITOOL) -> CommandSensor:
    """The whole server, by its management controller. Raises CollectorError where there is no ipmitool."""
    if shutil.which(command.split()[0]) is None:
        raise CollectorError(f"no {command.split()[0]} on the PATH")
    return CommandSensor(command, "ipmi", Component(name="server", kind="server"), dcmi_watts)


def last_number(printed: str) -> float:
    """The last number in a text, in watts. Raises CollectorError when there is none, or it is negative."""
    found = _NUMBER.findall(printed)
    watts = float(found[-1]) if found else None
    if watts is None or not 0 <= watts < float("inf"):
        raise CollectorError(f"printed {shorten(printed.strip())}; accepted: watts, as the last number")
    return watts


def dcmi_watts(printed: str) -> float:
    """The instantaneous power of `ipmitool dcmi power reading`, in watts.

    Raises CollectorError when there is none, or the controller says that it does not measure: it then prints 0 Watts.
    """
    state = _STATE.search(printed)
    if state is not None and state[1].lower() != "activated":
        raise CollectorError(f"the power reading state is {state[1]}")
    watts = _INSTANTANEOUS.search(printed)
    if watts is None:
        raise CollectorError(f"printed {shorten(printed.strip())}; accepted: an instantaneous power reading")
    return float(watts[1])
