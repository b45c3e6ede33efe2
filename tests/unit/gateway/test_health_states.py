"""A target's states and the half rule, driven by a clock the tests set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from passerelle.domain.errors import Overloaded, Unavailable
from passerelle.domain.model import Model, Target
from passerelle.engines.base import Probe, Readiness
from passerelle.gateway.health import Health, HealthRules, HealthState, Surroundings
from passerelle.gateway.policies import RoutingHint, make_policy
from passerelle.gateway.targets import Fleet, Flight, Pool, StateChange, TargetState


@dataclass
class World:
    """A clock, an epoch a thousand seconds ahead of it, no chance, and a record of what was told."""

    now: float = 100.0
    draw: float = 0.0
    changes: list[tuple[HealthState, HealthState]] = field(default_factory=list)

    def surroundings(self, *, may_leave: bool = True) -> Surroundings:
        return Surroundings(
            lambda: self.now,
            lambda: self.now + 1000.0,
            lambda: self.draw,
            lambda: may_leave,
            lambda old, new: self.changes.append((old, new)),
        )


def health(world: World, *, may_leave: bool = True, **rules: Any) -> Health:
    """A fresh target's health."""
    return Health(HealthRules(**rules), world.surroundings(may_leave=may_leave))


def fail(target: Health, times: int) -> None:
    """Lets it fail so many times in a row."""
    for _ in range(times):
        target.failure("connection refused")


def down(why: str = "no answer") -> Probe:
    return Probe(Readiness.DOWN, why)


def test_a_new_target_is_ready() -> None:
    """Nobody is kept out on no evidence."""
    target = health(World())
    assert (target.state, target.usable, target.why) == (HealthState.READY, True, "not probed yet")
    assert target.since == 1100.0


def test_five_failures_in_a_row_put_it_out() -> None:
    """Four do not, the fifth does, with state, time and reason to show for it."""
    world = World()
    target = health(world)
    fail(target, 4)
    assert target.usable
    world.now = 107.0
    fail(target, 1)
    assert (target.state, target.usable, target.since) == (HealthState.DOWN, False, 1107.0)
    assert target.why == "5 failures in a row, the last: connection refused"
    assert world.changes == [(HealthState.READY, HealthState.DOWN)]


def test_a_success_between_starts_the_count_again() -> None:
    """Failures must be in a row, or make half of the last ten."""
    target = health(World())
    for _ in range(3):
        fail(target, 1)
        for _ in range(3):
            target.success()
    fail(target, 3)
    assert target.usable


def test_a_target_that_fails_every_other_time_is_put_out() -> None:
    """Flapping never makes five in a row, yet half of the last ten is enough."""
    target = health(World())
    for _ in range(5):
        target.success()
        fail(target, 1)
    assert target.state is HealthState.DOWN
    assert "5 of its last 10 answers failed" in target.why


def test_times_out_grow_up_to_five_minutes() -> None:
    """The n-th time out lasts n times ten seconds, at most 300."""
    world = World()
    target = health(world)
    fail(target, 5)
    terms = []
    for _ in range(40):
        terms.append(target.due - world.now)
        world.now = target.due
        target.tick()
        assert target.usable and target.half_open
        target.failure("still broken", trial=target.begin())
    assert terms[:4] == pytest.approx([10.0, 20.0, 30.0, 40.0])
    assert max(terms) == terms[-1] == pytest.approx(300.0)


def test_times_out_are_jittered_upwards_within_the_maximum() -> None:
    """Chance makes a time out up to a tenth longer, never longer than the maximum."""
    world = World(draw=0.999)
    target = health(world)
    fail(target, 5)
    assert 10.9 < target.due - world.now < 11.0
    other = health(world, max_ejection_s=10.5)
    fail(other, 5)
    assert other.due - world.now == pytest.approx(10.5)


