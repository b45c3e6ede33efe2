"""What this process knows of targets while it runs: who is loaded how much, who may take the next request.

    Fleet             all targets of all models; survives reloads of the catalog
      Pool            the targets of one model: tiers by priority, the rule that at most half is out, capacity
        Candidates    who can take a request now, in one tier; kept up to date, not recomputed
        TargetState   one target: outstanding requests and tokens, latency, health
          Flight      one request at one target, from ``begin`` to ``end``

A target is a candidate when its health says usable, it has a free slot (``max_concurrent``), its weight is above zero
and it is no shadow. Candidates come from the tier of the lowest priority number that has any, so a full or failed tier
flows over into the next. The lists change only when a target becomes usable or stops being so; a request costs the
same with 2 targets as with 1,000.

A reload keeps the state of every target whose id stays. A target that left is draining until its last running answer
has ended; a model that left keeps its pool for the requests that hold it.

Counts are of this process. With several workers each target has a cell (`shared`) through which ``max_concurrent``
holds over all of them: a pick claims its slot there, and a target that is full by what others run is *crowded*.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import exp, inf
from typing import TYPE_CHECKING

from passerelle.domain.errors import Overloaded, PasserelleError, Unavailable
from passerelle.domain.model import Model, Target
from passerelle.gateway.health import Health, HealthRules, HealthState, Surroundings
from passerelle.gateway.shared import POLL_S, Hint, Seat, TargetCell

if TYPE_CHECKING:
    from passerelle.gateway.policies.base import Policy, RoutingHint

_NO_LABELS: Mapping[str, str] = {}
_LATENCY_MEMORY_S = 10.0
_LATENCY_STEP = 0.3
_UNKNOWN_LATENCY_S = 60.0
_MAX_RETRY_AFTER_S = 60.0


class Candidates(list["TargetState"]):
    """Targets of one tier that can take a request now; a list whose ``in`` does not search.

    ``members`` are all targets of the tier, usable or not: what hash rings are built of, the same tuple until a reload.
    ``present`` are those in the list, as a set. ``version`` changes whenever who is in the list changes.
    ``outstanding`` and ``weight`` are sums over the list.
    The order means nothing.
    """

    __slots__ = ("members", "outstanding", "present", "tier", "version", "weight")

    def __init__(self, states: Iterable[TargetState] = (), *, tier: int = 0) -> None:
        super().__init__(states)
        self.present = set(self)
        self.tier = tier
        self.members: tuple[TargetState, ...] = tuple(self)
        self.version: object = object()
        self.outstanding = sum(state.outstanding for state in self)
        self.weight = sum(state.weight for state in self)

    def __contains__(self, state: object) -> bool:
        return state in self.present

    def enter(self, state: TargetState) -> None:
        """Puts ``state`` in; in constant time."""
        state.position = len(self)
        self.append(state)
        self.present.add(state)
        self.outstanding += state.outstanding
        self.weight += state.weight
        self.version = object()

    def leave(self, state: TargetState) -> None:
        """Takes ``state`` out; in constant time: the last one takes its place."""
        last = self.pop()
        if last is not state:
            self[state.position] = last
            last.position = state.position
        state.position = -1
        self.present.discard(state)
        self.outstanding -= state.outstanding
        self.weight -= state.weight
        self.version = object()

    def only(self, wanted: Callable[[TargetState], bool]) -> Candidates:
        """Returns those that ``wanted`` accepts, as a list of its own; in linear time."""
        some = Candidates((state for state in self if wanted(state)), tier=self.tier)
        some.members = self.members
        return some


class TargetState:
    """One target at run time.

    ``outstanding`` and ``outstanding_tokens`` are what runs there now, tokens as estimated by the gateway (bytes of the
    prompt / 4 + max_tokens). ``first_byte_s`` is a moving average of the time to the first byte, None before the
    first answer. ``target`` is the newest configuration.
    """

    __slots__ = (
        "_clock",
        "_measured_at",
        "bears",
        "broken",
        "cell",
        "completed",
        "first_byte_s",
        "health",
        "id",
        "leaving",
        "limit",
        "others",
        "outstanding",
        "outstanding_tokens",
        "pool",
        "position",
        "share",
        "started",
        "switched_at",
        "target",
        "tier",
        "weight",
    )

    def __init__(
        self,
        target: Target,
        health: Health | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = target.id
        self.health = health or Health(HealthRules(), Surroundings(clock=clock))
        self.outstanding = 0
        self.outstanding_tokens = 0
        self.first_byte_s: float | None = None
        self._measured_at = 0.0
        self._clock = clock
        self.started = 0
        """Attempts since the start of the process; ``completed`` and ``broken`` are how they ended."""
        self.completed = 0
        self.broken = 0
        self.leaving = False
        """No longer in the catalog."""
        self.cell: TargetCell | None = None
        """Where the workers share what they know of it; None when there is one worker."""
        self.others = 0
        """How many requests other workers have there, as far as that keeps ours away."""
        self.switched_at = -inf
        """When an operator drained it or put it back, in monotonic seconds."""
        self.pool: Pool | None = None
        self.tier: Candidates | None = None
        self.position = -1
        """Where it stands in its tier's candidates; -1 when it is not one."""
        self.bears: int | None = 0
        """What it adds to its pool's capacity, as last counted; None for any number."""
        self.configure(target)

    def __repr__(self) -> str:
        return f"TargetState({self.id!r}, {self.health.state.value}, outstanding={self.outstanding})"

    def configure(self, target: Target) -> None:
        """Takes over a new configuration of the same target; not while it is in a pool's lists."""
        self.target = target
        self.weight = target.weight
        self.share = 1.0 / target.weight if target.weight > 0 else inf
        self.limit = target.max_concurrent

    @property
    def full(self) -> bool:
        """Whether all its slots are taken."""
        return self.limit is not None and self.outstanding + self.others >= self.limit

    def begin(self, tokens: int = 0) -> Flight:
        """A request of about ``tokens`` tokens goes there now. Call it right after the pick, with no await between."""
        self.started += 1
        self.outstanding += 1
        self.outstanding_tokens += tokens
        if self.position >= 0:
            self.tier.outstanding += 1  # type: ignore[union-attr]
            if self.limit is not None and self.outstanding + self.others >= self.limit:
                self.refresh()
        if self.cell is not None:
            self.cell.count(self)
        trial = self.health.half_open and self.health.begin()
        return Flight(self, tokens, trial)

    def land(self, tokens: int) -> None:
        """The counterpart of ``begin``; called by `Flight.end`."""
        self.outstanding -= 1
        self.outstanding_tokens -= tokens
        if self.cell is not None:
            self.cell.count(self)
        if self.position >= 0:
            self.tier.outstanding -= 1  # type: ignore[union-attr]
        elif self.pool is not None:
            self.pool.landed(self)

    def refresh(self) -> None:
        """Enters or leaves its tier's candidates as health and free slots say."""
        tier = self.tier
        if tier is None:
            return
        wanted = self.health.usable and not (self.limit is not None and self.outstanding + self.others >= self.limit)
        if wanted and self.position < 0:
            tier.enter(self)
        elif not wanted and self.position >= 0:
            tier.leave(self)

    def measure(self, seconds: float) -> None:
        """Takes a time to the first byte into the average; the longer the silence before, the more it counts."""
        now = self._clock()
        if self.first_byte_s is None:
            self.first_byte_s = seconds
        else:
            step = max(_LATENCY_STEP, 1.0 - exp((self._measured_at - now) / _LATENCY_MEMORY_S))
            self.first_byte_s += step * (seconds - self.first_byte_s)
        self._measured_at = now

    def latency_s(self, now: float) -> float:
        """The average, in seconds; while the target is idle it fades, so that one that was slow once is tried again.

        0 when nothing is known, so the unknown is explored first; by one request at a time, for until that has
        answered there is no telling how slow it is.
        """
        if self.first_byte_s is None:
            return _UNKNOWN_LATENCY_S if self.outstanding else 0.0
        if self.outstanding:
            return self.first_byte_s
        return self.first_byte_s * exp((self._measured_at - now) / _LATENCY_MEMORY_S)


