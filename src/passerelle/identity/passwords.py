"""Passwords: which are good enough, and how they are kept (argon2id).

Hashing takes tens of milliseconds and 32 MiB on purpose, so it runs in few threads of its own: the event loop never
waits for it, and many sign-ins at once wait for each other instead of taking the machine.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from passerelle.domain.errors import BadRequest, Overloaded

MIN_LENGTH = 8
MAX_LENGTH = 128
MIN_DISTINCT = 5
"""A password of fewer different characters is a pattern."""
MEMORY_KIB = 32 * 1024
PASSES = 3
LANES = 1
THREADS = 2
MAX_WAITING = 64
"""Hashes that may wait for a thread; more are refused with 503."""

_COMMON = """
    password passwort motdepasse password1 password12 password123 passw0rd p@ssw0rd p@ssword qwertyuiop qwerty123
    qwerty12 azertyuiop azerty123 1q2w3e4r 1q2w3e4r5t 1qaz2wsx q1w2e3r4 zaq12wsx iloveyou sunshine princess football
    baseball superman trustno1 welcome1 welcome123 letmein1 letmein123 changeme changeme1 changeme123 admin123 admin1234
    administrator administrateur bonjour1 bonjour123 soleil123 passerelle passerelle1 passerelle123 secret123 computer
    internet starwars whatever michelle jennifer asdfghjkl asdf1234 abcd1234 abc12345 aa123456 a1b2c3d4 qazwsxedc
    dragon123 monkey123 master123 access123 default1 test1234 testtest user1234 root1234 toor1234
"""
_SEQUENCES = ("0123456789012345678901234567890", "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm")
_T = TypeVar("_T")


class Passwords:
    """Hashes and compares passwords. ``aclose`` ends its threads."""

    def __init__(self, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES, threads: int = THREADS) -> None:
        from pwdlib import PasswordHash
        from pwdlib.hashers.argon2 import Argon2Hasher

        self._hasher = PasswordHash((Argon2Hasher(time_cost=passes, memory_cost=memory_kib, parallelism=LANES),))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._waiting = 0
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """Returns what to store: parameters, salt and hash. Raises Overloaded."""
        return await self._run(lambda: self._hasher.hash(_normal(password)))

    async def verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        """Returns whether the password is the stored one, and a new hash when that one's parameters are outdated.

        Without a stored one the answer is no, after the same work: the time does not tell who exists. Raises
        Overloaded.
        """
        return await self._run(lambda: self._verify(_normal(password), stored))

    def _verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        from pwdlib.exceptions import PwdlibError

        if self._nobody is None:
            self._nobody = self._hasher.hash("nobody has this password")
        if stored is None:
            self._hasher.verify(password, self._nobody)
            return False, None
        try:
            return self._hasher.verify_and_update(password, stored)
        except PwdlibError:  # what is stored is no hash that we know, so no password fits it
            return False, None

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._waiting >= MAX_WAITING:
            raise Overloaded("Too many people sign in at this moment; retry in a few seconds.", retry_after_s=2.0)
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        future.add_done_callback(self._done)
        return await future

    def _done(self, _future: object) -> None:
        self._waiting -= 1

    def close(self) -> None:
        """Ends the threads; what they work on is finished."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def check(password: str, about: Iterable[str | None] = ()) -> None:
    """Raises BadRequest unless the password is good enough to be kept.

    8 to 128 characters of any script, five different ones at least, neither a well-known password nor a run along the
    keyboard, and nothing of ``about`` (the person's name and address). No rules on capitals and digits: they make
    passwords worse (NIST SP 800-63B, section 3.1.1.2).
    """
    text = _normal(password)
    plain = text.casefold()
    if not MIN_LENGTH <= len(text) <= MAX_LENGTH:
        raise _weak(f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters.")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") for character in text):
        raise _weak("A password holds no control characters.")
    if len(set(plain)) < MIN_DISTINCT:
        raise _weak(f"Use {MIN_DISTINCT} different characters at least in a password.")
    if plain in _COMMON.split() or any(plain in run or plain in run[::-1] for run in _SEQUENCES):
        raise _weak("This password is one of the first that anybody tries; choose another.")
    for word in about:
        for part in {word or "", (word or "").partition("@")[0]}:
            if len(part) >= 4 and part.casefold() in plain:
                raise _weak("A password does not hold the name or address of its owner.")


def _normal(password: str) -> str:
    """One form for characters that can be typed in several ways."""
    return unicodedata.normalize("NFKC", password)


def _weak(message: str) -> BadRequest:
    return BadRequest(message, param="password", code="weak_password")
