"""Sentences of French, English and others, with nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.harness.cpu import within_cpu

from passerelle.services.sentences import split_sentences

FRENCH = [
    "M. Dupont est arrivé à 10 h 30. ",
    "Il a dit : « Bonjour ! » et s'est assis. ",
    "Le P.-D.G., Mme. Martin, etc. n'étaient pas là... ",
    "Ensuite, on a parlé de l'art. 3 de la loi. ",
    "Cf. p. 12. ",
    "C'est fini ? ",
    "Oui. ",
    "Le prix est de 3.5 M€. ",
    "J.-P. Sartre a écrit ça.",
]
ENGLISH = [
    "Dr. Smith arrived at 10 a.m. on Jan. 5th. ",
    'He said "Hello!" and sat down. ',
    "See Fig. 3 of the U.S. report. ",
    "It costs $3.50. ",
    "Then what? ",
    "Nothing.",
]


@pytest.mark.parametrize(
    ("language", "sentences"), [("fr", FRENCH), ("fr-CA", FRENCH), ("en", ENGLISH), (None, ENGLISH)]
)
def test_abbreviations_titles_and_numbers_do_not_end_a_sentence(language: str | None, sentences: list[str]) -> None:
    """Each sentence comes out whole, with its space."""
    assert split_sentences("".join(sentences), language) == sentences


@pytest.mark.parametrize(
    ("language", "text", "count"),
    [
        ("zh", "你好。今天天气怎么样\uff1f很好\uff01我们走吧。", 4),
        ("ar", "مرحبا. كيف حالك؟ أنا بخير.", 3),
        ("hi", "नमस्ते। आप कैसे हैं? मैं ठीक हूँ।", 3),
        ("de", "Das ist z.B. ein Satz. Am 3. Mai kam er. Hr. Müller ging.", 3),
        ("es", "¿Qué tal? El Sr. López llegó ayer. Todo salió bien.", 3),
        ("xx", "One sentence here. Another one there.", 2),
    ],
)
def test_other_languages_are_cut_by_their_own_rules(language: str, text: str, count: int) -> None:
    """An unknown language is cut by punctuation."""
    assert len(split_sentences(text, language)) == count


@given(text=st.text(max_size=300), language=st.sampled_from(["fr", "en", "de", "zh", "xx", "", None]))
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost(text: str, language: str | None) -> None:
    """The sentences put together are the text, and none is white space alone."""
    found = split_sentences(text, language)
    assert "".join(found) == text
    assert all(each.strip() for each in found) or not text.strip()


def test_a_book_is_cut_in_a_moment() -> None:
    """Two million characters, in processor time that a slow machine has too."""
    assert len(within_cpu(5, lambda: split_sentences("".join(FRENCH) * 8000, "fr"))) > 60_000