def test_half_open_lets_a_single_request_through() -> None:
    """One trial at a time; its first byte brings the target back."""
    world = World()
    target = health(world)
    fail(target, 5)
    world.now += 10.0
    target.tick()
    assert target.state is HealthState.DOWN
    assert target.begin() is True
    assert not target.usable
    assert target.begin() is False
    target.first_byte(trial=True)
    assert (target.state, target.usable) == (HealthState.READY, True)
    target.success(trial=True)
    fail(target, 4)
    assert target.usable


def test_a_trial_that_breaks_after_its_first_byte_puts_it_out_again() -> None:
    """A server that always dies in the middle of an answer does not live on its first bytes."""
    world = World()
    target = health(world)
    fail(target, 5)
    world.now += 10.0
    target.tick()
    trial = target.begin()
    target.first_byte(trial=trial)
    target.failure("connection broke", trial=trial)
    assert target.state is HealthState.DOWN
    assert target.due - world.now == pytest.approx(20.0)


def test_an_inconclusive_trial_leaves_the_chance_to_another() -> None:
    """A caller who leaves, or whose request is bad, decides nothing."""
    world = World()
    target = health(world)
    fail(target, 5)
    world.now += 10.0
    target.tick()
    target.inconclusive(trial=target.begin())
    assert target.usable and target.half_open
    assert target.begin() is True


def test_late_answers_do_not_decide_over_a_target_that_is_out() -> None:
    """Requests begun before may end well or badly: neither shortens nor lengthens the time out."""
    world = World()
    target = health(world)
    fail(target, 5)
    due = target.due
    target.success()
    fail(target, 3)
    assert (target.state, target.due) == (HealthState.DOWN, due)


def test_busy_is_not_dead() -> None:
    """A busy target is left alone until its Retry-After passes, and nothing is counted against it."""
    world = World()
    target = health(world)
    fail(target, 4)
    target.busy(7.0)
    assert (target.state, target.usable) == (HealthState.BUSY, False)
    assert target.consecutive_failures == 4
    assert not target.out
    assert target.retry_after_s() == pytest.approx(7.0)
    target.busy(2.0)
    assert target.retry_after_s() == pytest.approx(7.0), "the longer wish counts"
    world.now += 7.0
    target.tick()
    assert target.state is HealthState.READY
    target.busy(None)
    assert target.retry_after_s() == pytest.approx(1.0)
    world.now += 1.0
    target.tick()
    target.busy(86_400.0)
    assert target.retry_after_s() == pytest.approx(30.0), "an absurd wish is not believed"


def test_a_target_that_may_not_leave_stays_and_says_why() -> None:
    """With half of the pool out, a failing target stays in use; the reason is shown until it serves again."""
    target = health(World(), may_leave=False)
    fail(target, 9)
    assert target.usable
    assert "not more than half" in target.why
    target.success()
    assert target.why == "serves"


def test_forgiveness() -> None:
    """After five good minutes the next time out is short again."""
    world = World()
    target = health(world)
    for _ in range(3):
        fail(target, 5)
        world.now = target.due
        target.tick()
        target.success(trial=target.begin())
    world.now += 301.0
    fail(target, 5)
    assert target.due - world.now == pytest.approx(10.0)


def test_probes_find_starting_ready_and_down() -> None:
    """A starting target waits for ready; two failed probes in a row mean down, one good probe ends it."""
    world = World()
    target = health(world)
    target.probe(Probe(Readiness.STARTING, "loading"))
    assert (target.state, target.usable, target.why) == (HealthState.STARTING, False, "probe: loading")
    target.probe(Probe(Readiness.READY, "lists its models"))
    assert (target.state, target.why) == (HealthState.READY, "probe: lists its models")
    target.probe(down())
    assert target.usable
    target.probe(down())
    assert (target.state, target.usable, target.out) == (HealthState.DOWN, False, True)
    target.probe(Probe(Readiness.READY, "back"))
    assert target.usable and not target.out
    target.probe(Probe(Readiness.BUSY, "slots full"))
    assert target.state is HealthState.BUSY


