"""Banned words are found however they are written, and only as whole words."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.guardrails.expression import ExpressionError
from passerelle.guardrails.finder import Finder
from passerelle.guardrails.words import find_words, fold

WORDS = ["mer", "Élève", "gros mot", "œuvre", "c++", "Straße", "@all", "тайна"]
(FINDER,) = find_words(WORDS, "***")


def masked(text: str, finder: Finder = FINDER, size: int = 0) -> str:
    """Returns the text with its words masked, fed in pieces of ``size`` characters."""
    scanner = finder.scanner(lambda: None)
    pieces = [text[at : at + size] for at in range(0, len(text), size)] if size else [text]
    return "".join([scanner.feed(piece) for piece in pieces]) + scanner.flush()


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("La MER.", "La ***."),
        ("merci, amer, mers", "merci, amer, mers"),
        ("mer", "***"),
        ("un eleve, une ÉLÈVE", "un ***, une ***"),
        (unicodedata.normalize("NFD", "un élève"), "un ***"),
        ("gros\u00a0mot, GROS \n mot", "***, ***"),
        ("gros_mot", "gros_mot"),
        ("oeuvre ŒUVRE œuvré", "*** *** ***"),
        ("m\u200be\u00adr", "***"),
        ("c++ C++11 ", "*** ***11 "),
        ("strasse STRASSE straße", "*** *** ***"),
        ("@all mer@all", "*** ******"),
        ("ТАЙНА тайнам", "*** тайнам"),
        ("\uff4d\uff45\uff52", "***"),
        ("me\u0301r mer\u0301", "*** ***"),
        ("mer\u0301ci", "mer\u0301ci"),
    ],
)
def test_words_are_found_as_a_reader_would(text: str, after: str) -> None:
    """Case, marks, ligatures, white space and invisible characters hide no word; a longer word is another one."""
    assert masked(text) == after
    assert masked(text, size=1) == after


@given(st.text("merci Élève\u0301oœu\u200bvgst+@a\u00a0", max_size=30), st.integers(1, 7))
def test_words_do_not_depend_on_cuts(text: str, size: int) -> None:
    """Pieces of any size give what the whole gives."""
    assert masked(text, size=size) == masked(text)


def test_folding_takes_case_and_marks_away() -> None:
    """The form in which words are compared."""
    assert fold("ÉLÈVE Œuvre STRAẞE \ufb01n \uff2d") == "eleve oeuvre strasse fin m"


def test_many_words_are_quick() -> None:
    """Thousands of words are one automaton: each piece costs what it costs with one."""
    (finder,) = find_words([f"mot{number}interdit" for number in range(3000)], "#")
    assert masked("un mot17interdit et mot2999interdits", finder) == "un # et mot2999interdits"


@pytest.mark.parametrize("words", [[], [""], [" "], ["a" * 201], [str(number) for number in range(20_001)]])
def test_lists_that_make_no_sense_are_refused(words: list[str]) -> None:
    """An empty word would be everywhere."""
    with pytest.raises(ExpressionError):
        find_words(words, "#")
