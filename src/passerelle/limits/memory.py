"""Counters of one process. Nothing waits in here, so on one event loop each step is atomic."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from passerelle.limits.book import Cell, Plan
from passerelle.limits.counters import Hold, Taken, Used, Windows
from passerelle.limits.rule import PERIODS, LimitRule


class PlanHold(msgspec.Struct, frozen=True, gc=False):
    """What one call took of a plan's rules: amounts by unit, in the windows that began at ``starts``, by period."""

    plan: Plan
    starts: tuple[int, ...]
    amounts: tuple[int, int, int, int]


class MemoryCounters:
    """Counters by the id of their rule, in the present window of each."""

    def __init__(self) -> None:
        self._cells: dict[str, Cell] = {}
        self._starts: tuple[int, ...] = ()
        """The windows that plans were last counted in: while they are those of a hold, so are its cells'."""

    def look(self, rules: Sequence[LimitRule], windows: Windows) -> list[int]:
        """Returns what is used and held of each rule."""
        return [self._cell(rule, windows[rule.period].start_ms).used for rule in rules]

    def take(self, rules: tuple[LimitRule, ...], windows: Windows, amounts: Sequence[int]) -> Taken:
        """Takes all amounts or, where a hard rule has no room, none."""
        used, starts = [], []
        found: list[Cell] = []
        for rule, amount in zip(rules, amounts, strict=True):
            start = windows[rule.period].start_ms
            cell = self._cell(rule, start)
            total = cell.used + amount
            if total > rule.value and rule.hard:
                return Taken(self.look(rules, windows), refused=len(found))
            found.append(cell)
            used.append(total)
            starts.append(start)
        for cell, total in zip(found, used, strict=True):
            cell.used = total
        return Taken(used, Hold(rules, starts, amounts))

    def settle(self, hold: Hold, spent: Sequence[int]) -> None:
        """Gives back what was held and counts what was spent; nothing, in a window that is over."""
        for rule, start, amount, really in zip(hold.rules, hold.starts, hold.amounts, spent, strict=True):
            cell = self._cells.get(rule.id)
            if cell is not None and cell.start == start:
                cell.used += really - amount
                cell.settled += really

    def take_plan(
        self, plan: Plan, starts: tuple[int, ...], amounts: tuple[int, int, int, int]
    ) -> tuple[list[int], int]:
        """Takes like `take`, by the plan itself: ``starts`` by period, ``amounts`` by unit.

        Returns what is used of each rule, and the place of the one that refuses, -1 when all was taken.
        """
        if plan.starts is not starts:
            self._enter(plan, starts)
        used: list[int] = []
        for cell, unit, most in plan.places:
            cell.used = total = cell.used + amounts[unit]
            used.append(total)
            if total > most:
                return self._withdraw(plan, amounts, len(used)), len(used) - 1
        return used, -1

    def settle_plan(self, hold: PlanHold, request: int, tokens: int, cost_nano: int) -> None:
        """Settles what `take_plan` took."""
        spent = (request, tokens, cost_nano, 0)
        _, held_tokens, held_nano, _ = hold.amounts
        more = (request - 1, tokens - held_tokens, cost_nano - held_nano, -1)
        if hold.starts is self._starts:
            for cell, unit, _ in hold.plan.places:
                cell.used += more[unit]
                cell.settled += spent[unit]
            return
        for (cell, unit, _), rule in zip(hold.plan.places, hold.plan.rules, strict=True):
            if cell.start == hold.starts[PERIODS.index(rule.period)]:
                cell.used += more[unit]
                cell.settled += spent[unit]

    def _enter(self, plan: Plan, starts: tuple[int, ...]) -> None:
        """Sets a plan's cells to the present windows; the first time it gives the plan its cells."""
        cells = [self._cell(rule, starts[PERIODS.index(rule.period)]) for rule in plan.rules]
        if not plan.places:
            plan.places = tuple(zip(cells, plan.units, plan.most, strict=True))
        plan.starts = self._starts = starts

    def _withdraw(self, plan: Plan, amounts: Sequence[int], count: int) -> list[int]:
        """Takes back what was taken of the first rules, and returns what is used of each."""
        for cell, unit, _ in plan.places[:count]:
            cell.used -= amounts[unit]
        return [cell.used for cell, _, _ in plan.places]

    def _cell(self, rule: LimitRule, start_ms: int) -> Cell:
        """Returns the cell of a rule, in the window that began at ``start_ms``: always the same, as plans hold it."""
        cell = self._cells.get(rule.id)
        if cell is None:
            cell = self._cells[rule.id] = Cell(start_ms)
        elif cell.start != start_ms:
            cell.start, cell.used, cell.settled = start_ms, 0, 0
        return cell

    def seed(self, rule: LimitRule, windows: Windows, spent: int) -> None:
        """Sets what was spent before this start, unless the rule is counted already."""
        if rule.id not in self._cells:
            self._cells[rule.id] = Cell(windows[rule.period].start_ms, spent, spent)

    def know(self, rule: LimitRule, start_ms: int, used: int) -> None:
        """Takes over what another has counted: this process's own count goes on from there if it must."""
        cell = self._cell(rule, start_ms)
        cell.used = cell.settled = used

    def used(self, rule: LimitRule, windows: Windows) -> Used:
        """Returns how one limit stands."""
        cell = self._cells.get(rule.id)
        if cell is None or cell.start != windows[rule.period].start_ms:
            return Used()
        return Used(cell.settled, cell.used - cell.settled)

    def forget(self, rule_id: str) -> None:
        """Drops a limit that was removed."""
        self._cells.pop(rule_id, None)
