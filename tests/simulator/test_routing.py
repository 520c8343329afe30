"""Routers: whom they choose, what they look at, how they break ties, and what a user's own class may be."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.routing import ROUTERS, InstanceState, Router, new_router
from simulator.vllm_dp import Report
from traces.errors import InputError
from traces.trace import TraceRow


@dataclass
class Seen:
    """An instance as a router sees it."""

    n_waiting: int = 0
    n_running: int = 0
    max_num_seqs: int = 8
    kv_usage: float = 0.0
    block_size: int = 16
    cached: Sequence[int] = field(default_factory=tuple)
    number: int = 0

    def cached_blocks(self, hashes: Sequence[int]) -> int:
        found = 0
        while found < min(len(hashes), len(self.cached)) and hashes[found] == self.cached[found]:
            found += 1
        return found

    def take_reports(self) -> list[Report]:
        return []


ROW = TraceRow(request_id="r", arrival_s=0.0, prompt_tokens=64, output_tokens=8)


def choices(
    router: Router, instances: Sequence[InstanceState], n: int, row: TraceRow = ROW, hashes: Sequence[int] = ()
) -> list[int]:
    return [router.choose(row, hashes, instances, 0.0) for _ in range(n)]


def test_round_robin_goes_round() -> None:
    router = new_router("round_robin")
    assert choices(router, [Seen()] * 3, 7) == [0, 1, 2, 0, 1, 2, 0]
    assert not router.reads_state


def test_random_is_even_and_repeats_with_its_seed() -> None:
    instances = [Seen()] * 4
    drawn = choices(new_router("random", seed=7), instances, 4000)
    assert drawn == choices(new_router("random", seed=7), instances, 4000)
    assert drawn != choices(new_router("random", seed=8), instances, 4000)
    assert all(900 < count < 1100 for count in Counter(drawn).values())


@pytest.mark.parametrize(
    ("instances", "least"),
    [
        ([Seen(0, 5), Seen(1, 0)], 1),  # one waiting counts as four running
        ([Seen(0, 3), Seen(1, 0)], 0),
        ([Seen(0, 4, 8), Seen(0, 5, 32)], 1),  # by seat: 4 of 8 is fuller than 5 of 32
        ([Seen(2, 0, 64), Seen(0, 3, 8)], 0),
    ],
)
def test_least_loaded_weighs_waiting_by_seat(instances: list[Seen], least: int) -> None:
    router = new_router("least_loaded")
    assert choices(router, instances, 3) == [least] * 3
    assert router.reads_state


def test_least_loaded_breaks_ties_in_turn() -> None:
    assert choices(new_router("least_loaded"), [Seen(), Seen(), Seen(0, 1)], 4) == [0, 1, 0, 1]


def test_of_two_the_less_loaded_is_taken_and_the_most_loaded_of_all_never() -> None:
    instances = [Seen(9, 8), Seen(0, 0), Seen(0, 1), Seen(0, 2)]
    drawn = Counter(choices(new_router("power_of_two", seed=1), instances, 3000))
    assert drawn[0] == 0
    # The least loaded is chosen whenever it is among the two: in 3 of 6 pairs; the next in 2, the next in 1.
    assert [drawn[i] / 3000 for i in (1, 2, 3)] == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=0.03)
    assert choices(new_router("power_of_two"), [Seen()], 2) == [0, 0]


def session(name: str | None) -> TraceRow:
    return TraceRow(request_id="r", arrival_s=0.0, prompt_tokens=64, output_tokens=8, session_id=name)


def numbered(numbers: Iterable[int]) -> list[Seen]:
    return [Seen(number=number) for number in numbers]


def test_a_session_stays_where_it_is_and_sessions_spread() -> None:
    router = new_router("session_affinity")
    instances = numbered(range(4))
    where = {f"s{i}": router.choose(session(f"s{i}"), (), instances, 0.0) for i in range(400)}
    again = new_router("session_affinity")
    assert where == {name: again.choose(session(name), (), instances, 9.0) for name in where}
    assert all(70 < count < 130 for count in Counter(where.values()).values())
    assert choices(router, instances, 5, session(None)) == [0, 1, 2, 3, 0]
    assert not router.reads_state


def test_sessions_move_only_to_a_new_instance_or_from_one_that_goes() -> None:
    router = new_router("session_affinity")

    def where(name: str, numbers: Iterable[int]) -> int:
        instances = numbered(numbers)
        return instances[router.choose(session(name), (), instances, 0.0)].number

    for i in range(200):
        before, more, fewer = (where(f"s{i}", numbers) for numbers in (range(4), range(5), (0, 2, 3)))
        assert more in (before, 4)
        assert fewer == before or before == 1


HASHES = (11, 12, 13, 14, 15)  # of a prompt of 64 tokens, four blocks, and one of the answer


@pytest.mark.parametrize(
    ("instances", "chosen"),
    [
        ([Seen(0, 0), Seen(3, 8, cached=(11, 12))], 1),  # half of the prompt, and not too busy
        ([Seen(0, 0, cached=(11, 12)), Seen(0, 8, cached=(11, 12, 13))], 1),  # the longest prefix
        ([Seen(0, 5, cached=(11, 12)), Seen(0, 4, cached=(11, 12))], 1),  # of equals the less loaded
        ([Seen(0, 0), Seen(0, 8, cached=(11,))], 0),  # a quarter is not enough
        ([Seen(0, 0), Seen(60, 8, cached=(11, 12))], 0),  # 68 over 0: too uneven
        ([Seen(32, 32), Seen(64, 64, cached=(11, 12))], 1),  # 64 over 64 is not more than 64
        ([Seen(150, 50), Seen(220, 50, cached=(11, 12))], 1),  # 70 over 200, but not half as much again
        ([Seen(0, 2, 4), Seen(0, 4, 64)], 1),  # nothing cached: the least loaded by seat
    ],
)
def test_prefix_aware_goes_to_the_cache_within_bounds_of_load(instances: list[Seen], chosen: int) -> None:
    assert choices(new_router("prefix_aware"), instances, 1, hashes=HASHES) == [chosen]


def test_only_the_prompt_counts_as_prefix() -> None:
    """The answer's blocks have hashes too; 4 of the prompt's 4 blocks are no less than 5 of all 5."""
    instances = [Seen(0, 0, cached=HASHES[:4]), Seen(0, 1, cached=HASHES)]
    assert choices(new_router("prefix_aware"), instances, 1, hashes=HASHES) == [0]


def test_unequal_block_sizes_are_compared_in_tokens() -> None:
    instances = [Seen(cached=(11, 12), block_size=16), Seen(cached=(11,), block_size=64)]
    assert choices(new_router("prefix_aware"), instances, 1, hashes=HASHES) == [1]


@pytest.mark.parametrize(
    ("option", "value", "chosen"),
    [("cache_threshold", 0.6, 0), ("balance_abs_threshold", 5, 0), ("balance_rel_threshold", 1.2, 1)],
)
def test_options_of_prefix_aware_change_its_choice(option: str, value: float, chosen: int) -> None:
    instances = [Seen(0, 2), Seen(3, 8, cached=(11, 12))]
    assert choices(new_router("prefix_aware"), instances, 1, hashes=HASHES) == [1]
    router = new_router("prefix_aware", options={option: value})
    assert choices(router, instances, 1, hashes=HASHES) == [chosen]


def test_both_bounds_of_load_must_be_exceeded() -> None:
    instances = [Seen(0, 20), Seen(0, 29, cached=(11, 12))]
    both = {"balance_abs_threshold": 5, "balance_rel_threshold": 1.2}
    assert choices(new_router("prefix_aware", options=both), instances, 1, hashes=HASHES) == [0]
    one = {"balance_abs_threshold": 5}
    assert choices(new_router("prefix_aware", options=one), instances, 1, hashes=HASHES) == [1]


@given(
    st.sampled_from(sorted(ROUTERS)),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99)), min_size=1, max_size=5),
    st.lists(st.sampled_from([None, "a", "b"]), max_size=20),
)
def test_every_router_chooses_an_instance_and_repeats_itself(
    name: str, states: list[tuple[int, int, int]], sessions: list[str | None]
) -> None:
    instances = [Seen(n_waiting=w, n_running=r, max_num_seqs=m) for w, r, m in states]
    runs = [
        [router.choose(session(s), HASHES, instances, 0.03 * i) for i, s in enumerate(sessions)]
        for router in (new_router(name, seed=3), new_router(name, seed=3))
    ]
    assert runs[0] == runs[1]
    assert all(0 <= chosen < len(instances) for chosen in runs[0])


@pytest.mark.parametrize("name", [name for name in ROUTERS if not new_router(name).reads_state])
def test_a_router_that_reads_no_state_is_given_none(name: str) -> None:
    """It gets objects that have a number and nothing else to read."""
    nothing = [SimpleNamespace(number=i) for i in range(3)]
    assert new_router(name).choose(session("a"), HASHES, nothing, 0.0) in range(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("round_robbin", {}, "'round_robin' is the nearest known name"),
        ("least-loaded", {}, "'least_loaded' is the nearest"),
        ("", {}, "module:Class"),
        (":Class", {}, "module:Class"),
        ("module:", {}, "module:Class"),
        ("no_such_module_at_all:Class", {}, "ModuleNotFoundError"),
        ("simulator.routing:RoundRobbin", {}, "'RoundRobin' is the nearest"),
        ("simulator.routing:load", {}, "has no class 'load'"),
        ("simulator.routing:RoundRobin", {}, "a class that can be called with seed"),
        ("collections:Counter", {}, "is no router"),
        ("round_robin", {"cache_threshold": 0.5}, "routing.cache_threshold"),
        ("prefix_aware", {"cache_treshold": 0.5}, "'cache_threshold' is the nearest"),
        ("prefix_aware", {"cache_threshold": "0.5"}, "a finite number"),
        ("prefix_aware", {"cache_threshold": float("nan")}, "a finite number"),
        ("vllm_dp", {"interval_s": -1}, "a finite number"),
        ("random", {"seed": 1}, "routing.seed"),
    ],
)
def test_what_makes_no_router_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        new_router(name, options=options)
    assert (caught.value.field or "").startswith("routing")


OWN = """
class Last:
    reads_state = False

    def __init__(self, seed, back=1):
        self.back = back

    def choose(self, row, hashes, instances, now_s):
        return len(instances) - self.back