class Flight:
    """One request at one target. Report at most one outcome, then ``end``; ending twice does no harm."""

    __slots__ = ("_reported", "_tokens", "_trial", "state")

    def __init__(self, state: TargetState, tokens: int, trial: bool) -> None:
        self.state: TargetState = state
        self._tokens = tokens
        self._trial = trial
        self._reported = False

    def first_byte(self, seconds: float) -> None:
        """The first byte of the body came, ``seconds`` after the attempt began."""
        self.state.measure(seconds)
        if self._trial:
            self.state.health.first_byte(trial=True)

    def succeeded(self) -> None:
        """The whole answer came."""
        self._reported = True
        self.state.completed += 1
        self.state.health.success(trial=self._trial)

    def busy(self, retry_after_s: float | None = None) -> None:
        """The server refused because it is overloaded (429, 503); not a failure."""
        self._reported = True
        self.state.health.busy(retry_after_s, trial=self._trial)

    def failed(self, why: str) -> None:
        """The connection was refused or broke, a deadline passed, a 5xx. ``why`` is a short text of ours."""
        self._reported = True
        self.state.broken += 1
        self.state.health.failure(why, trial=self._trial)

    def end(self) -> None:
        """Frees the slot. Without an outcome (the caller left, a 4xx) nothing is held against the target."""
        if self._tokens < 0:
            return
        tokens, self._tokens = self._tokens, -1
        if self._trial and not self._reported:
            self.state.health.inconclusive(trial=True)
        self.state.land(tokens)


