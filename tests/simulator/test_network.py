"""The fluid network: closed forms, an independent model of it, conservation, theory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.network.links import Link
from simulator.network.transfers import Network, Transfer

GB = 1e9
EXACT = 1e-12


def link(gb_per_s: float = 1.0, latency_s: float = 0.0, name: str = "link") -> Link:
    return Link(name, gb_per_s * GB, latency_s)


def ends_s(network: Network) -> list[float]:
    """When each transfer ends, in the order they were started."""
    ended = sorted(network.advance(math.inf), key=lambda transfer: transfer.number)
    return [transfer.end_s for transfer in ended if transfer.end_s is not None]


# -- closed forms ----------------------------------------------------------------------------------------------------


def test_alone_it_takes_all_latencies_and_the_narrowest_link() -> None:
    network = Network()
    network.start((link(10, 1e-6), link(2, 3e-6), link(5, 2e-6)), 1e9, 1.0)
    assert ends_s(network) == pytest.approx([1.0 + 6e-6 + 0.5], rel=EXACT)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_equal_ones_that_start_together_end_together(n: int) -> None:
    network, path = Network(), (link(4, 1e-6),)
    for _ in range(n):
        network.start(path, 1e8, 0.0)
    assert ends_s(network) == pytest.approx([1e-6 + n * 1e8 / 4e9] * n, rel=EXACT)


def test_a_short_one_joins_a_long_one() -> None:
    """1 s alone, 2 s at half the rate while the short one is there, 2 s alone: 4 GB in all."""
    network, path = Network(), (link(1),)
    network.start(path, 4 * GB, 0.0)
    network.start(path, 1 * GB, 1.0)
    assert ends_s(network) == pytest.approx([5.0, 3.0], rel=EXACT)


def test_what_one_link_holds_back_is_left_to_others_on_the_next() -> None:
    """Two cross the narrow link, one of them the wide one too: a third there has all but that one's half."""
    network = Network()
    narrow, wide = link(1, name="narrow"), link(10, name="wide")
    first = network.start((narrow,), 1 * GB, 0.0)
    both = network.start((narrow, wide), 1 * GB, 0.0)
    third = network.start((wide,), 19 * GB, 0.0)
    network.advance(0.0)
    assert [network.rate_bytes_per_s(t) / GB for t in (first, both, third)] == pytest.approx([0.5, 0.5, 9.5])
    assert ends_s(network) == pytest.approx([2.0, 2.0, 2.0], rel=EXACT)


def test_a_chain_of_links_as_in_the_textbook() -> None:
    """One transfer over n links, one more on each: all have half (Bertsekas and Gallager, section 6.5.2)."""
    network = Network()
    links = [link(1, name=str(i)) for i in range(5)]
    transfers = [network.start(tuple(links), GB, 0.0), *(network.start((each,), GB, 0.0) for each in links)]
    network.advance(0.0)
    assert [network.rate_bytes_per_s(t) / GB for t in transfers] == pytest.approx([0.5] * 6)


def test_latency_is_taken_before_the_first_byte_and_disturbs_nobody() -> None:
    network, path, far = Network(), (link(1),), (link(1, 0.5, "far"),)
    shared = path[0]
    network.start((shared,), 1 * GB, 0.0)
    network.start((shared, *far), 1 * GB, 0.5)
    assert ends_s(network) == pytest.approx([1.0, 2.0], rel=EXACT)


def test_no_bytes_take_the_latency_and_no_links_take_no_time() -> None:
    network = Network()
    network.start((link(1, 1e-6), link(1, 2e-6)), 0, 1.0)
    network.start((), 1e12, 1.0)
    assert ends_s(network) == [1.0 + (1e-6 + 2e-6), 1.0]
    assert network.links == ()


# -- the order of events ---------------------------------------------------------------------------------------------


def test_it_can_be_told_of_starts_ahead_of_time() -> None:
    """A caller whose clock is ahead starts first; the result is as if starts had come in order of time."""
    network, path = Network(), (link(1),)
    late = network.start(path, GB, 2.0)
    early = network.start(path, GB, 1.5)
    assert network.next_event_s() == 1.5
    assert network.advance(math.inf) == [early, late]
    assert (early.end_s, late.end_s) == pytest.approx((3.0, 3.5), rel=EXACT)