class Broken:
    import no_such_thing_either
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_router.py").write_text(OWN.split("\n\n\nclass Broken")[0] + "\n")
    (tmp_path / "broken_router.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_router:Last"
    sys.modules.pop("own_router", None)


def test_a_users_own_class_routes(own: str) -> None:
    router = new_router(own, seed=1)
    assert choices(router, [Seen()] * 3, 2) == [2, 2]
    assert router.reads_state is False
    assert choices(new_router(own, options={"back": 2}), [Seen()] * 3, 1) == [1]


def test_a_users_class_that_chooses_nobody_is_an_error(own: str) -> None:
    with pytest.raises(InputError, match=r"own_router:Last chose for request 'r'.*found -1.*from 0 to 2"):
        choices(new_router(own, options={"back": 4}), [Seen()] * 3, 1)


@pytest.mark.usefixtures("own")
def test_a_module_that_fails_says_why() -> None:
    with pytest.raises(InputError, match="no_such_thing_either"):
        new_router("broken_router:Last")


def test_the_class_of_the_documentation_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()
    (tmp_path / "my_routers.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    router = new_router("my_routers:Shortest", seed=1)
    assert choices(router, [Seen(kv_usage=0.5), Seen(kv_usage=0.2)], 1) == [1]
    assert router.reads_state
    for name in ROUTERS:
        assert f"| `{name}` |" in text
