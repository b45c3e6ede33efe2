"""The form of an API key: ``sk-pas-<12 public>-<43 secret><6 checksum>``, all base62.

The public part finds the row and may be shown; the secret (256 random bits) is known to its holder alone, of whom the
database keeps SHA-256(secret). A fast hash is right here: nothing can guess 256 random bits. The checksum is the CRC-32
of what comes before it, so that a mistyped key or garbage is refused without asking the database, and so that scanners
can find leaked keys.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 69
_FORM = re.compile(rb"sk-pas-([0-9A-Za-z]{12})-([0-9A-Za-z]{43})([0-9A-Za-z]{6})")


def mint() -> str:
    """Returns a new key, the only time its secret is seen; ``parse`` tells what to store of it."""
    body = f"sk-pas-{_random(12)}-{_random(43)}"
    return body + _checksum(body.encode())


def parse(text: bytes | str) -> tuple[str, bytes] | None:
    """Returns the public id (12 characters) and the digest (32 bytes) of a well-formed key, None for anything else.

    Takes any input; what has not the length of a key is refused before it is looked at.
    """
    if len(text) != _LENGTH:
        return None
    if isinstance(text, str):
        if not text.isascii():
            return None
        text = text.encode("ascii")
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    public_id, secret, checksum = match.groups()
    if checksum != _checksum(text[:-6]).encode():
        return None
    return public_id.decode(), hashlib.sha256(secret).digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: bytes) -> str:
    """CRC-32 in base62, six digits: 62**6 > 2**32."""
    number = zlib.crc32(body)
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits
