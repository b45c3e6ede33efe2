"""Albert's whitelist and its French rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.guardrails.whitelist import Change, Whitelist

FILE = """{"phone_number_whitelist": ["0123456789", "3939", "+33 1 40 00 00 00", "+44 20 7946 0000"],
 "mail_whitelist": ["Contact@Service.gouv.fr"],
 "domain_url_whitelist": ["www.service-public.fr", "https://caf.fr/aides", "ameli.fr"], "other": 1}"""
WHITELIST = Whitelist.read(FILE.encode())


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("le 01.23.45.67.89.", "le 01 23 45 67 89."),
        ("0123456789", "01 23 45 67 89"),
        ("+33123456789", "01 23 45 67 89"),
        ("+33 (0)1 23 45 67 89", "01 23 45 67 89"),
        ("0033 1 40 00 00 00", "01 40 00 00 00"),
        ("3939 et 39 39", "39 39 et 39 39"),
        ("06-12-34-56-78", "[NUMERO MASQUÉ]"),
        ("le 3646, le 36 46 !", "le [NUMERO MASQUÉ], le [NUMERO MASQUÉ] !"),
        ("le 118 218", "le [NUMERO MASQUÉ]"),
        ("+44 20 7946 0000 ou +44 20 7946 0001", "+442079460000 ou [NUMERO MASQUÉ]"),
        ("en 2023, de 1985 à 2024", "en 2023, de 1985 à 2024"),
        ("3000 euros, 3000 €, 1024 km, 3 500 €, 1 000,50", "3000 euros, 3000 €, 1024 km, 3 500 €, 1 000,50"),
        ("article 12, 1234, 12345", "article 12, 1234, 12345"),
    ],
)
def test_numbers(text: str, after: str) -> None:
    """Listed numbers are written in pairs, others masked; years, quantities and other figures are none."""
    assert WHITELIST.correct(text).text == after


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("https://www.service-public.fr/particuliers/vosdroits?x=1#y.", "https://www.service-public.fr."),
        ("service-public.fr", "https://www.service-public.fr"),
        ("(http://caf.fr/aide)", "(http://caf.fr)"),
        ("www.caf.fr/x", "https://caf.fr"),
        ("HTTPS://AMELI.FR", "https://ameli.fr"),
        ("https://impots.gouv.fr/y", "https://impots.gouv.fr"),
        ("a.b.gouv.fr, voilà", "https://a.b.gouv.fr, voilà"),
        ("https://gouv.fr.evil.com/", "[URL MASQUÉE]"),
        ("https://fakegouv.fr", "[URL MASQUÉE]"),
        ("https://impots.gouv.fr@evil.com/x", "[URL MASQUÉE]"),
        ("https://evil.com/.gouv.fr", "[URL MASQUÉE]"),
        ("https://evil.com?x=.gouv.fr", "[URL MASQUÉE]"),
        ("evil.com", "[URL MASQUÉE]"),
        ("[lien](https://evil.com/a)", "[lien]([URL MASQUÉE])"),
        ("<https://evil.com>", "<[URL MASQUÉE]>"),
        ("https://[::1]/", "https://[::1]/"),
        ("https://", "https://"),
        ("fin.Merci, etc. 1.5 node.js", "fin.Merci, etc. 1.5 node.js"),
    ],
)
def test_urls(text: str, after: str) -> None:
    """A URL of a listed domain or below .gouv.fr is reduced to it, another masked, whatever it pretends to be."""
    assert WHITELIST.correct(text).text == after


def test_mails() -> None:
    """A listed address stays as it is written, and is no URL."""
    text = "contact@service.gouv.fr, CONTACT@service.gouv.fr ou x@evil.com"
    assert WHITELIST.correct(text).text == "contact@service.gouv.fr, CONTACT@service.gouv.fr ou [MAIL MASQUÉ]"


def test_what_was_changed_is_told_with_its_occurrence() -> None:
    """Each change has what stood there, what stands there, and the how-maniest equal replacement it is."""
    corrected = WHITELIST.correct("0123456789, +33123456789, 0612345678, a@b.fr, caf.fr")
    assert corrected.text == "01 23 45 67 89, 01 23 45 67 89, [NUMERO MASQUÉ], [MAIL MASQUÉ], https://caf.fr"
    assert corrected.changes == [
        Change("url", "caf.fr", "https://caf.fr", 0),
        Change("mail", "a@b.fr", "[MAIL MASQUÉ]", 0),
        Change("number", "0123456789", "01 23 45 67 89", 0),
        Change("number", "+33123456789", "01 23 45 67 89", 1),
        Change("number", "0612345678", "[NUMERO MASQUÉ]", 0),
    ]


def test_rules_are_chosen() -> None:
    """Only the rules that were asked for apply."""
    assert WHITELIST.correct("a@b.fr evil.com 0612345678", ["check_mail"]).text == "[MAIL MASQUÉ] evil.com 0612345678"


@given(st.text("01239 .-@+()/:wcafr.fevilgouveuros€", max_size=60), st.integers(1, 6))
def test_answers_do_not_depend_on_cuts(text: str, size: int) -> None:
    """A stream is corrected as the whole text is."""
    corrected = text
    for finder in WHITELIST.finders():
        scanner = finder.scanner(lambda: None)
        pieces = [scanner.feed(corrected[at : at + size]) for at in range(0, len(corrected), size)]
        corrected = "".join(pieces) + scanner.flush()
    assert corrected == WHITELIST.correct(text).text


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"mail_whitelist": [1]}', b'{"mail_whitelist": "a"}', b"\xff"])
def test_a_file_that_is_none_is_refused(data: bytes) -> None:
    """What is not Albert's file raises ValueError."""
    with pytest.raises(ValueError):
        Whitelist.read(data)
