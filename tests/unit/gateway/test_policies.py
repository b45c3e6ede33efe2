"""Every policy: what it promises, and that it copes with targets that come and go."""

from __future__ import annotations

import random
from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.domain.model import Model, Target
from passerelle.gateway.policies import POLICIES, RoutingHint, make_policy
from passerelle.gateway.policies.latency import Latency
from passerelle.gateway.policies.least_busy import LeastBusy
from passerelle.gateway.policies.prefix_affine import PrefixAffine
from passerelle.gateway.policies.ring import Ring
from passerelle.gateway.policies.round_robin import RoundRobin
from passerelle.gateway.policies.session import Session
from passerelle.gateway.policies.weighted import Weighted
from passerelle.gateway.targets import Candidates, Fleet, Flight, Pool, TargetState

SYSTEM = b"You are the assistant of a very large organisation. " * 10


def some(*weights: int) -> Candidates:
    """Candidates a, b, c … of these weights."""
    return Candidates(TargetState(target(chr(97 + n), weight)) for n, weight in enumerate(weights))


def target(name: str, weight: int = 1, limit: int | None = None) -> Target:
    return Target(id=name, url=f"http://{name}/v1", engine="openai", model="m", weight=weight, max_concurrent=limit)


def pool_of(policy: str, *targets: Target) -> tuple[Fleet, Pool]:
    fleet = Fleet(make_policy, clock=lambda: 0.0, epoch=lambda: 0.0)
    fleet.adopt([Model("m", targets, policy=policy)])
    pool = fleet.pool("m")
    assert pool is not None
    return fleet, pool


def pick(pool: Pool, hint: RoutingHint) -> TargetState:
    state = pool.pick(hint)
    assert state is not None
    return state


def test_the_names_are_those_of_the_configuration() -> None:
    """The six policies can be made by name; another name is an error."""
    assert set(POLICIES) == {"round_robin", "weighted", "least_busy", "latency", "session", "prefix_affine"}
    with pytest.raises(KeyError):
        make_policy("random")


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_policy_picks_a_candidate_whatever_happens(name: str, data: st.DataObject) -> None:
    """Targets drain, fill, return and are reloaded between picks; the pick is always one that can serve."""
    targets = [target(f"t{n}", 1 + n % 3, (None, 1, 2)[n % 3]) for n in range(8)]
    fleet, pool = pool_of(name, *targets[:5])
    flights: list[Flight] = []
    for _ in range(40):
        step = data.draw(st.sampled_from(["pick", "pick", "pick", "end", "drain", "undrain", "reload"]))
        if step == "pick":
            prefix = data.draw(st.sampled_from([b"", b"short", SYSTEM, SYSTEM * 3, SYSTEM * 9]))
            hint = RoutingHint(prefix=prefix, session=data.draw(st.sampled_from([None, "s1", "s2"])), tokens=5)
            exclude = list(pool.members)[: data.draw(st.integers(0, 2))]
            allowed = [s for s in pool.members if s.health.usable and not s.full and s not in exclude]
            state = pool.pick(hint, exclude=exclude)
            assert (state in allowed) if allowed else state is None
            if state is not None:
                flights.append(state.begin(5))
        elif step == "end" and flights:
            flights.pop().end()
        elif step == "drain":
            fleet.drain(data.draw(st.sampled_from(pool.members)).id, "maintenance")
        elif step == "undrain":
            fleet.undrain(data.draw(st.sampled_from(pool.members)).id)
        elif step == "reload":
            start = data.draw(st.integers(0, 3))
            fleet.adopt([Model("m", tuple(targets[start : start + 5]), policy=name)])


def test_no_policy_is_asked_where_there_is_no_choice() -> None:
    """`Pool.only` gives the one target while it can take a request, and nothing where a policy has to choose."""
    _, pool = pool_of("least_busy", target("a", limit=1))
    state = pool.only()
    assert state is not None and state is pool.pick(RoutingHint())
    flight = state.begin()
    assert pool.only() is None
    flight.end()
    assert pool.only() is state
    state.health.drain("by hand")
    assert pool.only() is None
    assert pool_of("least_busy", target("a"), target("b"))[1].only() is None