def test_requests_weigh_more_than_probes() -> None:
    """A target that serves is not down because /health is late, and one that fails is not up because it answers."""
    world = World()
    serving, failing = health(world), health(world)
    serving.success()
    for _ in range(5):
        serving.probe(down("late"))
    assert serving.usable
    world.now += 11.0
    serving.probe(down("late"))
    assert not serving.usable
    serving.success()
    assert serving.usable, "a request that succeeds is the better witness"
    fail(failing, 5)
    failing.probe(Probe(Readiness.READY, "fine"))
    assert failing.state is HealthState.DOWN


def test_draining_is_the_operators_word() -> None:
    """Nothing a target does or a probe finds takes it out of draining; undrain shows what is beneath."""
    world = World()
    target = health(world)
    target.drain("maintenance")
    target.success()
    target.probe(Probe(Readiness.READY, "fine"))
    assert (target.state, target.why, target.usable) == (HealthState.DRAINING, "maintenance", False)
    fail(target, 5)
    assert target.state is HealthState.DRAINING
    target.undrain()
    assert target.state is HealthState.DOWN
    world.now += 10.0
    target.tick()
    target.success(trial=target.begin())
    assert target.state is HealthState.READY


# The pool and the fleet


def target(name: str, **options: Any) -> Target:
    return Target(id=name, url=f"http://{name}/v1", engine="openai", model="m", **options)


def fleet_of(world: World, *targets: Target, **options: Any) -> tuple[Fleet, Pool, list[StateChange]]:
    """A fleet with one model, its pool, and a list that fills with changes."""
    changes: list[StateChange] = []
    fleet = Fleet(make_policy, clock=lambda: world.now, epoch=lambda: 0.0, draw=lambda: 0.0, on_change=changes.append)
    fleet.adopt([Model("m", targets, **options)])
    pool = fleet.pool("m")
    assert pool is not None
    return fleet, pool, changes


def names(pool: Pool, **options: Any) -> list[str]:
    return sorted(state.id for state in pool.candidates(**options) or ())


def state_of(fleet: Fleet, name: str) -> TargetState:
    state = fleet.state(name)
    assert state is not None
    return state


def break_down(state: TargetState) -> None:
    """Five requests fail there."""
    for _ in range(5):
        flight = state.begin()
        flight.failed("refused")
        flight.end()


def test_candidates_leave_out_weight_zero_and_shadows() -> None:
    """A canary at 0 and a shadow get nothing, also when nobody else is left."""
    world = World()
    fleet, pool, _ = fleet_of(world, target("a"), target("zero", weight=0), target("dark", shadow=True))
    assert names(pool) == ["a"]
    assert [state.id for state in pool.shadows] == ["dark"]
    fleet.drain("a", "maintenance")
    assert pool.candidates() is None
    assert pool.pick(RoutingHint()) is None


def test_the_next_tier_serves_only_when_the_first_cannot() -> None:
    """Full, failed and drained targets of the first tier flow over; a free one takes back."""
    world = World()
    fleet, pool, _ = fleet_of(world, target("a", max_concurrent=1), target("b", priority=5), target("c", priority=9))
    assert names(pool) == ["a"]
    flight = state_of(fleet, "a").begin()
    assert names(pool) == ["b"]
    flight.end()
    assert names(pool) == ["a"]
    fleet.drain("a", "maintenance")
    fleet.drain("b", "maintenance")
    assert names(pool) == ["c"]


def test_labels_and_tried_targets_narrow_the_choice() -> None:
    """Every label must match; targets a call has tried are left out, in all tiers."""
    eu, us = {"zone": "eu", "gpu": "h200"}, {"zone": "us"}
    fleet, pool, _ = fleet_of(
        World(), target("a", labels=eu), target("b", labels=us), target("c", labels=eu, priority=1)
    )
    assert names(pool, labels={"zone": "eu"}) == ["a"]
    assert names(pool, labels={"zone": "eu", "gpu": "a10"}) == []
    assert names(pool, exclude=[state_of(fleet, "a")]) == ["b"]
    assert names(pool, labels={"zone": "eu"}, exclude=[state_of(fleet, "a")]) == ["c"]


