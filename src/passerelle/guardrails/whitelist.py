"""The check ``whitelist``: telephone numbers, mail addresses and URLs that are not on a list are masked; those that are
on it are written in one way.

The rules are those of Albert's post-processing for answers of the French administration:

    check_number  a listed number becomes pairs, ``01 23 45 67 89``; another ``[NUMERO MASQUÉ]``. Numbers are French
                  ones of ten digits, with 0, +33 or 0033; foreign ones with +; and the short ones: 3xxx, 10xx, 116 xxx,
                  118 xxx. A year (1900 to 2099) and a quantity (``3000 euros``) are no numbers.
    check_mail    a listed address stays; another becomes ``[MAIL MASQUÉ]``
    check_url     a URL of a listed domain, or of one below ``.gouv.fr``, becomes its scheme and domain, with the
                  ``www.`` of the list; another ``[URL MASQUÉE]``

The file is Albert's ``whitelist.json``: ``phone_number_whitelist``, ``mail_whitelist``, ``domain_url_whitelist``, each
a list of texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from passerelle.guardrails.finder import Finder, finder
from passerelle.guardrails.pii import EMAIL, FOREIGN_PHONE, FRENCH_PHONE, GAP, bare
from passerelle.guardrails.scanner import Judge, Judgement

MASKED_NUMBER = "[NUMERO MASQUÉ]"
MASKED_MAIL = "[MAIL MASQUÉ]"
MASKED_URL = "[URL MASQUÉE]"
RULES = ("check_url", "check_mail", "check_number")

_UNITS = (
    r"€|\$|%|°|m²|euros?\b|eur\b|(?:km|kg|kwh|mwh|m|g|l)\b|heures?\b|jours?\b|mois\b|ans?\b|années?\b|personnes?\b"
    r"|habitants?\b"
)
_UNIT = rf"(?:{_UNITS})"
_SHORT = rf"\b(?:3[0-9]|10){GAP}?[0-9]{{2}}(?:{GAP}?{_UNIT})?|\b11[68]{GAP}?[0-9]{{3}}(?:{GAP}?{_UNIT})?"
_NUMBER = rf"{FRENCH_PHONE}|{FOREIGN_PHONE}|{_SHORT}"
_TOP = (
    "fr|com|org|net|eu|info|io|gouv|edu|gov|int|be|ch|lu|ca|uk|de|es|it|re|gp|mq|gf|nc|pf|yt|pm|wf|paris|bzh|alsace"
    "|corsica|app|ai|co|me|dev|biz|asso"
)
_REST = r"[^\s<>\"'\[\]{}]"
_URL = rf"https?://{_REST}+|\bwww\.{_REST}+|\b(?:[\w\-]+\.)+(?:{_TOP})\b(?:[:/?#]{_REST}*)?"
_TRAILING = ".,;:!?»\u201d\u2019…)*_`>\\"
_YEAR = re.compile(r"(?:19|20)[0-9]{2}")
_HOST = re.compile(r"[\w\-]+(?:\.[\w\-]+)+")


class _File(msgspec.Struct):
    phone_number_whitelist: list[str] = []
    mail_whitelist: list[str] = []
    domain_url_whitelist: list[str] = []


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was rewritten. ``kind`` is number, mail or url; ``index`` counts equal replacements, from 0."""

    kind: str
    old: str
    new: str
    index: int


@dataclass(slots=True)
class Corrected:
    """A text after post-processing, and what was changed in it, in order."""

    text: str
    changes: list[Change] = field(default_factory=list)


