"""NVIDIA GPUs by NVML: an energy counter (mJ since the driver was loaded, Volta and newer) and a power gauge (mW).

The counter is exact over any window longer than its updates. The gauge is a mean over the last second on Ampere and
newer, GA100 excepted (NVML reference, nvmlDeviceGetPowerUsage), so that it lags behind what the device does.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

from collectors.power.reading import Component, Measured, Reading
from traces.errors import CollectorError, installs


class NvmlSensor:
    """The GPUs of this host, by NVML's indices: CUDA_VISIBLE_DEVICES does not change them."""

    name = "nvml"

    def __init__(self, nvml: Any = None) -> None:
        """Open NVML. Raises CollectorError where there is none, or no GPU that reports power.

        Args:
            nvml: the module `pynvml`, or what behaves like it; None: the one that is installed.
        """
        self._nvml = _pynvml() if nvml is None else nvml
        self._lock = threading.Lock()
        self._closed = False
        self._devices: dict[Component, tuple[Any, bool, bool]] = {}
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            for index in range(count):
                self._add(index)
        except self._nvml.NVMLError as error:
            raise CollectorError(f"NVML cannot be opened ({error})") from None
        if not self._devices:
            raise CollectorError(f"NVML finds {count} GPUs, and none of them reports power")

    @property
    def components(self) -> tuple[Component, ...]:
        """The GPUs that report power."""
        return tuple(self._devices)

    def read(self) -> Reading:
        """Read every GPU; the trouble of one is no trouble of the others."""
        with self._lock:
            if self._closed:
                raise CollectorError("NVML was closed")
            return {component.name: self._read(*device) for component, device in self._devices.items()}

    def close(self) -> None:
        """Shut NVML down once no reading is under way."""
        with self._lock:
            if not self._closed:
                self._nvml.nvmlShutdown()
            self._closed = True

    def _add(self, index: int) -> None:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        gauge = self._has(self._nvml.nvmlDeviceGetPowerUsage, handle)
        counter = self._has(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        if gauge or counter:
            device = self._nvml.nvmlDeviceGetName(handle)
            text = device.decode() if isinstance(device, bytes) else device  # bytes before nvidia-ml-py 11.515
            self._devices[Component(name=f"gpu{index}", kind="gpu", device=text)] = (handle, gauge, counter)

    def _has(self, function: Callable[[Any], int], handle: Any) -> bool:
        """Whether the device knows the quantity; other trouble may pass and is the readings' own."""
        try:
            function(handle)
        except self._nvml.NVMLError_NotSupported:
            return False
        except self._nvml.NVMLError:
            return True
        return True

    def _read(self, handle: Any, gauge: bool, counter: bool) -> Measured:
        try:
            watts = self._nvml.nvmlDeviceGetPowerUsage(handle) / 1e3 if gauge else None
            joules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 if counter else None
        except self._nvml.NVMLError as error:
            return Measured(error=str(error))
        return Measured(watts, joules)


def _pynvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        raise CollectorError(f"NVML needs the extra `power`: {installs('power')}") from None
