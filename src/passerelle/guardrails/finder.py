"""What a check looks for: an expression, and a judgement of each of its matches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from passerelle.domain.guardrail import Action
from passerelle.guardrails.automaton import Automaton
from passerelle.guardrails.expression import parse
from passerelle.guardrails.scanner import Judge, Judgement, Scanner


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds one kind of thing. ``needs`` are characters of which each match holds one, empty when nothing is known."""

    automaton: Automaton
    judge: Judge
    needs: str = ""

    def scanner(self, on_offence: Callable[[], None], action: Action = Action.MASK) -> Scanner:
        """Returns what scans one text."""
        return Scanner(self.automaton, self.judge, on_offence, action)

    def may_be_in(self, text: str) -> bool:
        """Whether a whole text may hold a match; quick and careful."""
        return not self.needs or any(character in text for character in self.needs)


def finder(expression: str, judge: Judge, *, ignore_case: bool = False, needs: str = "") -> Finder:
    """Returns a finder of an expression. Raises ExpressionError."""
    return Finder(Automaton(parse(expression, ignore_case=ignore_case)), judge, needs)


def every_match(replacement: str) -> Judge:
    """Returns the judge to whom every match is a find."""
    return lambda match, _before, _after: Judgement(len(match), replacement)
