"""Power over the intervals that samples cover, and its integral: exact for what is assumed, silent on the rest.

Within an interval power is linear from its begin to its end (the trapezoidal rule, and interpolation at the edges of a
window inside it); of an energy counter it is the same at both, the mean that the counter tells. Between intervals
nothing is known, and nothing is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.steps import Floats


@dataclass(frozen=True, slots=True)
class Covered:
    """Power over intervals, which ascend and do not overlap. Every array is [n_intervals].

    Attributes:
        begin_s: on the monotonic clock.
        end_s: later than `begin_s`.
        begin_w: power at `begin_s`.
        end_w: power at `end_s`.
    """

    begin_s: Floats
    end_s: Floats
    begin_w: Floats
    end_w: Floats

    def between(self, edges_s: Floats) -> tuple[Floats, Floats]:
        """Energy and covered time from each edge to the next.

        Args:
            edges_s: [n + 1], ascending.

        Returns:
            ([n] joules in the covered part, [n] seconds covered).
        """
        width_s = self.end_s - self.begin_s
        joules = np.concatenate([[0.0], np.cumsum(width_s * (self.begin_w + self.end_w) / 2)])
        covered_s = np.concatenate([[0.0], np.cumsum(width_s)])
        before = np.searchsorted(self.end_s, edges_s, side="right")  # intervals that are over at each edge
        joules_at, covered_at = joules[before], covered_s[before]
        inside = np.flatnonzero(before < len(self.end_s))
        within = before[inside]
        into_s = np.maximum(0.0, np.asarray(edges_s)[inside] - self.begin_s[within])
        slope = (self.end_w[within] - self.begin_w[within]) / width_s[within]
        joules_at[inside] += into_s * (self.begin_w[within] + slope * into_s / 2)
        covered_at[inside] += into_s
        return np.diff(joules_at), np.diff(covered_at)
