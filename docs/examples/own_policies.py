"""Rules of one's own, for own_policies.yaml: Python finds them when this folder is on PYTHONPATH."""

from collections.abc import Sequence

from simulator.kv.kv_cache import BlockHash, Run
from simulator.routing import InstanceState
from simulator.scheduling.request import Request
from traces.trace import TraceRow


class ShortestFirst:
    """Short prompts first."""

    def key(self, request: Request) -> tuple[int, int]:
        """Length; the index tells equal ones apart."""
        return request.row.prompt_tokens, request.index


class KeepPopular:
    """Evict first what was freed least often: what few requests have shared."""

    def __init__(self) -> None:
        self._times: dict[BlockHash | None, int] = {}

    def freed(self, run: Run) -> float:
        """How often it has become free."""
        self._times[run.hash] = self._times.get(run.hash, 0) + 1
        return self._times[run.hash]


class LongestQueue:
    """A router that does its worst, to see how much the router matters."""

    reads_state = True

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def choose(self, row: TraceRow, hashes: Sequence[int], instances: Sequence[InstanceState], now_s: float) -> int:
        """The busiest."""
        return max(range(len(instances)), key=lambda i: instances[i].n_waiting + instances[i].n_running)
