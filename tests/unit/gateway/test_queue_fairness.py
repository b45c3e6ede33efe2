"""The fair queue: capacity, order, fairness, shedding, cancelling. Time is a number the tests set."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from passerelle.domain.errors import Overloaded, Unavailable
from passerelle.gateway.queue import FairQueue, FlowKey, Lease, Priority, QueueRules


@dataclass
class Alarm:
    """A scheduled call of the hand-driven clock."""

    at: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Clock:
    """Monotonic seconds that pass when told to."""

    now: float = 100.0
    alarms: list[Alarm] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Alarm:
        alarm = Alarm(self.now + delay_s, call)
        self.alarms.append(alarm)
        return alarm

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [alarm for alarm in self.alarms if not alarm.cancelled and alarm.at <= end]:
            alarm = min(due, key=lambda alarm: alarm.at)
            self.alarms.remove(alarm)
            self.now = max(self.now, alarm.at)
            alarm.call()
        self.alarms = [alarm for alarm in self.alarms if not alarm.cancelled]
        self.now = end


class Bench:
    """A queue with a clock of its own, and requests that wait in it by name."""

    def __init__(self, capacity: int | None = 1, max_waiting: int = 1000, **rules: float) -> None:
        self.clock = Clock()
        self.queue = FairQueue(
            capacity, max_waiting, rules=QueueRules(**rules), clock=self.clock, call_later=self.clock.call_later
        )
        self.granted: list[str] = []
        self.leases: list[Lease] = []

    async def ask(self, name: str, organisation: str = "o", key: str = "k", **options: Any) -> asyncio.Task[Lease]:
        """Starts a request and lets it reach the queue."""

        async def wait() -> Lease:
            lease = await self.queue.acquire(FlowKey(organisation, key), **options)
            self.granted.append(name)
            self.leases.append(lease)
            return lease

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task

    async def serve(self, count: int = 1) -> None:
        """Ends ``count`` running requests, one after the other."""
        for _ in range(count):
            self.leases.pop(0).release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def empty(self) -> None:
        """Serves everybody, and proves that nothing is left behind."""
        while self.leases:
            await self.serve()
        assert (self.queue.active, self.queue.waiting, self.queue.depths()) == (0, 0, {})


async def test_free_slots_are_handed_out_at_once() -> None:
    """A free slot is a lease without waiting, a taken one is none, and releasing twice frees one slot."""
    queue = FairQueue(2, 10)
    first, second = queue.try_acquire(), queue.try_acquire()
    assert first is not None and second is not None
    assert queue.try_acquire() is None
    first.release()
    first.release()
    assert queue.active == 1
    assert queue.try_acquire() is not None
    assert queue.try_acquire() is None


async def test_no_capacity_means_no_limit() -> None:
    """A queue without capacity never makes anybody wait."""
    queue = FairQueue(None, 0)
    assert all(queue.try_acquire() is not None for _ in range(1000))
    assert queue.capacity is None


async def test_one_key_is_first_come_first_served() -> None:
    """Requests of one key run in the order of their arrival."""
    bench = Bench()
    for number in range(6):
        await bench.ask(str(number))
    await bench.empty()
    assert bench.granted == list("012345")


async def test_a_newcomer_does_not_pass_those_who_wait() -> None:
    """The fast path is closed while somebody waits, even in the tick in which a slot frees."""
    bench = Bench()
    await bench.ask("a")
    await bench.ask("b")
    bench.leases.pop().release()
    assert bench.queue.try_acquire() is None
    await asyncio.sleep(0)
    assert bench.granted == ["a", "b"]
    await bench.empty()


async def test_a_flood_of_one_organisation_does_not_delay_another() -> None:
    """Whoever has one request waiting goes next, whatever the others have piled up."""
    bench = Bench()
    for number in range(50):
        await bench.ask(f"flood{number}", organisation="flood", key=f"k{number % 7}")
    await bench.serve(5)
    await bench.ask("light", organisation="light")
    await bench.serve(2)
    assert "light" in bench.granted[-2:]
    await bench.empty()


async def test_keys_share_the_part_of_their_organisation() -> None:
    """Organisation shares come first, so many keys do not make an organisation greater."""
    bench = Bench()
    await bench.ask("running", organisation="x")
    for _ in range(30):
        for key in ("a", "b", "c"):
            await bench.ask(f"many/{key}", organisation="many", key=key)
        await bench.ask("one", organisation="one")
    await bench.serve(24)
    seen = Counter(bench.granted[1:])
    assert seen["one"] == 12
    assert seen["many/a"] == seen["many/b"] == seen["many/c"] == 4
    await bench.empty()


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0]), min_size=2, max_size=5),
    levels=st.sampled_from(["organisation", "key"]),
    served=st.integers(1, 60),
    costs=st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=5, max_size=5),
)
def test_backlogged_flows_share_by_weight(weights: list[float], levels: str, served: int, costs: list[float]) -> None:
    """Between flows that keep waiting, the work for the weight differs by at most one request of each."""

    async def run() -> None:
        bench = Bench()
        await bench.ask("running", organisation="x", key="x")
        for number, weight in enumerate(weights):
            for _ in range(served + 1):
                if levels == "organisation":
                    place = {"organisation": str(number), "organisation_weight": weight}
                else:
                    place = {"key": str(number), "weight": weight}
                await bench.ask(str(number), cost=costs[number], **place)
        await bench.serve(served)
        done = Counter(bench.granted[1:])
        for i, wi in enumerate(weights):
            for j, wj in enumerate(weights):
                gap = done[str(i)] * costs[i] / wi - done[str(j)] * costs[j] / wj
                assert gap <= costs[i] / wi + costs[j] / wj + 1e-9
        await bench.empty()

    asyncio.run(run())


async def test_leaving_and_coming_back_gains_nothing() -> None:
    """A flow whose queue runs empty for a moment does not get a fresh start before those who stayed."""
    bench = Bench()
    await bench.ask("running", organisation="x")
    for _ in range(40):
        await bench.ask("steady", organisation="steady")
    await bench.ask("hopper", organisation="hopper")
    for _ in range(20):
        before = bench.granted.count("hopper")
        await bench.serve()
        if bench.granted.count("hopper") > before:
            await bench.ask("hopper", organisation="hopper")
    seen = Counter(bench.granted[1:])
    assert abs(seen["hopper"] - seen["steady"]) <= 1
    await bench.empty()


async def test_costly_requests_one_at_a_time_still_pay() -> None:
    """A flow that asks again only after each grant gets its share of the work, not every other turn."""
    bench = Bench()
    await bench.ask("running", organisation="x")
    for _ in range(60):
        await bench.ask("steady", organisation="steady")
    await bench.ask("hopper", organisation="hopper", cost=4.0)
    for _ in range(50):
        before = bench.granted.count("hopper")
        await bench.serve()
        if bench.granted.count("hopper") > before:
            await bench.ask("hopper", organisation="hopper", cost=4.0)
    assert 7 <= bench.granted.count("hopper") <= 13
    await bench.empty()


async def test_places_are_taken_from_whoever_is_heaviest_now() -> None:
    """Two floods of the same size make way in turn."""
    bench = Bench(max_waiting=6)
    await bench.ask("running", organisation="x")
    for flood in ("a", "b"):
        for _ in range(3):
            await bench.ask(flood, organisation=flood)
    await bench.ask("c", organisation="c")
    await bench.ask("d", organisation="d")
    await bench.empty()
    assert sorted(bench.granted[1:]) == ["a", "a", "b", "b", "c", "d"]


async def test_idle_time_is_not_saved_up() -> None:
    """A flow that cancelled early and returns late starts at the present, not with the turns it did not take."""
    bench = Bench()
    await bench.ask("running", organisation="x")
    early = await bench.ask("gone", organisation="late")
    for _ in range(60):
        await bench.ask("steady", organisation="steady")
    early.cancel()
    await asyncio.sleep(0)
    await bench.serve(20)
    for _ in range(20):
        await bench.ask("late", organisation="late")
    await bench.serve(10)
    assert abs(bench.granted[-10:].count("late") - 5) <= 1
    await bench.empty()


async def test_interactive_goes_first_and_jobs_get_their_share() -> None:
    """While both wait, one turn in ten is a job's; alone, jobs get every turn."""
    bench = Bench(job_share=0.1)
    await bench.ask("running")
    for _ in range(20):
        await bench.ask("job", organisation="jobs", priority=Priority.JOB)
    for _ in range(40):
        await bench.ask("person", organisation="people")
    await bench.serve(40)
    seen = bench.granted[1:41]
    assert seen.count("job") == 4
    assert seen[:9] == ["person"] * 9 and seen[9] == "job"
    await bench.empty()
    assert bench.granted.count("job") == 20


