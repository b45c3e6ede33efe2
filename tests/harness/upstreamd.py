"""A scripted model server on a raw socket, for everything a real one may do wrong.

A *scenario* is a list of steps, or a function of the request that returns one. Without a scenario the server behaves:
OpenAI chat, completions, embeddings and models, with usage numbers, ``stream``, ``stream_options`` and ``max_tokens``;
``kind`` adds the routes of vLLM or llama-server. It records requests, bytes, open connections, and when its peers left.

    async with Upstream() as upstream:                      # on the running loop
        upstream.scenario = [headers(), tokens(5), reset()]
    with UpstreamThread() as upstream: ...                  # on a loop of its own, in a thread
    python -m tests.harness.upstreamd --port 0 --scenario '[["headers"], ["tokens", 5], ["reset"]]'

The process prints its address as the first line. Its control routes are ``GET /_upstreamd/stats`` and
``POST /_upstreamd/scenario`` (the JSON form above, or ``null`` for good behaviour); they are not recorded.
``GET /_upstreamd/counts`` tells how much was asked since it was last asked, and forgets the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

STATUS_TEXT = {200: "OK", 302: "Found", 400: "Bad Request", 429: "Too Many Requests", 503: "Service Unavailable"}
DEFAULT_TOKENS = 8


@dataclass(slots=True)
class Seen:
    """One request as it arrived; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    peer: Peer

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Peer:
    """One connection. Times are of ``time.monotonic``; ``closed_at`` is when the other side left, or we closed."""

    number: int
    opened_at: float
    closed_at: float | None = None
    left_at: float | None = None
    """When the peer closed; None if this server closed first."""
    bytes_sent: int = 0
    requests: int = 0


