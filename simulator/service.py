"""Several engines behind a router while they serve a trace, in one virtual time.

Each engine keeps its own clock, and most of the time none needs to know the others: where requests can be dealt before
anything runs, each engine runs to its end alone. Where a choice depends on what engines are doing (a router that looks
at their queues, a request that waits for another's end), they take turns, the one that is furthest behind first, and
none runs past the next moment at which another could concern it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from functools import partial

import msgspec
import numpy as np

from simulator.agenda import Agenda
from simulator.assembly import beside_loads, check_together, new_handover, put_tiers, sessions_of, shared_links
from simulator.cluster import Cluster
from simulator.coupling import Coupling, Reach
from simulator.engine import Engine, Role
from simulator.fleet import Earlier, Failure, Fleet, earlier_of, scalings
from simulator.instance import Instance, Tell
from simulator.kv.tiers import Tier, tier_notes
from simulator.network.transfers import Network
from simulator.rank import Arrival, Part, Rank, token_times_s
from simulator.ranks import Ranks
from simulator.routing import reads
from simulator.scheduling.plan import StepPlan, without_drafts
from simulator.scheduling.request import Request, RequestStatus
from simulator.steps.contention import shared_notes
from simulator.turns import Turns
from traces.errors import EngineError
from traces.steps import Floats
from traces.trace import Trace, TraceRow


class Service:
    """A cluster while it serves a trace.

    Attributes:
        instances: its engines, in time.
        ranks: where requests can be sent, in the order of the engines.
        arrivals_s: when each request arrived, [n_requests].
        tiers: KV tiers of the ranks; a shared one once.
        earlier: what requests had that go on after a failure, by index.
    """

    def __init__(self, trace: Trace, cluster: Cluster, *, fast_forward: bool, names_batches: bool = True) -> None:
        """Nothing has happened yet. Raises InputError for what cannot be simulated together.

        Args:
            trace: the requests; without rows, they are sent from outside (`simulator.stream`).
            cluster: what serves them.
            fast_forward: run alike steps in one sweep.
            names_batches: keep which requests are in each step; without, engines still do who need it.
        """
        self.arrivals_s = [row.arrival_s for row in trace.rows]
        self.instances: list[Instance] = []
        self.tiers: list[Tier] = []
        self.earlier: dict[int, Earlier] = {}
        self._trace = trace
        self._routing = cluster.routing
        self._deadline_s = cluster.deadline_s
        self._sessions = sessions_of(trace, cluster)
        self._failures = cluster.failures
        self._goes_on = cluster.after_failure == "go_on"
        self._roles: list[Role] = [engine.role for engine in cluster.engines]
        self._scalings = scalings(cluster.autoscaling, self._roles)
        # Requests sent again, and how often each was.
        self._sent_again: Counter[int] = Counter()
        self._network = Network()
        ranks = self._ranks = Ranks(trace, cluster, names_batches=names_batches)
        self.ranks = ranks.all
        ways = [
            put_tiers(cluster, engine, own, ranks.places, self.tiers, self._network)
            for engine, own in zip(cluster.engines, ranks.of_engines, strict=True)
        ]
        self.handover = new_handover(cluster, ranks.places, self._network)
        # Step times of instances whose weights share links with KV of tiers, and whose collectives share links with KV
        # or with those of others, by instance.
        self._beside = beside_loads(cluster, ways)
        step_times = [self._beside.get(number, engine.step_time) for number, engine in enumerate(cluster.engines)]
        of_kv = set() if self.handover is None else self.handover.links(ranks.of("prefill"), ranks.of("decode"))
        self._shared = shared_links(cluster, step_times, of_kv, self._network)
        for number, (engine, own) in enumerate(zip(cluster.engines, ranks.of_engines, strict=True)):
            instance = Instance(
                own,
                self._shared.get(number, step_times[number]),
                steps_in_flight=engine.steps_in_flight,
                decode_stagger=engine.decode_stagger,
                beside=self._beside.get(number),
                fast_forward=fast_forward,
                on_finish=self._on_finish(engine),
                on_reserve=self._reserved if engine.role == "decode" else None,
                on_plan=self._on_plan(engine),
                on_step=self._shared[number].ran if number in self._shared else None,
            )
            self.instances.append(instance)
        self._first = ranks.pool("prefill" if self.handover else "both", cluster.seed)
        self._second = ranks.pool("decode", cluster.seed + 1)
        self._agenda = Agenda(len(self.instances))
        self._fleet = Fleet(self.instances, self._roles, self._scalings, self._agenda, self.handover)
        self._coupling = Coupling(self.instances, self._roles, self._agenda, self._shared, self._reach())
        check_together(cluster, self.ranks)

    def _reach(self) -> Reach:
        """Which others what an instance does can concern.

        Any of them with sessions, with a tier that they share, where KV shares links with steps, and where a decode
        instance sends requests back.
        """
        shares_a_tier = len(self.instances) > 1 and any(tier.file.shared for tier in self.tiers)
        sends_back = self.handover is not None and self.handover.may_fail
        if self._sessions is not None or shares_a_tier or self.shares_links or sends_back:
            return "any"
        return "none" if self.handover is None else "other_role"

    def run(self) -> None:
        """Serve the whole trace. Raises EngineError when a request can never go on, and says which."""
        if self._coupling.reach != "none" or self._failures or self._scalings:
            self._take_turns()
        elif self.reads_state:
            turns = self.turns()
            for index, row in enumerate(self._trace.rows):
                turns.go_on(row.arrival_s)
                turns.sent(self.send(index, row, row.arrival_s), row.arrival_s)
            turns.go_on(np.inf)
        else:
            for index, row in enumerate(self._trace.rows):
                self.send(index, row, row.arrival_s)
            self.advance(np.inf)
        self.check_done()

    def n_sent_again(self, index: int) -> int:
        """How often a request was sent again, after a failure or for KV that was lost."""
        return self._sent_again[index]

    @property
    def reads_state(self) -> bool:
        """Whether a request's rank depends on what engines are doing when it arrives."""
        return self._first.reads_state

    def turns(self) -> Turns:
        """The engines for a router that looks at them, and at nothing of them that it does not say."""
        return Turns(self.instances, reads(self._first.router))

    def advance(self, until_s: float) -> None:
        """Let each engine go on until it would have to know what arrives from this moment on."""
        for instance in self.instances:
            while instance.now_s < until_s and instance.step(until_s):
                pass

    def check_done(self) -> None:
        """Raise EngineError when a request can never go on."""
        for instance in self.instances:
            instance.check_done()
        if self.handover is not None and (prompt := self.handover.waiting) is not None:
            request_id, target = self._trace.rows[prompt.index].request_id, prompt.target
            raise EngineError(
                f"the simulation is stuck: request {request_id!r} waits for KV from instance {prompt.source.number}"
                + ("" if target is None else f" on instance {target.number}")
            )

    def notes(self) -> list[str]:
        """What a reader should know of how requests were dealt and what was sent."""
        notes = []
        if len(self.ranks) > 1:
            notes.append(f"{len(self.ranks)} instances, requests routed by {self._routing}")
        if self.handover is not None:
            notes += self.handover.notes()
        notes += shared_notes(self._shared.values(), has_kv=self.handover is not None)
        notes += [one.note() for one in self._beside.values() if one.has_weights]
        if self._failures:
            n_again = self._sent_again.total()
            notes.append(f"{len(self._failures)} failures of instances; {n_again} requests sent again")
        if self._goes_on:
            n_tokens = sum(len(one.token_times_s) for one in self.earlier.values())
            notes.append(f"{len(self.earlier)} of them went on behind {n_tokens} tokens that had come")
        notes += self._fleet.notes()
        if self.tiers and self.handover is not None:
            notes.append("KV tiers stand behind prefill instances alone")
        return [*notes, *tier_notes(self.tiers)]

    @property
    def shares_links(self) -> bool:
        """Whether KV between instances shares links with their collectives, or with a store behind one of them."""
        return bool(self._shared) or self._network.is_shared

    def send(self, index: int, row: TraceRow, time_s: float) -> Rank:
        """Send an arriving request to the rank that the router chooses. Returns it."""
        until_s = self._until_s(index, row)
        rank = self._first.choose(row, time_s)
        part = Part.WHOLE
        if self.handover is not None:
            # What leaves as it is computed must know where to go.
            target = self._second_rank(index, time_s) if self.handover.is_layer_by_layer else None
            self.handover.begin(index, rank, target)
            row, part = msgspec.structs.replace(row, output_tokens=1), Part.PROMPT
        rank.submit(Arrival(time_s, row, index, self._ranks.hashes(row, rank), part, until_s))
        return rank

    def _row(self, index: int) -> TraceRow:
        """A request as it is sent: after a failure, with the tokens that came in its prompt."""
        row = self._trace.rows[index]
        return row if index not in self.earlier else self.earlier[index].rest_of(row)

    def _second_rank(self, index: int, time_s: float) -> Rank:
        """The decode rank that the router chooses for a request."""
        return self._second.choose(self._row(index), time_s)

    def _until_s(self, index: int, row: TraceRow) -> float:
        """When the client of a request gives it up."""
        if self._deadline_s is None:
            return np.inf
        return (self.arrivals_s[index] if self.arrivals_s else row.arrival_s) + self._deadline_s

    # -- in turns ----------------------------------------------------------------------------------------------

    def _take_turns(self) -> None:
        """Handle events in order of time, and between them let the instance that is furthest behind go on."""
        arrivals = enumerate(self._trace.rows)
        starts = self._sessions.initial() if self._sessions else [(row.arrival_s, index) for index, row in arrivals]
        for time_s, index in starts:
            self._agenda.at(time_s, partial(self._arrive, index))
        for failure in self._failures:
            self._agenda.at(failure.at_s, partial(self._fail, failure))
        self._fleet.begin()
        while True:
            sent_s = self.handover.next_event_s() if self.handover else np.inf
            told_s, turn_s = self._agenda.next_event_s, self._agenda.next_turn_s
            event_s = min(sent_s, told_s)
            if event_s == turn_s == np.inf:
                return
            if event_s > turn_s:
                self._let_one_go_on(event_s)
            elif sent_s <= told_s:
                self._receive(sent_s)
            else:
                self._agenda.happen()

    def _let_one_go_on(self, until_s: float) -> None:
        """Let the instance that is furthest behind take its turn, at most until another could concern it."""
        number = self._agenda.take_turn()
        instance = self.instances[number]
        until_s = self._coupling.begin_turn(number, until_s)
        if instance.step(until_s):
            self._agenda.wake(number, instance.now_s)
        else:
            self._agenda.asleep.add(number)

    def _arrive(self, index: int, time_s: float) -> None:
        self.arrivals_s[index] = time_s
        self._find_home(index, time_s)

    def _find_home(self, index: int, time_s: float) -> None:
        """Send a request, as soon as there is an instance for it."""
        needed = [self._first]
        if self.handover is not None and self.handover.is_layer_by_layer:
            needed.append(self._second)
        if all(pool.has_alive for pool in needed):
            self._wake(self.send(index, self._row(index), time_s), time_s)
        else:
            self._fleet.wait(partial(self._find_home, index))

    def _wake(self, rank: Rank, time_s: float) -> None:
        """Something has changed for a rank: its instance looks again, as soon as it can."""
        number = self._ranks.instance_of[rank.number]
        if number in self._agenda.asleep:
            instance = self.instances[number]
            instance.now_s = max(instance.now_s, time_s)
            self._agenda.wake(number, instance.now_s)

    def _on_finish(self, engine: Engine) -> Tell | None:
        """What is to be told of the requests that have ended on an engine."""
        match engine.role:
            case "prefill":
                return self._prefilled
            case "decode":
                return self._answered
            case "both":
                return self._finished if self._sessions is not None else None

    def _finished(self, _: Rank, request: Request, time_s: float) -> None:
        """A request has ended: others of its session may have waited for that."""
        if self._sessions is not None:
            for starts_s, index in self._sessions.finished(request.index, time_s):
                self._agenda.at(starts_s, partial(self._arrive, index))

    # -- instances that fail ------------------------------------------------------------------------------------

    def _fail(self, failure: Failure, time_s: float) -> None:
        """An instance fails: its requests go to others, and it comes back later."""
        number = failure.instance
        instance, role = self.instances[number], self._roles[number]
        was_used = self._fleet.fail(number)
        had = [(rank, request) for rank in instance.ranks for request in rank.requests if request.is_open]
        others: list[int] = []
        if self.handover is not None:
            ends = self.handover.source_fails if role == "prefill" else self.handover.target_fails
            others, told = ends(instance.ranks, time_s)
            self._wake_all(told, time_s)
        ended_s = max(time_s, instance.now_s)
        lost = instance.fail(time_s, failure.for_s)
        if number in self._shared:
            self._shared[number].stop(time_s)
        self._agenda.stop(number)
        if self._goes_on and role != "prefill":
            self._keep_tokens(had)
        again = list(dict.fromkeys([*lost, *others]))
        self._sent_again.update(again)
        self._withdraw(set(again), time_s)
        for index in again:
            # Tokens that came with the step under way are known when it has ended.
            if index in self.earlier and ended_s > time_s:
                self._agenda.at(ended_s, partial(self._find_home, index))
            else:
                self._find_home(index, time_s)
        self._agenda.at(time_s + failure.for_s, partial(self._fleet.come_back, number, was_used=was_used))

    def _keep_tokens(self, had: list[tuple[Rank, Request]]) -> None:
        """Remember what came of requests whose instance has failed."""
        for rank, request in had:
            times_s = token_times_s(request, rank.record.end_column_s(), rank.record.n_dropped)
            if not len(times_s):
                continue
            legs = [*self._prompts_of(request.index), request]
            known = self.earlier.get(request.index)
            self.earlier[request.index] = earlier_of(legs, times_s) if known is None else known.then(legs, times_s)

    def _prompts_of(self, index: int) -> list[Request]:
        """A request on the prefill instance that computed its prompt."""
        if self.handover is None:
            return []
        return [request for rank in self._first.ranks for request in rank.requests if request.index == index]

    def _withdraw(self, indices: Collection[int], time_s: float) -> None:
        """Take requests back from wherever they still are: they are sent again."""
        for rank in self.ranks if self.handover is not None else ():
            if rank.withdraw(indices, time_s):
                self._wake(rank, time_s)

    def _send_again(self, index: int, time_s: float) -> None:
        """A request's KV cannot be had: take it back and send it through a prefill instance again."""
        self._sent_again[index] += 1
        self._withdraw({index}, time_s)
        self._find_home(index, time_s)

    # -- from prefill to decode --------------------------------------------------------------------------------

    def _on_plan(self, engine: Engine) -> Callable[[StepPlan, Floats, Floats], None] | None:
        """What is to be told of the plans that an engine's ranks run."""
        handover = self.handover
        if handover is None or not handover.is_layer_by_layer or engine.role != "prefill":
            return None

        def planned(plan: StepPlan, scheduled_s: Floats, end_s: Floats) -> None:
            """What a prefill rank computes can leave."""
            handover.planned(without_drafts(plan), scheduled_s, end_s)

        return planned

    def _prefilled(self, rank: Rank, request: Request, time_s: float) -> None:
        """A prompt is computed, or was refused or given up: what comes of it concerns a decode rank, or nobody."""
        assert self.handover is not None
        if request.status is not RequestStatus.FINISHED:
            self.handover.drop(request)
            self._finished(rank, request, time_s)
        else:
            self.handover.ended(request)
            there_s = time_s + self.handover.way_s
            self._agenda.at(there_s, partial(self._go_on, rank, request, self._sent_again[request.index]))

    def _go_on(self, rank: Rank, request: Request, sending: int, time_s: float) -> None:
        """Send a request whose prompt is computed to its decode rank, unless it was sent again meanwhile."""
        assert self.handover is not None
        if sending != self._sent_again[request.index]:
            return
        if self.handover.target(request.index) is None and not self._second.has_alive:
            self._fleet.wait(partial(self._go_on, rank, request, sending))
            return
        row = self._row(request.index)
        target = self.handover.target(request.index) or self._second_rank(request.index, time_s)
        is_kept = self.handover.computed(rank, request, target)
        part = Part.ANSWER if is_kept else Part.WHOLE
        hashes, until_s = self._ranks.hashes(row, target), self._until_s(request.index, row)
        target.submit(Arrival(time_s, row, request.index, hashes, part, until_s))
        self._wake(target, time_s)
        if is_kept:
            self._wake_all(self.handover.settle(request), time_s)
            self._look_for_failed(time_s)

    def _reserved(self, _: Rank, request: Request, time_s: float) -> None:
        """A decode rank has reserved blocks: the KV can come."""
        assert self.handover is not None
        self.handover.reserved(request, time_s)
        self._look_for_failed(time_s)

    def _look_for_failed(self, time_s: float) -> None:
        """Send requests again whose KV was lost on the way, where decode instances do not compute it."""
        assert self.handover is not None
        for index in self.handover.take_failed():
            self._agenda.at(time_s, partial(self._send_again, index))

    def _answered(self, rank: Rank, request: Request, time_s: float) -> None:
        """An answer is complete, or was refused or given up, so that nobody will read the KV of its prompt."""
        assert self.handover is not None
        if (source := self.handover.drop(request)) is not None:
            self._wake(source, time_s)
        self._finished(rank, request, time_s)

    def _receive(self, time_s: float) -> None:
        """Some KV has arrived, or moves faster or slower from now on."""
        assert self.handover is not None
        self._wake_all(self.handover.advance(time_s), time_s)
        self._look_for_failed(time_s)

    def _wake_all(self, ranks: list[Rank], time_s: float) -> None:
        for rank in ranks:
            self._wake(rank, time_s)
