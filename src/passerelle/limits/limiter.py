"""Lets calls through or refuses them: the book says which limits count, the counters whether there is room."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from passerelle.domain.client import Headers, spelled_out
from passerelle.domain.errors import LimitReached, PasserelleError, QuotaExhausted
from passerelle.domain.limit import Grant, Order, Refusal
from passerelle.limits.book import TOLD, UNITS, Book, Plan, told
from passerelle.limits.counters import Hold, LocalCounters, SharedCounters, Taken, Used, Windows
from passerelle.limits.price import Price, amount_text
from passerelle.limits.process import PlanGrant, ProcessCounters
from passerelle.limits.rule import Calendar, LimitRule, Measure, Period, Second, SubjectKind, Window, duration

logger = logging.getLogger(__name__)

BUSY_RETRY_S = 1.0
"""What a caller with too many calls under way is told to wait: nobody knows when one ends."""
Tell = Callable[[LimitRule], None]


class Limiter:
    """The limits of this process's calls. ``book`` may be replaced at any time.

    ``local`` counts here: for this process alone, or with others of this machine; with ``shared`` that counts, and
    ``local`` is its fallback. ``on_reached`` is told of each limit that refused, or warned. ``clock`` gives seconds
    since the epoch. ``currency`` is the name of the unit.
    """

    def __init__(
        self,
        local: ProcessCounters | LocalCounters,
        shared: SharedCounters | None = None,
        *,
        currency: str = "EUR",
        on_reached: Tell = lambda rule: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._set_book(Book())
        self.calendar = Calendar(clock)
        self._local = local
        self._shared = shared
        self._alone = local if isinstance(local, ProcessCounters) else None
        self._currency = currency
        self._on_reached = on_reached
        self._warned: dict[str, int] = {}

    @property
    def book(self) -> Book:
        """All limits and prices."""
        return self._book

    @book.setter
    def book(self, book: Book) -> None:
        self._set_book(book)

    def _set_book(self, book: Book) -> None:
        self._book = book
        self._prices = book.price_table.by_model
        self.plan = book.plan

    def cost_nano(self, model: str, at_ms: int, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Returns what a usage costs, in nano."""
        for price in self._prices.get(model, ()):
            if price.from_ms <= at_ms:
                return price.cost_nano(prompt_tokens, cached_tokens, completion_tokens)
        return 0

    def take(
        self, plan: Plan | None, order: Order, instead_of: Grant | None = None
    ) -> Grant | Refusal | Awaitable[Grant | Refusal]:
        """Sets aside what a call may use, of all its limits or of none.

        ``instead_of`` is the grant of an earlier try of the same call, given back in the same step.
        """
        plan = plan or _UNLIMITED
        counters = self._alone
        if counters is None:
            return self._take_elsewhere(plan, order, instead_of)
        # The shortest way, as most calls take it: where one process counts.
        second = self.calendar.second()
        if instead_of is not None:
            self.settle(instead_of, 0, 0, 0)
        at_ms, prompt, answer, price = order.at_ms, order.prompt_tokens, order.answer_tokens, None
        for each in plan.prices:
            if each.from_ms <= at_ms:
                price = each
                break
        if order.least_answer_tokens < answer and plan.bounds_answers:
            answer, _ = _amounts(plan, order, price, counters.look(plan, second.starts))
        cost_nano = 0 if price is None else price.bound_nano(prompt, answer)
        result = counters.take(plan, second, prompt + answer, cost_nano, answer)
        if isinstance(result, int):
            taken = Taken(counters.look(plan, second.starts), refused=result)
            return self._result(plan, taken, answer, plan.amounts(prompt + answer, cost_nano), second)
        if plan.soft:
            self._warn(plan, counters.look(plan, second.starts), second.windows, result.headers)
        return result

    def _take_elsewhere(
        self, plan: Plan, order: Order, instead_of: Grant | None
    ) -> Grant | Refusal | Awaitable[Grant | Refusal]:
        before = instead_of.hold if isinstance(instead_of, _RuleGrant) else None
        if self._shared is not None:
            return self._take_shared(self._shared, plan, order, before)
        local = self._local
        assert not isinstance(local, ProcessCounters)
        second = self.calendar.second()
        windows = second.windows
        if before is not None:
            local.settle(before, (0,) * len(before.rules))
        price = self._book.price_table.at(order.model, order.at_ms)
        used = local.look(plan.rules, windows) if _is_flexible(plan, order) else ()
        answer, amounts = _amounts(plan, order, price, used)
        return self._result(plan, local.take(plan.rules, windows, amounts), answer, amounts, second)

    async def _take_shared(
        self, shared: SharedCounters, plan: Plan, order: Order, before: Hold | None
    ) -> Grant | Refusal:
        second = self.calendar.second()
        windows = second.windows
        price = self._book.price_table.at(order.model, order.at_ms)
        flexible = _is_flexible(plan, order)
        answer, amounts = _amounts(plan, order, price, shared.known(plan.rules, windows) if flexible else ())
        taken = await shared.take(plan.rules, windows, amounts, before)
        if taken.refused is not None and flexible:
            # What was known was not the latest: the refusal tells it.
            less, fewer = _amounts(plan, order, price, taken.used)
            if less < answer:
                answer, amounts = less, fewer
                taken = await shared.take(plan.rules, windows, amounts, None)
        return self._result(plan, taken, answer, amounts, second)

    def settle(self, grant: Grant, request: int, tokens: int, cost_nano: int) -> None:
        """Gives back what was set aside and counts what was used; at once, whatever happened."""
        if isinstance(grant, PlanGrant):
            assert self._alone is not None
            self._alone.settle(grant, request, tokens, cost_nano)
            return
        of_unit = (request, tokens, cost_nano, 0)
        assert isinstance(grant, _RuleGrant)
        amounts = [of_unit[UNITS[rule.measure]] for rule in grant.hold.rules]
        counters = self._shared or self._local
        assert not isinstance(counters, ProcessCounters)
        counters.settle(grant.hold, amounts)

    async def standings(self, rules: Sequence[LimitRule]) -> list[tuple[Used, Window]]:
        """Returns what is used of each limit in its present window."""
        windows = self.calendar.second().windows
        if self._shared is not None:
            used = await self._shared.used(rules, windows)
        else:
            used = [self._local.used(rule, windows) for rule in rules]
        return [(each, windows[rule.period]) for each, rule in zip(used, rules, strict=True)]

    async def standing(self, rule: LimitRule) -> tuple[Used, Window]:
        """Returns what is used of one limit in its present window."""
        return (await self.standings((rule,)))[0]

    def adopt(self, book: Book, spent: Callable[[LimitRule], int]) -> None:
        """Takes a new book. ``spent`` says what was used of a limit that was not in the old one, in its window."""
        windows = self.calendar.second().windows
        for rule_id in self.book.rules.keys() - book.rules.keys():
            self._local.forget(rule_id)
            self._warned.pop(rule_id, None)
        for rule_id in book.rules.keys() - self.book.rules.keys():
            rule = book.rules[rule_id]
            if rule.lasts and (before := spent(rule)):
                self._local.seed(rule, windows, before)
        self.book = book

    def _result(self, plan: Plan, taken: Taken, answer: int, amounts: Sequence[int], second: Second) -> Grant | Refusal:
        headers = _told(plan, taken.used, second)
        if taken.refused is not None:
            rule = plan.rules[taken.refused]
            self._on_reached(rule)
            amount, used = amounts[taken.refused], taken.used[taken.refused]
            error = self._error(rule, amount, used, second.windows[rule.period], headers)
            return Refusal(error, estimate_matters=rule.measure in (Measure.TOKENS, Measure.COST))
        if plan.soft:
            self._warn(plan, taken.used, second.windows, headers)
        assert taken.hold is not None
        return _RuleGrant(answer, headers, taken.hold)

    def _warn(self, plan: Plan, used: Sequence[int], windows: Windows, headers: Headers) -> None:
        """Tells the caller which soft limits are passed, and the operator the first time in each window."""
        above = [plan.rules[at] for at in plan.soft if used[at] > plan.rules[at].value]
        for rule in above:
            start_ms = windows[rule.period].start_ms
            if self._warned.get(rule.id) != start_ms:
                self._warned[rule.id] = start_ms
                self._on_reached(rule)
                logger.warning("soft limit %s is passed: %s", rule.id, self.words(rule))
        if above:
            words = "; ".join(self.words(rule) for rule in above)
            headers.append((b"x-passerelle-limit-warning", words.encode("ascii", "replace")))

    def words(self, rule: LimitRule) -> str:
        """Returns a limit in words: ``key: 60 requests a minute``."""
        where = f" of {rule.model}" if rule.model else ""
        return f"{rule.subject_kind}: {self._quantity(rule, rule.value)}{where}{_EACH[rule.period]}"

    def _quantity(self, rule: LimitRule, amount: int) -> str:
        if rule.measure is Measure.COST:
            return f"{amount_text(amount)} {self._currency}"
        return f"{amount} {'calls at once' if rule.measure is Measure.CONCURRENT else rule.measure.value}"

    def _error(self, rule: LimitRule, amount: int, used: int, window: Window, headers: Headers) -> PasserelleError:
        whose = _WHOSE[rule.subject_kind]
        limit = f"{self._quantity(rule, rule.value)}{_EACH[rule.period]}"
        given = tuple(spelled_out(headers))
        if rule.is_budget:
            left = max(0, rule.value - used)
            spent = "is used up" if not left else f"has {self._quantity(rule, left)} left, and this call may need more"
            return QuotaExhausted(
                f"The budget of {whose} ({limit}) {spent}: ask an administrator, or send a smaller request.",
                headers=given,
            )
        if rule.measure is Measure.CONCURRENT:
            return LimitReached(
                f"The limit of {whose} is {limit}, and they are under way: retry when one has ended.",
                retry_after_s=BUSY_RETRY_S,
                headers=given,
            )
        if amount > rule.value:
            return LimitReached(
                f"This call may need {self._quantity(rule, amount)} and the limit of {whose} is {limit}: "
                "shorten the prompt or lower max_tokens.",
                headers=(*given, (b"x-should-retry", b"false")),
            )
        assert window.end_ms is not None
        wait_s = max(0.001, (window.end_ms - self.calendar.now_ms()) / 1000)
        return LimitReached(
            f"The limit of {whose} is {limit}: retry in {duration(wait_s)}.", retry_after_s=wait_s, headers=given
        )


