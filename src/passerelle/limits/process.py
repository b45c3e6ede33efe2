"""Counters of one process, for the calls that it lets through itself. Nothing waits in here, so on one event loop each
step is atomic.

What is asked a thousand times a second is a caller's plan: all limits that count the calls. Limits of one subject that
count the same, by the minute and by the day say, go down together, call by call: the difference of what is left of them
changes only when a window ends. So they share one number, what is left of the tightest, in a `Tally`; the others are
known by how much more is left of them. A call touches one or two numbers of a caller's own, which matters where many
callers come in turn and each number lies in memory that was not used for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from passerelle.domain.client import Headers
from passerelle.domain.limit import Grant
from passerelle.limits.book import ENDLESS, UNITS, Plan, told
from passerelle.limits.counters import Used, Windows
from passerelle.limits.rule import PERIODS, LimitRule, Second, SubjectKind

_LARGE = 2 * ENDLESS
"""More than is left of anything."""
_TOLD = ENDLESS // 2
"""More than is left of any hard limit, and less than of a soft one, which answers do not tell."""
_Shared = tuple[SubjectKind, str, str, str, int]
"""What limits of one tally have in common: kind, organisation and id of the subject, model, unit."""


@dataclass(slots=True, eq=False)
class Count:
    """One limit of a tally, in the window that began at ``start``: it lets ``most`` pass, and ``over`` more is left of
    it than of the tightest."""

    rule: LimitRule
    period: int
    """Its place in `PERIODS`."""
    start: int
    most: int
    over: int = 0


@dataclass(slots=True, eq=False)
class Tally:
    """Limits that count the same amounts of the same calls. ``left`` is of the tightest, and ``lines`` and ``reset``
    are what `told` says of that one. ``shared`` is what they have in common."""

    shared: _Shared
    left: int = _LARGE
    lines: bytes = b""
    reset: int = 0
    counts: list[Count] = field(default_factory=list)
    alone: tuple[Tally, ...] = ()
    """Itself only: for all plans that have nothing else of its kind."""
    planned: bool = False
    """Calls may have taken of it."""

    def __post_init__(self) -> None:
        self.alone = (self,)

    def lefts(self) -> list[int]:
        """Returns what is left of each limit."""
        return [self.left + count.over for count in self.counts]

    def set(self, lefts: list[int]) -> None:
        """Sets what is left of each limit."""
        self.left = min(lefts, default=_LARGE)
        for count, left in zip(self.counts, lefts, strict=True):
            count.over = left - self.left
        tightest = next((count.rule for count in self.counts if not count.over), None)
        self.lines, self.reset = (b"", 0) if tightest is None else told(tightest)

    def add(self, at: int, more: int) -> None:
        """Leaves more of one limit."""
        lefts = self.lefts()
        lefts[at] += more
        self.set(lefts)

    def turn(self, starts: tuple[int, ...]) -> None:
        """Begins the windows that are new."""
        lefts = self.lefts()
        for at, count in enumerate(self.counts):
            if count.start != starts[count.period]:
                count.start, lefts[at] = starts[count.period], count.most
        self.set(lefts)


class PlanGrant(Grant, frozen=True, gc=False, eq=False):
    """What one call took of a plan's rules: one request and one call under way, and so much, in the windows that began
    at ``starts``, by period."""

    plan: Plan
    starts: tuple[int, ...]
    tokens: int
    cost_nano: int

    def amount(self, unit: int) -> int:
        """Returns what it took of a limit of that unit."""
        return (1, self.tokens, self.cost_nano, 1)[unit]


class ProcessCounters:
    """Counters by plan, in the present windows.

    Calls under way are remembered, not added up: what they hold is counted when somebody asks, and each call has that
    much less to do.
    """

    def __init__(self) -> None:
        self._tallies: dict[_Shared, Tally] = {}
        self._places: dict[str, tuple[Tally, Count]] = {}
        """By the id of the rule."""
        self._under_way: set[PlanGrant] = set()
        self._starts: tuple[int, ...] = ()
        """The windows that plans were last counted in: while they are those of a grant, so are its tallies'."""

    def take(self, plan: Plan, second: Second, tokens: int, cost_nano: int, answer_tokens: int = 0) -> PlanGrant | int:
        """Takes the amounts of all limits or, where a hard one has no room, none; ``answer_tokens`` are part of
        ``tokens``.

        The answer tells the tightest of the limits on requests and on tokens, those of which least remains. Returns the
        place of the rule that refuses, if one does.
        """
        starts = second.starts
        if plan.starts is not starts:
            self._enter(plan, starts)
        tight = tight_tokens = None
        least = least_tokens = _TOLD
        short = False
        for tally in plan.of_request:
            tally.left = left = tally.left - 1
            if left < least:
                least, tight = left, tally
        for tally in plan.of_tokens:
            tally.left = left = tally.left - tokens
            if left < least_tokens:
                least_tokens, tight_tokens = left, tally
        for tally in plan.of_cost:
            tally.left = left = tally.left - cost_nano
            if left < 0:
                short = True
        for tally in plan.of_call:
            tally.left = left = tally.left - 1
            if left < 0:
                short = True
        resets = second.resets
        headers: Headers = []
        if tight is not None and tight_tokens is not None:
            of_request, of_tokens = resets[tight.reset], resets[tight_tokens.reset]
            text = b"%b%d%b%b%d%b" % (tight.lines, least, of_request, tight_tokens.lines, least_tokens, of_tokens)
            headers.append((b"", text))
        elif tight is not None:
            headers.append((b"", b"%b%d%b" % (tight.lines, least, resets[tight.reset])))
        elif tight_tokens is not None:
            headers.append((b"", b"%b%d%b" % (tight_tokens.lines, least_tokens, resets[tight_tokens.reset])))
        grant = PlanGrant(answer_tokens, headers, plan, starts, tokens, cost_nano)
        if short or least < 0 or least_tokens < 0:
            for at, rule in enumerate(plan.rules):
                tally, count = self._places[rule.id]
                if rule.hard and tally.left + count.over < 0:
                    self._give(grant, (0, 0, 0, 0))
                    return at
        self._under_way.add(grant)
        return grant

    def settle(self, grant: PlanGrant, request: int, tokens: int, cost_nano: int) -> None:
        """Gives back what was held and counts what was spent; nothing, in a window that is over."""
        self._under_way.discard(grant)
        if grant.starts is not self._starts:
            self._give(grant, (request, tokens, cost_nano, 0))
            return
        plan = grant.plan
        for tally in plan.of_call:
            tally.left += 1
        if not request:
            for tally in plan.of_request:
                tally.left += 1
        more = grant.tokens - tokens
        for tally in plan.of_tokens:
            tally.left += more
        more = grant.cost_nano - cost_nano
        for tally in plan.of_cost:
            tally.left += more

    def look(self, plan: Plan, starts: tuple[int, ...]) -> list[int]:
        """Returns what is used and held of each rule of a plan."""
        if plan.starts is not starts:
            self._enter(plan, starts)
        places = [self._places[rule.id] for rule in plan.rules]
        return [count.most - tally.left - count.over for tally, count in places]

    def seed(self, rule: LimitRule, windows: Windows, spent: int) -> None:
        """Sets what was spent before this start, unless the rule is counted already."""
        if rule.id not in self._places:
            tally = self._place(rule, windows[rule.period].start_ms)
            tally.add(-1, -spent)
            self._starts = ()  # its window may be newer than those that calls under way were counted in

    def used(self, rule: LimitRule, windows: Windows) -> Used:
        """Returns how one limit stands."""
        place = self._places.get(rule.id)
        if place is None or place[1].start != windows[rule.period].start_ms:
            return Used()
        tally, count = place
        held = self._held(tally, count)
        return Used(count.most - tally.left - count.over - held, held)

    def forget(self, rule_id: str) -> None:
        """Drops a limit that was removed."""
        place = self._places.pop(rule_id, None)
        if place is None:
            return
        tally, gone = place
        lefts = tally.lefts()
        del lefts[tally.counts.index(gone)]
        tally.counts.remove(gone)
        tally.set(lefts)
        if not lefts:
            del self._tallies[tally.shared]

    def _enter(self, plan: Plan, starts: tuple[int, ...]) -> None:
        """Sets a plan's tallies to the present windows; the first time it gives the plan its tallies."""
        if not plan.tallies:
            of_unit: tuple[dict[_Shared, Tally], ...] = ({}, {}, {}, {})
            for rule in plan.rules:
                tally = self._place(rule, starts[PERIODS.index(rule.period)])
                of_unit[UNITS[rule.measure]][tally.shared] = tally
            plan.of_request, plan.of_tokens, plan.of_cost, plan.of_call = (
                next(iter(found.values())).alone if len(found) == 1 else tuple(found.values()) for found in of_unit
            )
            plan.tallies = (*plan.of_request, *plan.of_tokens, *plan.of_cost, *plan.of_call)
        for tally in plan.tallies:
            tally.planned = True
            tally.turn(starts)
        plan.starts = self._starts = starts

    def _place(self, rule: LimitRule, start: int) -> Tally:
        """Puts a limit, or what is new of it, into its tally; a new one is the last there."""
        shared = (rule.subject_kind, rule.organisation, rule.subject_id, rule.model, UNITS[rule.measure])
        place, most = self._places.get(rule.id), rule.value if rule.hard else ENDLESS
        if place is not None and place[0].shared == shared and place[1].rule.period is rule.period:
            tally, count = place
            if count.rule != rule:
                more, count.rule, count.most = most - count.most, rule, most
                tally.add(tally.counts.index(count), more)
            return tally
        self.forget(rule.id)
        found = self._tallies.get(shared)
        tally = self._tallies[shared] = found or Tally(shared)
        count = Count(rule, PERIODS.index(rule.period), start, most)
        self._places[rule.id] = tally, count
        # Calls under way will give back to all of a tally, so they hold of what is new in it, too.
        lefts = [*tally.lefts(), most - (self._held(tally, count) if tally.planned else 0)]
        tally.counts.append(count)
        tally.set(lefts)
        return tally

    def _give(self, grant: PlanGrant, spent: tuple[int, int, int, int]) -> None:
        """Settles what was taken in windows of which some may be over: what is in those is past."""
        plan = grant.plan
        for unit, tallies in enumerate((plan.of_request, plan.of_tokens, plan.of_cost, plan.of_call)):
            more = grant.amount(unit) - spent[unit]
            for tally in tallies:
                lefts = tally.lefts()
                for at, count in enumerate(tally.counts):
                    if count.start == grant.starts[count.period]:
                        lefts[at] += more
                tally.set(lefts)

    def _held(self, tally: Tally, count: Count) -> int:
        """Returns what calls under way hold of one limit."""
        unit = UNITS[count.rule.measure]
        return sum(
            grant.amount(unit)
            for grant in self._under_way
            if tally in grant.plan.tallies and grant.starts[count.period] == count.start
        )