def test_advance_returns_what_ended_by_then() -> None:
    network, path = Network(), (link(1),)
    transfer = network.start(path, GB, 0.0, owner="decode 0")
    assert network.advance(0.999) == []
    assert network.next_event_s() == 1.0
    assert list(network.under_way.values()) == [transfer]
    assert network.advance(1.0) == [transfer]
    assert (transfer.end_s, transfer.carried_bytes, transfer.owner) == (1.0, GB, "decode 0")
    assert network.next_event_s() == math.inf
    assert not network.under_way


def test_those_that_end_at_one_moment_come_in_the_order_they_were_started() -> None:
    network = Network()
    a, b = link(1, name="a"), link(2, name="b")
    started = [network.start((a,), 1 * GB, 0.0), network.start((b,), 2 * GB, 0.0), network.start((), 1, 1.0)]
    assert network.advance(1.0) == started


def test_the_past_is_closed() -> None:
    network = Network()
    network.advance(2.0)
    with pytest.raises(AssertionError, match="cannot start at 1"):
        network.start((link(),), 1, 1.0)


def test_a_path_has_each_link_once() -> None:
    network, twice = Network(), link()
    network.start((twice, twice), 1, 0.0)
    with pytest.raises(AssertionError, match="crosses a link twice"):
        network.advance(0.0)


# -- cancellation ----------------------------------------------------------------------------------------------------


def test_a_cancelled_one_leaves_its_share_to_the_others() -> None:
    network, path = Network(), (link(1),)
    lost = network.start(path, 9 * GB, 0.0)
    other = network.start(path, 2 * GB, 0.0)
    network.cancel(lost, 2.0)
    assert network.advance(math.inf) == [other]
    assert (other.end_s, lost.end_s, lost.cancelled_s) == (3.0, None, 2.0)
    assert lost.carried_bytes == pytest.approx(1 * GB, rel=EXACT)
    assert network.carried_bytes(path[0], 3.0) == pytest.approx(3 * GB, rel=EXACT)


def test_cancelled_before_its_first_byte_it_carries_nothing() -> None:
    network = Network()
    transfer = network.start((link(1, 1.0),), GB, 0.0)
    network.cancel(transfer, 0.5)
    assert network.advance(math.inf) == []
    assert (transfer.cancelled_s, transfer.carried_bytes) == (0.5, 0.0)


def test_what_has_ended_cannot_be_cancelled() -> None:
    network = Network()
    transfer = network.start((link(1),), GB, 0.0)
    network.cancel(transfer, 1.0)
    assert network.advance(math.inf) == [transfer]
    assert (transfer.end_s, transfer.cancelled_s) == (1.0, None)


# -- the record of a link --------------------------------------------------------------------------------------------


def test_a_link_records_what_it_carried() -> None:
    network, narrow = Network(), link(1, name="narrow")
    wide = link(4, name="wide")
    network.start((narrow, wide), 1 * GB, 1.0)
    network.start((wide,), 6 * GB, 1.0)
    network.advance(10.0)
    at_s = np.array([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 10.0])
    assert network.carried_bytes(narrow, at_s) / GB == pytest.approx([0, 0, 0.5, 1, 1, 1, 1])
    assert network.carried_bytes(wide, at_s) / GB == pytest.approx([0, 0, 2, 4, 6, 7, 7])
    assert network.carried_bytes(link(name="another"), at_s).tolist() == [0.0] * 7
    with pytest.raises(AssertionError, match="ends at 10"):
        network.carried_bytes(wide, 11.0)


def test_bytes_are_counted_where_time_is_too_coarse() -> None:
    """A kilobyte takes 2 ns; after a day a float tells 15 ps from none, after a year 4 ns."""
    for start_s, rel in ((86_400.0, 1e-12), (3e7, 1e-12)):
        network, fast = Network(), link(500)
        for i in range(5):
            network.start((fast,), 1024.0, start_s + i)
        network.advance(math.inf)
        carried = network.carried_bytes(fast, [start_s - 1, start_s + 0.5, start_s + 1.5, network.now_s])
        assert carried == pytest.approx([0, 1024, 2048, 5120], rel=rel)


# -- random networks against a model of transfers one by one ---------------------------------------------------------


