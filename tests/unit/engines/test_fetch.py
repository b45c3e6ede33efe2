"""Single documents from servers that an operator named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from passerelle.engines.fetch import MAX_DOCUMENT_BYTES, Fetcher
from passerelle.engines.transport import Transport

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """A server that says what it is told, and remembers what it heard."""

    def __init__(self) -> None:
        self.says = OK
        self.heard = b""
        self.url = ""
        self.holds = asyncio.Event()
        self.holds.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heard = head
        if b"content-length: " in head:
            self.heard += await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        await self.holds.wait()
        writer.write(self.says)
        writer.close()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    """A server."""
    found = Server()
    listening = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield found
    found.holds.set()
    listening.close()
    await listening.wait_closed()


@pytest_asyncio.fixture
async def fetch() -> AsyncIterator[Callable[..., object]]:
    """What fetches, with a second's patience."""
    fetcher = Fetcher(Transport(), timeout_s=1.0)
    yield fetcher
    await fetcher.aclose()


async def test_a_document(server: Server, fetch: Fetcher) -> None:
    """Status and body come back; path, query and headers go out."""
    assert await fetch("GET", server.url + "/a/b?c=d", {"authorization": "Bearer x"}) == (200, b"{}")
    assert server.heard.startswith(b"GET /a/b?c=d HTTP/1.1\r\n")
    assert b"authorization: Bearer x\r\n" in server.heard


async def test_a_form(server: Server, fetch: Fetcher) -> None:
    """A body goes out with its length; any status is an answer."""
    server.says = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 1\r\n\r\nx"
    assert await fetch("POST", server.url, {"content-type": "application/x-www-form-urlencoded"}, b"a=b") == (400, b"x")
    assert server.heard.startswith(b"POST / HTTP/1.1\r\n")
    assert server.heard.endswith(b"\r\n\r\na=b")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://127.0.0.1/",
        "http://",
        "http://user:password@127.0.0.1/",
        "http://127.0.0.1:9/",
        "http://127.0.0.1:9/a b",
        "http://127.0.0.1:9/\r\nx: y",
        "http://127.0.0.1:99999/",
        "http://no-such-host.invalid/",
    ],
)
async def test_no_answer_is_an_os_error(fetch: Fetcher, url: str) -> None:
    """Nobody there, no such address, nothing that HTTP can carry."""
    with pytest.raises(OSError):
        await fetch("GET", url)


async def test_headers_cannot_be_broken(server: Server, fetch: Fetcher) -> None:
    """A line end in a value sends nothing."""
    with pytest.raises(OSError):
        await fetch("GET", server.url, {"authorization": "x\r\ny: z"})
    assert server.heard == b""


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (MAX_DOCUMENT_BYTES + 1) + b"x" * (MAX_DOCUMENT_BYTES + 1),
    ],
    ids=["closed", "nonsense", "cut", "huge"],
)
async def test_broken_answers_are_os_errors(server: Server, fetch: Fetcher, says: bytes) -> None:
    """A server that closes, babbles, stops half-way or does not stop."""
    server.says = says
    with pytest.raises(OSError):
        await fetch("GET", server.url)


async def test_a_silent_server_is_given_up(server: Server, fetch: Fetcher) -> None:
    """After the deadline it is an error, not a wait."""
    server.holds.clear()
    with pytest.raises(OSError):
        await fetch("GET", server.url)
