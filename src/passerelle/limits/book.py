"""All limits and prices in memory, as one immutable value: what concerns a call is found without a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING

from passerelle.domain.principal import Principal
from passerelle.limits.price import Price, PriceTable
from passerelle.limits.rule import EVERYWHERE, PERIODS, LimitRule, Measure, SubjectKind

if TYPE_CHECKING:
    from passerelle.limits.process import Tally

_MEMO = 16_384
"""Callers whose plan is remembered, of each model, beside the one that a caller used last."""
ENDLESS = 2**60
"""More than anything is counted: what a soft limit lets pass."""
UNITS = {Measure.REQUESTS: 0, Measure.CONCURRENT: 3, Measure.TOKENS: 1, Measure.COST: 2}
"""Which a limit takes of (request, tokens, cost, call under way)."""
_Subject = tuple[SubjectKind, str, str]
TOLD = (Measure.REQUESTS, Measure.TOKENS)
"""What answers tell of, in the order of `Second.resets`."""
_LINES = tuple(b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: " % (of, of) for of in (b"requests", b"tokens"))


@dataclass(slots=True, eq=False)
class Plan:
    """The limits of one caller's calls of one model.

    ``rules`` has budgets first, so that a caller who should not retry is not told to, and soft limits last.
    ``units`` says of each rule which it takes of (request, tokens, cost, call under way). ``soft`` are the places of
    soft rules, ``prices`` the model's, the latest first. ``model`` and ``edition`` say of which model and which book.
    From ``starts`` on it is for the counters of this process: the windows in which the tallies of the rules are known
    to be, the tallies by unit, and all of them.
    """

    edition: object
    model: str
    rules: tuple[LimitRule, ...]
    prices: tuple[Price, ...]
    units: tuple[int, ...] = ()
    bounds_answers: bool = False
    """A hard limit counts tokens or cost: an answer must have an end."""
    counts_tokens: bool = False
    """Some limit counts tokens or cost."""
    soft: tuple[int, ...] = ()
    starts: tuple[int, ...] | None = None
    of_request: tuple[Tally, ...] = ()
    of_tokens: tuple[Tally, ...] = ()
    of_cost: tuple[Tally, ...] = ()
    of_call: tuple[Tally, ...] = ()
    tallies: tuple[Tally, ...] = ()

    @classmethod
    def of(
        cls, rules: Iterable[LimitRule], prices: tuple[Price, ...] = (), model: str = "", edition: object = None
    ) -> Plan:
        """Returns the plan of some rules."""
        ordered = tuple(sorted(rules, key=lambda rule: (not rule.hard, not rule.is_budget, rule.id)))
        units = tuple(UNITS[rule.measure] for rule in ordered)
        return cls(
            edition,
            model,
            ordered,
            prices,
            units,
            bounds_answers=any(rule.hard and unit in (1, 2) for rule, unit in zip(ordered, units, strict=True)),
            counts_tokens=1 in units or 2 in units,
            soft=tuple(at for at, rule in enumerate(ordered) if not rule.hard),
        )

    def amounts(self, tokens: int, cost_nano: int) -> list[int]:
        """Returns what a call takes of each rule."""
        of_unit = (1, tokens, cost_nano, 1)
        return [of_unit[unit] for unit in self.units]


class Book:
    """Limits and prices, immutable. ``rules`` are all limits by id."""

    def __init__(
        self,
        rules: Mapping[str, LimitRule] | None = None,
        prices: Mapping[str, Price] | None = None,
        index: Mapping[_Subject, tuple[LimitRule, ...]] | None = None,
    ) -> None:
        self.rules: Mapping[str, LimitRule] = rules or {}
        self.prices: Mapping[str, Price] = prices or {}
        self.price_table = PriceTable(self.prices.values())
        if index is None:
            index = _indexed({}, self.rules.values())
        self._index = index
        self._edition = object()
        """Stands for this book in plans: the book itself would live as long as any of them."""
        self._plans: dict[str, dict[str, tuple[Principal, Plan]]] = {}
        """By model and key."""

    def changed(self, rules: Iterable[LimitRule], removed: Iterable[str], prices: Mapping[str, Price] | None) -> Book:
        """Returns a book with some limits new, others gone, and all prices new unless None."""
        fresh = {rule.id: rule for rule in rules}
        gone = [old for rule_id in (*removed, *fresh) if (old := self.rules.get(rule_id)) is not None]
        index = dict(self._index)
        for subject in {_subject(rule) for rule in gone}:
            out = {rule.id for rule in gone}
            index[subject] = tuple(rule for rule in index[subject] if rule.id not in out)
            if not index[subject]:
                del index[subject]
        left = {rule.id for rule in gone}
        together = {rule_id: rule for rule_id, rule in self.rules.items() if rule_id not in left} | fresh
        return Book(together, self.prices if prices is None else prices, _indexed(index, fresh.values()))

    def plan(self, principal: Principal, model: str) -> Plan | None:
        """Returns the limits that count a call, None when there are none."""
        if not self._index:
            return None
        plan: Plan | None = principal.plan
        if plan is None or plan.edition is not self._edition or plan.model != model:
            plan = self._planned(principal, model)
            object.__setattr__(principal, "plan", plan)
        return plan if plan.rules else None

    def _planned(self, principal: Principal, model: str) -> Plan:
        of_model = self._plans.get(model)
        if of_model is None:
            of_model = self._plans[model] = {}
        key = principal.key_id
        found = of_model.get(key)
        if found is not None:
            before, plan = found
            if before is principal or _owners(before) == _owners(principal):
                return plan
        if len(of_model) >= _MEMO:
            of_model.clear()
        rules = self.rules_of(principal.organisation, principal.project, principal.user, key, model)
        plan = Plan.of(rules, self.price_table.by_model.get(model, ()), model, self._edition)
        of_model[key] = principal, plan
        return plan

    def rules_of(
        self, organisation: str, project: str, user: str | None, key_id: str, model: str | None
    ) -> list[LimitRule]:
        """Returns the rules that count a call of a model, or with None those of a caller whatever the model."""
        index = self._index
        found: list[LimitRule] = []
        subjects = [
            (SubjectKind.ORGANISATION, organisation),
            (SubjectKind.PROJECT, project),
            (SubjectKind.KEY, key_id),
        ]
        if user is not None:
            subjects.append((SubjectKind.USER, user))
        for kind, subject in subjects:
            found += index.get((kind, organisation, subject), ())
        if model is None:
            return found
        found = [rule for rule in found if rule.model in ("", model)]
        for owner in (organisation, EVERYWHERE):
            found += index.get((SubjectKind.MODEL, owner, model), ())
        return found


def told(rule: LimitRule) -> tuple[bytes, int]:
    """Returns how answers tell of a rule: the header with its value and the name of the one that says what is left, and
    the place of what follows in `Second.resets`. Nothing, 0 for what is not told: soft limits, costs, calls at once.
    """
    if not rule.hard or rule.measure not in TOLD:
        return b"", 0
    kind = TOLD.index(rule.measure)
    return _lines(kind, rule.value), kind * len(PERIODS) + PERIODS.index(rule.period)


@lru_cache(4096)
def _lines(kind: int, value: int) -> bytes:
    """The same bytes for all limits of a value, of which there are few: what is used often stays near."""
    return _LINES[kind] % value


_owners = attrgetter("organisation", "project", "user")
_subject = attrgetter("subject_kind", "organisation", "subject_id")


def _indexed(
    index: Mapping[_Subject, tuple[LimitRule, ...]], rules: Iterable[LimitRule]
) -> dict[_Subject, tuple[LimitRule, ...]]:
    """Returns the index with more rules."""
    added: dict[_Subject, list[LimitRule]] = {}
    for rule in rules:
        added.setdefault(_subject(rule), []).append(rule)
    return {**index, **{subject: (*index.get(subject, ()), *more) for subject, more in added.items()}}
