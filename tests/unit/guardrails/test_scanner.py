"""A text that arrives in pieces comes out as the whole text would, as soon as it can."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.guardrail import Action
from passerelle.guardrails.finder import finder
from passerelle.guardrails.pattern import find_pattern
from passerelle.guardrails.scanner import MAX_MATCH, Judgement

EXPRESSIONS = [
    "ab",
    "a+",
    "a+b",
    "(?:ab)+c?",
    "abc|b",
    "aab|ab*c",
    r"\bab?\b",
    r"\Ba+\B",
    "a[^b]c",
    "a.{0,3}b",
    "(?:a|b)+c",
    "a{2,3}b{1,2}",
    r"\b[ab]+(?: c|\b)",
]
TEXTS = st.text("abc ", max_size=24)


def cut(text: str, places: list[int]) -> list[str]:
    """Returns the text cut at these places."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def leftmost_longest(expression: str, text: str) -> str:
    """The same by trying every place and length with Python's own matcher."""
    out, at = "", 0
    while at < len(text):
        for end in range(len(text), at, -1):
            rest = len(text) - end
            if re.compile(f"(?:{expression})(?=(?s:.{{{rest}}})\\Z)").match(text, at, len(text)) and re.compile(
                f"(?:{expression})(?=(?s:.{{{rest}}})\\Z)(?<=(?s:\\A.{{{end}}}))"
            ).match(text, at):
                out, at = out + "#", end
                break
        else:
            out, at = out + text[at], at + 1
    return out


@pytest.mark.parametrize("expression", EXPRESSIONS)
@given(text=TEXTS, places=st.lists(st.integers(0, 24), max_size=8))
def test_any_cut_gives_the_text_that_trying_everything_gives(expression: str, text: str, places: list[int]) -> None:
    """What comes out is the text with its leftmost longest matches replaced, wherever it was cut."""
    (found,) = find_pattern(expression, "#")
    scanner = found.scanner(lambda: None)
    pieces = [scanner.feed(piece) for piece in cut(text, places)]
    assert "".join(pieces) + scanner.flush() == leftmost_longest(expression, text)


@given(text=st.text("a4- ", max_size=40), places=st.lists(st.integers(0, 40), max_size=8))
def test_a_judge_who_says_no_hides_no_other_match(text: str, places: list[int]) -> None:
    """After a match that is none, the search goes on behind its first character, however the text was cut."""

    def judge(match: str, before: str, after: str) -> Judgement | None:
        wanted = match.rstrip("- ")
        return Judgement(len(wanted), "#") if len(wanted) % 3 == 0 and not before.isalnum() else None

    found = finder(r"4(?:[ \-]?4)*-?", judge)
    whole = found.scanner(lambda: None)
    expected = whole.feed(text) + whole.flush()
    scanner = found.scanner(lambda: None)
    assert "".join(scanner.feed(piece) for piece in cut(text, places)) + scanner.flush() == expected


def test_text_that_cannot_be_part_of_a_match_goes_out_at_once() -> None:
    """Nothing is held but the beginning of a match."""
    (found,) = find_pattern("secret[0-9]", "#")
    scanner = found.scanner(lambda: None)
    assert scanner.feed("hello s") == "hello "
    assert scanner.feed("ec") == ""
    assert scanner.feed("ond se") == "second "
    assert scanner.feed("cret") == ""
    assert scanner.feed("7!") == "#!"
    assert scanner.flush() == ""


def test_what_is_held_is_bounded() -> None:
    """A match without an end is cut at the bound, and never more than that waits; memory does not grow."""
    (found,) = find_pattern("a+b", "#")
    scanner = found.scanner(lambda: None)
    out = ""
    for number in range(5 * MAX_MATCH):
        out += scanner.feed("a")
        assert number + 1 - len(out) <= MAX_MATCH
    assert out + scanner.flush() == "a" * 5 * MAX_MATCH
    (greedy,) = find_pattern("a+", "#")
    scanner = greedy.scanner(lambda: None)
    assert "".join(scanner.feed("a") for _ in range(MAX_MATCH * 3)) + scanner.flush() in ("###", "####")


@given(places=st.lists(st.integers(0, 3000), max_size=12), length=st.integers(400, 2600))
def test_the_bound_does_not_depend_on_the_cuts(places: list[int], length: int) -> None:
    """A run longer than the bound comes out the same in one piece and in many."""
    text = "x" + "a" * length + "b a" + "a" * (length // 2) + "b"
    for expression in ("a+b", "a+", "a+b|aaab"):
        (found,) = find_pattern(expression, "#")
        whole = found.scanner(lambda: None)
        expected = whole.feed(text) + whole.flush()
        scanner = found.scanner(lambda: None)
        assert "".join(scanner.feed(piece) for piece in cut(text, places)) + scanner.flush() == expected


def test_finds_are_counted_and_the_text_stays_without_rewrite() -> None:
    """A scanner that only looks changes nothing."""
    (found,) = find_pattern("a+", "#")
    finds: list[None] = []
    scanner = found.scanner(lambda: finds.append(None), Action.FLAG)
    assert "".join(map(scanner.feed, "xaay a")) + scanner.flush() == "xaay a"
    assert len(finds) == 2


@given(places=st.lists(st.integers(0, 24), max_size=8))
def test_a_block_ends_the_text_before_the_first_find(places: list[int]) -> None:
    """However the text is cut, all that stands before the find goes out, and nothing behind it."""
    (found,) = find_pattern("ba+", "#")
    finds: list[None] = []
    scanner = found.scanner(lambda: finds.append(None), Action.BLOCK)
    pieces = [scanner.feed(piece) for piece in cut("abc b baa c baa", places)]
    assert "".join(pieces) + scanner.flush() + scanner.feed("more") == "abc b "
    assert len(finds) == 1


def test_a_scanner_serves_one_text_after_another() -> None:
    """After a flush nothing of the text before counts, boundaries included."""
    (found,) = find_pattern(r"\bab\b", "#")
    scanner = found.scanner(lambda: None)
    assert scanner.feed("x a") + scanner.flush() == "x a"
    assert scanner.feed("b") + scanner.flush() == "b"
    assert scanner.feed("x") + scanner.flush() + scanner.feed("ab") + scanner.flush() == "x#"
