"""The form of a key: what is one, and what is not, without a look at any database (faults row D1)."""

from __future__ import annotations

import base64
import hashlib

from hypothesis import assume, given
from hypothesis import strategies as st
from tests.harness.cpu import within_cpu

from passerelle.identity.token import mint, parse

KEY = mint()
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_a_minted_key_is_well_formed_and_holds_its_parts() -> None:
    """What mint makes, parse takes apart: 12 public characters, and the SHA-256 of 43 secret ones."""
    token = mint()
    assert len(token) == 69
    prefix, name, public_id, rest = token.split("-")
    assert (prefix, name, len(public_id), len(rest)) == ("sk", "pas", 12, 49)
    assert parse(token) == (public_id, hashlib.sha256(rest[:43].encode()).digest())
    assert parse(token.encode()) == parse(token)


def test_minted_keys_differ_and_use_the_whole_alphabet() -> None:
    """A thousand keys share no public part and no secret, and every character occurs."""
    tokens = [mint() for _ in range(1000)]
    assert len({token[7:19] for token in tokens}) == 1000
    assert len({token[20:63] for token in tokens}) == 1000
    assert set("".join(token[20:63] for token in tokens)) == set(ALPHABET)


def test_the_checksum_is_the_documented_one() -> None:
    """A key made outside, from the description alone, is well-formed: scanners can rely on the form."""
    import zlib

    body = "sk-pas-000000000000-" + "A" * 43
    number, digits = zlib.crc32(body.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    assert parse(body + digits.rjust(6, "0")) == ("000000000000", hashlib.sha256(b"A" * 43).digest())


@given(st.integers(0, 68), st.sampled_from(ALPHABET + "-_ \0é٣"))
def test_any_changed_character_is_refused(position: int, character: str) -> None:
    """A typing error anywhere in a key is refused by its form or its checksum."""
    assume(KEY[position] != character)
    assert parse(KEY[:position] + character + KEY[position + 1 :]) is None


@given(st.integers(0, 67))
def test_two_swapped_characters_are_refused(position: int) -> None:
    """The commonest typing error, two neighbours swapped, is refused."""
    assume(KEY[position] != KEY[position + 1])
    assert parse(KEY[:position] + KEY[position + 1] + KEY[position] + KEY[position + 2 :]) is None


@given(st.integers(0, 68))
def test_a_truncated_key_is_refused(length: int) -> None:
    """No part of a key is a key."""
    assert parse(KEY[:length]) is None
    assert parse(KEY[length:] if length else "") is None


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200), st.text(min_size=69, max_size=69)))
def test_text_and_bytes_of_any_kind_are_refused_without_an_error(text: str | bytes) -> None:
    """Garbage gives None, never an exception."""
    assert parse(text) is None


@given(st.sampled_from(["' OR 1=1 --", "\0", "\r\n", "١٢٣", "\ud800", "%00", "${jndi:x}"]), st.integers(0, 69))
def test_hostile_text_around_and_inside_a_key_is_refused(text: str, position: int) -> None:
    """SQL, NUL, line ends, unicode digits and half surrogates make no key of one."""
    assert parse(KEY[:position] + text + KEY[position:]) is None
    assert parse((KEY[:position] + text + KEY[position:])[:69]) is None or position >= 69


def test_digests_and_other_prefixes_are_no_keys() -> None:
    """What the database stores cannot be presented as a key, in no spelling."""
    parsed = parse(KEY)
    assert parsed is not None
    public_id, digest = parsed
    spellings = [digest.hex(), base64.b64encode(digest).decode(), f"sk-pas-{public_id}-{digest.hex()}"]
    for text in [*spellings, "sk-" + KEY[7:], "sk-proj-" + KEY[7:], KEY.upper(), KEY.lower(), KEY + "\n", " " + KEY]:
        assert parse(text) is None
    assert parse(digest) is None


def test_ten_megabytes_are_refused_at_once() -> None:
    """The length is looked at before the content."""
    huge_text, huge_bytes = "é" * 10_000_000, KEY.encode() * 150_000

    def refuse() -> None:
        for _ in range(1000):
            assert parse(huge_text) is None
            assert parse(huge_bytes) is None

    within_cpu(1, refuse)
