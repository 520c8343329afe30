"""Instances that come and go: failures, and a pool that grows and shrinks with its load."""

from __future__ import annotations

from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Above0 = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instance fails: it loses its cache and its requests, which are sent to others and start over.

    A step under way ends first when scheduling is synchronous.

    Attributes:
        instance: which one, counted from 0.
        at_s: when.
        for_s: until it takes requests again, its start included.
    """

    instance: Count
    at_s: Seconds
    for_s: Above0


class Autoscaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pool that grows and shrinks, one instance at a time, as a horizontal autoscaler does by a mean of its metric.

    Load is the requests of all instances in use, waiting and running, over their seats (`max_num_seqs`). An instance
    that is taken out serves what it has; the last one in the description goes first.

    Attributes:
        min_instances: in use from the start, and never fewer.
        up_above: load above which one more is started.
        down_below: load below which one is taken out.
        start_s: from the decision until it takes requests.
        interval_s: between decisions.
    """

    min_instances: Annotated[int, msgspec.Meta(ge=1)] = 1
    up_above: Above0 = 0.8
    down_below: Seconds = 0.3
    start_s: Seconds = 60.0
    interval_s: Above0 = 15.0
