"""What may be written as an expression, and what is refused and why."""

from __future__ import annotations

import pytest
from tests.harness.cpu import within_cpu

from passerelle.guardrails.expression import ExpressionError, parse
from passerelle.guardrails.pattern import find_pattern


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("^a", "anchor"),
        ("a$", "anchor"),
        (r"\Aa", "escape"),
        (r"(a)\1", "escape"),
        ("(?=a)b", "group"),
        ("(?<!a)b", "group"),
        ("(?i)a", "group"),
        ("a*", "empty"),
        ("", "empty"),
        (r"\b", "empty"),
        ("(a", r"\( without"),
        ("a)", r"\) without"),
        ("[a", r"\[ without"),
        ("[z-a]", "set"),
        ("[a&&b]", "set"),
        ("*a", "nothing before"),
        ("{2}", "nothing before"),
        (r"a\b+", "boundary"),
        ("a{2}{3}", "repeats a repetition"),
        ("a**", "repeats a repetition"),
        ("a+?", "shortest"),
        ("a{3,2}", "less than"),
        ("a{300}", "counts past"),
        ("((a{200}){200})", "too large"),
        ("(" * 20 + "a" + ")" * 20, "nested"),
        ("a" * 1025, "longer than"),
    ],
)
def test_what_cannot_run_in_linear_time_or_makes_no_sense_is_refused(expression: str, why: str) -> None:
    """Each refusal says what is wrong, and does not quote the expression."""
    with pytest.raises(ExpressionError, match=why):
        parse(expression)


@pytest.mark.parametrize(
    ("expression", "text", "after"),
    [
        ("a{", "a{", "#"),
        ("a{x}", "a{x}", "#"),
        ("a{2}", "aaaa", "##"),
        ("a{2,}", "aaaa b aa", "# b #"),
        ("a{1,2}b?", "aab", "#"),
        (r"[\]a]+", "x]a]x", "x#x"),
        ("[^ab]", "abc", "ab#"),
        (r"\d{2}-\d{2}", "12-345", "#5"),
        (r"\u00e9|\x41", "éA", "##"),
        (r"a\.b", "a.b axb", "# axb"),
        ("(?:ab|abc)d", "abcd abd", "# #"),
        ("(?P<name>x)y", "xy", "#"),
        (r"\bmer\b", "la mer, merci, mer", "la #, merci, #"),
        (r"\Bb\B", "abc b", "a#c b"),
        ("abcd|bc", "abcx abcd", "a#x #"),
        ("a|ab|abc", "abcab", "##"),
        (".", "a\nb", "#\n#"),
    ],
)
def test_matches_are_the_leftmost_longest(expression: str, text: str, after: str) -> None:
    """The syntax means what it means in Python, but for which of several matches is taken."""
    (finder,) = find_pattern(expression, "#")
    scanner = finder.scanner(lambda: None)
    assert scanner.feed(text) + scanner.flush() == after


def test_case_is_ignored_on_request() -> None:
    """``ignore_case`` holds for letters with marks too."""
    (finder,) = find_pattern("é[a-c]", "#", ignore_case=True)
    scanner = finder.scanner(lambda: None)
    assert scanner.feed("ÉB éc ed") + scanner.flush() == "# # ed"


@pytest.mark.parametrize("expression", ["(a+)+b", "(a|a)*b", "(a|aa)+b", "a*a*a*a*b", r"(\w+\s?)+@"])
def test_patterns_that_ruin_backtracking_matchers_stay_linear(expression: str) -> None:
    """Microseconds a character, where a backtracking matcher would never end."""
    (finder,) = find_pattern(expression, "#")

    def read() -> str:
        scanner = finder.scanner(lambda: None)
        return scanner.feed("a" * 40_000) + scanner.flush()

    assert within_cpu(5, read) == "a" * 40_000