@dataclass
class Sent:
    path: tuple[int, ...]
    n_bytes: float
    start_s: float


N_LINKS = 5
CAPACITIES = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0]), min_size=N_LINKS, max_size=N_LINKS)
SENT = st.builds(
    Sent,
    path=st.lists(st.integers(0, N_LINKS - 1), min_size=1, max_size=3, unique=True).map(tuple),
    n_bytes=st.sampled_from([0.0, 1.0, 2.5, 4.0]) | st.floats(1e-6, 10),
    start_s=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 5),
)
ALL_SENT = st.lists(SENT, min_size=1, max_size=12)


def simulated(capacities: list[float], sent: list[Sent]) -> tuple[Network, list[Link], list[Transfer]]:
    """Links with latency 0, so that the model need not know it."""
    network, links = Network(), [Link(str(i), capacity, 0.0) for i, capacity in enumerate(capacities)]
    transfers = [network.start(tuple(links[i] for i in each.path), each.n_bytes, each.start_s) for each in sent]
    return network, links, transfers


def model_rates(capacities: list[float], paths: dict[int, tuple[int, ...]]) -> dict[int, float]:
    """Progressive filling, transfer by transfer and link by link, with no heap and no flows."""
    left, rates = dict(enumerate(capacities)), dict[int, float]()
    while len(rates) < len(paths):
        growing = {i: [k for k, path in paths.items() if i in path and k not in rates] for i in left}
        narrowest = min((i for i in left if growing[i]), key=lambda i: left[i] / len(growing[i]))
        rate = left[narrowest] / len(growing[narrowest])
        for k in growing[narrowest]:
            rates[k] = rate
            for i in paths[k]:
                left[i] -= rate
    return rates


def model_ends_s(capacities: list[float], sent: list[Sent]) -> list[float]:
    left = {k: each.n_bytes for k, each in enumerate(sent)}
    ends = {k: each.start_s for k, each in enumerate(sent) if not each.n_bytes}
    now_s = 0.0
    while len(ends) < len(sent):
        paths = {k: sent[k].path for k in left if k not in ends and sent[k].start_s <= now_s}
        rates = model_rates(capacities, paths)
        starts = [each.start_s - now_s for each in sent if each.start_s > now_s]
        step_s = min([left[k] / rate for k, rate in rates.items()] + starts)
        for k, rate in rates.items():
            left[k] -= rate * step_s
        now_s = min([s.start_s for s in sent if s.start_s > now_s and s.start_s - now_s == step_s] or [now_s + step_s])
        ends.update({k: now_s for k in rates if left[k] <= 1e-12})
    return [ends[k] for k in range(len(sent))]


@given(CAPACITIES, ALL_SENT)
def test_it_ends_transfers_when_the_model_does(capacities: list[float], sent: list[Sent]) -> None:
    network, _, _ = simulated(capacities, sent)
    assert ends_s(network) == pytest.approx(model_ends_s(capacities, sent), rel=1e-9, abs=1e-9)


@given(CAPACITIES, ALL_SENT, st.lists(st.tuples(st.integers(0, 11), st.floats(0, 8)), max_size=4))
def test_bytes_are_conserved(capacities: list[float], sent: list[Sent], cancels: list[tuple[int, float]]) -> None:
    """Each link has carried what its transfers have, those that were cancelled too."""
    network, links, transfers = simulated(capacities, sent)
    for k, at_s in cancels:
        network.cancel(transfers[k % len(transfers)], at_s)
    network.advance(math.inf)
    for used in links:
        expected = sum(t.carried_bytes or 0.0 for t in transfers if used in t.path)
        assert network.carried_bytes(used, network.now_s) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for transfer in transfers:
        assert (transfer.end_s is None) != (transfer.cancelled_s is None)
        assert 0 <= (transfer.carried_bytes or 0.0) <= transfer.n_bytes


