"""What the server counted, against what the capture's requests add up to: the same, or others were served meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from collectors.server.scrape_file import Scrapes
from traces.outcome import Outcome, Status


def disagreements(outcomes: Sequence[Outcome], scrapes: Scrapes) -> Iterator[str]:
    """Counters whose growth between the first scrape and the last is not the requests' sum.

    None where that cannot be told: requests were under way at one of the two, or one of ours did not finish.
    """
    if not _quiet_at_both_ends(scrapes) or any(outcome.status is not Status.FINISHED for outcome in outcomes):
        return
    sums = {
        "prompt_tokens": _sum([outcome.prompt_tokens for outcome in outcomes]),
        "generation_tokens": _sum([outcome.output_tokens for outcome in outcomes]),
        "num_preemptions": _sum([outcome.num_preemptions for outcome in outcomes]),
        "prefix_cache_hits": _sum([outcome.cached_tokens for outcome in outcomes]),
    }
    for name, own in sums.items():
        counted = scrapes.delta(name)
        if own is not None and counted is not None and counted != own:
            yield f"the server counted {counted:.0f} {name} and the requests of this capture have {own}"


def _quiet_at_both_ends(scrapes: Scrapes) -> bool:
    """Whether nothing ran and nothing waited at the first scrape and at the last."""
    states = [scrapes.series(name)[1] for name in ("num_requests_running", "num_requests_waiting")]
    return all(len(values) > 1 and values[0] == values[-1] == 0 for values in states)


def _sum(counts: Sequence[int | None]) -> int | None:
    """The sum; None when one of them is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
