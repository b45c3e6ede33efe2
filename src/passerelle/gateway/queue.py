"""The fair queue in front of a model: who runs next when more ask than can run.

There is one `FairQueue` for each model. It hands out at most ``capacity`` leases; whoever finds all taken waits in a
room of at most ``max_waiting`` places.

Fairness is start-time fair queueing (Goyal, Vin, Cheng, "Start-time Fair Queuing", 1996), on two levels: organisations
share what a model can do by weight, the keys of one organisation share its part by weight, and one key is served first
come, first served. Each flow has a virtual start time; the smallest is served, which moves that flow's next start by
cost / weight. A flow that was idle starts at the present virtual time: silence saves nothing up. Between any two flows
that keep waiting, what each got for its weight differs by at most one request of each. The virtual time is that of
WF2Q+ (Bennett, Zhang, "Hierarchical Packet Fair Queueing Algorithms", 1996): every turn moves it on, by cost over the
weight of all who wait. With the plain start time of the request in service an endless row of newcomers, each starting
at the same instant, would starve whoever has been served once.

Interactive requests go before jobs, but neither starves: while both wait, jobs get ``job_share`` of the turns (one in
ten), and every other turn once the next job has waited longer than ``job_patience_s``.

A full room sheds the heaviest. Whoever arrives pushes out the newest waiter of the flow that holds most of the room for
its weight, provided that the newcomer's own flow, with it, then holds no more than that one; else the newcomer is shed
itself, at once. So a flood costs its own senders their places, and a light flow always finds one. Jobs hold on to
``job_share`` of the room, and to no more against interactive requests.

Whoever is shed gets `Overloaded` with a Retry-After taken from the measured drain rate: leases that ended per second
while others waited, in an exponentially fading average.

Everything runs on one event loop, without locks. Cancelling a waiter frees its place in constant time, and a lease that
was granted to a waiter who was cancelled before it woke up goes to the next.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from math import ceil, exp, inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from passerelle.domain.errors import Overloaded, PasserelleError
from passerelle.gateway.shared import POLL_S, ModelCell

_MIN_WEIGHT = 1e-3

OnPosition = Callable[[int, float | None], None]
"""Hears a waiter's place (1 is next) and the seconds until its turn, None while no rate is known."""


class Priority(IntEnum):
    """Who goes first."""

    INTERACTIVE = 0
    """Somebody waits for the answer."""
    JOB = 1
    """Work that may take its time."""


class FlowKey(NamedTuple):
    """Whose request it is: what fairness is between."""

    organisation: str
    key: str


class Timer(Protocol):
    """What a scheduled call gives back."""

    def cancel(self) -> None:
        """The call is no longer wanted."""


CallLater = Callable[[float, Callable[[], None]], Timer]
"""Calls back after so many seconds."""


@dataclass(frozen=True, slots=True)
class QueueRules:
    """How a queue behaves, beside its size. Times in seconds."""

    job_share: float = 0.1
    job_patience_s: float = 30.0
    position_every_s: float = 1.0
    """How often waiters hear of their place."""
    rate_memory_s: float = 30.0
    """How far back the drain rate looks."""
    min_retry_after_s: float = 1.0
    max_retry_after_s: float = 60.0
    unknown_retry_after_s: float = 5.0
    """Retry-After while no rate has been measured."""


class Lease:
    """The right to run one request. ``waited_s`` is how long it queued. Release it when the answer is over."""

    __slots__ = ("_queue", "waited_s")

    def __init__(self, queue: FairQueue, waited_s: float) -> None:
        self._queue: FairQueue | None = queue
        self.waited_s = waited_s

    def release(self) -> None:
        """Gives the slot to the next; the second time does nothing."""
        queue = self._queue
        if queue is not None:
            self._queue = None
            queue.returned()