def test_round_robin_takes_turns() -> None:
    """Each is taken once in a round, weights or load notwithstanding."""
    candidates, policy = some(1, 9, 1), RoundRobin()
    candidates[0].begin()
    assert Counter(policy.pick(candidates, RoutingHint()).id for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_weighted_is_proportional_and_smooth() -> None:
    """Weights 5, 1, 1 give five, one and one in every seven, and the two are spread among the five."""
    candidates, policy = some(5, 1, 1), Weighted()
    turns = "".join(policy.pick(candidates, RoutingHint()).id for _ in range(700))
    assert Counter(turns) == {"a": 500, "b": 100, "c": 100}
    assert "aaaa" not in turns and "bc" not in turns and "cb" not in turns
    assert all(Counter(turns[start : start + 7]) == {"a": 5, "b": 1, "c": 1} for start in range(0, 700, 7))


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6))
def test_weighted_is_exact_over_a_round(weights: list[int]) -> None:
    """Over a sum of weights of turns everyone gets its weight, within one."""
    candidates, policy = some(*weights), Weighted()
    seen = Counter(policy.pick(candidates, RoutingHint()).id for _ in range(3 * sum(weights)))
    assert all(abs(seen[state.id] - 3 * state.weight) <= 1 for state in candidates)


def test_weighted_saves_up_nothing_for_a_target_that_was_away() -> None:
    """A target that returns takes its share from then on and does not catch up."""
    fleet, pool = pool_of("weighted", target("a"), target("b"), target("c"))
    fleet.drain("a", "maintenance")
    assert "a" not in {pick(pool, RoutingHint()).id for _ in range(60)}
    fleet.undrain("a")
    seen = Counter(pick(pool, RoutingHint()).id for _ in range(30))
    assert all(9 <= count <= 11 for count in seen.values())


def test_a_canary_gets_its_part() -> None:
    """Weight 1 beside 99 is one in a hundred."""
    candidates, policy = some(99, 1), Weighted()
    assert Counter(policy.pick(candidates, RoutingHint()).id for _ in range(1000))["b"] == 10


def test_least_busy_counts_requests_then_tokens() -> None:
    """Fewer requests win; with as many, fewer tokens do."""
    candidates, policy = some(1, 1, 1), LeastBusy()
    a, b, c = candidates
    a.begin(10)
    b.begin(10)
    assert {policy.pick(candidates, RoutingHint()) for _ in range(6)} == {c}
    c.begin(5)
    assert {policy.pick(candidates, RoutingHint()) for _ in range(6)} == {c}
    c.begin(0)
    b.begin(1000)
    assert {policy.pick(candidates, RoutingHint()) for _ in range(6)} == {a}


def test_least_busy_shares_ties() -> None:
    """Idle targets take turns, so that sequential traffic does not sit on the first."""
    candidates, policy = some(1, 1, 1), LeastBusy()
    assert set(Counter(policy.pick(candidates, RoutingHint()).id for _ in range(30)).values()) == {10}


def test_least_busy_scales_by_weight() -> None:
    """Under load a target of weight 3 carries three times as much."""
    candidates, policy = some(3, 1), LeastBusy()
    for _ in range(40):
        policy.pick(candidates, RoutingHint()).begin()
    assert [state.outstanding for state in candidates] == [30, 10]


def test_least_busy_among_many_keeps_the_load_even() -> None:
    """Drawing five of a thousand still spreads 5,000 requests within a few of the mean."""
    rng = random.Random(3)
    candidates = Candidates(TargetState(target(f"t{n}")) for n in range(1000))
    policy = LeastBusy(rng.random)
    for _ in range(5000):
        policy.pick(candidates, RoutingHint()).begin()
    loads = [state.outstanding for state in candidates]
    assert max(loads) <= 7 and min(loads) >= 2


