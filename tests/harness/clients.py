"""Callers on raw sockets, the good and the bad: who asks steadily, reads slowly, trickles, leaves, or sends any bytes.

Everything a caller gets is kept in its `Tape`, which the oracles read afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 30.0


@dataclass(slots=True)
class Answer:
    """One HTTP answer. ``status`` is 0 when the connection ended before a head; ``whole`` says that the body ended."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    took_s: float = 0.0
    request_id: str | None = None
    """The id the caller sent, None when it sent none."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of an answer that has one."""
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def data(self) -> list[str]:
        """The data of the events of a stream, read by the standard."""
        text = self.body.decode().replace("\r\n", "\n").replace("\r", "\n")
        found = []
        for event in text.split("\n\n"):
            lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:")]
            if lines:
                found.append("\n".join(lines))
        return found

    @property
    def text(self) -> str:
        """What was generated: of a stream put together, or of a document."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return str(self.json["choices"][0]["message"]["content"])
        chunks = [json.loads(data) for data in self.data if data != "[DONE]"]
        choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        return "".join(choice.get("delta", {}).get("content") or "" for choice in choices)

    @property
    def stream_error(self) -> dict[str, Any] | None:
        """The error that ended a stream, None when it ended well."""
        errors = [json.loads(data)["error"] for data in self.data if data.startswith('{"error"')]
        assert len(errors) <= 1, "one error event at the most"
        return errors[0] if errors else None


@dataclass
class Tape:
    """What callers of one world got since it was rewound, for the oracles."""

    answers: list[Answer] = field(default_factory=list)
    allowed: set[int] = field(default_factory=set)
    """The 5xx that the row may see."""

    def rewind(self) -> None:
        self.answers.clear()
        self.allowed.clear()


def chat_body(model: str, *, stream: bool = True, text: str = "Say something", **fields: Any) -> dict[str, Any]:
    """Returns the body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream, **fields}