class Waiter:
    """One request in the room. ``position`` is its place as last computed, 1 for the next."""

    __slots__ = ("cost", "flow", "future", "on_position", "position", "priority", "since", "timer")

    def __init__(
        self, flow: Flow, priority: Priority, cost: float, since: float, future: asyncio.Future[Lease]
    ) -> None:
        self.flow = flow
        self.priority = priority
        self.cost = cost
        self.since = since
        self.future = future
        self.on_position: OnPosition | None = None
        self.position = 0
        self.timer: Timer | None = None


class Share:
    """One party to a fair sharing: its weight, its virtual times, and how many wait in it.

    ``start`` is the virtual time of its next turn, ``finish`` the end of its last; both only grow.
    """

    __slots__ = ("finish", "in_heap", "name", "order", "start", "waiting", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name = name
        self.weight = weight
        self.waiting = 0
        self.start = 0.0
        self.finish = 0.0
        self.order = 0
        self.in_heap = False


class Flow(Share):
    """The waiters of one key, first come, first served."""

    __slots__ = ("group", "waiters")

    def __init__(self, name: str, weight: float, group: Group[Flow]) -> None:
        super().__init__(name, weight)
        self.group = group
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()


C = TypeVar("C", bound=Share)


class Group(Share, Generic[C]):
    """Parties that share by start-time fair queueing: an organisation's keys, or a priority's organisations.

    The heap holds (start, order, child). A child's start only grows, so an entry may be too early, never too late: it
    is put right when it comes up, and entries of children that no longer wait are dropped then. Idle children are
    remembered while their last turn lies ahead of the virtual time, so that leaving and coming back gains nothing.
    """

    __slots__ = ("_heap", "_heaviest", "_now", "_order", "_sweep_at", "active_weight", "children")

    def __init__(self, name: str = "", weight: float = 1.0) -> None:
        super().__init__(name, weight)
        self.children: dict[str, C] = {}
        self.active_weight = 0.0
        """The sum of the weights of the children that wait."""
        self._clear()

    def _clear(self) -> None:
        self.children.clear()
        self.active_weight = 0.0
        self._heap: list[tuple[float, int, C]] = []
        self._now = 0.0
        self._order = 0
        self._heaviest: C | None = None
        self._sweep_at = 64

    def arrived(self, child: C, weight: float) -> None:
        """One more waits in ``child`` (which has counted it)."""
        self.waiting += 1
        if child.waiting == 1:
            child.weight = weight
            child.start = max(self._now, child.finish)
            self._order += 1
            child.order = self._order
            self.active_weight += weight
            if not child.in_heap:
                child.in_heap = True
                heappush(self._heap, (child.start, child.order, child))
        heaviest = self._heaviest
        if heaviest is not None and child.waiting * heaviest.weight > heaviest.waiting * child.weight:
            self._heaviest = child

    def departed(self, child: C) -> None:
        """One less waits in ``child`` (which has counted it)."""
        self.waiting -= 1
        if child is self._heaviest:
            self._heaviest = None
        if not self.waiting:
            self._clear()
        elif not child.waiting:
            self.active_weight -= child.weight
            if len(self.children) > self._sweep_at:
                self._sweep()

    def first(self) -> C:
        """Returns the child whose turn it is. Somebody must be waiting."""
        heap = self._heap
        while True:
            start, _, child = heap[0]
            if not child.waiting:
                heappop(heap)
                child.in_heap = False
                if child.finish <= self._now:
                    del self.children[child.name]
            elif start < child.start:
                heapreplace(heap, (child.start, child.order, child))
            else:
                return child

    def serve(self, child: C, cost: float) -> None:
        """Charges ``child``, the first, for its turn."""
        self._now = max(child.start, self._now + cost / self.active_weight)
        child.start = child.finish = child.start + cost / child.weight

    def heaviest(self) -> C | None:
        """Returns the child that holds the most places for its weight."""
        if self._heaviest is None and self.waiting:
            self._heaviest = max(self.children.values(), key=lambda child: child.waiting / child.weight)
        return self._heaviest

    def _sweep(self) -> None:
        """Forgets idle children that are owed nothing and owe nothing."""
        self.children = {n: c for n, c in self.children.items() if c.waiting or c.finish > self._now}
        for child in self.children.values():
            child.in_heap = child.waiting > 0
        self._heap = [(c.start, c.order, c) for c in self.children.values() if c.waiting]
        heapify(self._heap)
        self._sweep_at = max(64, 2 * len(self.children))


class DrainRate:
    """Leases that end per second while others wait, as an exponentially fading average over ``memory_s``."""

    __slots__ = ("_elapsed_s", "_ended", "_last", "_memory_s")

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._ended = 0.0
        self._elapsed_s = 0.0
        self._last = 0.0

    def resume(self, now: float) -> None:
        """Somebody waits again: the time since the last one did is not counted."""
        self._last = now

    def count(self, now: float, ended: int = 1) -> None:
        """``ended`` leases ended now."""
        passed_s = max(0.0, now - self._last)
        fade = exp(-passed_s / self._memory_s)
        self._ended = self._ended * fade + ended
        self._elapsed_s = self._elapsed_s * fade + passed_s
        self._last = now

    def per_s(self) -> float | None:
        """Returns the rate; None while nothing was measured."""
        return self._ended / self._elapsed_s if self._ended > 0.5 and self._elapsed_s > 0.0 else None


@dataclass(slots=True)
class QueueCounts:
    """What happened to those who came, since the start. Those who found a free slot are not counted."""

    granted: int = 0
    refused: int = 0
    """Shed on arrival: no place."""
    evicted: int = 0
    """Shed later, for a lighter flow."""
    expired: int = 0
    cancelled: int = 0


class FairQueue:
    """The leases and the waiting room of one model.

    ``capacity`` is the number of leases at a time, None for any number; ``max_waiting`` the places in the room.
    ``clock`` gives monotonic seconds, ``call_later`` schedules (by default the running event loop). ``cell`` is where
    several workers share a model: ``capacity`` then holds over all of them, and a queue whose waiters need what another
    worker frees looks for it every `POLL_S`.
    """

    def __init__(
        self,
        capacity: int | None,
        max_waiting: int,
        *,
        rules: QueueRules | None = None,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
        cell: ModelCell | None = None,
    ) -> None:
        self.cell = cell
        self.max_waiting = max_waiting
        self.active = 0
        """Leases that are out."""
        self.waiting = 0
        self.counts = QueueCounts()
        self._capacity: float = inf if capacity is None else capacity
        self._rules = rules or QueueRules()
        self._clock = clock
        self._call_later = call_later
        self._rate = DrainRate(self._rules.rate_memory_s)
        self._lines: tuple[Group[Group[Flow]], Group[Group[Flow]]] = (Group(), Group())
        self._job_credit = 0.0
        self._watching = 0
        self._announcing = False
        self._polling = False

    @property
    def capacity(self) -> int | None:
        """Leases that can be out at a time, None for any number."""
        return None if self._capacity == inf else int(self._capacity)

    def try_acquire(self) -> Lease | None:
        """Returns a lease if a slot is free and nobody waits; None otherwise. The fast path."""
        if self.waiting or self.active >= self._capacity:
            return None
        if self.cell is not None and not self.cell.take_free(self.active + 1, self._capacity):
            return None
        self.active += 1
        return Lease(self, 0.0)

    async def acquire(
        self,
        flow: FlowKey,
        *,
        weight: float = 1.0,
        organisation_weight: float = 1.0,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float = inf,
        cost: float = 1.0,
        on_position: OnPosition | None = None,
    ) -> Lease:
        """Returns a lease, after waiting for one if need be.

        ``weight`` is the key's among its organisation's, ``organisation_weight`` that among organisations; a thousandth
        at least. ``cost`` is what the request takes of a flow's share (1, or tokens: alike for all). ``deadline`` is
        monotonic seconds. ``on_position`` is called at once when the request has to wait, and about once a second then;
        it must not call back into the queue.

        Raises Overloaded when there is no place, when a lighter flow takes it, or when the deadline passes.
        """
        lease = self.try_acquire()
        if lease is not None:
            return lease
        weight, organisation_weight = max(weight, _MIN_WEIGHT), max(organisation_weight, _MIN_WEIGHT)
        waiter = self._enter(flow, weight, organisation_weight, priority, deadline, cost)
        if on_position is not None:
            self._watch(waiter, on_position)
        if self.cell is not None:
            self._poll()
        try:
            return await waiter.future
        except BaseException:
            self._abandon(waiter)
            raise

    def returned(self) -> None:
        """A lease ended; called by `Lease.release`."""
        self.active -= 1
        if self.cell is not None:
            self.cell.set_active(self.active)
        if self.waiting:
            self._rate.count(self._clock())
            self._grant()

    def resize(self, capacity: int | None) -> None:
        """Changes how many leases can be out. Fewer than are out now: nobody is cut, the next wait longer."""
        self._capacity = inf if capacity is None else capacity
        self._grant()

    def shed_all(self, error: Callable[[], PasserelleError]) -> None:
        """Sends everybody who waits away with an error of their own (shutting down, the model is gone)."""
        for waiter in self.order():
            self._remove(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(error())

    def depths(self) -> dict[tuple[Priority, FlowKey], int]:
        """Returns how many wait, by priority and flow."""
        return {
            (priority, FlowKey(group.name, flow.name)): flow.waiting
            for priority in Priority
            for group in self._lines[priority].children.values()
            for flow in group.children.values()
            if flow.waiting
        }

    def drain_rate_per_s(self) -> float | None:
        """Returns the leases that end per second while others wait; None while nothing was measured."""
        if self.waiting:
            self._rate.count(self._clock(), 0)
        return self._rate.per_s()

    def eta_s(self, position: int) -> float | None:
        """Returns the seconds until the waiter at ``position`` gets its turn; None while no rate is known."""
        rate = self.drain_rate_per_s()
        return None if rate is None else position / rate

    def retry_after_s(self, position: int | None = None) -> float:
        """Returns when to come back: when those before ``position`` (by default everybody) will have had their turn."""
        rules = self._rules
        eta_s = self.eta_s(self.waiting + 1 if position is None else position)
        if eta_s is None:
            return rules.unknown_retry_after_s
        return min(max(eta_s, rules.min_retry_after_s), rules.max_retry_after_s)

    def order(self) -> list[Waiter]:
        """Returns all who wait in the order in which they would get their turns if nobody else came.

        Costs a sort: for announcing places about once a second, not for each request.
        """
        interactive, jobs = (iter(_in_turn(line)) for line in self._lines)
        return list(self._merge(interactive, jobs))

    def _merge(self, interactive: Iterator[Waiter], jobs: Iterator[Waiter]) -> Iterator[Waiter]:
        credit, now = self._job_credit, self._clock()
        person, job = next(interactive, None), next(jobs, None)
        while person is not None and job is not None:
            credit += self._job_part(job, now)
            if credit >= 1.0:
                credit -= 1.0
                yield job
                job = next(jobs, None)
            else:
                yield person
                person = next(interactive, None)
        if person is not None:
            yield person
        if job is not None:
            yield job
        yield from interactive
        yield from jobs

    def _job_part(self, job: Waiter, now: float) -> float:
        """Returns the part of the turns that jobs get while ``job`` is the next of them."""
        # A little more than asked for, so that ten times a tenth is one in floating point as well.
        patient = now - job.since <= self._rules.job_patience_s
        return (self._rules.job_share if patient else max(0.5, self._rules.job_share)) + 1e-9

    def _enter(
        self, key: FlowKey, weight: float, organisation_weight: float, priority: Priority, deadline: float, cost: float
    ) -> Waiter:
        """Finds a place for a newcomer. Raises Overloaded."""
        now = self._clock()
        if deadline <= now:
            self.counts.expired += 1
            raise self._overloaded("The deadline passed before a model server was free; retry later.", None)
        if self.waiting >= self.max_waiting and not self._make_room(key, weight, organisation_weight, priority):
            self.counts.refused += 1
            raise self._overloaded("Too many requests are waiting for this model; retry later.", None)
        if not self.waiting:
            self._rate.resume(now)
            if self.cell is not None:
                self.cell.begin_waiting()
        loop = asyncio.get_running_loop()
        line = self._lines[priority]
        group = line.children.get(key.organisation)
        if group is None:
            group = line.children[key.organisation] = Group(key.organisation, organisation_weight)
        flow = group.children.get(key.key)
        if flow is None:
            flow = group.children[key.key] = Flow(key.key, weight, group)
        waiter = Waiter(flow, priority, cost, now, loop.create_future())
        flow.waiters[waiter] = None
        flow.waiting += 1
        group.arrived(flow, weight)
        line.arrived(group, organisation_weight)
        self.waiting += 1
        if self.cell is not None:
            self.cell.set_waiting(self.waiting)
        waiter.position = self._estimate(line, group, flow, priority)
        if deadline != inf:
            waiter.timer = (self._call_later or loop.call_later)(deadline - now, partial(self._expire, waiter))
        return waiter

    def _estimate(self, line: Group[Group[Flow]], group: Group[Flow], flow: Flow, priority: Priority) -> int:
        """Guesses the place of the newest of ``flow`` from shares alone, in constant time."""
        share = flow.weight / group.active_weight * group.weight / line.active_weight
        place = min(line.waiting, ceil(flow.waiting / share - 1e-6))
        others = self.waiting - line.waiting
        part = min(max(self._rules.job_share, 1e-3), 0.999)
        ratio = part / (1.0 - part) if priority is Priority.INTERACTIVE else (1.0 - part) / part
        return place + min(others, int(place * ratio))

    def _make_room(self, key: FlowKey, weight: float, organisation_weight: float, priority: Priority) -> bool:
        """Pushes somebody heavier out for a newcomer; False when nobody is."""
        line, jobs = self._lines[priority], self._lines[Priority.JOB]
        kept_for_jobs = ceil(self._rules.job_share * self.max_waiting)
        if priority is Priority.INTERACTIVE and jobs.waiting > kept_for_jobs:
            return self._evict(jobs.heaviest())
        if priority is Priority.JOB and jobs.waiting < kept_for_jobs:
            return self._evict(self._lines[Priority.INTERACTIVE].heaviest())
        own = line.children.get(key.organisation)
        heavy = line.heaviest()
        mine = ((own.waiting if own else 0) + 1) / organisation_weight
        if heavy is not None and heavy is not own and mine <= (heavy.waiting - 1) / heavy.weight:
            return self._evict(heavy)
        if own is None or (heaviest := own.heaviest()) is None:
            return False
        flow = own.children.get(key.key)
        mine = ((flow.waiting if flow else 0) + 1) / weight
        return heaviest is not flow and mine <= (heaviest.waiting - 1) / heaviest.weight and self._evict(own)

    def _evict(self, group: Group[Flow] | None) -> bool:
        """Pushes out the newest waiter of the heaviest flow of ``group``."""
        flow = group.heaviest() if group is not None else None
        if flow is None:
            return False
        waiter = next(reversed(flow.waiters))
        self._remove(waiter)
        if not waiter.future.done():
            self.counts.evicted += 1
            error = self._overloaded("Others, who have fewer requests waiting, go first; retry later.", waiter.position)
            waiter.future.set_exception(error)
        return True

    def _expire(self, waiter: Waiter) -> None:
        waiter.timer = None
        if waiter in waiter.flow.waiters:
            self._remove(waiter)
            if not waiter.future.done():
                self.counts.expired += 1
                text = "The deadline passed before a model server was free; retry later."
                waiter.future.set_exception(self._overloaded(text, None))

    def _abandon(self, waiter: Waiter) -> None:
        """The wait ended with an exception: the place, or the lease that nobody will use, goes to the others."""
        if waiter in waiter.flow.waiters:
            self.counts.cancelled += 1
            self._remove(waiter)
        elif waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
            self.counts.cancelled += 1
            waiter.future.result().release()

    def _remove(self, waiter: Waiter) -> None:
        flow = waiter.flow
        group = flow.group
        line = self._lines[waiter.priority]
        del flow.waiters[waiter]
        flow.waiting -= 1
        group.departed(flow)
        line.departed(group)
        self.waiting -= 1
        if self.cell is not None:
            self.cell.set_waiting(self.waiting)
        if waiter.on_position is not None:
            waiter.on_position = None
            self._watching -= 1
        if waiter.timer is not None:
            waiter.timer.cancel()
            waiter.timer = None

    def _grant(self) -> None:
        """Hands out what is free."""
        while self.waiting and self.active < self._capacity:
            now = self._clock()
            if self.cell is not None and not self._take_turn(self.cell, now):
                return
            line = self._next_line(now)
            group = line.first()
            flow = group.first()
            waiter = next(iter(flow.waiters))
            if waiter.future.done():
                self._remove(waiter)
                self.counts.cancelled += 1
                if self.cell is not None:
                    self.cell.set_active(self.active)
                continue
            if line is self._lines[Priority.JOB]:
                self._job_credit = max(0.0, self._job_credit - 1.0)
            line.serve(group, waiter.cost)
            group.serve(flow, waiter.cost)
            self._remove(waiter)
            self.active += 1
            self.counts.granted += 1
            waiter.future.set_result(Lease(self, now - waiter.since))

    def _take_turn(self, cell: ModelCell, now: float) -> bool:
        """Whether one who waits here gets the next lease of all workers."""
        weight = sum(line.active_weight for line in self._lines)
        return cell.take_turn(self.active + 1, self._capacity, 1.0 / max(weight, _MIN_WEIGHT), now)

    def _poll(self) -> None:
        """Looks for leases that other workers gave back, while somebody waits here."""
        if not self._polling:
            self._poll_again()

    def _poll_again(self) -> None:
        self._grant()
        self._polling = self.waiting > 0 and self.cell is not None
        if self._polling:
            (self._call_later or asyncio.get_running_loop().call_later)(POLL_S, self._poll_again)

    def _next_line(self, now: float) -> Group[Group[Flow]]:
        """Returns the priority whose turn it is, and counts the credit of jobs while both wait."""
        interactive, jobs = self._lines
        if not interactive.waiting or not jobs.waiting:
            return interactive if interactive.waiting else jobs
        job = next(iter(jobs.first().first().waiters))
        self._job_credit += self._job_part(job, now)
        return jobs if self._job_credit >= 1.0 else interactive

    def _overloaded(self, text: str, position: int | None) -> Overloaded:
        return Overloaded(text, retry_after_s=self.retry_after_s(position))

    def _watch(self, waiter: Waiter, on_position: OnPosition) -> None:
        waiter.on_position = on_position
        self._watching += 1
        on_position(waiter.position, self.eta_s(waiter.position))
        if not self._announcing:
            self._schedule()

    def _schedule(self) -> None:
        self._announcing = True
        call_later = self._call_later or asyncio.get_running_loop().call_later
        call_later(self._rules.position_every_s, self._announce)

    def _announce(self) -> None:
        """Tells everybody who asked where they stand, while there is somebody."""
        self._announcing = False
        if not self._watching:
            return
        rate = self.drain_rate_per_s()
        for position, waiter in enumerate(self.order(), start=1):
            waiter.position = position
            if waiter.on_position is not None:
                waiter.on_position(position, None if rate is None else position / rate)
        self._schedule()


def _in_turn(line: Group[Group[Flow]]) -> list[Waiter]:
    """Returns the waiters of one priority in the order of their turns."""
    turns: list[tuple[float, int, int, Waiter]] = []
    for group in line.children.values():
        inner = []
        for flow in group.children.values():
            start = flow.start
            for place, waiter in enumerate(flow.waiters):
                inner.append((start, flow.order, place, waiter))
                start += waiter.cost / flow.weight
        inner.sort(key=lambda turn: turn[:3])
        start = group.start
        for place, (_, _, _, waiter) in enumerate(inner):
            turns.append((start, group.order, place, waiter))
            start += waiter.cost / group.weight
    turns.sort(key=lambda turn: turn[:3])
    return [turn[3] for turn in turns]