class _RuleGrant(Grant, frozen=True, gc=False, eq=False):
    """What one call took, rule by rule."""

    hold: Hold


_UNLIMITED = Plan.of(())
_EACH = {
    Period.NONE: "",
    Period.MINUTE: " a minute",
    Period.DAY: " a day",
    Period.MONTH: " a month",
    Period.TOTAL: " in all",
}
_WHOSE = {
    SubjectKind.ORGANISATION: "this organisation",
    SubjectKind.PROJECT: "this project",
    SubjectKind.USER: "this user",
    SubjectKind.KEY: "this key",
    SubjectKind.MODEL: "this model",
}


def _is_flexible(plan: Plan, order: Order) -> bool:
    return plan.bounds_answers and order.least_answer_tokens < order.answer_tokens


def _amounts(plan: Plan, order: Order, price: Price | None, used: Sequence[int]) -> tuple[int, list[int]]:
    """Returns the tokens set aside for the answer, and what the call takes of each rule.

    ``used`` is what is known of each rule; with it the answer is made to fit, as far as it may be.
    """
    prompt, answer = order.prompt_tokens, order.answer_tokens
    if used:
        for rule, amount in zip(plan.rules, used, strict=True):
            if not rule.hard:
                break
            left = rule.value - amount
            if rule.measure is Measure.TOKENS:
                answer = min(answer, left - prompt)
            elif rule.measure is Measure.COST and price is not None and price.output_micro:
                answer = min(answer, (left - price.bound_nano(prompt, 0)) * 1000 // price.output_micro)
        answer = max(answer, order.least_answer_tokens)
    cost_nano = 0 if price is None else price.bound_nano(prompt, answer)
    return answer, plan.amounts(prompt + answer, cost_nano)


def _told(plan: Plan, used: Sequence[int], second: Second) -> Headers:
    """Returns what answers tell of the tightest of the hard limits on requests and on tokens: least remains of it."""
    text = b""
    for measure in TOLD:
        left = [
            (rule.value - amount, at)
            for at, (rule, amount) in enumerate(zip(plan.rules, used, strict=True))
            if rule.hard and rule.measure is measure
        ]
        if left:
            least, at = min(left)
            lines, reset = told(plan.rules[at])
            text += b"%b%d%b" % (lines, max(0, least), second.resets[reset])
    return [(b"", text)] if text else []
