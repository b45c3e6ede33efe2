"""Counters of one process by plan: limits that go down together are told apart again whenever that matters."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from passerelle.limits.book import UNITS, Plan
from passerelle.limits.counters import Used
from passerelle.limits.process import PlanGrant, ProcessCounters
from passerelle.limits.rule import DAY_MS, MINUTE_MS, Calendar, LimitRule, Measure, Period, SubjectKind, window

COST = 7
"""What a token costs here."""


def limit(
    rule_id: str, measure: Measure, period: Period, value: int, *, hard: bool = True, subject: str = "key_1"
) -> LimitRule:
    """A limit on a key, or on an organisation of that name."""
    kind = SubjectKind.KEY if subject.startswith("key") else SubjectKind.ORGANISATION
    return LimitRule(rule_id, "default", kind, subject, "", measure, period, value, hard)


REQUESTS = limit("requests", Measure.REQUESTS, Period.MINUTE, 7)
TOKENS = limit("tokens", Measure.TOKENS, Period.DAY, 40)
CONCURRENT = limit("concurrent", Measure.CONCURRENT, Period.NONE, 3)
OF_BOTH = (
    limit("budget", Measure.COST, Period.MONTH, 900, subject="default"),
    limit("at once", Measure.CONCURRENT, Period.NONE, 4, subject="default"),
    limit("told", Measure.TOKENS, Period.MONTH, 50, hard=False, subject="default"),
)
OF_OTHER = (limit("other", Measure.REQUESTS, Period.MINUTE, 5, subject="key_2"),)


def group(of: LimitRule) -> tuple[str, int]:
    """What limits that go down together have in common here."""
    return of.subject_id, UNITS[of.measure]


@dataclass
class Ended:
    """What a call that has ended spent, of the limits there were then, in the windows in which it was let through."""

    spent: tuple[int, int, int, int]
    starts: tuple[int, ...]
    of: set[str]


class PlanMachine(RuleBasedStateMachine):
    """Calls of two callers come, end and leave while time passes and limits change; lists say what must be counted."""

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 20_000 * DAY_MS / 1000 + 11 * 60
        self.calendar = Calendar(lambda: self.now_s)
        self.counters = ProcessCounters()
        self.mine: dict[str, LimitRule] = {each.id: each for each in (REQUESTS, TOKENS)}
        self.plans: list[Plan] = []
        self.live: list[PlanGrant] = []
        self.ended: list[Ended] = []
        self.names = map(str, itertools.count())
        self.replan()

    def replan(self) -> None:
        """Makes the plans anew, as another book would."""
        self.plans = [Plan.of([*self.mine.values(), *OF_BOTH]), Plan.of([*OF_OTHER, *OF_BOTH])]
        for plan in self.plans:
            self.counters.look(plan, self.calendar.second().starts)

    def expected(self, of: LimitRule) -> Used:
        start, at = window(of.period, int(self.now_s * 1000)).start_ms, list(Period).index(of.period)
        unit = UNITS[of.measure]
        held = sum(
            hold.amount(unit)
            for hold in self.live
            if hold.starts[at] == start and group(of) in map(group, hold.plan.rules)
        )
        return Used(sum(each.spent[unit] for each in self.ended if of.id in each.of and each.starts[at] == start), held)

    @rule(target=holds, tokens=st.integers(0, 30), who=st.integers(0, 1))
    def take(self, tokens: int, who: int) -> PlanGrant | None:
        """A call asks, and is let through or refused by the first limit without room."""
        plan = self.plans[who]
        amounts = plan.amounts(tokens, tokens * COST)
        before = [self.expected(each) for each in plan.rules]
        refusing = [
            at
            for at, (each, used, amount) in enumerate(zip(plan.rules, before, amounts, strict=True))
            if each.hard and used.settled + used.held + amount > each.value
        ]
        second = self.calendar.second()
        result = self.counters.take(plan, second, tokens, tokens * COST)
        if refusing:
            assert result == refusing[0]
            return None
        assert isinstance(result, PlanGrant)
        self.live.append(result)
        lines = b"".join(text for _, text in result.headers).decode()
        for measure in (Measure.REQUESTS, Measure.TOKENS):
            left = []
            for each in plan.rules:
                if each.hard and each.measure is measure:
                    used = self.expected(each)
                    left.append((each.value - used.settled - used.held, each.value))
            head = f"x-ratelimit-limit-{measure}: (\\d+)\r\nx-ratelimit-remaining-{measure}: (\\d+)\r\n"
            found = [(int(remains), int(value)) for value, remains in re.findall(head, lines)]
            assert len(found) == (1 if left else 0)
            if left:
                assert found[0] in left
                assert found[0][0] == min(left)[0]
        return result

    @rule(hold=consumes(holds), request=st.integers(0, 1), share=st.floats(0, 1.2))
    def settle(self, hold: PlanGrant | None, request: int, share: float) -> None:
        """A call ends, having used some of what it took, or more."""
        if hold is None:
            return
        self.live.remove(hold)
        tokens = int(hold.tokens * share)
        self.counters.settle(hold, request, tokens, tokens * COST)
        groups = set(map(group, hold.plan.rules))
        there = {each.id for each in (*self.mine.values(), *OF_BOTH, *OF_OTHER) if group(each) in groups}
        self.ended.append(Ended((request, tokens, tokens * COST, 0), hold.starts, there))

    @rule(minutes=st.sampled_from([0.1, 0.5, 1, 60, 24 * 60, 40 * 24 * 60]))
    def wait(self, minutes: float) -> None:
        """Time passes."""
        self.now_s += minutes * MINUTE_MS / 1000

    @rule(value=st.integers(0, 60), hard=st.booleans())
    def change(self, value: int, hard: bool) -> None:
        """A limit is raised, lowered or made soft."""
        self.mine[TOKENS.id] = replace(TOKENS, value=value, hard=hard)
        self.replan()

    @precondition(lambda self: len(self.mine) < 6)
    @rule(
        measure=st.sampled_from([Measure.REQUESTS, Measure.TOKENS]),
        period=st.sampled_from([Period.MINUTE, Period.DAY, Period.TOTAL]),
        value=st.integers(1, 60),
    )
    def add(self, measure: Measure, period: Period, value: int) -> None:
        """There is one more limit: calls under way count in it, those that have ended do not."""
        fresh = limit(next(self.names), measure, period, value)
        self.mine[fresh.id] = fresh
        self.replan()

    @precondition(lambda self: len(self.mine) > 2)
    @rule()
    def remove(self) -> None:
        """The newest limit is removed."""
        self.counters.forget(self.mine.popitem()[0])
        self.replan()

    @invariant()
    def counts(self) -> None:
        """Each limit stands as the lists say."""
        windows = self.calendar.second().windows
        for each in (*self.mine.values(), *OF_BOTH, *OF_OTHER):
            assert self.counters.used(each, windows) == self.expected(each), each


TestPlans = PlanMachine.TestCase
TestPlans.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_was_spent_before_counts_on() -> None:
    """A budget that was half spent before the start has half left; a second seed changes nothing."""
    counters, budget = ProcessCounters(), limit("budget", Measure.COST, Period.MONTH, 100)
    second = Calendar(lambda: 1e9).second()
    counters.seed(budget, second.windows, 60)
    counters.seed(budget, second.windows, 99)
    assert counters.take(Plan.of([budget]), second, 1, 41) == 0
    assert isinstance(counters.take(Plan.of([budget]), second, 1, 40), PlanGrant)


def test_a_limit_that_is_made_after_midnight_hears_nothing_of_yesterday() -> None:
    """A call of the day before that ends now gives nothing back to it, though nobody has called since."""
    now_s = [20_000.0 * DAY_MS / 1000 - 1]
    counters, calendar = ProcessCounters(), Calendar(lambda: now_s[0])
    taken = counters.take(Plan.of([TOKENS]), calendar.second(), 40, 0)
    assert isinstance(taken, PlanGrant)
    now_s[0] += 2
    fresh = replace(TOKENS, id="fresh")
    counters.seed(fresh, calendar.second().windows, 30)
    counters.settle(taken, 1, 1, 0)
    assert counters.used(fresh, calendar.second().windows) == Used(30, 0)


def test_a_removed_limit_is_forgotten() -> None:
    """What is not a limit any more takes no room, and calls that it let through end as if it had never been."""
    counters, second = ProcessCounters(), Calendar(lambda: 1e9).second()
    plan = Plan.of([TOKENS])
    taken = counters.take(plan, second, 40, 0)
    assert isinstance(taken, PlanGrant)
    counters.forget(TOKENS.id)
    counters.settle(taken, 1, 3, 0)
    assert counters.used(TOKENS, second.windows) == Used()
    assert not counters._tallies
    assert not counters._places


def test_plans_that_share_a_limit_keep_their_windows_apart() -> None:
    """A call that ends after the minute in which it was let through changes nothing in the next, whoever began that."""
    counters, shared = ProcessCounters(), replace(REQUESTS, id="shared")
    of_other = replace(TOKENS, id="other", subject_id="key_2")
    mine, other = Plan.of([shared, TOKENS]), Plan.of([shared, of_other])
    calendar_s = [20_000.0 * DAY_MS / 1000]
    calendar = Calendar(lambda: calendar_s[0])

    def take(plan: Plan) -> PlanGrant:
        result = counters.take(plan, calendar.second(), 10, 0)
        assert isinstance(result, PlanGrant)
        return result

    early, kept = take(mine), take(mine)
    counters.settle(kept, 1, 4, 0)
    calendar_s[0] += 60
    take(other)
    counters.settle(early, 0, 7, 0)
    windows = calendar.second().windows
    assert counters.used(shared, windows) == Used(0, 1)
    assert counters.used(TOKENS, windows) == Used(11, 0)
    assert counters.used(of_other, windows) == Used(0, 10)


def test_a_plan_that_is_refused_has_taken_nothing() -> None:
    """What was taken of the limits before the one without room is given back at once."""
    counters, plan = ProcessCounters(), Plan.of([REQUESTS, TOKENS, CONCURRENT])
    second = Calendar(lambda: 1e9).second()
    for _ in range(2):
        assert isinstance(counters.take(plan, second, 20, 0), PlanGrant)
    refused = counters.take(plan, second, 1, 0)
    assert isinstance(refused, int)
    assert plan.rules[refused] is TOKENS
    used = dict(zip(plan.rules, counters.look(plan, second.starts), strict=True))
    assert used == {REQUESTS: 2, TOKENS: 40, CONCURRENT: 2}


def test_a_limit_that_gets_another_value_goes_on_counting() -> None:
    """What was used, and what calls under way hold, stays when the limit is raised, lowered or made soft."""
    counters, calendar = ProcessCounters(), Calendar(lambda: 1e9)
    second = calendar.second()
    taken = counters.take(Plan.of([TOKENS]), second, 30, 0)
    assert isinstance(taken, PlanGrant)
    for value, hard, passes in ((35, True, False), (60, True, True), (1, False, True)):
        result = counters.take(Plan.of([replace(TOKENS, value=value, hard=hard)]), second, 10, 0)
        assert isinstance(result, PlanGrant) is passes
        if isinstance(result, PlanGrant):
            counters.settle(result, 1, 0, 0)
        assert counters.used(TOKENS, second.windows) == Used(0, 30)
    counters.settle(taken, 1, 12, 0)
    assert counters.used(TOKENS, second.windows) == Used(12, 0)
