"""The check ``pattern``: a regular expression of the operator's."""

from __future__ import annotations

from passerelle.guardrails.finder import Finder, every_match, finder


def find_pattern(expression: str, replacement: str, *, ignore_case: bool = False) -> tuple[Finder, ...]:
    """Returns the finder of an expression. Raises ExpressionError that says why it cannot be used."""
    return (finder(expression, every_match(replacement), ignore_case=ignore_case),)