class Conversation:
    """One connection, used by hand: send bytes, look at what is there, leave in one of three ways."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tape: Tape) -> None:
        self._reader = reader
        self._writer = writer
        self._tape = tape
        self.received = b""
        self.ended = False

    async def send(self, data: bytes) -> None:
        """Sends bytes; a peer that closed is no error here, it shows when reading."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (ConnectionError, OSError):
            pass

    async def until(self, mark: bytes, *, count: int = 1, within_s: float = TIMEOUT_S) -> bytes:
        """Reads until ``mark`` came ``count`` times; returns all bytes so far. Raises TimeoutError or EOFError."""
        async with asyncio.timeout(within_s):
            while self.received.count(mark) < count:
                if not await self._more():
                    raise EOFError(f"closed before {mark!r}: {self.received[-300:]!r}")
        return self.received

    async def rest(self, within_s: float = TIMEOUT_S) -> bytes:
        """Reads until the other side closes; returns all bytes."""
        async with asyncio.timeout(within_s):
            while await self._more():
                pass
        return self.received

    async def answer(self, within_s: float = TIMEOUT_S, *, request_id: str | None = None) -> Answer:
        """Reads one answer, interim ones left out; its bytes are taken from what was received."""
        began = time.monotonic()
        found = Answer(request_id=request_id)
        try:
            async with asyncio.timeout(within_s):
                await self._read_answer(found)
        except EOFError:
            pass
        found.took_s = time.monotonic() - began
        if found.status:
            self._tape.answers.append(found)
        return found

    async def _read_answer(self, found: Answer) -> None:
        while True:
            head = (await self.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
            self.received = self.received[len(head) + 4 :]
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            if status >= 200:
                break
        found.status = status
        found.headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        if "content-length" in found.headers:
            await self._take(found, int(found.headers["content-length"]))
        elif found.headers.get("transfer-encoding") == "chunked":
            while True:
                size = int((await self._line()), 16)
                if not size:
                    await self._line()
                    break
                await self._take(found, size)
                await self._line()
        else:
            while await self._more():
                pass
            found.body, self.received = self.received, b""
        found.whole = True

    async def _take(self, found: Answer, size: int) -> None:
        while len(self.received) < size:
            if not await self._more():
                found.body += self.received
                raise EOFError
        found.body += self.received[:size]
        self.received = self.received[size:]

    async def _line(self) -> bytes:
        while b"\r\n" not in self.received:
            if not await self._more():
                raise EOFError
        line, _, self.received = self.received.partition(b"\r\n")
        return line

    async def _more(self, limit_bytes: int = 65_536) -> bool:
        try:
            data = await self._reader.read(limit_bytes)
        except ConnectionError:
            data = b""
        self.ended = self.ended or not data
        self.received += data
        return bool(data)

    async def sip(self, limit_bytes: int) -> bytes:
        """Reads a little: at most so many bytes of what is there."""
        before = len(self.received)
        await self._more(limit_bytes)
        return self.received[before:]

    def pause(self) -> None:
        """Stops reading: the kernel's buffers fill, then the gateway's."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def leave(self, how: str = "fin") -> None:
        """Goes: ``fin`` closes, ``rst`` resets, ``half`` says only that nothing more will be sent."""
        if how == "half":
            self._writer.write_eof()
            return
        if how == "rst":
            sock = self._writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the other side was first, and the socket is closed
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
            return
        self._writer.close()

    async def __aenter__(self) -> Conversation:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()


_numbers = itertools.count(1)


class Caller:
    """Asks one gateway with one key. ``receive_bytes`` makes the socket's buffer small, for callers who read slowly."""

    def __init__(self, port: int, key: str | None, tape: Tape, *, name: str = "row", host: str = "127.0.0.1") -> None:
        self.port = port
        self.key = key
        self.tape = tape
        self.name = name
        self.host = host

    async def open(self, *, receive_bytes: int | None = None) -> Conversation:
        """Connects."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        limit = 65_536 if receive_bytes is None else max(receive_bytes, 1024)
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        return Conversation(reader, writer, self.tape)

    def new_id(self) -> str:
        """Returns a request id nobody used."""
        return f"{self.name}-{next(_numbers):06d}-0000"

    def request(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "POST",
        headers: Sequence[tuple[str, str]] = (),
        request_id: str | None = None,
        close: bool = False,
    ) -> bytes:
        """Returns a request as bytes; a body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}:{self.port}"]
        if self.key is not None:
            lines.append(f"authorization: Bearer {self.key}")
        if request_id is not None:
            lines.append(f"x-request-id: {request_id}")
        if close:
            lines.append("connection: close")
        if method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + content

    async def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "POST",
        headers: Sequence[tuple[str, str]] = (),
        within_s: float = TIMEOUT_S,
    ) -> Answer:
        """Sends one request on a connection of its own and returns the whole answer."""
        request_id = self.new_id()
        began = time.monotonic()
        async with await self.open() as conversation:
            await conversation.send(
                self.request(path, body, method=method, headers=headers, request_id=request_id, close=True)
            )
            answer = await conversation.answer(within_s, request_id=request_id)
        answer.took_s = time.monotonic() - began
        return answer

    async def chat(self, model: str, *, stream: bool = True, within_s: float = TIMEOUT_S, **fields: Any) -> Answer:
        """Asks for one chat completion."""
        return await self.ask("/v1/chat/completions", chat_body(model, stream=stream, **fields), within_s=within_s)

    async def begin_chat(
        self, model: str, *, stream: bool = True, receive_bytes: int | None = None, **fields: Any
    ) -> tuple[Conversation, str]:
        """Sends a chat request and returns at once: the connection, and the request id."""
        conversation = await self.open(receive_bytes=receive_bytes)
        request_id = self.new_id()
        body = chat_body(model, stream=stream, **fields)
        await conversation.send(self.request("/v1/chat/completions", body, request_id=request_id))
        return conversation, request_id


@dataclass
class Load:
    """What a steady load saw. Latencies in seconds, of answers that came whole with 200."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def good(self) -> int:
        return sum(answer.status == 200 and answer.whole for answer in self.answers)

    @property
    def success(self) -> float:
        return self.good / len(self.answers) if self.answers else 0.0

    def latency_s(self, quantile: float) -> float:
        """Returns a quantile of the latencies, of failed calls too."""
        ordered = sorted(answer.took_s for answer in self.answers)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


async def good_load(
    caller: Caller, model: str, *, rate_per_s: float, seconds: float, stream: bool = False, **fields: Any
) -> Load:
    """Asks at a constant rate whatever the answers (open loop), and returns when all are answered."""
    load = Load()
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one() -> None:
        try:
            load.answers.append(await caller.chat(model, stream=stream, **fields))
        except (OSError, TimeoutError):
            load.answers.append(Answer(took_s=TIMEOUT_S))

    async with asyncio.TaskGroup() as group:
        for number in range(int(rate_per_s * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate_per_s - loop.time()))
            group.create_task(one())
    return load


async def trickle(conversation: Conversation, data: bytes, every_s: float) -> None:
    """Sends ``data`` one byte at a time until it is out or the other side closed."""
    for index in range(len(data)):
        if conversation.ended:
            return
        await conversation.send(data[index : index + 1])
        await asyncio.sleep(every_s)
