"""What a browser brings: the session cookie, and where the page comes from that sent the request.

A request with the cookie that changes something must carry the session's CSRF token in ``x-csrf-token`` and must not
come from another origin. A request with a key or token in its headers is that caller's, whatever cookies it has; the
cookie is looked at only on routes that declare it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from urllib.parse import urlsplit

from passerelle.domain.errors import Forbidden
from passerelle.domain.principal import Principal
from passerelle.edge.exchange import Exchange, header, header_values
from passerelle.identity.sessions import Session, Sessions

SAFE_METHODS = ("GET", "HEAD")
_PAIR = re.compile(r"\s*([^=;\s]+)=([^;]*)")


class Browser:
    """The cookies and origins of this installation. ``public_url`` is its address as people type it, None if unset."""

    def __init__(self, sessions: Sessions, public_url: str | None) -> None:
        self._sessions = sessions
        parts = urlsplit(public_url or "")
        self._origin = None if public_url is None else f"{parts.scheme}://{parts.netloc}".lower()
        self._secure = parts.scheme == "https"
        # The prefix makes browsers refuse such a cookie from any other host, and without Secure.
        self.cookie_name = "__Host-passerelle" if self._secure else "passerelle_session"

    def identify(self, exchange: Exchange) -> Principal | Awaitable[Principal] | None:
        """Returns whose session a request is in, None when it brings no cookie, or another credential.

        Raises Unauthenticated, Unavailable, and Forbidden for a request that a page of somebody else may have sent.
        """
        if any(name in (b"authorization", b"x-api-key") for name, _ in exchange.headers):
            return None
        value = self.cookie(exchange, self.cookie_name)
        if value is None:
            return None
        session = self._sessions.cached(value)
        if session is None:
            return self._found(exchange, value)
        self._check(exchange, session)
        return session.principal

    async def session(self, exchange: Exchange) -> tuple[Session, str]:
        """Returns the session of a request, and its cookie. Raises Unauthenticated and Unavailable."""
        value = self.cookie(exchange, self.cookie_name) or ""
        return await self._sessions.find(value), value

    async def _found(self, exchange: Exchange, value: str) -> Principal:
        session = await self._sessions.find(value)
        self._check(exchange, session)
        return session.principal

    def _check(self, exchange: Exchange, session: Session) -> None:
        if exchange.method in SAFE_METHODS:
            return
        self.check_origin(exchange)
        token = header(exchange.headers, b"x-csrf-token")
        if not session.accepts(None if token is None else token.decode("latin-1")):
            raise Forbidden(
                "Send the session's CSRF token in the header x-csrf-token; GET /auth/session shows it.",
                code="csrf_token_invalid",
            )

    def check_origin(self, exchange: Exchange) -> None:
        """Raises Forbidden when a page of another origin sent this request. A client that says nothing is no page."""
        origins = header_values(exchange.headers, b"origin")
        site = header(exchange.headers, b"sec-fetch-site")
        if any(not self._is_ours(origin.decode("latin-1"), exchange) for origin in origins):
            raise _cross_site()
        if site is not None and site not in (b"same-origin", b"none"):
            raise _cross_site()

    def _is_ours(self, origin: str, exchange: Exchange) -> bool:
        if self._origin is not None:
            return origin.lower() == self._origin
        host = (header(exchange.headers, b"host") or b"").decode("latin-1")
        return bool(host) and origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())

    @staticmethod
    def cookie(exchange: Exchange, name: str) -> str | None:
        """Returns the value of a cookie; None without it, and for two that differ: one of them is somebody else's."""
        text = b";".join(header_values(exchange.headers, b"cookie")).decode("latin-1")
        values = {value.strip() for key, value in _PAIR.findall(text) if key == name}
        return values.pop() if len(values) == 1 else None

    def set_cookie(self, name: str, value: str, *, max_age_s: float, path: str = "/") -> tuple[bytes, bytes]:
        """Returns the header that sets a cookie which scripts cannot read and other sites' forms do not send."""
        secure = "; Secure" if self._secure else ""
        text = f"{name}={value}; Path={path}; Max-Age={int(max_age_s)}; HttpOnly; SameSite=Lax{secure}"
        return b"set-cookie", text.encode("latin-1")

    def clear_cookie(self, name: str, *, path: str = "/") -> tuple[bytes, bytes]:
        """Returns the header that removes a cookie."""
        return self.set_cookie(name, "", max_age_s=0, path=path)


def _cross_site() -> Forbidden:
    return Forbidden("This request comes from a page of another site.", code="cross_site")
