"""All limits and prices in memory, as one immutable value: what concerns a call is found without a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from passerelle.domain.principal import Principal
from passerelle.limits.price import Price, PriceTable
from passerelle.limits.rule import EVERYWHERE, PERIODS, LimitRule, Measure, SubjectKind

_MEMO = 16_384
"""Callers whose plan is remembered, of each model."""
_ENDLESS = 2**200
"""More than anything: what a soft limit lets pass."""
UNITS = {Measure.REQUESTS: 0, Measure.CONCURRENT: 3, Measure.TOKENS: 1, Measure.COST: 2}
"""Which a limit takes of (request, tokens, cost, call under way)."""
_Subject = tuple[SubjectKind, str, str]
_LIMITS = (b"x-ratelimit-limit-requests", b"x-ratelimit-limit-tokens")
_REMAINS = (b"x-ratelimit-remaining-requests", b"x-ratelimit-remaining-tokens")


@dataclass(slots=True)
class Cell:
    """The count of one limit in the window that began at ``start``. ``used`` is settled and held together."""

    start: int
    used: int = 0
    settled: int = 0


class Told(NamedTuple):
    """What answers tell of limits on requests or on tokens: of the tightest, the one of which least remains.

    ``at`` is the place of the first in its plan, ``limit`` the header that tells its value, ``remains`` the name of the
    one that tells what is left, ``reset`` the place of the third in `Second.resets`. ``others`` are the other ones.
    """

    at: int
    value: int
    limit: tuple[bytes, bytes]
    remains: bytes
    reset: int
    others: tuple[Told, ...]


@dataclass(slots=True)
class Plan:
    """The limits of one caller's calls of one model.

    ``rules`` has budgets first, so that a caller who should not retry is not told to, and soft limits last.
    ``units`` says of each rule which it takes of (request, tokens, cost, call under way), ``most`` what it lets pass.
    ``soft`` are the places of soft rules. ``places`` and ``starts`` are for the counters of this process: each rule's
    cell, unit and most, and the windows in which the cells are known to be.
    """

    rules: tuple[LimitRule, ...]
    units: tuple[int, ...]
    bounds_answers: bool
    """A hard limit counts tokens or cost: an answer must have an end."""
    counts_tokens: bool
    """Some limit counts tokens or cost."""
    most: tuple[int, ...]
    told: tuple[Told, ...]
    """The hard rules on requests, and those on tokens."""
    soft: tuple[int, ...]
    places: tuple[tuple[Cell, int, int], ...] = ()
    starts: tuple[int, ...] | None = None

    @classmethod
    def of(cls, rules: Iterable[LimitRule]) -> Plan:
        """Returns the plan of some rules."""
        ordered = tuple(sorted(rules, key=lambda rule: (not rule.hard, not rule.is_budget, rule.id)))
        units = tuple(UNITS[rule.measure] for rule in ordered)
        return cls(
            ordered,
            units,
            bounds_answers=any(rule.hard and unit in (1, 2) for rule, unit in zip(ordered, units, strict=True)),
            counts_tokens=1 in units or 2 in units,
            most=tuple(rule.value if rule.hard else _ENDLESS for rule in ordered),
            told=_told(ordered),
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
        self._plans: dict[str, dict[str, tuple[Principal, Plan | None]]] = {}
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
        of_model = self._plans.get(model)
        if of_model is None:
            of_model = self._plans[model] = {}
        key = principal.key_id
        found = of_model.get(key)
        if found is not None:
            before, plan = found
            if before is principal:
                return plan
            if _owners(before) == _owners(principal):
                of_model[key] = principal, plan
                return plan
        if len(of_model) >= _MEMO:
            of_model.clear()
        rules = self.rules_of(principal.organisation, principal.project, principal.user, key, model)
        plan = Plan.of(rules) if rules else None
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


def _told(rules: tuple[LimitRule, ...]) -> tuple[Told, ...]:
    found: list[Told] = []
    for kind, measure in enumerate((Measure.REQUESTS, Measure.TOKENS)):
        others: tuple[Told, ...] = ()
        for at, rule in reversed(list(enumerate(rules))):
            if rule.hard and rule.measure is measure:
                reset = kind * len(PERIODS) + PERIODS.index(rule.period)
                told = Told(at, rule.value, (_LIMITS[kind], b"%d" % rule.value), _REMAINS[kind], reset, others)
                others = (told, *others)
        found += others[:1]
    return tuple(found)


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
