"""Pages of other origins: what a browser is told before it asks, and with every answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Upstream, UpstreamThread

from passerelle.edge.origins import TrustedOrigins, is_preflight, preflight

APP = "https://app.example.org"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("trusted", "origin", "told"),
    [
        ((APP,), APP, {"access-control-allow-origin": APP, "vary": "origin"}),
        ((APP + "/",), "HTTPS://APP.example.org", {"access-control-allow-origin": "HTTPS://APP.example.org"}),
        (("*",), "https://anywhere.example", {"access-control-allow-origin": "*"}),
        (("*",), "null", {"access-control-allow-origin": "*"}),
    ],
)
def test_a_trusted_page_may_read(trusted: tuple[str, ...], origin: str, told: dict[str, str]) -> None:
    """Its origin is named, or any is allowed; never with credentials."""
    found = {name.decode(): value.decode() for name, value in TrustedOrigins(trusted).permission(_asked(origin))}
    assert found.items() >= told.items()
    assert "access-control-allow-credentials" not in found


@pytest.mark.parametrize("origin", ["https://app.example.org.evil.example", "http://app.example.org", "null", ""])
def test_others_are_told_nothing(origin: str) -> None:
    """A longer name, another scheme, no origin at all."""
    assert TrustedOrigins((APP,)).permission(_asked(origin)) == []
    assert TrustedOrigins((APP,)).permission([]) == []
    assert not TrustedOrigins()


def test_a_preflight_names_what_was_asked_for() -> None:
    """Header names come back; what could break out of a header line does not."""
    asked = [(b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"authorization, x-a")]
    assert is_preflight("OPTIONS", asked)
    assert not is_preflight("POST", asked)
    assert (b"access-control-allow-headers", b"authorization, x-a") in preflight(asked)
    odd = [(b"access-control-request-headers", b"a\x01b")]
    assert b"access-control-allow-headers" not in dict(preflight(odd))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A model server."""
    with UpstreamThread() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[GatewayProcess]:
    """A gateway that trusts one page."""
    config: dict[str, Any] = {
        "server": {"trusted_origins": [APP]},
        "models": [{"name": "m", "targets": [{"url": upstream.url + "/v1", "model": "m"}]}],
    }
    with GatewayProcess(tmp_path_factory.mktemp("origins") / "home", config) as running:
        yield running.wait_ready()


@pytest.mark.slow
def test_a_page_elsewhere_calls_a_model(gateway: GatewayProcess) -> None:
    """The preflight needs no key; answers, streams and errors can be read, on the short way and on the long one."""
    with httpx.Client(base_url=gateway.url, headers={"origin": APP}, timeout=60, trust_env=False) as page:
        asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
        for path in ("/v1/chat/completions", "/services/minutes/generate", "/v1/models"):
            before = page.options(path, headers=asks)
            assert before.status_code == 200
            assert before.headers["access-control-allow-origin"] == APP
            assert before.headers["access-control-allow-headers"] == "authorization,content-type"
            assert "POST" in before.headers["access-control-allow-methods"]
        key = {"authorization": f"Bearer {gateway.key}"}
        answers = [
            page.post("/v1/chat/completions", json=CHAT, headers=key),
            page.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=key),
            page.post("/v1/chat/completions", json=CHAT),
            page.get("/v1/models", headers=key),
            page.get("/nowhere"),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 401, 200, 404]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == APP
            assert answer.headers["vary"] == "origin"


@pytest.mark.slow
def test_other_pages_and_programs_see_no_difference(gateway: GatewayProcess) -> None:
    """A preflight of an unknown page is an unknown method; an answer without permission is one no page reads."""
    with httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as page:
        asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        before = page.options("/v1/chat/completions", headers=asks)
        assert before.status_code == 405
        for headers in ({"origin": "https://evil.example"}, {}):
            answer = page.get("/health", headers=headers)
            assert answer.status_code == 200
            assert not [name for name in answer.headers if name.startswith("access-control")]


def _asked(origin: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"here"), (b"origin", origin.encode())]
