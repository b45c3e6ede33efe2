"""Personal data is told from what only looks like it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.harness.cpu import within_cpu

from passerelle.guardrails.pii import ENTITIES, find_pii, is_iban, is_luhn, is_nir

FINDERS = find_pii(ENTITIES)
EVERYTHING = (
    "Écrivez à jean.dupont@exemple.fr, +33 6 12 34 56 78, FR76 3000 6000 0112 3456 7890 189; carte "
    "4111 1111 1111 1111, nir 2 55 08 14 168 025 38 et 192.168.1.1 ou fe80::1 (12:34:56). 0612345678."
)
MASKED = "Écrivez à [EMAIL], [PHONE], [IBAN]; carte [CARD], nir [NIR] et [IP] ou [IP] (12:34:56). [PHONE]."


def masked(text: str, places: tuple[int, ...] = (), entities: tuple[str, ...] = ENTITIES) -> str:
    """Returns the text with its finds masked, cut at these places."""
    for finder in FINDERS if entities is ENTITIES else find_pii(entities):
        scanner = finder.scanner(lambda: None)
        edges = sorted({0, len(text), *(min(place, len(text)) for place in places)})
        text = "".join([scanner.feed(text[a:b]) for a, b in itertools.pairwise(edges)]) + scanner.flush()
    return text


@pytest.mark.parametrize(
    "text",
    [
        "a@b.fr",
        "Prénom.Nom+x@sous.domaine.exemple.fr",
        "06 12 34 56 78",
        "06.12.34.56.78",
        "06-12-34-56-78",
        "0612345678",
        "06\u00a012\u202f34 56 78",
        "+33 6 12 34 56 78",
        "+33 (0)6 12 34 56 78",
        "0033612345678",
        "+44 20 7946 0958",
        "+1 (202) 555 0143",
        "FR7630006000011234567890189",
        "fr76 3000 6000 0112 3456 7890 189",
        "DE89 3704 0044 0532 0130 00",
        "NO93 8601 1117 947",
        "SN08SN0100152000048500003035",
        "4111111111111111",
        "4111-1111-1111-1111",
        "3782 822463 10005",
        "2 55 08 14 168 025 38",
        "255081416802538",
        "1.2.3.4",
        "255.255.255.255",
        "2001:db8::8a2e:370:7334",
        "::1",
        "::ffff:192.0.2.128",
        "1:2:3:4:5:6:7:8",
    ],
)
def test_what_is_personal_is_masked_whole(text: str) -> None:
    """Nothing of it stays, in a sentence and alone, in one piece and one character at a time."""
    for sentence in (text, f"voir {text}.", f"({text})", f"à {text} ou non"):
        after = masked(sentence)
        before, _, behind = sentence.partition(text)
        assert after.startswith(f"{before}[")
        assert after.endswith(f"]{behind}"), after
        assert masked(sentence, tuple(range(200))) == after


@pytest.mark.parametrize(
    "text",
    [
        "a@b",
        "@personne",
        "06 12 34 56",
        "1234567890",
        "10612345678",
        "a0612345678",
        "FR7630006000011234567890188",
        "FR76 3000 6000 0112 3456 7890 18",
        "XX7630006000011234567890189",
        "4111111111111112",
        "255081416802539",
        "1.2.3",
        "1.2.3.4.5",
        "256.1.1.1",
        "12:34:56",
        "std::vector",
        "dead::beef",
        "aa:bb:cc:dd:ee:ff",
        "v1.2.3.4",
        "le 21/11/2026 à 14:38, 3 500 euros, article 1382-1",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    """Check digits, lengths and what stands around decide."""
    assert masked(text) == text


def test_a_card_is_found_among_other_numbers() -> None:
    """A number before or behind it, at a gap, hides it no more than the longest match does."""
    assert masked("1 4111 1111 1111 1111 12", entities=("card",)) == "1 [CARD] 12"
    assert masked("FR7630006000011234567890189 merci beaucoup", entities=("iban",)) == "[IBAN] merci beaucoup"


def test_each_entity_is_looked_for_by_itself() -> None:
    """Only what was asked for is masked, and with what was asked for."""
    assert masked("a@b.fr 0612345678", entities=("email",)) == "[EMAIL] 0612345678"
    (finder,) = find_pii(["email"], "")
    scanner = finder.scanner(lambda: None)
    assert scanner.feed("<a@b.fr>") + scanner.flush() == "<>"


def test_every_cut_in_two_gives_the_same() -> None:
    """Every place where the text can be cut in two."""
    assert masked(EVERYTHING) == MASKED
    for place in range(len(EVERYTHING)):
        assert masked(EVERYTHING, (place,)) == MASKED, place


@given(st.sets(st.integers(0, len(EVERYTHING))))
def test_every_cutting_gives_the_same(places: set[int]) -> None:
    """Any number of cuts anywhere."""
    assert masked(EVERYTHING, tuple(places)) == MASKED


@given(st.text("0123456789 .-:@aAfFrR+()", max_size=60), st.integers(1, 5))
def test_look_alikes_do_not_depend_on_cuts(text: str, size: int) -> None:
    """Texts made of the characters that numbers are made of."""
    assert masked(text, tuple(range(0, len(text), size))) == masked(text)


def test_check_digits() -> None:
    """The three sums, on known numbers and with each digit changed."""
    assert is_luhn("4111111111111111")
    assert not any(is_luhn(f"411111111111111{digit}") for digit in "023456789")
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("GB82WEST12345698765433")
    assert not is_iban("GB82WEST1234569876543")
    assert is_nir("2550814168025" + "38")
    assert is_nir("1010201000001" + f"{97 - 1010201000001 % 97:02}")
    assert is_nir("190012A001001" + f"{97 - 1900119001001 % 97:02}")
    assert not is_nir("190012B001001" + f"{97 - 1900119001001 % 97:02}")


@pytest.mark.parametrize("text", ["4 ", "a", "1", "a@", "fr76", ":", "+1", "0 6", "f:", "1."])
def test_hostile_texts_take_linear_time(text: str) -> None:
    """A text made to look like the beginning of everything costs a few microseconds a character."""
    long = text * (20_000 // len(text))
    within_cpu(4, lambda: masked(long))