class Whitelist:
    """What may be said. Domains and addresses are compared without case, numbers without gaps."""

    def __init__(self, numbers: Iterable[str] = (), mails: Iterable[str] = (), domains: Iterable[str] = ()) -> None:
        self._numbers = frozenset(_normal_number(number) for number in numbers)
        self._mails = frozenset(mail.strip().lower() for mail in mails)
        self._domains = frozenset(filter(None, map(_host_of, domains)))

    @classmethod
    def read(cls, data: bytes) -> Whitelist:
        """Returns the list of a ``whitelist.json``. Raises ValueError when it is none."""
        try:
            file = msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(str(error)) from None
        return cls(file.phone_number_whitelist, file.mail_whitelist, file.domain_url_whitelist)

    def finders(self, rules: Iterable[str] = RULES) -> tuple[Finder, ...]:
        """Returns the finders of these rules, in the order in which they are to be applied."""
        wanted = frozenset(rules)
        made = {
            "check_url": lambda: finder(_URL, self._judge_url, ignore_case=True),
            "check_mail": lambda: finder(EMAIL, self._judge_mail, needs="@"),
            "check_number": lambda: finder(_NUMBER, self._judge_number, ignore_case=True),
        }
        return tuple(made[rule]() for rule in RULES if rule in wanted)

    def _judge_number(self, match: str, before: str, after: str) -> Judgement | None:
        if before.isalnum() or before in ("+", ",", ".") or after.isdigit():
            return None
        if not match[-1].isdigit() and match[-1] != ")":  # it ends with a unit
            return Judgement(len(match), match, offence=False)
        normal = _normal_number(match)
        if normal in self._numbers:
            return Judgement(len(match), _in_pairs(normal), offence=False)
        if _YEAR.fullmatch(match) or after.isalpha() or after in ("€", "%"):
            return None
        return Judgement(len(match), MASKED_NUMBER)

    def _judge_mail(self, match: str, _before: str, _after: str) -> Judgement | None:
        if match.lower() in self._mails:
            return Judgement(len(match), match, offence=False)
        return Judgement(len(match), MASKED_MAIL)

    def _judge_url(self, match: str, before: str, after: str) -> Judgement | None:
        has_scheme = "://" in match[:8]
        if after == "@" or (not has_scheme and (before.isalnum() or before in ("@", ".", "-", "_", "/"))):
            return None
        url = match.rstrip(_TRAILING)
        length = len(url)
        if "@" in url and not has_scheme and "/" not in url[: url.index("@")]:
            return None
        host = _host_of(url)
        allowed = self._allowed(host) if host is not None else None
        if allowed is None:
            return Judgement(max(length, 1), MASKED_URL)
        scheme = "http" if url[:7].lower() == "http://" else "https"
        return Judgement(length, f"{scheme}://{allowed}", offence=False)

    def _allowed(self, host: str) -> str | None:
        """Returns the host as the list writes it, None when it is not allowed."""
        short = host.removeprefix("www.")
        for one in (host, f"www.{short}", short):
            if one in self._domains:
                return one
        return host if host.endswith(".gouv.fr") else None

    def correct(self, text: str, rules: Iterable[str] = RULES) -> Corrected:
        """Returns a whole text (a sentence, say) after post-processing, with what was changed."""
        corrected = Corrected(text)
        wanted = frozenset(rules)
        for rule in (rule for rule in RULES if rule in wanted):
            (found,) = self.finders([rule])
            kind, counts = rule.removeprefix("check_"), Counter[str]()
            noting = Finder(found.automaton, _noting(found.judge, kind, counts, corrected.changes), found.needs)
            scanner = noting.scanner(lambda: None)
            corrected.text = scanner.feed(corrected.text) + scanner.flush()
        return corrected


def _noting(judge: Judge, kind: str, counts: Counter[str], changes: list[Change]) -> Judge:
    """Returns a judge that judges as ``judge`` does and notes what it changes."""

    def noting(match: str, before: str, after: str) -> Judgement | None:
        judged = judge(match, before, after)
        if judged is not None and (judged.offence or judged.replacement != match):
            changes.append(Change(kind, match[: judged.length], judged.replacement, counts[judged.replacement]))
            counts[judged.replacement] += 1
        return judged

    return noting


def _normal_number(text: str) -> str:
    """Returns a number as digits only: French ones begin with 0, foreign ones with +."""
    digits = bare(text.strip()).replace("(0)", "").replace("(", "").replace(")", "")
    if digits.startswith("00"):
        digits = "+" + digits[2:]
    return "0" + digits[3:] if digits.startswith("+33") else digits


def _in_pairs(number: str) -> str:
    """``0123456789`` → ``01 23 45 67 89``; a foreign number stays in one piece."""
    return number if number.startswith("+") else " ".join(number[at : at + 2] for at in range(0, len(number), 2))


def _host_of(url: str) -> str | None:
    """Returns the lower-case host of a URL or bare domain, None when it has none that could be on a list."""
    try:
        host: Any = urlsplit(url if "://" in url[:8] else f"https://{url.strip()}").hostname
    except ValueError:
        return None
    host = (host or "").rstrip(".")
    return host if _HOST.fullmatch(host) else None