async def test_a_job_that_waited_long_gets_every_other_turn() -> None:
    """Patience ends: once the next job has waited too long, jobs alternate with people."""
    bench = Bench(job_share=0.1, job_patience_s=30.0)
    await bench.ask("running")
    for _ in range(10):
        await bench.ask("job", organisation="jobs", priority=Priority.JOB)
    bench.clock.advance(31.0)
    for _ in range(20):
        await bench.ask("person", organisation="people")
    await bench.serve(10)
    assert bench.granted[1:11].count("job") == 5
    await bench.empty()


async def test_a_full_room_refuses_the_flooder_at_once() -> None:
    """Whoever holds the room is told so without waiting, with a Retry-After."""
    bench = Bench(max_waiting=3)
    for number in range(4):
        await bench.ask(str(number))
    with pytest.raises(Overloaded) as caught:
        await bench.queue.acquire(FlowKey("o", "k"))
    assert caught.value.retry_after_s == 5.0
    assert bench.queue.counts.refused == 1
    await bench.empty()


async def test_a_light_flow_takes_the_newest_place_of_the_heaviest() -> None:
    """In a full room the newest waiter of the longest flow makes way; the flooder's older ones stay."""
    bench = Bench(max_waiting=4)
    await bench.ask("running")
    flood = [await bench.ask(f"f{number}", organisation="flood") for number in range(4)]
    await bench.ask("light", organisation="light")
    with pytest.raises(Overloaded):
        await flood[3]
    assert bench.queue.waiting == 4
    assert bench.queue.counts.evicted == 1
    await bench.empty()
    assert sorted(bench.granted) == ["f0", "f1", "f2", "light", "running"]


