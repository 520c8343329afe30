"""The records of a recording of power, as its journal holds them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from collectors.power.reading import Component

SCHEMA = "servetwin.power/1"

NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class SensorFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sensor that is recorded."""

    name: str
    components: tuple[Component, ...]


class PowerHeader(
    msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="kind", forbid_unknown_fields=True
):
    """First line of each session; a file that is recorded into again has several.

    Attributes:
        wall_ns: the host's wall clock (Unix), together with
        monotonic_ns: its monotonic clock.
        rate_hz: samples per second that were to be taken of each sensor.
        boot_id: of the host's start; None where it is not told.
        sensors: what is recorded.
    """

    schema: str
    wall_ns: int
    monotonic_ns: int
    rate_hz: float
    boot_id: str | None
    sensors: tuple[SensorFacts, ...]


class Sample(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag="sample",
    tag_field="kind",
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """One try to read one component.

    Attributes:
        time_ns: on the monotonic clock, the middle of the reading.
        sensor: its name.
        component: its name.
        watts: of the gauge; None: it has none, or the try failed.
        joules: of the counter; likewise.
        error: why the try failed; None when it did not.
    """

    time_ns: int
    sensor: str
    component: str
    watts: NotNegative | None = None
    joules: NotNegative | None = None
    error: str | None = None