def test_one_of_two_goes_and_the_last_stays() -> None:
    """Half of a pool may be out; a lonely target never."""
    fleet, pool, changes = fleet_of(World(), target("a"), target("b"))
    break_down(state_of(fleet, "a"))
    break_down(state_of(fleet, "b"))
    assert names(pool) == ["b"]
    assert [(change.target.id, change.new) for change in changes] == [("a", HealthState.DOWN)]
    _, lonely, _ = fleet_of(World(), target("only"))
    break_down(lonely.members[0])
    assert names(lonely) == ["only"]


def test_a_target_comes_back_by_its_trial() -> None:
    """When the time out ends, the next request is the only one until its first byte."""
    world = World()
    fleet, pool, _ = fleet_of(world, target("a"), target("b"))
    sick = state_of(fleet, "a")
    break_down(sick)
    world.now += 9.9
    assert names(pool) == ["b"]
    world.now += 0.2
    assert names(pool) == ["a", "b"]
    trial = sick.begin()
    assert names(pool) == ["b"]
    trial.first_byte(0.1)
    assert names(pool) == ["a", "b"]
    trial.succeeded()
    trial.end()
    assert sick.health.why == "serves"


def test_a_trial_whose_caller_leaves_is_offered_again() -> None:
    """A flight that ends without an outcome gives the trial back."""
    world = World()
    fleet, pool, _ = fleet_of(world, target("a"), target("b"))
    break_down(state_of(fleet, "a"))
    world.now += 10.0
    fleet.tick()
    flight = state_of(fleet, "a").begin()
    assert names(pool) == ["b"]
    flight.end()
    assert names(pool) == ["a", "b"]


def test_a_failed_trial_waits_again() -> None:
    """The pool notices the new time out although the state did not change, and offers another trial after it."""
    world = World()
    fleet, pool, _ = fleet_of(world, target("a"), target("b"))
    sick = state_of(fleet, "a")
    break_down(sick)
    world.now += 10.0
    fleet.tick()
    trial = sick.begin()
    trial.failed("refused")
    trial.end()
    world.now += 19.0
    assert names(pool) == ["b"]
    world.now += 1.0
    assert names(pool) == ["a", "b"]


def test_draining_a_healthy_one_brings_a_failed_one_back() -> None:
    """The half rule holds when the operator takes away what the failed ones were measured against."""
    fleet, pool, _ = fleet_of(World(), *(target(name) for name in "abcd"))
    break_down(state_of(fleet, "a"))
    break_down(state_of(fleet, "b"))
    assert names(pool) == ["c", "d"]
    fleet.drain("c", "maintenance")
    assert len(names(pool)) == 2
    assert "half of the pool" in state_of(fleet, "a").health.why


def test_capacity_is_what_ready_targets_bear() -> None:
    """The smaller of the model's limit and the targets' sum; what still runs elsewhere is added, so leases fit."""
    world = World()
    fleet, pool, _ = fleet_of(world, target("a", max_concurrent=3), target("b", max_concurrent=5), max_concurrent=7)
    heard: list[int | None] = []
    pool.watch(heard.append)
    assert pool.capacity == 7
    flights = [state_of(fleet, "b").begin() for _ in range(2)]
    fleet.drain("b", "maintenance")
    assert pool.capacity == 3 + 2
    for flight in flights:
        flight.end()
        flight.end()
    assert pool.capacity == 3
    fleet.undrain("b")
    assert heard == [7, 5, 4, 3, 7]
    fleet.adopt([Model("m", (target("a"), target("b", max_concurrent=5)))])
    assert pool.capacity is None


