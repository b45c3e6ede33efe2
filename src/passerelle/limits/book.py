"""All limits and prices in memory, as one immutable value: what concerns a call is found without a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from passerelle.domain.principal import Principal
from passerelle.limits.price import Price, PriceTable
from passerelle.limits.rule import EVERYWHERE, PERIODS, LimitRule, Measure, SubjectKind

_MEMO = 16_384
"""Callers and models whose plan is remembered."""
_ENDLESS = 2**200
"""More than anything: what a soft limit lets pass."""
UNITS = {Measure.REQUESTS: 0, Measure.CONCURRENT: 3, Measure.TOKENS: 1, Measure.COST: 2}
"""Which a limit takes of (request, tokens, cost, call under way)."""
_Subject = tuple[SubjectKind, str, str]
HEADERS = (
    (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
)
"""What answers tell of the tightest limit on requests, and on tokens: its value, what remains, when it begins anew."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The limits of one caller's calls of one model.

    ``rules`` has budgets first, so that a caller who should not retry is not told to, and soft limits last.
    ``units`` says of each rule which it takes of (request, tokens, cost, call under way). ``shown`` are the places of
    the hard rules on requests, and of those on tokens: answers tell how they stand. ``soft`` are those of soft rules.
    """

    rules: tuple[LimitRule, ...]
    units: tuple[int, ...]
    bounds_answers: bool
    """A hard limit counts tokens or cost: an answer must have an end."""
    counts_tokens: bool
    """Some limit counts tokens or cost."""
    shown: tuple[tuple[int, ...], tuple[int, ...]]
    soft: tuple[int, ...]
    single: tuple[tuple[int, LimitRule, tuple[bytes, bytes], bytes, bytes], ...] | None
    """Where there is one rule at most to show of each kind: its place, itself, its first header, the others' names."""
    compact: tuple[tuple[int, int, int], ...]
    """Of each rule: the number of its period, its unit, and the most it lets pass."""
    cells: list[list[int]]
    """Where counters of this process keep their counts of these rules; theirs to fill."""

    @classmethod
    def of(cls, rules: Iterable[LimitRule]) -> Plan:
        """Returns the plan of some rules."""
        ordered = tuple(sorted(rules, key=lambda rule: (not rule.hard, not rule.is_budget, rule.id)))
        units = tuple(UNITS[rule.measure] for rule in ordered)
        places = range(len(ordered))
        shown = (
            tuple(at for at in places if units[at] == 0 and ordered[at].hard),
            tuple(at for at in places if units[at] == 1 and ordered[at].hard),
        )
        single = [
            (found[0], ordered[found[0]], (names[0], b"%d" % ordered[found[0]].value), names[1], names[2])
            for found, names in zip(shown, HEADERS, strict=True)
            if found
        ]
        return cls(
            ordered,
            units,
            bounds_answers=any(rule.hard and unit in (1, 2) for rule, unit in zip(ordered, units, strict=True)),
            counts_tokens=1 in units or 2 in units,
            shown=shown,
            soft=tuple(at for at in places if not ordered[at].hard),
            single=tuple(single) if max(map(len, shown)) <= 1 else None,
            compact=tuple(
                (PERIODS.index(rule.period), unit, rule.value if rule.hard else _ENDLESS)
                for rule, unit in zip(ordered, units, strict=True)
            ),
            cells=[],
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
        self._plans: dict[tuple[str | None, ...], Plan | None] = {}

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
        key = (principal.key_id, model, principal.organisation, principal.project, principal.user)
        try:
            return self._plans[key]
        except KeyError:
            pass
        if len(self._plans) >= _MEMO:
            self._plans.clear()
        rules = self.rules_of(principal.organisation, principal.project, principal.user, principal.key_id, model)
        plan = self._plans[key] = Plan.of(rules) if rules else None
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

    def cost_nano(self, model: str, at_ms: int, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Returns what a usage costs by the price in force at a moment, in nano; 0 without a price."""
        price = self.price_table.at(model, at_ms) if self.prices else None
        return 0 if price is None else price.cost_nano(prompt_tokens, cached_tokens, completion_tokens)


_subject = attrgetter("subject_kind", "organisation", "subject_id")


def _indexed(
    index: Mapping[_Subject, tuple[LimitRule, ...]], rules: Iterable[LimitRule]
) -> dict[_Subject, tuple[LimitRule, ...]]:
    """Returns the index with more rules."""
    added: dict[_Subject, list[LimitRule]] = {}
    for rule in rules:
        added.setdefault(_subject(rule), []).append(rule)
    return {**index, **{subject: (*index.get(subject, ()), *more) for subject, more in added.items()}}
