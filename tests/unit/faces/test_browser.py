"""Cookies and origins of browsers, as the edge asks about them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.client import Headers
from passerelle.domain.errors import Forbidden, PasserelleError, Unauthenticated
from passerelle.domain.principal import Principal
from passerelle.edge.asgi import AsgiExchange
from passerelle.faces.browser import Browser
from passerelle.identity.sessions import Session, csrf_token

COOKIE = "c" * 43
URL = "https://llm.example.org"


class OneSession:
    """Sessions of which one is known, in memory or only after a look."""

    def __init__(self, *, remembered: bool = True) -> None:
        csrf = hashlib.sha256(csrf_token(COOKIE).encode()).digest()
        self._session = Session(Principal("session:u", "u", user="u"), b"", csrf, 0.0, 1.0, 0.0, 0.0)
        self._remembered = remembered

    def cached(self, cookie: str) -> Session | None:
        """What memory knows."""
        return self._session if self._remembered and cookie == COOKIE else None

    async def find(self, cookie: str) -> Session:
        """What the database knows."""
        if cookie != COOKIE:
            raise Unauthenticated("nobody", code="not_signed_in")
        return self._session


def browser(url: str | None = URL, *, remembered: bool = True) -> Browser:
    """A browser's side of an installation."""
    sessions: Any = OneSession(remembered=remembered)
    return Browser(sessions, url)


def exchange(method: str = "GET", *headers: tuple[bytes, bytes]) -> AsgiExchange:
    """A request."""
    given: Headers = [(b"host", b"llm.example.org"), *headers]
    scope = {"method": method, "path": "/admin/x", "query_string": b"", "headers": given, "client": None}

    async def nothing(*_: object) -> Any:
        raise AssertionError("neither body nor answer is touched")

    return AsgiExchange(scope, nothing, nothing, max_body_bytes=1)


def cookie(value: str = COOKIE, name: str = "__Host-passerelle") -> tuple[bytes, bytes]:
    """The header with the session's cookie."""
    return b"cookie", f"{name}={value}".encode("latin-1")


TOKEN = (b"x-csrf-token", csrf_token(COOKIE).encode())
OURS = (b"origin", URL.encode())


async def who(found: Principal | Awaitable[Principal] | None) -> Principal | None:
    """The principal, at once or after a look."""
    return found if found is None or isinstance(found, Principal) else await found


@pytest.mark.parametrize("remembered", [True, False])
async def test_a_session_reads_by_its_cookie_and_changes_by_its_token(remembered: bool) -> None:
    """GET needs the cookie; everything else the token and our origin, whether or not memory knew the session."""
    known = browser(remembered=remembered)
    for method, headers in (("GET", (cookie(),)), ("HEAD", (cookie(),)), ("POST", (cookie(), TOKEN, OURS))):
        found = await who(known.identify(exchange(method, *headers)))
        assert found is not None
        assert found.user == "u"
    for method in ("POST", "PUT", "PATCH", "DELETE", "QUERY"):
        for headers in (
            (),
            (OURS,),
            (TOKEN, (b"origin", b"https://evil.example.org")),
            ((b"x-csrf-token", b"\xff"), OURS),
        ):
            with pytest.raises(Forbidden):
                await who(known.identify(exchange(method, cookie(), *headers)))


async def test_another_credential_counts_instead() -> None:
    """With a key or token in its headers the request is not the session's: the key is asked."""
    for name in (b"authorization", b"x-api-key"):
        assert browser().identify(exchange("GET", cookie(), (name, b"anything"))) is None
    assert browser().identify(exchange("GET")) is None


@pytest.mark.parametrize(
    "header",
    [
        cookie(name="passerelle_session"),
        cookie(name="__host-passerelle"),
        cookie(name="__Host-passerelle2"),
        (b"cookie", b"__Host-passerelle"),
        (b"cookie", b"=" + COOKIE.encode()),
        (b"cookie", f"__Host-passerelle={COOKIE}; __Host-passerelle={'d' * 43}".encode()),
    ],
    ids=str,
)
async def test_other_cookies_are_nobody(header: tuple[bytes, bytes]) -> None:
    """With https only the cookie that no other host can set counts, and only when it is there once."""
    assert browser().identify(exchange("GET", header)) is None


async def test_cookies_among_others_and_in_several_headers() -> None:
    """The cookie is found wherever browsers and proxies put it."""
    for headers in (
        ((b"cookie", f"a=1; __Host-passerelle={COOKIE}; b=2".encode()),),
        ((b"cookie", b"a=1"), (b"cookie", f"__Host-passerelle={COOKIE}".encode())),
        ((b"cookie", f"__Host-passerelle={COOKIE}; __Host-passerelle={COOKIE}".encode()),),
    ):
        assert await who(browser().identify(exchange("GET", *headers))) is not None


def test_cookies_with_and_without_https() -> None:
    """With https the cookie is Secure and bound to the host; without, it is as closed as it can be."""
    name, value = browser().set_cookie(browser().cookie_name, COOKIE, max_age_s=60.5)
    assert (name, value.decode()) == (
        b"set-cookie",
        f"__Host-passerelle={COOKIE}; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure",
    )
    plain = browser("http://localhost:8000")
    _, value = plain.set_cookie(plain.cookie_name, COOKIE, max_age_s=60)
    assert value.decode() == f"passerelle_session={COOKIE}; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"
    assert b"Max-Age=0" in plain.clear_cookie("x")[1]


@pytest.mark.parametrize(
    ("url", "origin", "ours"),
    [
        (URL, "https://llm.example.org", True),
        (URL, "HTTPS://LLM.example.org", True),
        (URL, "http://llm.example.org", False),
        (URL, "https://llm.example.org:8443", False),
        (URL, "https://llm.example.org.evil.org", False),
        (URL, "null", False),
        (URL, "", False),
        (URL + "/under/path", "https://llm.example.org", True),
        (None, "http://llm.example.org", True),
        (None, "https://llm.example.org", True),
        (None, "http://evil.org", False),
        (None, "null", False),
    ],
)
def test_origins(url: str | None, origin: str, ours: bool) -> None:
    """The origin is that of the public address, else that of Host; nothing that only looks like it."""
    asked = exchange("POST", (b"origin", origin.encode()))
    if ours:
        browser(url).check_origin(asked)
    else:
        with pytest.raises(Forbidden):
            browser(url).check_origin(asked)


def test_two_origins_are_not_ours() -> None:
    """A second origin is looked at too."""
    with pytest.raises(Forbidden):
        browser().check_origin(exchange("POST", OURS, (b"origin", b"https://evil.example.org")))


@given(st.binary(max_size=200), st.sampled_from(["GET", "POST"]))
def test_any_cookie_header_is_judged(value: bytes, method: str) -> None:
    """Whatever a client sends as cookies, it is a person, nobody or a refusal."""
    found: Any = None
    try:
        found = browser().identify(exchange(method, (b"cookie", value)))
        if found is not None and not isinstance(found, Principal):
            found.close()
    except PasserelleError:
        pass
