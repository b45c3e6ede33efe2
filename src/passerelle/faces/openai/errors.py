"""Errors in OpenAI's envelope, as whole answers and as the last event of a stream that broke.

The SDKs read ``error.message``, ``error.type``, ``error.param`` and ``error.code``; ``error.request_id`` is ours.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from passerelle.domain.client import Headers
from passerelle.domain.errors import PasserelleError, QuotaExhausted


def render(error: PasserelleError, request_id: str) -> tuple[int, Headers, bytes]:
    """Returns status, headers and body of the answer to a request that failed.

    ``Retry-After`` is in whole seconds, rounded up, at least 1. ``x-should-retry`` keeps the SDKs from repeating what
    cannot succeed.
    """
    headers: Headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if isinstance(error, QuotaExhausted):
        headers.append((b"x-should-retry", b"false"))
    if error.status == 401 and not any(name == b"www-authenticate" for name, _ in error.headers):
        headers.append((b"www-authenticate", b"Bearer"))
    headers.extend(error.headers)
    return error.status, headers, msgspec.json.encode(envelope(error, request_id))


def stream_event(error: PasserelleError, request_id: str) -> bytes:
    """Returns the server-sent event that ends a stream in place of ``[DONE]``."""
    return b"data: " + msgspec.json.encode(envelope(error, request_id)) + b"\n\n"


def envelope(error: PasserelleError, request_id: str) -> dict[str, Any]:
    """Returns the body of an error as a dictionary."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.error_code,
            "request_id": request_id,
        }
    }
