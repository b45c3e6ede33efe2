"""Pictures fetched into requests: what is put in, what is refused, and how much at a time."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from tests.harness.pictures import PictureServer, png

from passerelle.domain.errors import BadRequest, PasserelleError, PayloadTooLarge
from passerelle.domain.request import Request
from passerelle.faces.anthropic.messages import parse_message
from passerelle.faces.openai import wire
from passerelle.faces.openai.remote import PictureRules, RemotePictures
from passerelle.net.fetch import Fetcher, FetchRules

LOCAL = (ip_network("127.0.0.1"),)


@asynccontextmanager
async def pictures(
    server: PictureServer, rules: PictureRules | None = None, *, timeout_s: float = 10.0
) -> AsyncIterator[RemotePictures]:
    """What fetches from one server."""
    fetcher = Fetcher(FetchRules(LOCAL, (server.port,), timeout_s=timeout_s))
    try:
        yield RemotePictures(fetcher, rules or PictureRules())
    finally:
        await fetcher.aclose()


def asking(*urls: str) -> Request:
    """A chat with a text and pictures."""
    parts = [{"type": "text", "text": "Compare."}]
    parts += [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]  # type: ignore[misc]
    return wire.parse_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode())


def data_url(data: bytes) -> str:
    """A PNG inline."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


async def test_pictures_are_put_in() -> None:
    """Addresses become data, once for the same address; all else stays, and what a target gets holds no address."""
    async with PictureServer() as server, pictures(server) as fetch:
        request = asking(server.url("/ok"), data_url(png(2, 2)), server.url("/ok"), server.url("/large"))
        assert request.pictures == 4
        await fetch(request, "key")
        assert len(server.heads) == 2
    assert request.remote_pictures == ()
    for body in (request.body, request.render("other", include_usage=False)):
        parts = json.loads(body)["messages"][0]["content"]
        large = data_url(png(padding=300_000))
        assert [part["image_url"]["url"] for part in parts[1:]] == [
            data_url(png()), data_url(png(2, 2)), data_url(png()), large,
        ]  # fmt: skip
        assert parts[0] == {"type": "text", "text": "Compare."}
        assert all(part["image_url"]["detail"] == "low" for part in parts[1:])
        assert b"http://" not in body


async def test_the_messages_api_names_pictures_too() -> None:
    """A source of type url."""
    async with PictureServer() as server, pictures(server) as fetch:
        block = {"type": "image", "source": {"type": "url", "url": server.url("/ok")}}
        body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [block]}]}
        request = parse_message(json.dumps(body).encode())
        await fetch(request, "key")
    assert json.loads(request.body)["messages"][0]["content"][0]["image_url"]["url"] == data_url(png())


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/html", "invalid_image"),
        ("/huge-pixels", "invalid_image"),
        ("/missing", "image_not_fetched"),
        ("/gzip", "image_not_fetched"),
        ("/drip", "image_not_fetched"),
        ("/loop", "image_not_fetched"),
        ("/to/http://10.0.0.1/", "invalid_image_url"),
    ],
)
async def test_what_is_no_bearable_picture_is_refused(path: str, code: str) -> None:
    """400 that names the field; the others of the request are let go, and nothing is put in."""
    async with PictureServer() as server, pictures(server, timeout_s=0.5) as fetch:
        request = asking(server.url("/ok"), server.url(path))
        before = request.body
        with pytest.raises(BadRequest) as caught:
            await fetch(request, "key")
    assert caught.value.error_code == code
    assert caught.value.param == "messages[0].content[2].image_url.url"
    assert request.body == before and len(request.remote_pictures) == 2


async def test_a_request_has_bounds() -> None:
    """Too many addresses are refused before any is asked; too many bytes together once they are known."""
    async with PictureServer() as server:
        async with pictures(server, PictureRules(max_pictures=2)) as fetch:
            with pytest.raises(BadRequest, match="at most 2"):
                await fetch(asking(*(server.url(f"/ok?{n}") for n in range(3))), "key")
            assert server.visits == 0
        async with pictures(server, PictureRules(max_total_bytes=500_000)) as fetch:
            await fetch(asking(server.url("/large")), "key")
            with pytest.raises(PayloadTooLarge, match="500000 bytes together"):
                await fetch(asking(server.url("/large"), server.url("/to//large")), "key")


async def test_one_key_does_not_take_all_places() -> None:
    """While one key's pictures never arrive, another's do; the first has as many under way as it may."""
    async with PictureServer() as server, pictures(server, PictureRules(at_once=4, at_once_by_key=3)) as fetch:
        greedy = asyncio.create_task(fetch(asking(*(server.url(f"/silent?{n}") for n in range(8))), "greedy"))
        async with asyncio.timeout(30):
            while server.visits < 3:
                await asyncio.sleep(0.01)
            await fetch(asking(server.url("/ok")), "modest")
        assert server.visits == 4
        greedy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await greedy
        async with asyncio.timeout(30):
            await fetch(asking(*(server.url(f"/hop/0?{n}".partition("?")[0]) for n in range(3))), "greedy")


async def test_a_private_address_is_refused_in_words() -> None:
    """The caller learns who could allow it."""
    fetcher = Fetcher(FetchRules())
    with pytest.raises(PasserelleError, match=r"fetch\.allow_networks"):
        await RemotePictures(fetcher, PictureRules())(asking("http://127.0.0.1/x.png"), "key")
    await fetcher.aclose()
