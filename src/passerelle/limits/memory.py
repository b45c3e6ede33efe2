"""Counters of one process. Nothing waits in here, so on one event loop each step is atomic."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from passerelle.limits.book import Plan
from passerelle.limits.counters import Hold, Taken, Used, Windows
from passerelle.limits.rule import LimitRule

_START, _SETTLED, _HELD = range(3)


def cell_of(cells: dict[str, list[int]], rule: LimitRule, start_ms: int) -> list[int]:
    """Returns the cell of a rule in the window that began at ``start_ms``, a fresh one when there is none."""
    cell = cells.get(rule.id)
    if cell is None:
        cell = cells[rule.id] = [start_ms, 0, 0]
    elif cell[_START] != start_ms:
        cell[:] = start_ms, 0, 0  # the same list: plans hold it
    return cell


class PlanHold(msgspec.Struct, frozen=True, gc=False):
    """What one call took of a plan's rules: amounts by unit, in the windows that began at ``starts``, by period."""

    plan: Plan
    starts: Sequence[int]
    amounts: Sequence[int]


class MemoryCounters:
    """Counters in a dictionary; a cell is [start of its window, settled, held]."""

    def __init__(self) -> None:
        self._cells: dict[str, list[int]] = {}

    def look(self, rules: Sequence[LimitRule], windows: Windows) -> list[int]:
        """Returns what is used and held of each rule."""
        cells = [cell_of(self._cells, rule, windows[rule.period].start_ms) for rule in rules]
        return [cell[_SETTLED] + cell[_HELD] for cell in cells]

    def take(self, rules: tuple[LimitRule, ...], windows: Windows, amounts: Sequence[int]) -> Taken:
        """Takes all amounts or, where a hard rule has no room, none."""
        cells, used, starts = self._cells, [], []
        found: list[list[int]] = []
        for rule, amount in zip(rules, amounts, strict=True):
            start = windows[rule.period].start_ms
            cell = cell_of(cells, rule, start)
            total = cell[_SETTLED] + cell[_HELD] + amount
            if total > rule.value and rule.hard:
                return Taken(self.look(rules, windows), refused=len(found))
            found.append(cell)
            used.append(total)
            starts.append(start)
        for cell, amount in zip(found, amounts, strict=True):
            cell[_HELD] += amount
        return Taken(used, Hold(rules, starts, amounts))

    def settle(self, hold: Hold, spent: Sequence[int]) -> None:
        """Gives back what was held and counts what was spent; nothing, in a window that is over."""
        for rule, start, amount, really in zip(hold.rules, hold.starts, hold.amounts, spent, strict=True):
            cell = self._cells.get(rule.id)
            if cell is not None and cell[_START] == start:
                cell[_HELD] -= amount
                cell[_SETTLED] += really

    def take_plan(self, plan: Plan, starts: Sequence[int], amounts: Sequence[int]) -> tuple[list[int], int]:
        """Takes like `take`, by the plan itself: ``starts`` by period, ``amounts`` by unit.

        Returns what is used of each rule, and the place of the one that refuses, -1 when all was taken.
        """
        cells = plan.cells or self._bind(plan)
        used: list[int] = []
        for cell, (period, unit, most) in zip(cells, plan.compact, strict=True):
            start = starts[period]
            if cell[_START] != start:
                cell[:] = start, 0, 0
            total = cell[_SETTLED] + cell[_HELD] + amounts[unit]
            if total > most:
                return [
                    each[_SETTLED] + each[_HELD] if each[_START] == starts[compact[0]] else 0
                    for each, compact in zip(cells, plan.compact, strict=True)
                ], len(used)
            used.append(total)
        for cell, unit in zip(cells, plan.units, strict=True):
            cell[_HELD] += amounts[unit]
        return used, -1

    def settle_plan(self, hold: PlanHold, spent: Sequence[int]) -> None:
        """Settles what `take_plan` took; ``spent`` by unit."""
        starts, amounts = hold.starts, hold.amounts
        for cell, (period, unit, _) in zip(hold.plan.cells, hold.plan.compact, strict=True):
            if cell[_START] == starts[period]:
                cell[_HELD] -= amounts[unit]
                cell[_SETTLED] += spent[unit]

    def _bind(self, plan: Plan) -> list[list[int]]:
        """Gives a plan its cells, so that they are not looked for at each call."""
        plan.cells.extend(self._cells.setdefault(rule.id, [-1, 0, 0]) for rule in plan.rules)
        return plan.cells

    def seed(self, rule: LimitRule, windows: Windows, spent: int) -> None:
        """Sets what was spent before this start, unless the rule is counted already."""
        if rule.id not in self._cells:
            self._cells[rule.id] = [windows[rule.period].start_ms, spent, 0]

    def know(self, rule: LimitRule, start_ms: int, used: int) -> None:
        """Takes over what another has counted: this process's own count goes on from there if it must."""
        cell_of(self._cells, rule, start_ms)[:] = start_ms, used, 0

    def used(self, rule: LimitRule, windows: Windows) -> Used:
        """Returns how one limit stands."""
        cell = self._cells.get(rule.id)
        if cell is None or cell[_START] != windows[rule.period].start_ms:
            return Used()
        return Used(cell[_SETTLED], cell[_HELD])

    def forget(self, rule_id: str) -> None:
        """Drops a limit that was removed."""
        self._cells.pop(rule_id, None)