class Exchange:
    """What a step works on: one request, and the connection to answer on."""

    def __init__(self, upstream: Upstream, seen: Seen, connection: _Connection) -> None:
        self.upstream = upstream
        self.seen = seen
        self.connection = connection
        self.chunked = False
        self.closed = False
        self.sent_tokens = 0

    async def send(self, data: bytes) -> None:
        """Sends raw bytes and waits while the peer does not read."""
        await self.connection.send(data)

    async def body(self, data: bytes) -> None:
        """Sends bytes of the body, framed as the head announced."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    async def event(self, payload: object) -> None:
        """Sends one server-sent event."""
        await self.body(b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n")


Step = Callable[[Exchange], Coroutine[Any, Any, None]]
Scenario = Sequence[Step] | Callable[[Seen], Sequence[Step]]


# The steps.


def headers(
    code: int = 200,
    *,
    content_type: str = "text/event-stream; charset=utf-8",
    chunked: bool = True,
    extra: Sequence[tuple[str, str]] = (),
) -> Step:
    """Sends the head of an answer."""

    async def step(exchange: Exchange) -> None:
        lines = [f"HTTP/1.1 {code} {STATUS_TEXT.get(code, 'X')}", f"content-type: {content_type}"]
        if chunked:
            lines.append("transfer-encoding: chunked")
        lines += [f"{name}: {value}" for name, value in extra]
        exchange.chunked = chunked
        await exchange.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    return step


def tokens(n: int, every_s: float = 0.0, *, text: str = "tok ") -> Step:
    """Sends ``n`` chat events, one each ``every_s`` seconds."""

    async def step(exchange: Exchange) -> None:
        for _ in range(n):
            await exchange.event(_chat_chunk(exchange, {"content": text}))
            exchange.sent_tokens += 1
            if every_s:
                await asyncio.sleep(every_s)

    return step


def finish(reason: str = "stop", *, usage: bool = False, done: bool = True) -> Step:
    """Sends the last events of a stream and ends the body."""

    async def step(exchange: Exchange) -> None:
        await exchange.event(_chat_chunk(exchange, {}, reason))
        if usage:
            await exchange.event(_chat_chunk(exchange, None, usage=_usage(3, exchange.sent_tokens)))
        if done:
            await exchange.body(b"data: [DONE]\n\n")
        await end()(exchange)

    return step


def end() -> Step:
    """Ends the body: the last chunk, or the connection when nothing else marks the end."""

    async def step(exchange: Exchange) -> None:
        if exchange.chunked:
            await exchange.send(b"0\r\n\r\n")
        else:
            await close()(exchange)

    return step


def stall(seconds: float) -> Step:
    """Does nothing for a while."""

    async def step(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)

    return step


def raw(data: bytes) -> Step:
    """Sends these bytes, whatever they are."""

    async def step(exchange: Exchange) -> None:
        await exchange.send(data)

    return step


def body(data: bytes) -> Step:
    """Sends bytes of the body, framed."""

    async def step(exchange: Exchange) -> None:
        await exchange.body(data)

    return step


def close() -> Step:
    """Closes the connection in an orderly way (FIN)."""

    async def step(exchange: Exchange) -> None:
        exchange.closed = True
        exchange.connection.close()

    return step


def reset() -> Step:
    """Closes the connection with RST."""

    async def step(exchange: Exchange) -> None:
        exchange.closed = True
        exchange.connection.reset()

    return step


def status(code: int, fields: Sequence[tuple[str, str]] = (), content: bytes | None = None) -> Step:
    """Sends a whole answer; without ``content`` an error in the OpenAI shape."""

    async def step(exchange: Exchange) -> None:
        document = content
        if document is None:
            error = {"message": f"scripted {code}", "type": "server_error", "param": None, "code": None}
            document = json.dumps({"error": error}).encode()
        await _document(exchange, document, code, fields)

    return step


def never() -> Step:
    """Never answers."""

    async def step(exchange: Exchange) -> None:
        await asyncio.get_running_loop().create_future()

    return step


def normal() -> Step:
    """Behaves as a good server does."""

    async def step(exchange: Exchange) -> None:
        await _behave(exchange)

    return step


STEPS: dict[str, Callable[..., Step]] = {
    f.__name__: f for f in (headers, tokens, finish, end, stall, body, close, reset, never, normal)
}


def scenario_from_json(document: object) -> list[Step] | None:
    """Reads ``[[step, argument ...], ...]``; the argument of raw and body is base64, a dict is keyword arguments."""
    if document is None:
        return None
    assert isinstance(document, list)
    return [_step_from_json(*entry) for entry in document]


def _step_from_json(name: str, *arguments: Any) -> Step:
    if name in ("raw", "body"):
        return (raw if name == "raw" else body)(base64.b64decode(arguments[0]))
    if name == "status":
        code, fields, content = (*arguments, None, None)[:3]
        return status(code, [(k, v) for k, v in fields or ()], content.encode() if content is not None else None)
    keywords = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    return STEPS[name](*(a for a in arguments if not isinstance(a, dict)), **keywords)


# Good behaviour.


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat_chunk(
    exchange: Exchange, delta: dict[str, Any] | None, reason: str | None = None, usage: dict[str, int] | None = None
) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
    chunk: dict[str, Any] = {
        "id": "chatcmpl-upstream",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": exchange.upstream.model,
        "choices": choices,
    }
    if usage is not None:
        chunk["usage"] = usage
    return chunk


async def _document(
    exchange: Exchange, content: bytes, code: int = 200, fields: Sequence[tuple[str, str]] = ()
) -> None:
    lines = [f"HTTP/1.1 {code} {STATUS_TEXT.get(code, 'X')}"]
    if not any(name.lower() == "content-type" for name, _ in fields):
        lines.append("content-type: application/json")
    lines.append(f"content-length: {len(content)}")
    lines += [f"{name}: {value}" for name, value in fields]
    await exchange.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + content)


async def _json(exchange: Exchange, document: object, code: int = 200) -> None:
    await _document(exchange, json.dumps(document).encode(), code)


def _words(text: object) -> list[str]:
    return text.split() if isinstance(text, str) else [str(part) for part in text] if isinstance(text, list) else []


def _prompt(request: dict[str, Any]) -> list[str]:
    if "messages" in request:
        return [word for message in request["messages"] for word in _words(message.get("content"))]
    return _words(request.get("prompt", request.get("input", request.get("content", ""))))


async def _behave(exchange: Exchange) -> None:
    seen = exchange.seen
    path = seen.path.partition("?")[0]
    if seen.method == "GET":
        await _behave_get(exchange, path)
        return
    try:
        request = json.loads(seen.body)
    except ValueError:
        await _json(exchange, {"error": {"message": "not JSON", "type": "invalid_request_error"}}, 400)
        return
    if path.endswith(("/chat/completions", "/completions")):
        async with exchange.upstream.place():
            await _complete(exchange, request, chat=path.endswith("/chat/completions"))
    elif path.endswith("/embeddings"):
        await _embed(exchange, request)
    elif path in ("/tokenize", "/detokenize", "/apply-template") and exchange.upstream.kind != "openai":
        await _tokenizer(exchange, path, request)
    else:
        await _json(exchange, {"detail": "Not Found"}, 404)


async def _behave_get(exchange: Exchange, path: str) -> None:
    upstream = exchange.upstream
    if path == "/health":
        await _json(exchange, {"status": "ok"})
    elif path.endswith("/models"):
        entry: dict[str, Any] = {"id": upstream.model, "object": "model", "created": 1, "owned_by": upstream.kind}
        if upstream.kind == "vllm":
            entry["max_model_len"] = upstream.context_window
        if upstream.kind == "llamacpp":
            entry["meta"] = {"n_ctx_train": upstream.context_window * 2}
        await _json(exchange, {"object": "list", "data": [entry]})
    elif path == "/version" and upstream.kind == "vllm":
        await _json(exchange, {"version": "0.32.0"})
    elif path == "/props" and upstream.kind == "llamacpp":
        settings = {"n_ctx": upstream.context_window}
        await _json(exchange, {"default_generation_settings": settings, "total_slots": 4})
    else:
        await _json(exchange, {"detail": "Not Found"}, 404)


async def _complete(exchange: Exchange, request: dict[str, Any], *, chat: bool) -> None:
    upstream = exchange.upstream
    limit = request.get("max_completion_tokens", request.get("max_tokens"))
    count = min(DEFAULT_TOKENS, limit) if limit is not None else DEFAULT_TOKENS
    reason = "length" if count == limit else "stop"
    usage = _usage(len(_prompt(request)), count)
    if not request.get("stream"):
        if upstream.token_every_s:
            await asyncio.sleep(upstream.token_every_s * count)
        text = "tok " * count
        answer = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices = [{"index": 0, "finish_reason": reason, "logprobs": None, **answer}]
        kind = "chat.completion" if chat else "text_completion"
        head = {"id": "cmpl-upstream", "object": kind, "created": 1, "model": upstream.model}
        await _json(exchange, {**head, "choices": choices, "usage": usage})
        return
    await headers()(exchange)
    for index in range(count):
        await exchange.event(_chat_chunk(exchange, {"content": f"tok{index} "}) if chat else _text(exchange, index))
        exchange.sent_tokens += 1
        if upstream.token_every_s:
            await asyncio.sleep(upstream.token_every_s)
    await exchange.event(_chat_chunk(exchange, {}, reason) if chat else _text(exchange, None, reason))
    if (request.get("stream_options") or {}).get("include_usage"):
        await exchange.event({**_chat_chunk(exchange, None, usage=usage)})
    await exchange.body(b"data: [DONE]\n\n")
    await end()(exchange)


def _text(exchange: Exchange, index: int | None, reason: str | None = None) -> dict[str, Any]:
    text = "" if index is None else f"tok{index} "
    choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
    head = {"id": "cmpl-upstream", "object": "text_completion", "created": 1}
    return {**head, "model": exchange.upstream.model, "choices": choices}


async def _embed(exchange: Exchange, request: dict[str, Any]) -> None:
    given = request.get("input", "")
    texts = given if isinstance(given, list) else [given]
    data = [
        {"object": "embedding", "index": index, "embedding": [float(len(str(text))), 0.5, -0.5]}
        for index, text in enumerate(texts)
    ]
    count = sum(len(_words(text)) for text in texts)
    usage = {"prompt_tokens": count, "total_tokens": count}
    await _json(exchange, {"object": "list", "model": exchange.upstream.model, "data": data, "usage": usage})


async def _tokenizer(exchange: Exchange, path: str, request: dict[str, Any]) -> None:
    """Token ids are the lengths of words, so that both directions can be checked."""
    upstream = exchange.upstream
    if path == "/apply-template":
        lines = [f"<{m['role']}> {m['content']}" for m in request["messages"]]
        await _json(exchange, {"prompt": "\n".join(lines)})
    elif path == "/tokenize":
        words = _prompt(request)
        if upstream.kind == "llamacpp" and isinstance(request["content"], list):
            await _json(exchange, {"tokens": _mixed(request["content"])})
            return
        if upstream.kind == "vllm" and "messages" in request:
            words += ["<role>"] * len(request["messages"])
        ids = [len(word) for word in words]
        if upstream.kind == "vllm":
            await _json(exchange, {"count": len(ids), "max_model_len": upstream.context_window, "tokens": ids})
        else:
            await _json(exchange, {"tokens": ids})
    else:
        text = " ".join("x" * count for count in request["tokens"])
        await _json(exchange, {"prompt" if upstream.kind == "vllm" else "content": text})


def _mixed(content: list[str | int]) -> list[int]:
    """As llama-server: texts become tokens, and tokens stay as they are."""
    return [i for part in content for i in ([part] if isinstance(part, int) else map(len, part.split()))]


# The server.


@dataclass
class Upstream:
    """One scripted server; set ``scenario`` at any time. ``fail_rate`` of the requests get ``fail_with`` instead."""

    scenario: Scenario | None = None
    model: str = "m"
    kind: str = "openai"
    """openai, vllm or llamacpp: which of their own routes good behaviour has."""
    context_window: int = 4096
    token_every_s: float = 0.0
    streams: int | None = None
    """Answers it works on at one time, each as fast as one alone, as a GPU does; the others wait. None: any number."""
    fail_rate: float = 0.0
    fail_with: Scenario = field(default_factory=lambda: [status(500)])
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    seed: int = 1
    requests: list[Seen] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    """Defects of a scenario itself."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self.busy = 0
        """Requests being worked on: neither answered to the end of their scenario nor left by their peer."""
        self.most_answers = 0
        """Answers that it worked on at one time, at most."""
        self._answers = 0
        self._places = asyncio.Semaphore(self.streams or 1)

    @property
    def root(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def open_connections(self) -> int:
        return sum(peer.closed_at is None for peer in self.peers)

    @property
    def bytes_sent(self) -> int:
        return sum(peer.bytes_sent for peer in self.peers)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Holds the place of one answer; waits for one while all of ``streams`` are taken."""
        async with self._places if self.streams is not None else nullcontext():
            self._answers += 1
            self.most_answers = max(self.most_answers, self._answers)
            try:
                yield
            finally:
                self._answers -= 1

    async def start(self) -> None:
        """Listens; a port of 0 becomes the one the system chose, and stays for later starts."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), self.host, self.port, ssl=self.tls, backlog=2048
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuses new connections and resets the open ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
        await asyncio.gather(*(connection.task for connection in connections), return_exceptions=True)

    async def drained(self, within_s: float) -> float:
        """Waits until no connection is open and returns how long that took. Raises TimeoutError."""
        return await self.until(lambda: not self.open_connections, within_s)

    async def until(self, true: Callable[[], bool], within_s: float) -> float:
        """Waits until ``true()`` and returns how long that took, in seconds. Raises TimeoutError.

        The waiting is counted in naps of 5 ms, for a nap that ends late delays the other side as much.
        """
        began = time.monotonic()
        naps = 0
        while not true():
            naps += 1
            if naps > within_s / 0.005:
                raise TimeoutError(f"not true within {within_s} s")
            await asyncio.sleep(0.005)
        return time.monotonic() - began

    async def __aenter__(self) -> Upstream:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self.errors:
            raise self.errors[0]

    def steps(self, seen: Seen) -> Sequence[Step]:
        """Returns what to do for one request."""
        scenario: Scenario | None = self.scenario
        if self.fail_rate and self._random.random() < self.fail_rate:
            scenario = self.fail_with
        if scenario is None:
            return [normal()]
        return scenario(seen) if callable(scenario) else scenario

    def stats(self) -> dict[str, Any]:
        """Returns what was recorded, as JSON."""
        return {
            "requests": [
                {"method": seen.method, "path": seen.path, "headers": seen.headers, "body": seen.body.decode("latin-1")}
                for seen in self.requests
            ],
            "open_connections": self.open_connections,
            "bytes_sent": self.bytes_sent,
            "peers": [
                {"opened_at": p.opened_at, "closed_at": p.closed_at, "left_at": p.left_at, "requests": p.requests}
                for p in self.peers
            ],
        }

    async def control(self, exchange: Exchange) -> None:
        """Answers the routes a process is steered by."""
        seen = exchange.seen
        if seen.path == "/_upstreamd/stats":
            await _json(exchange, self.stats())
        elif seen.path == "/_upstreamd/counts":
            chats = sum("/completions" in other.path for other in self.requests)
            counted = sum("/tokenize" in other.path for other in self.requests)
            await _json(exchange, {"answers": chats, "most_answers": self.most_answers, "tokenized": counted})
            self.requests.clear()
            self.most_answers = 0
        elif seen.path == "/_upstreamd/scenario" and seen.method == "POST":
            self.scenario = scenario_from_json(seen.json)
            await _json(exchange, {})
        else:
            await _json(exchange, {}, 404)

    def connected(self, connection: _Connection) -> Peer:
        self._connections.add(connection)
        peer = Peer(len(self.peers), time.monotonic())
        self.peers.append(peer)
        return peer

    def disconnected(self, connection: _Connection) -> None:
        self._connections.discard(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._peer = self._upstream.connected(self)
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()

    def eof_received(self) -> bool:
        self._left()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._peer.closed_at is None:
            self._left()
        self._upstream.disconnected(self)
        self.task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def send(self, data: bytes) -> None:
        await self._writable.wait()
        self._transport.write(data)
        self._peer.bytes_sent += len(data)

    def close(self) -> None:
        self._peer.closed_at = self._peer.closed_at or time.monotonic()
        self._transport.close()

    def reset(self) -> None:
        self._peer.closed_at = self._peer.closed_at or time.monotonic()
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _left(self) -> None:
        if self._peer.closed_at is None:
            self._peer.closed_at = self._peer.left_at = time.monotonic()

    async def _serve(self) -> None:
        try:
            while True:
                seen = await self._request()
                exchange = Exchange(self._upstream, seen, self)
                if seen.path.startswith("/_upstreamd/"):
                    await self._upstream.control(exchange)
                    continue
                self._peer.requests += 1
                self._upstream.requests.append(seen)
                self._upstream.busy += 1
                try:
                    for step in self._upstream.steps(seen):
                        await step(exchange)
                finally:
                    self._upstream.busy -= 1
                if exchange.closed:
                    return
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a scenario may hold any defect: the test is told, the server goes on
            self._upstream.errors.append(error)
            self._transport.abort()

    async def _request(self) -> Seen:
        while (at := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._more()
        head = bytes(self._buffer[:at]).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = int(fields.get("content-length", 0))
        while len(self._buffer) < at + 4 + length:
            await self._more()
        content = bytes(self._buffer[at + 4 : at + 4 + length])
        del self._buffer[: at + 4 + length]
        return Seen(method, path, fields, content, time.monotonic(), self._peer)

    async def _more(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()


class UpstreamThread:
    """The same server on a loop of its own in a thread: ``with UpstreamThread() as upstream``."""

    def __init__(self, **settings: Any) -> None:
        self.upstream = Upstream(**settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine on the server's loop and returns its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def __enter__(self) -> Upstream:
        self._thread.start()
        self.call(self.upstream.start())
        return self.upstream

    def __exit__(self, *_: object) -> None:
        self.call(self.upstream.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self.upstream.errors:
            raise self.upstream.errors[0]


async def _run(options: argparse.Namespace) -> None:
    upstream = Upstream(
        scenario=scenario_from_json(json.loads(options.scenario)) if options.scenario else None,
        model=options.model,
        kind=options.kind,
        token_every_s=options.token_every_s,
        streams=options.streams,
        context_window=options.context_window,
        fail_rate=options.fail_rate,
        port=options.port,
        seed=options.seed,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with upstream:
        print(upstream.url, flush=True)
        await stopped.wait()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="upstreamd")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="m")
    parser.add_argument("--kind", default="openai", choices=["openai", "vllm", "llamacpp"])
    parser.add_argument("--token-every-s", type=float, default=0.0)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--context-window", type=int, default=4096)
    parser.add_argument("--fail-rate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", help="JSON: [[step, argument ...], ...]")
    asyncio.run(_run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
