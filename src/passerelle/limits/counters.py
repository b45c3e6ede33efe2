"""What counts limits: the contract that one process, several workers and several machines keep in their own ways.

A call *takes* its amounts from all its limits at once, or from none; when it has ended it is *settled*: what was taken
is given back, and what was really used is counted. Nobody counts in between, so what is used and what is held together
never pass a hard limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from passerelle.limits.rule import LimitRule, Period, Window

Windows = Mapping[Period, Window]
"""The present window of each period."""


class Hold(msgspec.Struct, frozen=True, gc=False):
    """What one call took: an amount of each rule, in the window that began at ``starts``. ``holder`` tells who counts
    it, for those who keep several books."""

    rules: tuple[LimitRule, ...]
    starts: Sequence[int]
    amounts: Sequence[int]
    holder: str = ""


class Taken(msgspec.Struct, frozen=True, gc=False):
    """How taking went. ``used`` is of each rule: with this call's amount when it passed, without when it did not.

    ``refused`` is the index of the first hard
    rule that has no room, None when the call passed.
    """

    used: Sequence[int]
    hold: Hold | None = None
    refused: int | None = None


@dataclass(slots=True)
class Used:
    """What is used of one limit in its present window, and what calls under way hold besides."""

    settled: int = 0
    held: int = 0


class LocalCounters(Protocol):
    """Counters that answer at once: of this process, or of the workers of this machine."""

    def look(self, rules: Sequence[LimitRule], windows: Windows) -> list[int]:
        """Returns what is used and held of each rule."""

    def take(self, rules: tuple[LimitRule, ...], windows: Windows, amounts: Sequence[int]) -> Taken:
        """Takes all amounts or, where a hard rule has no room, none."""

    def settle(self, hold: Hold, spent: Sequence[int]) -> None:
        """Gives back what was held and counts what was spent; nothing, in a window that is over."""

    def seed(self, rule: LimitRule, windows: Windows, spent: int) -> None:
        """Sets what was spent before this start, unless the rule is counted already."""

    def used(self, rule: LimitRule, windows: Windows) -> Used:
        """Returns how one limit stands."""

    def forget(self, rule_id: str) -> None:
        """Drops a limit that was removed."""


class SharedCounters(Protocol):
    """Counters that several machines share: they answer later, or not at all, and then go by what they last knew."""

    def known(self, rules: Sequence[LimitRule], windows: Windows) -> list[int]:
        """Returns what was used and held of each rule when this process heard of it last."""

    async def take(
        self, rules: tuple[LimitRule, ...], windows: Windows, amounts: Sequence[int], instead_of: Hold | None
    ) -> Taken:
        """Takes all amounts or none, and gives back ``instead_of`` in the same step."""

    def settle(self, hold: Hold, spent: Sequence[int]) -> None:
        """Gives back what was held and counts what was spent, soon."""

    async def used(self, rules: Sequence[LimitRule], windows: Windows) -> list[Used]:
        """Returns how limits stand."""
