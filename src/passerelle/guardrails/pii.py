"""The check ``pii``: what names or reaches a person, told from look-alikes by its own rules.

email   RFC 5321's shape, in any script
phone   French numbers, and international ones that begin with +
iban    ISO 13616: the length of its country, and the check digits (mod 97)
card    12 to 19 digits of a payment card with the check digit of ISO/IEC 7812 (Luhn)
nir     the French social security number, with its key (97 less the number mod 97)
ip      IPv4 and IPv6 addresses
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from passerelle.guardrails.finder import Finder, every_match, finder
from passerelle.guardrails.scanner import Judge, Judgement

GAP = r"[ .\-\u00a0\u2009\u202f]"
"""What stands between the groups of a number: space, full stop, hyphen, and the spaces that do not break."""
_GAPS = dict.fromkeys(map(ord, " .-\u00a0\u2009\u202f"))
EMAIL = r"[\w.%+'\-]+@(?:[\w\-]+\.)+[^\W\d_]{2,}"
FRENCH_PHONE = rf"(?:(?:\+|00){GAP}?33{GAP}?(?:\(0\){GAP}?)?|\b0)[1-9](?:{GAP}?[0-9]{{2}}){{4}}"
FOREIGN_PHONE = rf"\+{GAP}?[1-9][0-9]{{0,2}}(?:{GAP}?(?:\([0-9]{{1,4}}\)|[0-9]{{1,4}})){{2,6}}"
_IBAN = rf"\b[A-Z]{{2}}[0-9]{{2}}(?:{GAP}?[A-Z0-9]){{11,30}}"
_CARD = rf"\b[2-6](?:{GAP}?[0-9]){{11,18}}"
_NIR = (
    rf"\b[1-478]{GAP}?[0-9]{{2}}{GAP}?(?:0[1-9]|1[0-2]|[2-9][0-9]){GAP}?(?:[0-9]{{2}}|2[AB]){GAP}?[0-9]{{3}}{GAP}?[0-9]{{3}}"
    rf"{GAP}?[0-9]{{2}}"
)
_IPV4 = r"\b(?:[0-9]{1,3}\.){3,7}[0-9]{1,3}"
_IPV6 = r"(?:\b[0-9a-f]{1,4}:|:)(?:[0-9a-f]{0,4}:){1,7}(?:[0-9a-f]{0,4}|(?:[0-9]{1,3}\.){3}[0-9]{1,3})"

# ISO 13616 registry, release 99: characters of an IBAN by country.
_IBAN_LENGTHS: Mapping[str, int] = MappingProxyType(
    {
        country: int(length)
        for length, countries in (
            ("15", "NO"), ("16", "BE"), ("18", "DK FI FK FO GL NL SD"), ("19", "MK SI"), ("20", "AT BA EE KZ LT LU XK"),
            ("21", "CH CR HR LI LV"), ("22", "BG BH DE GB GE IE ME RS VA"), ("23", "AE GI IL IQ OM SO TL"),
            ("24", "AD CZ ES MD PK RO SA SE SK TN VG"), ("25", "LY PT ST"), ("26", "IS TR"),
            ("27", "FR GR IT MC MR SM"), ("28", "AL AZ BF BJ BY CI CY DO GT HU LB ML NE NI PL SN SV TG"),
            ("29", "BR EG PS QA UA"), ("30", "JO KW MU YE"), ("31", "MT SC"), ("32", "LC"), ("33", "RU"),
        )
        for country in countries.split()
    }
)  # fmt: skip


def find_pii(entities: Iterable[str], replacement: str | None = None) -> tuple[Finder, ...]:
    """Returns a finder for each of the entities, those with the longest numbers first.

    ``replacement`` takes the place of every find, None for the entity's name: ``[EMAIL]``.
    """
    wanted = frozenset(entities)
    return tuple(
        found
        for entity, make in _FINDERS.items()
        if entity in wanted
        for found in make(replacement if replacement is not None else f"[{entity.upper()}]")
    )


def bare(text: str) -> str:
    """Returns a number without what stands between its groups."""
    return text.translate(_GAPS)


def is_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (2 * int(digit) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the text, without gaps, is an IBAN of its country's length with right check digits."""
    text = text.upper()
    if len(text) != _IBAN_LENGTHS.get(text[:2]):
        return False
    return int("".join(str(int(one, 36)) for one in text[4:] + text[:4])) % 97 == 1


