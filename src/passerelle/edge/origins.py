"""Pages of other origins: which may read our answers in a browser (the Fetch standard's CORS protocol).

Cookies never count for them: an answer says nothing of credentials, so a browser sends none that we would heed. A page
calls with a key of its own, or without one where none is asked for.
"""

from __future__ import annotations

import re
from typing import Final

from passerelle.domain.client import Headers
from passerelle.edge.exchange import header

_MAX_AGE_S: Final = 600
_NAMES = re.compile(rb"[A-Za-z0-9\-_, ]{1,1000}\Z")
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"


class TrustedOrigins:
    """The origins an operator trusts; ``*`` for any."""

    def __init__(self, trusted: tuple[str, ...] = ()) -> None:
        self._trusted = frozenset(origin.lower().rstrip("/").encode("latin-1") for origin in trusted)
        self._any = b"*" in self._trusted

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._trusted)

    def __contains__(self, origin: bytes) -> bool:
        """Whether pages of ``origin``, as a browser writes it, are trusted."""
        return self._any or origin.lower() in self._trusted

    def permission(self, asked: Headers) -> Headers:
        """Returns what lets the page that sent this request read the answer; nothing for others, and for no page.

        ``vary`` keeps a cache from giving one origin's answer to another.
        """
        origin = header(asked, b"origin")
        if origin is None or origin not in self:
            return []
        allowed = [(b"access-control-allow-origin", b"*" if self._any else origin)]
        if not self._any:
            allowed.append((b"vary", b"origin"))
        return [*allowed, (b"access-control-expose-headers", b"*")]


def is_preflight(method: str, asked: Headers) -> bool:
    """Whether a browser asks, before a request, if it may send it."""
    return method == "OPTIONS" and header(asked, b"access-control-request-method") is not None


def preflight(asked: Headers) -> Headers:
    """Returns the answer's headers: every method, and the headers that were asked for. The request itself is judged."""
    found: Headers = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", b"%d" % _MAX_AGE_S),
    ]
    names = header(asked, b"access-control-request-headers")
    if names is not None and _NAMES.match(names):
        found.append((b"access-control-allow-headers", names))
    return found
