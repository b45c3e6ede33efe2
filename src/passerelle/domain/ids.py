"""Identifiers: 128 random bits, url-safe, with a prefix that says what they name."""

from __future__ import annotations

import os
import re

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}\Z")


def new_id(prefix: str) -> str:
    """Returns ``prefix_`` and 32 hexadecimal digits (128 bits from the operating system)."""
    return f"{prefix}_{os.urandom(16).hex()}"


def is_request_id(text: str) -> bool:
    """Whether a caller's ``x-request-id`` is safe to echo, log and send upstream."""
    return _REQUEST_ID.match(text) is not None