def test_a_half_open_target_adds_its_trial_to_capacity() -> None:
    """Those who wait are woken for the trial, and for no more."""
    world = World()
    fleet, pool, _ = fleet_of(world, target("a", max_concurrent=4), target("b", max_concurrent=4))
    break_down(state_of(fleet, "a"))
    assert pool.capacity == 4
    world.now += 10.0
    fleet.tick()
    assert pool.capacity == 5
    trial = state_of(fleet, "a").begin()
    assert pool.capacity == 5
    trial.first_byte(0.1)
    assert pool.capacity == 8


def test_a_reload_keeps_the_state_of_targets_that_stay() -> None:
    """Counts, latency, health and a drain survive; weight and limits are the new ones."""
    fleet, pool, _ = fleet_of(World(), target("a"), target("b"))
    state = state_of(fleet, "a")
    flight = state.begin(70)
    flight.first_byte(0.25)
    fleet.drain("b", "maintenance")
    fleet.adopt([Model("m", (target("a", weight=4, max_concurrent=1), target("b"), target("c")))])
    assert fleet.pool("m") is pool
    assert state_of(fleet, "a") is state
    assert (state.outstanding, state.outstanding_tokens, state.first_byte_s, state.weight) == (1, 70, 0.25, 4)
    assert names(pool) == ["c"], "a is full under the new limit, b is drained"
    flight.end()
    assert names(pool) == ["a", "c"]
    assert pool.candidates().outstanding == 0  # type: ignore[union-attr]


def test_a_removed_target_drains_and_is_forgotten_when_idle() -> None:
    """What runs there goes on, nothing new is sent, and it goes when the last answer has ended."""
    fleet, pool, _ = fleet_of(World(), target("a", max_concurrent=2), target("b", max_concurrent=2))
    gone = state_of(fleet, "a")
    flight = gone.begin()
    fleet.adopt([Model("m", (target("b", max_concurrent=2),))])
    assert gone.health.state is HealthState.DRAINING
    assert names(pool) == ["b"]
    assert pool.capacity == 3, "its running answer still holds a lease"
    fleet.sweep()
    assert fleet.state("a") is gone
    flight.succeeded()
    flight.end()
    assert pool.capacity == 2
    fleet.sweep()
    assert fleet.state("a") is None


def test_a_target_that_comes_back_is_in_use_again() -> None:
    """Removed and restored while an answer runs: the same state, no longer draining."""
    fleet, pool, _ = fleet_of(World(), target("a"), target("b"))
    state = state_of(fleet, "a")
    flight = state.begin()
    fleet.adopt([Model("m", (target("b"),))])
    fleet.adopt([Model("m", (target("a"), target("b")))])
    assert state_of(fleet, "a") is state
    assert names(pool) == ["a", "b"]
    flight.end()
    assert pool.candidates().outstanding == 0  # type: ignore[union-attr]


def test_a_removed_model_serves_those_who_hold_it() -> None:
    """A request that holds the pool of a model a reload removed can still be sent."""
    fleet, pool, _ = fleet_of(World(), target("a"))
    fleet.adopt([])
    assert fleet.pool("m") is None
    assert pool.pick(RoutingHint()) is not None


def test_the_refusal_says_what_is_wrong_and_when_to_return() -> None:
    """Busy servers make 503 overloaded with their wait, missing ones 503 unavailable; no address is told."""
    world = World()
    fleet, pool, _ = fleet_of(world, target("a"), target("b"))
    state_of(fleet, "a").health.busy(9.0)
    state_of(fleet, "b").health.busy(4.0)
    refusal = pool.refusal()
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_s == pytest.approx(4.0)
    assert not pool.serving
    world.now += 10.0
    assert pool.serving
    for name in "ab":
        fleet.drain(name, "maintenance")
    refusal = pool.refusal()
    assert isinstance(refusal, Unavailable) and not isinstance(refusal, Overloaded)
    assert "2 draining" in refusal.message and "http" not in refusal.message


