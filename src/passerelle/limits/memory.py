"""Counters of one process by rule, for what a store that does not answer was to count. Nothing waits in here, so on one
event loop each step is atomic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passerelle.limits.counters import Hold, Taken, Used, Windows
from passerelle.limits.rule import LimitRule


@dataclass(slots=True)
class _Cell:
    """The count of one limit in the window that began at ``start``."""

    start: int
    settled: int = 0
    held: int = 0


class MemoryCounters:
    """Counters by the id of their rule, in the present window of each."""

    def __init__(self) -> None:
        self._cells: dict[str, _Cell] = {}

    def look(self, rules: Sequence[LimitRule], windows: Windows) -> list[int]:
        """Returns what is used and held of each rule."""
        cells = [self._cell(rule, windows[rule.period].start_ms) for rule in rules]
        return [cell.settled + cell.held for cell in cells]

    def take(self, rules: tuple[LimitRule, ...], windows: Windows, amounts: Sequence[int]) -> Taken:
        """Takes all amounts or, where a hard rule has no room, none."""
        used, starts = [], []
        found: list[_Cell] = []
        for rule, amount in zip(rules, amounts, strict=True):
            start = windows[rule.period].start_ms
            cell = self._cell(rule, start)
            total = cell.settled + cell.held + amount
            if total > rule.value and rule.hard:
                return Taken(self.look(rules, windows), refused=len(found))
            found.append(cell)
            used.append(total)
            starts.append(start)
        for cell, amount in zip(found, amounts, strict=True):
            cell.held += amount
        return Taken(used, Hold(rules, starts, amounts))

    def settle(self, hold: Hold, spent: Sequence[int]) -> None:
        """Gives back what was held and counts what was spent; nothing, in a window that is over."""
        for rule, start, amount, really in zip(hold.rules, hold.starts, hold.amounts, spent, strict=True):
            cell = self._cells.get(rule.id)
            if cell is not None and cell.start == start:
                cell.held -= amount
                cell.settled += really

    def seed(self, rule: LimitRule, windows: Windows, spent: int) -> None:
        """Sets what was spent before this start, unless the rule is counted already."""
        if rule.id not in self._cells:
            self._cell(rule, windows[rule.period].start_ms).settled = spent

    def know(self, rule: LimitRule, start_ms: int, used: int) -> None:
        """Takes over what another has counted: this process's own count goes on from there if it must."""
        cell = self._cell(rule, start_ms)
        cell.settled, cell.held = used, 0

    def used(self, rule: LimitRule, windows: Windows) -> Used:
        """Returns how one limit stands."""
        cell = self._cells.get(rule.id)
        if cell is None or cell.start != windows[rule.period].start_ms:
            return Used()
        return Used(cell.settled, cell.held)

    def forget(self, rule_id: str) -> None:
        """Drops a limit that was removed."""
        self._cells.pop(rule_id, None)

    def _cell(self, rule: LimitRule, start_ms: int) -> _Cell:
        cell = self._cells.get(rule.id)
        if cell is None:
            cell = self._cells[rule.id] = _Cell(start_ms)
        elif cell.start != start_ms:
            cell.start, cell.settled, cell.held = start_ms, 0, 0
        return cell
