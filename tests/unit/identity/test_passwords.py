"""Passwords: which are good enough, and how they are kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.errors import BadRequest, Overloaded
from passerelle.identity.passwords import MAX_WAITING, Passwords, check


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    """Hashes that cost little."""
    made = Passwords(memory_kib=64, passes=1)
    yield made
    made.close()


@pytest.mark.parametrize(
    "good", ["correct horse", "Tr0ub4dor&3", "aB3$%!*+", "пароль-очень", "日本語のパスワード", "x" * 64 + "abcd"]
)
def test_good_passwords(good: str) -> None:
    """Any script, any characters, long ones: accepted."""
    check(good, ("ada", "ada@example.org"))


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "short1!",
        "a" * 129,
        "aaaaaaaaaaaa",
        "abababababab",
        "password123",
        "PassWord123",
        "motdepasse",
        "12345678",
        "87654321",
        "qwertyuiop",
        "\uff50\uff41\uff53\uff53word123",
        "tab\tinside-it",
        "nul\0inside-it",
        "half\ud800character",
        "lovelace-2026",
        "me.ada.lovelace@x",
    ],
)
def test_bad_passwords(bad: str) -> None:
    """Short, long, simple, well-known and personal ones are refused, with a code and the field."""
    with pytest.raises(BadRequest) as caught:
        check(bad, ("lovelace", "ada.lovelace@example.org", None))
    assert (caught.value.error_code, caught.value.param) == ("weak_password", "password")
    assert bad == "" or bad not in caught.value.message


@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    """Whatever is sent is accepted or refused."""
    try:
        check(text)
    except BadRequest:
        return
    assert len(text.encode()) >= 8


async def test_a_password_fits_its_hash_only(passwords: Passwords) -> None:
    """The right one fits, others do not; the hash holds no part of it, and two hashes of it differ."""
    stored = await passwords.hash("correct horse")
    assert stored.startswith("$argon2id$")
    assert "correct" not in stored
    assert stored != await passwords.hash("correct horse")
    assert await passwords.verify("correct horse", stored) == (True, None)
    assert (await passwords.verify("correct horsf", stored))[0] is False
    assert (await passwords.verify("correct horse", None))[0] is False
    assert (await passwords.verify("correct horse", "$2b$12$not-a-hash"))[0] is False
    assert (await passwords.verify("correct horse", ""))[0] is False


async def test_characters_typed_in_two_ways_are_the_same(passwords: Passwords) -> None:
    """A password with accents fits, however the keyboard composes them."""
    stored = await passwords.hash("mot-de-pass\u00e9")
    assert (await passwords.verify("mot-de-passe\u0301", stored))[0] is True


async def test_outdated_parameters_give_a_new_hash(passwords: Passwords) -> None:
    """A hash made with weaker parameters is replaced when its owner comes."""
    stored = await passwords.hash("correct horse")
    stronger = Passwords(memory_kib=128, passes=2)
    right, better = await stronger.verify("correct horse", stored)
    assert right
    assert better is not None
    assert "m=128,t=2" in better
    assert (await stronger.verify("wrong horse!", stored))[1] is None
    stronger.close()


async def test_the_loop_goes_on_while_passwords_are_hashed() -> None:
    """Eight real hashes at once leave the loop free: next to none of their processor time is spent on its thread."""
    passwords = Passwords()
    began_s = time.thread_time(), time.process_time()
    await asyncio.gather(*(passwords.hash(f"correct horse {n}") for n in range(8)))
    own_s, all_s = time.thread_time() - began_s[0], time.process_time() - began_s[1]
    passwords.close()
    assert own_s < all_s / 4, (own_s, all_s)


async def test_more_than_can_wait_are_refused(passwords: Passwords) -> None:
    """A flood of sign-ins gets 503 past the bound, and the place is free again afterwards."""
    results = await asyncio.gather(
        *(passwords.hash("correct horse") for _ in range(MAX_WAITING + 10)), return_exceptions=True
    )
    assert sum(isinstance(result, Overloaded) for result in results) == 10
    assert await passwords.hash("correct horse")


async def test_unknown_people_take_the_same_time() -> None:
    """The work for a name that nobody has is that of a real comparison: the time does not tell who exists."""
    passwords = Passwords()
    stored = await passwords.hash("correct horse")

    async def fastest(against: str | None) -> float:
        took_s = []
        for _ in range(5):
            began_s = time.process_time()  # of all threads: what other programs do meanwhile does not count
            await passwords.verify("wrong horse", against)
            took_s.append(time.process_time() - began_s)
        return min(took_s)

    await fastest(None)
    known, unknown = await fastest(stored), await fastest(None)
    passwords.close()
    assert 0.4 < unknown / known < 2.5
