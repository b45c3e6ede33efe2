"""Identifiers: 128 bits, url-safe, with a prefix that says what they name."""

from __future__ import annotations

import os
import re
import time

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}\Z")


def new_id(prefix: str) -> str:
    """Returns ``prefix_`` and 32 hexadecimal digits (128 bits from the operating system): nobody can guess it."""
    return f"{prefix}_{os.urandom(16).hex()}"


def ordered_id(prefix: str) -> str:
    """Returns ``prefix_`` and 32 hexadecimal digits: 48 bits of milliseconds, then 80 random ones (as UUID 7).

    Rows that are written in order of their ids go to one end of an index. For ids that are no secret.
    """
    return f"{prefix}_{int(time.time() * 1000):012x}{os.urandom(10).hex()}"


def is_request_id(text: str) -> bool:
    """Whether a caller's ``x-request-id`` is safe to echo, log and send upstream."""
    return _REQUEST_ID.match(text) is not None