def is_nir(text: str) -> bool:
    """Whether the text, without gaps, is a French social security number with its key."""
    number = (
        text[:13].upper().replace("2A", "19").replace("2B", "18") if text[5:7].upper() in ("2A", "2B") else text[:13]
    )
    return 97 - int(number) % 97 == int(text[13:])


def _standing_alone(before: str, after: str) -> bool:
    return not (before.isalnum() or after.isalnum())


def _phone(replacement: str) -> Judge:
    def judge(match: str, before: str, after: str) -> Judgement | None:
        digits = sum(one.isdigit() for one in match)
        if before.isalnum() or before == "+" or after.isdigit() or not 8 <= digits <= 15:
            return None
        return Judgement(len(match), replacement)

    return judge


def _iban(replacement: str) -> Judge:
    def judge(match: str, before: str, after: str) -> Judgement | None:
        wanted = _IBAN_LENGTHS.get(match[:2].upper())
        if before.isalnum() or wanted is None:
            return None
        end = _end_of(match, wanted)
        if end is None or (match + after)[end : end + 1].isalnum() or not is_iban(bare(match[:end])):
            return None
        return Judgement(end, replacement)

    return judge


def _end_of(match: str, count: int) -> int | None:
    """Returns where the first ``count`` characters that are no gaps end."""
    for index, character in enumerate(match):
        if ord(character) not in _GAPS:
            count -= 1
            if count == 0:
                return index + 1
    return None


def _card(replacement: str) -> Judge:
    def judge(match: str, before: str, after: str) -> Judgement | None:
        if before.isalnum():
            return None
        text = match + after
        for count in range(19, 11, -1):
            end = _end_of(match, count)
            if end is not None and not text[end : end + 1].isalnum() and is_luhn(bare(match[:end])):
                return Judgement(end, replacement)
        return None

    return judge


def _nir(replacement: str) -> Judge:
    def judge(match: str, before: str, after: str) -> Judgement | None:
        if not _standing_alone(before, after) or not is_nir(bare(match)):
            return None
        return Judgement(len(match), replacement)

    return judge


def _ip(replacement: str) -> Judge:
    def judge(match: str, before: str, after: str) -> Judgement | None:
        alone = not (before.isalnum() or after.isalnum() or before in (":", ".") or after == ":")
        # `::` is a word of programming languages, and an address without a digit is more often one than not.
        if not alone or not any(one.isdigit() for one in match):
            return None
        try:
            ipaddress.ip_address(match)
        except ValueError:
            return None
        return Judgement(len(match), replacement)

    return judge


_FINDERS: Mapping[str, Callable[[str], tuple[Finder, ...]]] = MappingProxyType(
    {
        "email": lambda mask: (finder(EMAIL, every_match(mask), needs="@"),),
        "iban": lambda mask: (finder(_IBAN, _iban(mask), ignore_case=True),),
        "nir": lambda mask: (finder(_NIR, _nir(mask), ignore_case=True),),
        "card": lambda mask: (finder(_CARD, _card(mask)),),
        "phone": lambda mask: (finder(FRENCH_PHONE, _phone(mask)), finder(FOREIGN_PHONE, _phone(mask), needs="+")),
        "ip": lambda mask: (finder(_IPV4, _ip(mask)), finder(_IPV6, _ip(mask), ignore_case=True, needs=":")),
    }
)
ENTITIES = tuple(_FINDERS)