@given(CAPACITIES, ALL_SENT, st.floats(0, 8))
def test_rates_are_max_min_fair(capacities: list[float], sent: list[Sent], now_s: float) -> None:
    """No link is above its capacity, and each transfer crosses a full one on which nobody gets more than it."""
    network, links, _ = simulated(capacities, sent)
    network.advance(now_s)
    flowing = [t for t in network.under_way.values() if t.start_s <= now_s]
    rates = {t.number: network.rate_bytes_per_s(t) for t in flowing}
    on = {each: [rates[t.number] for t in flowing if each in t.path] for each in links}
    for each, shares in on.items():
        assert sum(shares) <= each.bandwidth_bytes_per_s * (1 + 1e-9)
    for t in flowing:
        full = [each for each in t.path if sum(on[each]) >= each.bandwidth_bytes_per_s * (1 - 1e-9)]
        assert any(rates[t.number] >= max(on[each]) * (1 - 1e-9) for each in full)


@given(CAPACITIES, ALL_SENT, st.lists(st.floats(0, 20), max_size=8))
def test_when_it_is_asked_makes_no_difference(capacities: list[float], sent: list[Sent], asked_s: list[float]) -> None:
    at_once, _, _ = simulated(capacities, sent)
    in_parts, _, transfers = simulated(capacities, sent)
    for now_s in sorted(asked_s):
        in_parts.advance(now_s)
    in_parts.advance(math.inf)
    assert [t.end_s for t in transfers] == ends_s(at_once)


ON_ONE_LINK = st.lists(st.tuples(st.floats(0, 5), st.floats(1e-6, 5)), min_size=1, max_size=10)


def one_link_ends_s(sent: list[tuple[float, float]]) -> list[float]:
    network, path = Network(), (Link("one", 2.0, 0.0),)
    for start_s, n_bytes in sent:
        network.start(path, n_bytes, start_s)
    return ends_s(network)


@given(ON_ONE_LINK, st.tuples(st.floats(0, 5), st.floats(1e-6, 5)))
def test_on_one_link_one_more_makes_nobody_earlier(sent: list[tuple[float, float]], more: tuple[float, float]) -> None:
    with_it = one_link_ends_s([*sent, more])[:-1]
    for before_s, after_s in zip(one_link_ends_s(sent), with_it, strict=True):
        assert after_s >= before_s * (1 - EXACT)


@given(ON_ONE_LINK)
def test_a_link_never_idles_while_it_has_work(sent: list[tuple[float, float]]) -> None:
    """The last end is that of a queue served one by one, in any order."""
    free_s = 0.0
    for start_s, n_bytes in sorted(sent):
        free_s = max(free_s, start_s) + n_bytes / 2.0
    assert max(one_link_ends_s(sent)) == pytest.approx(free_s, rel=1e-12)


# -- the documentation -----------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "network.md").read_text()
    code, output = (text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    exec(code, {})
    assert capsys.readouterr().out == output


# -- theory and work -------------------------------------------------------------------------------------------------


def test_a_link_is_a_processor_sharing_queue() -> None:
    """Poisson starts, exponential sizes: the mean time of a transfer is 1 / (mu - lambda).

    M/M/1-PS (Kleinrock, Queueing Systems vol. 2, section 4.4); within three standard errors of replications.
    """
    mu_per_s, lambda_per_s = 100.0, 60.0
    means_s = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        starts_s = np.cumsum(rng.exponential(1 / lambda_per_s, 3000))
        sizes = rng.exponential(GB / mu_per_s, 3000)
        network, path = Network(), (link(1),)
        for start_s, n_bytes in zip(starts_s, sizes, strict=True):
            network.start(path, float(n_bytes), float(start_s))
        means_s.append(np.mean((np.array(ends_s(network)) - starts_s)[300:]))
    standard_error_s = np.std(means_s, ddof=1) / np.sqrt(len(means_s))
    assert abs(np.mean(means_s) - 1 / (mu_per_s - lambda_per_s)) < 3 * standard_error_s


def test_an_event_costs_the_flows_and_not_the_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 transfers over two paths: no rate is shared out among more than two flows."""
    sizes = []
    shared_out = Network._share

    def spied(network: Network, touched: dict) -> None:  # type: ignore[type-arg]
        sizes.append(len(network._flows))
        shared_out(network, touched)

    monkeypatch.setattr(Network, "_share", spied)
    network, common = Network(), link(1, name="common")
    paths = [(common, link(1, name="a")), (common, link(1, name="b"))]
    for i in range(2000):
        network.start(paths[i % 2], 1e6 + i, i * 1e-4)
    assert len(network.advance(math.inf)) == 2000
    assert max(sizes) == 2
    assert len(sizes) <= 4000
