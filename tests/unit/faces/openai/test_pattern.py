"""Patterns that may backtrack without end are told apart from those people write."""

from __future__ import annotations

from functools import partial

import pytest
from tests.harness.cpu import within_cpu

from passerelle.faces.openai.pattern import check_pattern

PATHOLOGICAL = [
    "(a+)+$",
    "(a*)*",
    "(a|a)*$",
    "(a|aa)+$",
    "(a|a?)+$",
    "([a-zA-Z]+)*$",
    "(.*a){20}",
    "(.*)*",
    "(x+x+)+y",
    "(a+){10}{10}",
    r"(\d+)*x",
    r"(\w+\d)+",
    r"^(\s*,?\w+)*$",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
    "((a+))+",
    "(?:a+)+",
    "(?P<x>a+)+",
    "(a?){50}",
    "(a{100}){1000}",
    "a{10001}",
    "([^a]+)*",
    r"(\x61+)+",
    r"([\x61-z]+)*",
    "(é+)+",
]

MALFORMED = ["(", ")", "[a", "a\\", "*", "a|*", "(?Q)", "(" * 20 + ")" * 20, "[", "[]"]

USUAL = [
    "",
    "^a+$",
    "a.*b.*c",
    "^[a-z0-9]+(-[a-z0-9]+)*$",
    r"^([a-z]+\.)+com$",
    r"^[\w-]+(\.[\w-]+)*$",
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$",
    r'^"([^"\\]|\\.)*"$',
    r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?Z)?$",
    r"^[^\s@]+@[^\s@]+\.[^\s@]+$",
    r"^(\+\d{1,2}\s)?\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}$",
    "^#([A-Fa-f0-9]{6}|[A-Fa-f0-9]{3})$",
    "^([0-9a-f]{2}:){5}[0-9a-f]{2}$",
    r"^([0-9]{1,3}\.){3}[0-9]{1,3}$",
    r"^((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}$",
    r"^https?://[^\s]+$",
    "^[a-f0-9]{8}-[a-f0-9]{4}-4[a-f0-9]{3}-[89ab][a-f0-9]{3}-[a-f0-9]{12}$",
    "^(/[a-z]+)*/?$",
    "(ab|ac)*",
    r"^P(?!$)(\d+Y)?(\d+M)?(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?$",
    "a{2,3}?",
    "{not a quantifier}",
    "[]a]",
    r"[\]\\-]+",
    "(?i)yes|no",
]


@pytest.mark.parametrize("pattern", PATHOLOGICAL)
def test_a_pattern_that_may_backtrack_is_refused(pattern: str) -> None:
    """Faults row C6."""
    why = check_pattern(pattern)
    assert why is not None
    assert "backtrack" in why or "repeats" in why or "well formed" in why


@pytest.mark.parametrize("pattern", MALFORMED)
def test_a_pattern_that_cannot_be_read_is_refused(pattern: str) -> None:
    """A model server would choke on it."""
    assert check_pattern(pattern) == "is not well formed"


@pytest.mark.parametrize("pattern", USUAL)
def test_a_usual_pattern_passes(pattern: str) -> None:
    """Dates, addresses, slugs, numbers: what stands in real schemas."""
    assert check_pattern(pattern) is None


def test_reading_a_pattern_is_quick() -> None:
    """The longest pattern is read in a fraction of a second, whatever it holds, and longer ones are not read."""
    for piece in ("(a|b)", "[a-z]", "a{1,9}", "(((a?)?)?)?", "a|", "\\d+", "(?:x|y)*"):
        within_cpu(1, partial(check_pattern, (piece * 1024)[: 1024 - 1024 % len(piece)]))
    assert check_pattern("a" * 1025) == "is longer than 1024 characters"