def test_unknown_targets_cannot_be_drained() -> None:
    """The operator hears that there is no such target."""
    fleet, _, _ = fleet_of(World(), target("a"))
    assert not fleet.drain("x", "maintenance")
    assert not fleet.undrain("x")
    assert fleet.drain("a", "maintenance") and fleet.undrain("a")


class FleetMachine(RuleBasedStateMachine):
    """Traffic, failures, probes, drains, reloads and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.flights: list[Flight] = []

    @initialize(count=st.integers(1, 6), limits=st.lists(st.sampled_from([None, 1, 3]), min_size=6, max_size=6))
    def build(self, count: int, limits: list[int | None]) -> None:
        self.targets = [target(f"t{n}", max_concurrent=limits[n], priority=n % 2, weight=1 + n % 3) for n in range(6)]
        self.fleet, self.pool, _ = fleet_of(self.world, *self.targets[:count])

    @rule(count=st.integers(1, 6), skip=st.integers(0, 5))
    def reload(self, count: int, skip: int) -> None:
        chosen = [t for n, t in enumerate(self.targets[:count]) if n != skip] or self.targets[:1]
        self.fleet.adopt([Model("m", tuple(chosen))])

    @rule()
    def send(self) -> None:
        picked = self.pool.pick(RoutingHint(prefix=b"x", session="s", tokens=3))
        if picked is not None:
            assert picked.health.usable and not picked.full
            self.flights.append(picked.begin(3))

    @precondition(lambda self: self.flights)
    @rule(index=st.integers(0, 50), outcome=st.sampled_from(["succeeded", "busy", "failed", "failed", "none"]))
    def finish(self, index: int, outcome: str) -> None:
        flight = self.flights.pop(index % len(self.flights))
        if outcome == "succeeded":
            flight.first_byte(0.1)
            flight.succeeded()
        elif outcome == "busy":
            flight.busy(3.0)
        elif outcome == "failed":
            flight.failed("broke")
        flight.end()

    @rule(index=st.integers(0, 5), times=st.integers(1, 6))
    def fail(self, index: int, times: int) -> None:
        state = self.pool.members[index % len(self.pool.members)]
        for _ in range(times):
            state.health.failure("broke")

    @rule(index=st.integers(0, 5), found=st.sampled_from(Readiness))
    def probe(self, index: int, found: Readiness) -> None:
        self.pool.members[index % len(self.pool.members)].health.probe(Probe(found, "found"))

    @rule(index=st.integers(0, 5), on=st.booleans())
    def drain(self, index: int, on: bool) -> None:
        name = self.pool.members[index % len(self.pool.members)].id
        assert self.fleet.drain(name, "maintenance") if on else self.fleet.undrain(name)

    @rule(seconds=st.sampled_from([0.5, 5.0, 30.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.fleet.tick()
        self.fleet.sweep()

    @invariant()
    def never_more_than_half_out(self) -> None:
        members = [state for state in self.pool.members if not state.health.draining]
        assert sum(state.health.out for state in members) <= len(members) // 2

    @invariant()
    def lists_and_sums_are_right(self) -> None:
        expected = {s for s in self.pool.members if s.health.usable and not s.full}
        listed = [state for tier in self.pool._tiers for state in tier]
        assert set(listed) == expected and len(listed) == len(expected)
        for tier in self.pool._tiers:
            assert tier.outstanding == sum(state.outstanding for state in tier)
            assert tier.weight == sum(state.weight for state in tier)
            assert all(state in tier and tier[state.position] is state for state in tier)
        assert sum(state.outstanding for state in self.fleet.states()) == len(self.flights)

    @invariant()
    def whoever_holds_a_lease_finds_a_slot(self) -> None:
        capacity = self.pool.capacity
        if capacity is None or len(self.flights) < capacity:
            assert self.pool.candidates() is not None or capacity is None

    def teardown(self) -> None:
        for flight in self.flights:
            flight.end()
        if self.flights:
            assert all(state.outstanding == state.outstanding_tokens == 0 for state in self.fleet.states())


FleetMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestFleetMachine = FleetMachine.TestCase