async def test_a_light_key_takes_the_place_of_a_flooding_colleague() -> None:
    """Within an organisation that has its fair part of the room, its own flooder makes way, nobody else."""
    bench = Bench(max_waiting=4)
    await bench.ask("running", organisation="x")
    mine = [await bench.ask(f"m{n}", organisation="mine", key="flood") for n in range(2)]
    await bench.ask("y0", organisation="yours")
    await bench.ask("y1", organisation="yours")
    await bench.ask("light", organisation="mine", key="light")
    with pytest.raises(Overloaded):
        await mine[1]
    await bench.empty()
    assert sorted(bench.granted) == ["light", "m0", "running", "y0", "y1"]


async def test_equals_do_not_push_each_other_out() -> None:
    """A newcomer who would then hold as much as anybody is refused: no churn among equals."""
    bench = Bench(max_waiting=2)
    await bench.ask("running", organisation="x")
    await bench.ask("a", organisation="a")
    await bench.ask("b", organisation="b")
    with pytest.raises(Overloaded):
        await bench.queue.acquire(FlowKey("c", "k"))
    await bench.empty()
    assert bench.granted == ["running", "a", "b"]


async def test_people_take_places_from_jobs_down_to_their_share() -> None:
    """Jobs may fill the room, but keep only their share of it against people, and cannot be driven below it."""
    bench = Bench(max_waiting=10, job_share=0.2)
    await bench.ask("running")
    jobs = [await bench.ask("job", organisation="jobs", priority=Priority.JOB) for _ in range(10)]
    people = [await bench.ask("person", organisation="people") for _ in range(10)]
    await asyncio.sleep(0)
    assert sum(not task.done() for task in jobs) == 2
    assert sum(not task.done() for task in people) == 8
    refused = [task for task in (*jobs, *people) if task.done()]
    assert all(isinstance(task.exception(), Overloaded) for task in refused)
    await bench.empty()