class Clock:
    """Monotonic seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def timed(clock: Clock, *latencies_s: float) -> Candidates:
    candidates = Candidates(TargetState(target(f"t{n}"), clock=clock) for n in range(len(latencies_s)))
    for state, latency_s in zip(candidates, latencies_s, strict=True):
        state.measure(latency_s)
    return candidates


def test_latency_prefers_the_faster_until_it_is_loaded() -> None:
    """Ten times slower gets a request when the fast one has ten."""
    clock = Clock()
    candidates = timed(clock, 0.1, 1.0)
    policy = Latency(random.Random(1).random, clock)
    loads = [policy.pick(candidates, RoutingHint()).begin().state.id for _ in range(22)]
    assert loads[:9] == ["t0"] * 9
    assert Counter(loads) == {"t0": 20, "t1": 2}


def test_latency_tries_the_unknown_first_and_the_slow_again() -> None:
    """No answer yet counts as fast; an answer that was slow long ago fades."""
    clock = Clock()
    candidates = timed(clock, 0.1, 5.0)
    policy = Latency(random.Random(1).random, clock)
    unknown = Candidates([candidates[0], TargetState(target("new"), clock=clock)])
    assert {policy.pick(unknown, RoutingHint()).id for _ in range(10)} == {"new"}
    slow = candidates[1]
    assert policy.pick(candidates, RoutingHint()) is not slow
    for _ in range(60):
        clock.now += 1.0
        candidates[0].measure(0.1)
    assert policy.pick(candidates, RoutingHint()) is slow


def test_a_slow_target_among_fast_ones_gets_little() -> None:
    """Row A20: of three targets the one that needs 5 s instead of 50 ms sees a small part of the traffic."""
    for name in ("latency", "least_busy"):
        clock, rng = Clock(), random.Random(2)
        fleet = Fleet(make_policy, clock=clock, epoch=clock, draw=rng.random)
        fleet.adopt([Model("m", (target("slow"), target("b"), target("c")), policy=name)])
        pool = fleet.pool("m")
        assert pool is not None
        if name == "latency":
            pool.policy = Latency(rng.random, clock)
        running: list[tuple[float, float, Flight]] = []
        seen: Counter[str] = Counter()
        for _ in range(2000):
            clock.now += 0.01
            for entry in [entry for entry in running if entry[0] <= clock.now]:
                running.remove(entry)
                entry[2].first_byte(entry[0] - entry[1])
                entry[2].end()
            flight = pick(pool, RoutingHint()).begin()
            seen[flight.state.id] += 1
            running.append((clock.now + (5.0 if flight.state.id == "slow" else 0.05), clock.now, flight))
        assert seen["slow"] < 100, name


def test_sessions_stay() -> None:
    """The same session goes to the same target, also from another process; many sessions use all targets by weight."""
    one, other = some(1, 1, 2), some(1, 1, 2)
    here, there = Session(), Session()
    seen: Counter[str] = Counter()
    for number in range(2000):
        hint = RoutingHint(session=f"conversation-{number}")
        first = here.pick(one, hint).id
        assert here.pick(one, hint).id == first == there.pick(other, hint).id
        seen[first] += 1
    assert 700 < seen["c"] < 1300 and min(seen.values()) > 300


@pytest.mark.parametrize("away", ["drain", "remove"])
def test_only_the_sessions_of_a_lost_target_move(away: str) -> None:
    """When a target goes, its sessions spread over the others and return with it; no other session moves."""
    targets = [target(name) for name in "abcde"]
    fleet, pool = pool_of("session", *targets)
    hints = [RoutingHint(session=str(number)) for number in range(500)]
    before = [pick(pool, hint).id for hint in hints]
    if away == "drain":
        fleet.drain("c", "maintenance")
    else:
        fleet.adopt([Model("m", tuple(t for t in targets if t.id != "c"), policy="session")])
    during = [pick(pool, hint).id for hint in hints]
    assert all(new == old for old, new in zip(before, during, strict=True) if old != "c")
    moved = Counter(new for old, new in zip(before, during, strict=True) if old == "c")
    assert set(moved) == set("abde"), "the load of a lost target spreads"
    if away == "drain":
        fleet.undrain("c")
    else:
        fleet.adopt([Model("m", tuple(targets), policy="session")])
    assert [pick(pool, hint).id for hint in hints] == before


def test_a_new_target_takes_only_its_part_of_the_sessions() -> None:
    """Adding a fifth moves about a fifth of the sessions, all of them to the new one."""
    fleet, pool = pool_of("session", *(target(name) for name in "abcd"))
    hints = [RoutingHint(session=str(number)) for number in range(1000)]
    before = [pick(pool, hint).id for hint in hints]
    fleet.adopt([Model("m", tuple(target(name) for name in "abcde"), policy="session")])
    after = [pick(pool, hint).id for hint in hints]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"e"}
    assert 100 < len(moved) < 320


def test_requests_without_session_go_to_the_least_busy() -> None:
    """No session, no stickiness."""
    candidates, policy = some(1, 1), Session()
    candidates[0].begin()
    assert policy.pick(candidates, RoutingHint()) is candidates[1]


def test_a_shared_prefix_maps_to_one_target() -> None:
    """Prompts with the same first 256 bytes meet while there is room; short prompts are told apart."""
    candidates, policy = some(1, 1, 1, 1), PrefixAffine()
    picked = {policy.pick(candidates, RoutingHint(prefix=SYSTEM[:256] + b"%d" % n)).id for n in range(50)}
    assert len(picked) == 1
    shorts = {policy.pick(candidates, RoutingHint(prefix=b"question %d" % n)).id for n in range(50)}
    assert shorts == set("abcd")


def test_a_long_conversation_stays_where_it_spilled_to() -> None:
    """Moved once because its target was full, a long prompt goes on where its cache now is, later turns included."""
    candidates, policy = some(1, 1), PrefixAffine()
    prompt = RoutingHint(prefix=SYSTEM * 4)
    home = policy.pick(candidates, prompt)
    load = [home.begin() for _ in range(4)]
    away = policy.pick(candidates, prompt)
    assert away is not home
    for flight in load:
        flight.end()
    candidates.outstanding = 0
    grown = RoutingHint(prefix=prompt.prefix + b" and then some more")
    assert policy.pick(candidates, grown) is away
    assert policy.pick(candidates, RoutingHint(prefix=SYSTEM[:300])) is home, "the system prompt alone is at home"


@settings(max_examples=60, deadline=None)
@given(data=st.data(), weights=st.lists(st.integers(1, 4), min_size=2, max_size=8))
def test_no_target_is_flooded(data: st.DataObject, weights: list[int]) -> None:
    """At every pick the target stays within 1.25 times its fair part, rounded up, even if all prompts are alike."""
    fleet, pool = pool_of("prefix_affine", *(target(f"t{n}", w) for n, w in enumerate(weights)))
    flights: list[Flight] = []
    prefixes = st.sampled_from([SYSTEM, SYSTEM, SYSTEM, SYSTEM * 3 + b"x", b"short"])
    for _ in range(data.draw(st.integers(1, 60))):
        if flights and data.draw(st.integers(0, 3)) == 0:
            flights.pop(data.draw(st.integers(0, len(flights) - 1))).end()
            continue
        state = pick(pool, RoutingHint(prefix=data.draw(prefixes)))
        flights.append(state.begin())
        total, weight = len(flights), sum(weights)
        assert state.outstanding <= ceil(1.25 * total * state.weight / weight - 1e-9)
    assert fleet.state("t0") is not None


def test_the_memory_of_prefixes_is_bounded() -> None:
    """A hundred thousand different prompts leave no more than the stated number behind."""
    candidates, policy = some(1, 1), PrefixAffine()
    for number in range(20_000):
        policy.pick(candidates, RoutingHint(prefix=b"%1024d" % number))
    assert len(policy._seen) + len(policy._seen_before) <= 16_385


def test_a_ring_of_a_thousand_is_walked_by_weight() -> None:
    """All members own a part of the circle, and where nobody has room there is an end to looking."""
    members = tuple(TargetState(target(f"t{n}")) for n in range(1000))
    candidates = Candidates(members)
    ring = Ring(members)
    rng = random.Random(5)
    owners = Counter(found(ring, rng.getrandbits(32), candidates).id for _ in range(30_000))
    assert len(owners) == 1000 and max(owners.values()) < 90
    assert ring.find(7, candidates, room=0.0) is None


def found(ring: Ring, key: int, candidates: Candidates) -> TargetState:
    state = ring.find(key, candidates)
    assert state is not None
    return state
