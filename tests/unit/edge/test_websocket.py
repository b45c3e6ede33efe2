"""What the other side of a websocket may not do: frames on the wire, and who reads nothing (rows F2 and F4)."""

from __future__ import annotations

import asyncio
import struct

import pytest
from tests.harness.crowd import Crowd, Listener
from tests.unit.edge.test_socket import serving

from passerelle.edge.socket import MAX_MESSAGE_BYTES
from passerelle.edge.websocket import FRAMES, EdgeWebSocket

KEY = "Authorization: Bearer good\r\n"
TEXT, BINARY, CONTINUED, PING, PONG = 1, 2, 0, 9, 10


def frame(opcode: int, payload: bytes = b"", *, last: bool = True, flags: int = 0, length: int | None = None) -> bytes:
    """Returns a frame as a client sends it; ``length`` is what its head says, if that is not the truth."""
    size = len(payload) if length is None else length
    head = bytes((opcode | (0x80 if last else 0) | flags,))
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 65_536:
        head += struct.pack("!BH", 0x80 | 126, size)
    else:
        head += struct.pack("!BQ", 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload


MANY = FRAMES * 3
REFUSED: dict[str, tuple[bytes, int]] = {
    "a gigabyte announced": (frame(TEXT, length=2**30), 1009),
    "one byte too many": (frame(TEXT, length=MAX_MESSAGE_BYTES + 1), 1009),
    "too many in fragments": (
        frame(TEXT, b"x" * 40_000, last=False) + frame(CONTINUED, b"x" * 40_000, last=False),
        1009,
    ),
    "a million empty fragments": (frame(TEXT, b"", last=False) + frame(CONTINUED, last=False) * 1_000_000, 1008),
    "fragments of a byte": (frame(TEXT, b"x", last=False) + frame(CONTINUED, b"x", last=False) * MANY, 1008),
    "pings": (frame(PING, b"p" * 125) * MANY, 1008),
    "answers nobody asked for": (frame(PONG, b"p") * MANY, 1008),
    "no UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "no UTF-8 in fragments": (frame(TEXT, "é".encode()[:1], last=False) + frame(CONTINUED, b"x"), 1007),
    "compressed": (frame(TEXT, b"\x4a\x4c\x04\0", flags=0x40), 1002),
    "an opcode of the future": (frame(3, b"x"), 1002),
    "a ping in pieces": (frame(PING, b"x", last=False), 1002),
    "a long ping": (frame(PING, b"x" * 126), 1002),
    "not masked": (b"\x81\x01x", 1002),
}
"""What is sent, and the code that closes the socket."""


@pytest.mark.parametrize("name", sorted(REFUSED))
async def test_hostile_frames_close_the_socket(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each has its code, which arrives however much came behind it; the server is well, and logs no error."""
    data, code = REFUSED[name]
    async with serving() as (port, endpoints, server):
        crowd = Crowd(port)
        bad = await crowd.join("/ws/a", headers=KEY)
        bad.send(data)
        await crowd.until(lambda: bad.closed is not None or bad.gone)
        assert bad.closed == code
        await asyncio.wait_for(endpoints.left.get(), 10)
        good = await crowd.join("/ws/b", headers=KEY)
        good.send(frame(TEXT, b"hello"))
        await crowd.until(lambda: good.texts == 1)
        crowd.leave()
    assert server.server_state.connections == set()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_honest_frames_are_heard() -> None:
    """Pings are answered, messages in hundreds of fragments are one message, and empty ones do no harm."""
    async with serving() as (port, _, _):
        crowd = Crowd(port)
        client = await crowd.join("/ws/a", headers=KEY)
        for _ in range(50):
            client.send(frame(PING, b"?"))
        await crowd.until(lambda: client.pongs == 50)
        client.send(frame(TEXT, b"", last=False) + frame(CONTINUED, "é".encode()[:1], last=False))
        client.send(frame(CONTINUED, "é".encode()[1:], last=False) + frame(CONTINUED, b"x", last=False) * 300)
        client.send(frame(CONTINUED))
        await crowd.until(lambda: client.texts == 1)
        assert client.closed is None
        crowd.leave()


async def flood(crowd: Crowd, listener: Listener) -> None:
    """Has the server answer more than fits, and takes nothing."""
    listener.pause()
    for _ in range(100):
        listener.send(frame(TEXT, b"x" * 60_000))
        await asyncio.sleep(0)


async def test_who_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no byte was taken for long, the connection ends and the endpoint with it: nothing of it is kept."""
    monkeypatch.setattr(EdgeWebSocket, "stall_s", 0.3)
    monkeypatch.setattr("passerelle.edge.websocket.LINGER_S", 0.3)
    async with serving() as (port, endpoints, server):
        crowd = Crowd(port)
        silent = await crowd.join("/ws/a", headers=KEY, receive_bytes=4096)
        await flood(crowd, silent)
        await asyncio.wait_for(endpoints.left.get(), 30)
        async with asyncio.timeout(30):
            while server.server_state.connections:
                await asyncio.sleep(0.01)
        crowd.leave()


async def test_who_wakes_up_in_time_reads_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads again after it was given up gets what waited for it, and then the code 1013."""
    monkeypatch.setattr(EdgeWebSocket, "stall_s", 0.3)
    monkeypatch.setattr("passerelle.edge.websocket.LINGER_S", 60)
    async with serving() as (port, endpoints, _):
        crowd = Crowd(port)
        silent = await crowd.join("/ws/a", headers=KEY, receive_bytes=4096)
        await flood(crowd, silent)
        await asyncio.wait_for(endpoints.left.get(), 30)
        silent.resume()
        await crowd.until(lambda: silent.closed is not None or silent.gone)
        assert silent.closed == 1013
        assert silent.texts > 0
        crowd.leave()


async def test_who_reads_again_is_served_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause shorter than the limit costs nothing: every message arrives, in both directions."""
    async with serving() as (port, _, _):
        crowd = Crowd(port)
        slow = await crowd.join("/ws/a", headers=KEY, receive_bytes=4096)
        await flood(crowd, slow)
        slow.resume()
        await crowd.until(lambda: slow.texts == 100)
        slow.send(frame(TEXT, b"more"))
        await crowd.until(lambda: slow.texts == 101)
        crowd.leave()
