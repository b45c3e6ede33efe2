"""Identifiers: 128 bits, url-safe, with a prefix that says what they name."""

from __future__ import annotations

import itertools
import os
import re
import time

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}\Z")


def new_id(prefix: str) -> str:
    """Returns ``prefix_`` and 32 hexadecimal digits (128 bits from the operating system): nobody can guess it."""
    return f"{prefix}_{os.urandom(16).hex()}"


class IdSequence:
    """Ids that need to be unique but not secret, without asking the operating system for each.

    ``next`` returns ``prefix_`` and 32 hexadecimal digits: 12 of the time this sequence began (milliseconds), 12 random
    ones, 8 that count. Rows written in their order go to one end of an index.
    """

    __slots__ = ("_numbers", "_stem")

    def __init__(self, prefix: str) -> None:
        self._stem = f"{prefix}_{int(time.time() * 1000):012x}{os.urandom(6).hex()}"
        self._numbers = itertools.count()

    def next(self) -> str:
        """Returns the next id."""
        return f"{self._stem}{next(self._numbers):08x}"


def is_request_id(text: str) -> bool:
    """Whether a caller's ``x-request-id`` is safe to echo, log and send upstream."""
    return _REQUEST_ID.match(text) is not None