async def test_a_deadline_that_passes_sends_away() -> None:
    """A waiter whose deadline passes gets 503 with Retry-After, and its place is free."""
    bench = Bench()
    await bench.ask("running")
    task = await bench.ask("late", deadline=bench.clock.now + 5.0)
    bench.clock.advance(4.9)
    assert not task.done()
    bench.clock.advance(0.2)
    with pytest.raises(Overloaded) as caught:
        await task
    assert caught.value.retry_after_s is not None
    assert bench.queue.counts.expired == 1
    with pytest.raises(Overloaded):
        await bench.queue.acquire(FlowKey("o", "k"), deadline=bench.clock.now)
    await bench.empty()


async def test_a_granted_waiter_is_not_cut_by_its_deadline() -> None:
    """The deadline of waiting ends with the wait."""
    bench = Bench()
    await bench.ask("running")
    task = await bench.ask("next", deadline=bench.clock.now + 5.0)
    await bench.serve()
    bench.clock.advance(10.0)
    assert (await task) is bench.leases[0]
    await bench.empty()


async def test_the_drain_rate_makes_eta_and_retry_after() -> None:
    """With two leases ending per second, five in front take about two and a half seconds."""
    bench = Bench()
    await bench.ask("running")
    for _ in range(40):
        await bench.ask("waits")
    for _ in range(20):
        bench.clock.advance(0.5)
        await bench.serve()
    assert bench.queue.drain_rate_per_s() == pytest.approx(2.0)
    assert bench.queue.eta_s(5) == pytest.approx(2.5)
    assert bench.queue.retry_after_s() == pytest.approx(10.5)
    bench.clock.advance(20.0)
    rate = bench.queue.drain_rate_per_s()
    assert rate is not None and rate < 1.0, "a stall must show"
    await bench.empty()


async def test_waiters_hear_of_their_place() -> None:
    """A waiter hears its place at once and every second, with a time once a rate is known."""
    bench = Bench()
    await bench.ask("running")
    heard: list[tuple[int, float | None]] = []
    for _ in range(2):
        await bench.ask("before")
    await bench.ask("me", on_position=lambda place, eta_s: heard.append((place, eta_s)))
    assert heard == [(3, None)]
    bench.clock.advance(0.5)
    await bench.serve()
    bench.clock.advance(0.5)
    assert heard[1][0] == 2
    assert heard[1][1] == pytest.approx(2.0, rel=0.02)
    await bench.empty()
    bench.clock.advance(5.0)
    assert len(heard) == 2
    assert not bench.clock.alarms, "nobody is left to be told"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_announced_order_is_the_order(data: st.DataObject) -> None:
    """If nobody else comes, turns are taken in exactly the announced order."""

    async def run() -> None:
        bench = Bench(job_share=data.draw(st.sampled_from([0.1, 0.25, 0.5])))
        await bench.ask("running")
        names: dict[Any, str] = {}
        for number in range(data.draw(st.integers(1, 25))):
            key = data.draw(st.sampled_from("abc"))
            organisation = data.draw(st.sampled_from("xyz"))
            priority = data.draw(st.sampled_from(Priority))
            await bench.ask(
                str(number),
                organisation,
                key,
                weight={"a": 1.0, "b": 2.0, "c": 0.5}[key],
                organisation_weight={"x": 1.0, "y": 3.0, "z": 1.0}[organisation],
                priority=priority,
                cost=data.draw(st.sampled_from([1.0, 2.0])),
            )
            newest = max(bench.queue.order(), key=lambda waiter: id(waiter) not in names)
            names[id(newest)] = str(number)
        await bench.serve(min(data.draw(st.integers(0, 3)), bench.queue.waiting))
        before = len(bench.granted)
        expected = [names[id(waiter)] for waiter in bench.queue.order()]
        await bench.empty()
        assert bench.granted[before:] == expected

    asyncio.run(run())


async def test_the_event_loop_keeps_the_time_by_default() -> None:
    """Without a clock of ours, places are announced and deadlines kept by the running loop."""
    queue = FairQueue(1, 10, rules=QueueRules(position_every_s=0.01))
    lease = queue.try_acquire()
    assert lease is not None
    again = asyncio.Event()
    places: list[int] = []

    def heard(place: int, eta_s: float | None) -> None:
        places.append(place)
        if len(places) == 3:
            again.set()

    flow = FlowKey("o", "k")
    patient = asyncio.create_task(queue.acquire(flow, on_position=heard))
    await asyncio.wait_for(again.wait(), 30)
    assert set(places) == {1}
    with pytest.raises(Overloaded):
        await queue.acquire(flow, deadline=time.monotonic() + 0.02)
    lease.release()
    (await patient).release()
    assert (queue.active, queue.waiting) == (0, 0)


async def test_a_weight_of_zero_still_gets_a_turn() -> None:
    """A key of no weight is last, not lost."""
    bench = Bench()
    await bench.ask("running")
    await bench.ask("nobody", key="n", weight=0.0)
    await bench.ask("some", key="s")
    await bench.empty()
    assert sorted(bench.granted) == ["nobody", "running", "some"]


async def test_resizing_takes_effect_at_once() -> None:
    """More capacity wakes those who wait; less cuts nobody and holds the next back."""
    bench = Bench(capacity=1)
    for number in range(6):
        await bench.ask(str(number))
    bench.queue.resize(3)
    await asyncio.sleep(0)
    assert bench.queue.active == 3
    bench.queue.resize(1)
    assert bench.queue.active == 3
    await bench.serve(2)
    assert bench.granted == ["0", "1", "2"]
    bench.queue.resize(None)
    await asyncio.sleep(0)
    assert len(bench.granted) == 6
    await bench.empty()


async def test_a_grant_to_a_cancelled_waiter_goes_to_the_next() -> None:
    """Cancelled in the very tick in which the lease came: the next one gets it."""
    bench = Bench()
    await bench.ask("running")
    second = await bench.ask("second")
    await bench.ask("third")
    bench.leases.pop().release()
    second.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert second.cancelled()
    assert bench.granted == ["running", "third"]
    await bench.empty()


async def test_a_cancelled_waiter_is_passed_over_before_it_woke() -> None:
    """Cancelled first and not yet run: the lease goes straight to the next."""
    bench = Bench()
    await bench.ask("running")
    second = await bench.ask("second")
    await bench.ask("third")
    second.cancel()
    bench.leases.pop().release()
    for _ in range(3):
        await asyncio.sleep(0)
    assert second.cancelled()
    assert bench.granted == ["running", "third"]
    await bench.empty()


async def test_everybody_can_be_sent_away() -> None:
    """Shutting down gives each waiter an error of its own."""
    bench = Bench()
    await bench.ask("running")
    tasks = [await bench.ask("waits", key=str(n)) for n in range(5)]
    bench.queue.shed_all(lambda: Unavailable("Going away."))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, Unavailable) for error in errors)
    assert len({id(error) for error in errors}) == 5
    await bench.empty()


async def test_ten_thousand_random_cancels_leak_nothing() -> None:
    """After ten thousand requests cancelled at random moments no slot, place or flow is left."""
    rng = random.Random(7)
    bench = Bench(capacity=8, max_waiting=300)
    tasks: list[asyncio.Task[Lease]] = []
    for number in range(10_000):
        tasks.append(
            await bench.ask(
                "r",
                f"o{rng.randrange(20)}",
                f"k{rng.randrange(200)}",
                priority=rng.choice(list(Priority)),
                deadline=bench.clock.now + rng.uniform(0.5, 20.0),
            )
        )
        if bench.leases and rng.random() < 0.3:
            bench.leases.pop(rng.randrange(len(bench.leases))).release()
        if rng.random() < 0.95:
            rng.choice(tasks[-100:]).cancel()
        if number % 50 == 0:
            bench.clock.advance(0.1)
            assert bench.queue.active <= 8
            assert bench.queue.waiting <= 300
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await bench.empty()
    lines = bench.queue._lines
    assert all(not line.children and not line._heap for line in lines)
    bench.clock.advance(30.0)
    assert not bench.clock.alarms


async def test_endless_newcomers_do_not_starve_those_who_wait() -> None:
    """A flow with a backlog keeps getting turns while flows never seen before keep arriving."""
    bench = Bench()
    await bench.ask("running")
    for _ in range(30):
        await bench.ask("steady", organisation="steady")
    for number in range(60):
        await bench.ask("passing", organisation=f"o{number}")
        await bench.serve()
    assert bench.granted.count("steady") >= 6
    assert bench.granted.count("passing") >= 30
    await bench.empty()


