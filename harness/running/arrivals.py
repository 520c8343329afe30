"""How requests came: the rate that was offered, and whether the engines kept up with it to the last arrival."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from traces.steps import Floats

MARGIN = 2.0
"""Standard deviations by which more requests must be in the system before a run counts as not steady.

Where requests come at random and nobody queues, those in the system are Poisson distributed (M/G/infinity), so that
the difference of two distant counts a and b has a variance of about a + b. A queue near its limit varies more, and may
be called not steady though it would have come back; one that grows by few requests is not told from chance. Of queues
with 1 to 32 seats (M/M/c), 300 requests, 100 draws each, at most 2 are called not steady at half of the capacity, 10 at
0.8 of it and 26 at 0.95; at 1.2 times the capacity 57 or more are, at 1.5 times 96 or more.
"""

OVERLOAD = 2.0
"""Times the capacity at which a queue must be told from one that keeps up, before a run counts as steady.

At so many times the capacity 1 - 1/OVERLOAD of those that arrive stay. A run is steady where so much growth is beyond
the margin; else its requests are too few to tell. Of the queues above with 10 to 300 requests, at most 2 in 100 are
called steady at twice the capacity. At half of it 8 in 100 are with 10 requests, 37 with 20, 71 with 40, 99 with 100.
"""


def arrival_figures(arrival_s: Floats, ended_s: Floats, *, is_open: bool = True) -> dict[str, Any]:
    """`requests_offered_per_s` and `in_system`, as summary.json has them. None: not known.

    The offered rate is of the gaps between arrivals, from the first to the last. In the system are those that have
    arrived, the one that arrives included, and have not ended; halfway is the arrival in the middle of all, by number.
    The run is not `is_steady` where there are more at the last arrival than halfway, by more than `MARGIN`; it is where
    that excludes a queue at `OVERLOAD` times its capacity. Where it is neither, requests are too few (`is_untold`).

    Args:
        arrival_s: [n] of all requests, in any order.
        ended_s: [n] when they finished or were aborted; NaN for those rejected, which never are in the system.
        is_open: whether all requests come at times of their own. With seats or sessions, which wait for an answer,
            arrivals follow the engines: nothing is offered.
    """
    unknown = {"halfway": None, "at_last_arrival": None, "is_steady": None}
    arrivals_s = np.sort(arrival_s)
    span_s = float(arrivals_s[-1] - arrivals_s[0]) if len(arrivals_s) else 0.0
    if not is_open or span_s <= 0:
        return {"requests_offered_per_s": None, "in_system": unknown}
    served = ~np.isnan(ended_s)

    def in_system(time_s: float) -> int:
        return int(np.count_nonzero((arrival_s[served] <= time_s) & (ended_s[served] > time_s)))

    middle_s = arrivals_s[(len(arrivals_s) - 1) // 2]
    halfway, last = in_system(middle_s), in_system(arrivals_s[-1])
    n_later = int(np.count_nonzero(arrival_s[served] > middle_s))
    return {
        "requests_offered_per_s": (len(arrivals_s) - 1) / span_s,
        "in_system": {"halfway": halfway, "at_last_arrival": last, "is_steady": _is_steady(halfway, last, n_later)},
    }


def _is_steady(halfway: int, last: int, n_later: int) -> bool | None:
    """Whether a queue did not grow from `halfway` to `last`, while `n_later` came; None: that cannot be told."""
    growth, margin = last - halfway, MARGIN * max(last + halfway, 1) ** 0.5
    if growth > margin:
        return False
    return True if growth + margin < (1 - 1 / OVERLOAD) * n_later else None


def is_untold(in_system: Mapping[str, Any]) -> bool:
    """Whether requests were too few to tell if a queue grew: there are counts, and no answer."""
    return in_system["halfway"] is not None and in_system["is_steady"] is None