class Pool:
    """The targets of one model."""

    def __init__(self, name: str, policy: Policy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.policy = policy
        self.policy_name = ""
        self.members: tuple[TargetState, ...] = ()
        """Every target that takes traffic; weight 0 and shadows do not."""
        self.shadows: tuple[TargetState, ...] = ()
        self.due = inf
        """When `tick` has something to do, in monotonic seconds; perhaps too early, never too late."""
        self._clock = clock
        self._crowded: set[TargetState] = set()
        self._recount_at = 0.0
        self._departed: tuple[TargetState, ...] = ()
        self._tiers: list[Candidates] = []
        self._limit: int | None = None
        self._bounded = 0
        self._boundless = 0
        self._capacity: int | None = None
        self._watchers: list[Callable[[int | None], None]] = []

    def arrange(self, model: Model, states: Iterable[TargetState]) -> None:
        """Takes the targets of a new snapshot; ``states`` carry their configuration already."""
        known = dict.fromkeys(states)
        serving = tuple(state for state in known if not state.target.shadow and state.weight > 0)
        before = dict.fromkeys((*self.members, *self._departed))
        self._departed = tuple(s for s in before if s not in known and s.pool is self and s.outstanding)
        for state in before:
            if state.pool is self:
                state.pool, state.tier, state.position = None, None, -1
        self._tiers = [
            self._tier(priority, [state for state in serving if state.target.priority == priority])
            for priority in sorted({state.target.priority for state in serving})
        ]
        self.members, self.shadows = serving, tuple(state for state in known if state.target.shadow)
        for state in (*self._departed, *self.shadows):
            state.pool, state.tier, state.position = self, None, -1
        self._limit = model.max_concurrent
        self._bounded = self._boundless = 0
        for state in (*serving, *self._departed):
            state.bears = 0
            self._weigh(state)
        self.due = min((state.health.due for state in serving), default=inf)
        self._keep_half()
        self._publish()

    def _tier(self, priority: int, states: list[TargetState]) -> Candidates:
        tier = Candidates(tier=priority)
        tier.members = tuple(states)
        for state in states:
            state.pool, state.tier, state.position = self, tier, -1
            state.refresh()
        return tier

    def candidates(
        self, labels: Mapping[str, str] = _NO_LABELS, exclude: Collection[TargetState] = ()
    ) -> Candidates | None:
        """Returns who can take a request now, None when nobody can.

        ``labels`` must all be on the target; ``exclude`` are those that a call has tried. The list without either is
        the pool's own: not to be changed, and true only until the next event.
        """
        if self.due != inf and self._clock() >= self.due:
            self.tick()
        wanted = labels.items()
        for tier in self._tiers:
            if not tier:
                continue
            if not wanted and not exclude:
                return tier
            if some := tier.only(lambda state: state not in exclude and wanted <= state.target.labels.items()):
                return some
        return None

    def only(self) -> TargetState | None:
        """Returns the one candidate when there is no choice and no slot to claim: what `pick` would, without a hint."""
        if self.due != inf or self._crowded or len(self._tiers) != 1 or len(self._tiers[0]) != 1:
            return None
        state = self._tiers[0][0]
        return state if state.cell is None or state.limit is None else None

    def pick(
        self,
        hint: RoutingHint,
        labels: Mapping[str, str] = _NO_LABELS,
        exclude: Collection[TargetState] = (),
    ) -> TargetState | None:
        """Returns the target the model's policy chooses among the candidates; None when there are none."""
        if self._crowded and self._clock() >= self._recount_at:
            self.recount()
        while (candidates := self.candidates(labels, exclude)) is not None:
            state = candidates[0] if len(candidates) == 1 else self.policy.pick(candidates, hint)
            if state.cell is None or state.limit is None:
                return state
            others = state.cell.claim(state.outstanding + 1, state.limit)
            if others is None:
                return state
            state.others = others
            state.refresh()
            self._crowded.add(state)
        return None

    async def pick_when_free(self, hint: RoutingHint, exclude: Collection[TargetState] = ()) -> TargetState | None:
        """Returns what `pick` does, after waiting while requests of other workers alone are in the way.

        Who holds a lease finds a slot, though not always at once: the workers see each other's leases and slots end
        one after the other.
        """
        while (state := self.pick(hint, exclude=exclude)) is None:
            if not any(crowded.health.usable and crowded not in exclude for crowded in self._crowded):
                return None
            await asyncio.sleep(POLL_S)
        return state

    def recount(self) -> None:
        """Looks again at what other workers run where that matters: at crowded targets, and at those out of use."""
        self._recount_at = self._clock() + POLL_S
        for state in self._crowded:
            state.others = 0 if state.cell is None else state.cell.others()
            if not state.full:
                state.others = 0
            state.refresh()
        self._crowded = {state for state in self._crowded if state.tier is not None and state.others}

    def recount_unsure(self) -> None:
        """Capacity counts what others still run at targets that are out of use or on trial, as it counts our own."""
        for state in self.members:
            if state.cell is not None and (not state.health.usable or state.health.half_open):
                state.others = state.cell.others()
                state.refresh()
                self._weigh(state)
        self._publish()

    @property
    def serving(self) -> bool:
        """Whether any target is healthy, free or full. When not, waiting in the queue is of little use."""
        if self.due != inf and self._clock() >= self.due:
            self.tick()
        return any(self._tiers) or any(state.health.usable for state in self.members)

    @property
    def capacity(self) -> int | None:
        """How many requests may run at once, None for any number.

        The smaller of the model's ``max_concurrent`` and the sum of what targets bear: a ready target its
        ``max_concurrent``, a half-open one its trial, any other (one that left included) what still runs there. So
        whoever holds a lease finds a free slot: if every ready target were full, the leases would be used up.
        """
        return self._capacity

    def watch(self, callback: Callable[[int | None], None]) -> None:
        """Calls ``callback`` with the capacity now, and again whenever it changes (`queue.FairQueue.resize`)."""
        self._watchers.append(callback)
        callback(self._capacity)

    def refusal(self) -> PasserelleError:
        """Returns the error for a caller whom no target can take: what is wrong, and when to come back."""
        states = [state.health.state for state in self.members]
        counts = ", ".join(f"{states.count(state)} {state.value}" for state in HealthState if state in states)
        waits = [wait for state in self.members if (wait := state.health.retry_after_s()) is not None]
        retry_after_s = max(1.0, min(min(waits, default=5.0), _MAX_RETRY_AFTER_S))
        text = f"No model server can take a request for '{self.name}' now ({counts or 'no target'}); retry later."
        busy = HealthState.BUSY in states or HealthState.READY in states
        return (Overloaded if busy else Unavailable)(text, retry_after_s=retry_after_s)

    def may_leave(self) -> bool:
        """Whether one more target may be put out: never more than half of those not drained, and one always stays."""
        return len(self._out()) < self._allowed_out()

    def landed(self, state: TargetState) -> None:
        """A request ended at a target that is not a candidate: its slot may count again."""
        state.refresh()
        self._weigh(state)
        self._publish()

    def changed(self, state: TargetState) -> None:
        """A target's health changed: its tier, the half rule, the due time and capacity follow."""
        self.due = min(self.due, state.health.due)
        if state.tier is not None:
            if state.others and state.health.usable:
                self._crowded.add(state)  # counted while it was out of use
            state.refresh()
            self._weigh(state)
            if state.health.draining or state.health.out:
                self._keep_half()
            self._publish()

    def tick(self) -> None:
        """Lets time pass for its targets. Called when something is due, and regularly for those who wait."""
        for state in self.members:
            state.health.tick()
        self.due = min((state.health.due for state in self.members), default=inf)

    def _keep_half(self) -> None:
        """Brings targets back, the one due first, when draining or a reload left too large a part of the pool out."""
        while len(out := self._out()) > self._allowed_out():
            min(out, key=lambda state: state.health.due).health.readmit("back because half of the pool is out")

    def _out(self) -> list[TargetState]:
        return [state for state in self.members if state.health.out and not state.health.draining]

    def _allowed_out(self) -> int:
        return sum(1 for state in self.members if not state.health.draining) // 2

    def _weigh(self, state: TargetState) -> None:
        """Counts anew what ``state`` bears."""
        bears: int | None
        if state.tier is None or not state.health.usable:
            bears = state.outstanding + state.others
        elif state.health.half_open:
            bears = state.outstanding + state.others + (not state.full)
        else:
            bears = None if state.limit is None else max(state.limit, state.outstanding)
        if bears != state.bears:
            self._bounded += (bears or 0) - (state.bears or 0)
            self._boundless += (bears is None) - (state.bears is None)
            state.bears = bears

    def _publish(self) -> None:
        capacity = self._limit
        if not self._boundless:
            capacity = self._bounded if capacity is None else min(capacity, self._bounded)
        if capacity != self._capacity:
            self._capacity = capacity
            for callback in self._watchers:
                callback(capacity)


@dataclass(frozen=True, slots=True)
class StateChange:
    """A change of a target's state, for logs and metrics. ``at`` is seconds since the epoch."""

    target: TargetState
    model: str
    old: HealthState
    new: HealthState
    why: str
    at: float


class Fleet:
    """All targets of this process. ``adopt`` takes a snapshot's models; the rest follows.

    ``make_policy`` turns a policy's name into a new `Policy` (`policies.make_policy`). ``on_change`` hears of every
    change of state. ``clock`` is monotonic seconds, ``epoch`` seconds since the epoch, ``draw`` a number in [0, 1).
    ``seat`` is this worker's place among several: call `sync` a few times a second then.
    """

    def __init__(
        self,
        make_policy: Callable[[str], Policy],
        *,
        rules: HealthRules | None = None,
        clock: Callable[[], float] = time.monotonic,
        epoch: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
        on_change: Callable[[StateChange], None] = lambda change: None,
        seat: Seat | None = None,
    ) -> None:
        self._seat = seat
        self._make_policy = make_policy
        self._rules = rules or HealthRules()
        self._clock = clock
        self._epoch = epoch
        self._draw = draw
        self._on_change = on_change
        self._states: dict[str, TargetState] = {}
        self._pools: dict[str, Pool] = {}
        self._drained: dict[str, str] = {}

    def adopt(self, models: Iterable[Model]) -> None:
        """Takes the models of a new snapshot. Targets that stay keep their state, those that left drain."""
        models = list(models)
        listed = {target.id for model in models for target in model.targets}
        names = {model.name for model in models}
        for state in list(self._states.values()):
            if state.id not in listed and not state.leaving:
                state.leaving = True
                # The requests that hold a model that was removed may still use its targets.
                if state.pool is None or state.pool.name in names:
                    state.health.drain("removed by a reload")
        for model in models:
            states = [self._enlist(target) for target in model.targets]
            pool = self._pools.get(model.name)
            if pool is None:
                pool = self._pools[model.name] = Pool(model.name, self._make_policy(model.policy), clock=self._clock)
            elif pool.policy_name != model.policy:
                pool.policy = self._make_policy(model.policy)
            pool.policy_name = model.policy
            pool.arrange(model, states)
        for name in [name for name in self._pools if name not in names]:
            del self._pools[name]
        self.sweep()
        if self._seat is not None:
            self._seat.listen_again()

    def pool(self, model: str) -> Pool | None:
        """Returns the pool of a model by its catalog name. A request keeps the one it got, through reloads."""
        return self._pools.get(model)

    def pools(self) -> Iterator[Pool]:
        """Yields the pools of the newest snapshot."""
        yield from self._pools.values()

    def state(self, target_id: str) -> TargetState | None:
        """Returns the state of a target, also of one that is leaving."""
        return self._states.get(target_id)

    def states(self) -> Iterator[TargetState]:
        """Yields all targets, those that are leaving and shadows included."""
        yield from self._states.values()

    def drain(self, target_id: str, why: str) -> bool:
        """Takes a target out of use for new requests until `undrain`, also over reloads. False when there is none."""
        state = self._states.get(target_id)
        if state is None or state.leaving:
            return False
        self._switch(state, why, self._clock())
        return True

    def undrain(self, target_id: str) -> bool:
        """Puts a drained target back. False when there is none of that id."""
        state = self._states.get(target_id)
        if state is None or state.leaving:
            return False
        self._switch(state, None, self._clock())
        return True

    def _switch(self, state: TargetState, drain_why: str | None, at: float) -> None:
        state.switched_at = at
        if drain_why is None:
            self._drained.pop(state.id, None)
            state.health.undrain()
        else:
            self._drained[state.id] = drain_why
            state.health.drain(drain_why)
        self._tell(state)

    def _tell(self, state: TargetState) -> None:
        """Tells the other workers what we know of a target."""
        if state.cell is not None:
            drain_why = self._drained.get(state.id)
            state.cell.tell(replace(state.health.hint(), drain_why=drain_why, switched_at=state.switched_at))

    def sync(self) -> None:
        """Takes in what other workers found out about targets, and recounts what they run. See `shared`."""
        if self._seat is None:
            return
        for peer, version in self._seat.news().items():
            again = sum(not self._hear(state, peer) for state in self._states.values())
            if not again:
                self._seat.heard(peer, version)
        for pool in self._pools.values():
            pool.recount()
            pool.recount_unsure()

    def _hear(self, state: TargetState, peer: int) -> bool:
        """Returns False when it has to be asked again."""
        if state.cell is None or state.leaving:
            return True
        hint: Hint | None = state.cell.ask(peer)
        if hint is None:
            return False
        if hint.switched_at > state.switched_at:
            self._switch(state, hint.drain_why, hint.switched_at)
        return state.health.hear(hint)

    def tick(self) -> None:
        """Lets time pass. Call it a few times a second: waiting requests hear of returning targets by it."""
        now = self._clock()
        for pool in self._pools.values():
            if now >= pool.due:
                pool.tick()

    def sweep(self) -> None:
        """Forgets targets that left the catalog and have nothing running."""
        for state in [state for state in self._states.values() if state.leaving and not state.outstanding]:
            del self._states[state.id]
            self._drained.pop(state.id, None)
            if state.cell is not None:
                state.cell.release()
                state.cell = None

    def _enlist(self, target: Target) -> TargetState:
        state = self._states.get(target.id)
        if state is None:
            state = self._states[target.id] = self._new_state(target)
            return state
        if state.leaving:
            state.leaving = False
            state.health.undrain()
            if (why := self._drained.get(target.id)) is not None:
                state.health.drain(why)
        if state.tier is not None and state.position >= 0:
            state.tier.leave(state)
        state.pool = state.tier = None
        state.configure(target)
        return state

    def _new_state(self, target: Target) -> TargetState:
        holder: list[TargetState] = []

        def may_leave() -> bool:
            pool = holder[0].pool
            return pool is None or holder[0].tier is None or pool.may_leave()

        def on_change(old: HealthState, new: HealthState) -> None:
            state = holder[0]
            if state.pool is not None:
                state.pool.changed(state)
            self._tell(state)
            if old is not new:
                model = state.pool.name if state.pool is not None else ""
                self._on_change(StateChange(state, model, old, new, state.health.why, state.health.since))

        around = Surroundings(self._clock, self._epoch, self._draw, may_leave, on_change)
        holder.append(TargetState(target, Health(self._rules, around), clock=self._clock))
        if self._seat is not None:
            holder[0].cell = self._seat.target(target.id)
        return holder[0]
