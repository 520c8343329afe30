"""What a calibration is of: a capture, and the cluster that is to become its twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from calibrate.calibration import front_end_of
from calibrate.kv_transfer import Sent, sent_in
from calibrate.parameters import Basis
from calibrate.repricing import has_batches
from calibrate.served import Served, corrected, serve
from calibrate.whole_step import Unpriced
from simulator.cluster import Cluster
from simulator.engine import Engine
from traces.capture import Capture
from traces.outcome import Outcome
from traces.steps import Mask
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Subject:
    """A capture, and the cluster that is to become its twin.

    Attributes:
        name: of the capture.
        sha256: its digest.
        measured: the capture.
        trace: its requests at their measured arrivals.
        cluster: engines of one kind, uncorrected.
        profile: digest of their profile; None without one.
    """

    name: str
    sha256: str
    measured: Capture
    trace: Trace
    cluster: Cluster
    profile: str | None

    @property
    def engine(self) -> Engine:
        """One of the engines, which are alike."""
        return self.cluster.engines[0]

    @property
    def asynchronous(self) -> bool:
        """Whether the engines plan a step ahead."""
        return self.engine.options.async_scheduling

    @property
    def has_batches(self) -> bool:
        """Whether the steps of its engines were recorded, with the requests of each, and each engine steps alone."""
        return has_batches(self.measured, self.engine)

    def sent(self, chosen: Mask) -> Sent | None:
        """Its KV transfers, of which those of some requests are looked at; None where none was recorded."""
        transfers = self.measured.transfers
        if transfers is None or not self.cluster.is_disaggregated:
            return None
        return sent_in(transfers, chosen, self.cluster)

    def unprofiled(self) -> Subject:
        """The same with engines whose steps take no time, for a whole-step model to correct."""
        engines = tuple(replace(engine, step_time=Unpriced()) for engine in self.cluster.engines)
        return replace(self, cluster=replace(self.cluster, engines=engines), profile=None)

    def outcomes(self, chosen: Mask) -> list[Outcome]:
        """The chosen outcomes in order of arrival."""
        order = np.argsort([outcome.arrival_s for outcome in self.measured.outcomes], kind="stable")
        return [self.measured.outcomes[i] for i in order if chosen[i]]

    def simulate(self, values: Mapping[str, float], basis: Basis) -> Served:
        """Serve its requests with the parameters' values."""
        return serve(self.trace, corrected(self.cluster, values, basis), front_end_of(values), basis)
