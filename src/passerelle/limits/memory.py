"""Counters of one process. Nothing waits in here, so on one event loop each step is atomic."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from passerelle.limits.book import ENDLESS, UNITS, Cell, Plan, told
from passerelle.limits.counters import Hold, Taken, Used, Windows
from passerelle.limits.rule import PERIODS, LimitRule

_LARGE = 2 * ENDLESS
"""More than is left of anything."""


class PlanHold(msgspec.Struct, frozen=True, gc=False, eq=False):
    """What one call took of a plan's rules: one request and one call under way, and so much, in the windows that began
    at ``starts``, by period."""

    plan: Plan
    starts: tuple[int, ...]
    tokens: int
    cost_nano: int


class MemoryCounters:
    """Counters by the id of their rule, in the present window of each.

    Most calls take by their plan. Those under way are remembered, not added up: what they hold is counted when somebody
    asks, and each call has that much less to do.
    """

    def __init__(self) -> None:
        self._cells: dict[str, Cell] = {}
        self._under_way: set[PlanHold] = set()
        self._lines: dict[bytes, bytes] = {}
        """What answers tell of limits: the same for all that have the same value, of which there are few."""
        self._starts: tuple[int, ...] = ()
        """The windows that plans were last counted in: while they are those of a hold, so are its cells'."""

    def look(self, rules: Sequence[LimitRule], windows: Windows) -> list[int]:
        """Returns what is used and held of each rule."""
        cells = [self._cell(rule, windows[rule.period].start_ms) for rule in rules]
        return [cell.most - cell.left for cell in cells]

    def take(self, rules: tuple[LimitRule, ...], windows: Windows, amounts: Sequence[int]) -> Taken:
        """Takes all amounts or, where a hard rule has no room, none."""
        used, starts = [], []
        found: list[Cell] = []
        for rule, amount in zip(rules, amounts, strict=True):
            start = windows[rule.period].start_ms
            cell = self._cell(rule, start)
            total = cell.most - cell.left + amount
            if total > rule.value and rule.hard:
                return Taken(self.look(rules, windows), refused=len(found))
            found.append(cell)
            used.append(total)
            starts.append(start)
        for cell, amount in zip(found, amounts, strict=True):
            cell.left -= amount
            cell.held += amount
        return Taken(used, Hold(rules, starts, amounts))

    def settle(self, hold: Hold, spent: Sequence[int]) -> None:
        """Gives back what was held and counts what was spent; nothing, in a window that is over."""
        for rule, start, amount, really in zip(hold.rules, hold.starts, hold.amounts, spent, strict=True):
            cell = self._cells.get(rule.id)
            if cell is not None and cell.start == start:
                cell.left += amount - really
                cell.held -= amount

    def take_plan(
        self, plan: Plan, starts: tuple[int, ...], tokens: int, cost_nano: int
    ) -> tuple[PlanHold, Cell | None, Cell | None] | int:
        """Takes like `take`, by the plan itself; ``starts`` are by period.

        Returns the hold, and the cells of the tightest limits on requests and on tokens, those of which least remains;
        or the place of the rule that refuses, and then nothing is taken.
        """
        if plan.starts is not starts:
            self._enter(plan, starts)
        tight = tight_tokens = None
        least = least_tokens = least_other = _LARGE
        for cell in plan.of_request:
            cell.left = left = cell.left - 1
            if left < least:
                least, tight = left, cell
        for cell in plan.of_tokens:
            cell.left = left = cell.left - tokens
            if left < least_tokens:
                least_tokens, tight_tokens = left, cell
        for cell in plan.of_cost:
            cell.left = left = cell.left - cost_nano
            if left < least_other:
                least_other = left
        for cell in plan.of_call:
            cell.left = left = cell.left - 1
            if left < least_other:
                least_other = left
        if least < 0 or least_tokens < 0 or least_other < 0:
            for at, rule in enumerate(plan.rules):
                if rule.hard and plan.cells[at].left < 0:
                    for cell, amount in zip(plan.cells, plan.amounts(tokens, cost_nano), strict=True):
                        cell.left += amount
                    return at
        hold = PlanHold(plan, starts, tokens, cost_nano)
        self._under_way.add(hold)
        return hold, tight, tight_tokens

    def settle_plan(self, hold: PlanHold, request: int, tokens: int, cost_nano: int) -> None:
        """Settles what `take_plan` took."""
        self._under_way.discard(hold)
        if hold.starts is not self._starts:
            self._settle_late(hold, (request, tokens, cost_nano, 0))
            return
        plan = hold.plan
        for cell in plan.of_call:
            cell.left += 1
        if not request:
            for cell in plan.of_request:
                cell.left += 1
        more = hold.tokens - tokens
        for cell in plan.of_tokens:
            cell.left += more
        more = hold.cost_nano - cost_nano
        for cell in plan.of_cost:
            cell.left += more

    def _settle_late(self, hold: PlanHold, spent: tuple[int, int, int, int]) -> None:
        """Settles a hold some of whose windows may be over: what is in those is past."""
        plan = hold.plan
        amounts = plan.amounts(hold.tokens, hold.cost_nano)
        for cell, rule, unit, amount in zip(plan.cells, plan.rules, plan.units, amounts, strict=True):
            if cell.start == hold.starts[PERIODS.index(rule.period)]:
                cell.left += amount - spent[unit]

    def _enter(self, plan: Plan, starts: tuple[int, ...]) -> None:
        """Sets a plan's cells to the present windows; the first time it gives the plan its cells."""
        cells = tuple([self._cell(rule, starts[PERIODS.index(rule.period)]) for rule in plan.rules])
        if not plan.cells:
            plan.count_by(cells)
        plan.starts = self._starts = starts

    def _cell(self, rule: LimitRule, start_ms: int) -> Cell:
        """Returns the cell of a rule, in the window that began at ``start_ms``: always the same, as plans hold it."""
        most = rule.value if rule.hard else ENDLESS
        cell = self._cells.get(rule.id)
        if cell is None:
            lines, reset = told(rule)
            cell = self._cells[rule.id] = Cell(start_ms, most, most, 0, self._lines.setdefault(lines, lines), reset)
            return cell
        if cell.most != most:
            cell.most, cell.left = most, cell.left + most - cell.most
            cell.lines = told(rule)[0]
        if cell.start != start_ms:
            cell.start, cell.left, cell.held = start_ms, most, 0
        return cell

    def seed(self, rule: LimitRule, windows: Windows, spent: int) -> None:
        """Sets what was spent before this start, unless the rule is counted already."""
        if rule.id not in self._cells:
            self._cell(rule, windows[rule.period].start_ms).left -= spent

    def know(self, rule: LimitRule, start_ms: int, used: int) -> None:
        """Takes over what another has counted: this process's own count goes on from there if it must."""
        cell = self._cell(rule, start_ms)
        cell.left, cell.held = cell.most - used, 0

    def used(self, rule: LimitRule, windows: Windows) -> Used:
        """Returns how one limit stands."""
        cell = self._cells.get(rule.id)
        if cell is None or cell.start != windows[rule.period].start_ms:
            return Used()
        held = cell.held
        for hold in self._under_way:
            if cell in hold.plan.cells and cell.start == hold.starts[PERIODS.index(rule.period)]:
                held += (1, hold.tokens, hold.cost_nano, 1)[UNITS[rule.measure]]
        return Used(cell.most - cell.left - held, held)

    def forget(self, rule_id: str) -> None:
        """Drops a limit that was removed."""
        self._cells.pop(rule_id, None)