async def test_many_flows_that_come_and_go_are_forgotten() -> None:
    """A queue that never runs empty keeps no memory of flows that are long gone."""
    bench = Bench(max_waiting=3000)
    await bench.ask("running")
    for _ in range(2500):
        await bench.ask("steady", organisation="steady")
    for number in range(2000):
        await bench.ask("passing", organisation=f"o{number}")
        await bench.serve()
    line = bench.queue._lines[Priority.INTERACTIVE]
    assert len(line.children) < 200
    assert len(line._heap) < 200
    await bench.empty()


class QueueMachine(RuleBasedStateMachine):
    """Arrivals, releases, cancels, resizes and time in any order, several in one tick."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench = Bench()
        self.waiting: dict[int, tuple[str, str, Priority, asyncio.Task[Lease]]] = {}
        self.leases: list[Lease] = []
        self.number = 0

    @initialize(capacity=st.integers(1, 4), room=st.integers(0, 8), share=st.sampled_from([0.0, 0.1, 0.5]))
    def build(self, capacity: int, room: int, share: float) -> None:
        self.bench = Bench(capacity, room, job_share=share)
        self.largest = capacity

    def turn(self) -> None:
        """Lets the loop run until nothing moves, then checks who was granted."""
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))
        for number, (organisation, key, priority, task) in sorted(self.waiting.items()):
            if not task.done():
                continue
            del self.waiting[number]
            if task.cancelled():
                continue
            error = task.exception()
            if error is not None:
                assert isinstance(error, Overloaded)
                assert error.retry_after_s is not None and error.retry_after_s >= 1.0
                continue
            self.leases.append(task.result())
            before = [
                n for n, (*flow, t) in self.waiting.items() if flow == [organisation, key, priority] and n < number
            ]
            assert not before, "a later request of the same flow went first"

    @rule(
        organisation=st.sampled_from("ab"),
        key=st.sampled_from("kl"),
        priority=st.sampled_from(Priority),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        limit_s=st.sampled_from([0.5, 5.0, 1e6]),
        turn=st.booleans(),
    )
    def arrive(
        self, organisation: str, key: str, priority: Priority, weight: float, limit_s: float, turn: bool
    ) -> None:
        deadline = self.bench.clock.now + limit_s
        work = self.bench.queue.acquire(
            FlowKey(organisation, key), weight=weight, priority=priority, deadline=deadline, on_position=print_nothing
        )
        self.waiting[self.number] = (organisation, key, priority, self.loop.create_task(work))
        self.number += 1
        if turn:
            self.turn()

    @rule(index=st.integers(0, 20), turn=st.booleans())
    def release(self, index: int, turn: bool) -> None:
        if self.leases:
            lease = self.leases.pop(index % len(self.leases))
            lease.release()
            lease.release()
        if turn:
            self.turn()

    @rule(index=st.integers(0, 20), turn=st.booleans())
    def cancel(self, index: int, turn: bool) -> None:
        if self.waiting:
            self.waiting[sorted(self.waiting)[index % len(self.waiting)]][3].cancel()
        if turn:
            self.turn()

    @rule(capacity=st.integers(0, 5))
    def resize(self, capacity: int) -> None:
        self.largest = max(self.largest, capacity)
        self.bench.queue.resize(capacity)
        self.turn()

    @rule(seconds=st.sampled_from([0.1, 1.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)
        self.turn()

    @invariant()
    def within_capacity(self) -> None:
        assert self.bench.queue.active <= self.largest

    @invariant()
    def nobody_is_lost(self) -> None:
        self.turn()
        queue = self.bench.queue
        assert queue.active == len(self.leases)
        assert queue.waiting == len(self.waiting) == sum(queue.depths().values()) == len(queue.order())
        assert queue.waiting <= queue.max_waiting
        capacity = queue.capacity
        assert capacity is not None
        assert not queue.waiting or queue.active >= capacity, "a slot is free and somebody waits"

    def teardown(self) -> None:
        for *_, task in self.waiting.values():
            task.cancel()
        self.turn()
        for lease in self.leases:
            lease.release()
        assert (self.bench.queue.active, self.bench.queue.waiting) == (0, 0)
        self.loop.close()


def print_nothing(position: int, eta_s: float | None) -> None:
    """A listener that checks what it hears."""
    assert position >= 1
    assert eta_s is None or eta_s > 0


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQueueMachine = QueueMachine.TestCase
