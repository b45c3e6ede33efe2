"""The engine contract of `passerelle.engines.base`, run against every implementation.

A *rig* is an engine and a target of it. To add an implementation, add a function to `RIGS`; when its servers can be
scripted, set ``upstream`` and the fault rows run too, else they are left out for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from tests.harness.upstreamd import (
    Upstream,
    body,
    close,
    end,
    finish,
    headers,
    never,
    raw,
    reset,
    stall,
    status,
    tokens,
)

from passerelle.domain.model import Target, Timeouts
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import (
    Engine,
    EngineBroke,
    EngineError,
    EngineRefused,
    EngineRejected,
    Readiness,
    Reply,
)
from passerelle.engines.managed import ChildAddress, ManagedEngine
from passerelle.engines.openai import OpenAIEngine
from passerelle.engines.sse import EventAligner, iter_data
from passerelle.engines.transport import Transport

PATIENT = Timeouts(connect_s=20.0, first_byte_s=20.0, idle_s=20.0)
HASTY = Timeouts(connect_s=20.0, first_byte_s=0.25, idle_s=0.25)
SOON_S = 10.0
"""Far below what follows when the deadline under test does not hold, far above what a busy machine needs."""
LIMIT = 1_000_000


@dataclass
class Rig:
    """One implementation under test; ``upstream`` is its server when that can be scripted."""

    engine: Engine
    target: Target
    upstream: Upstream
    has_tokenizer: bool = True

    @property
    def hasty(self) -> Target:
        """The target with deadlines that a test can wait for."""
        return replace(self.target, timeouts=HASTY)


@asynccontextmanager
async def openai() -> AsyncIterator[Rig]:
    """The OpenAI engine and a server of vLLM's kind."""
    async with Upstream(kind="vllm") as upstream:
        engine = OpenAIEngine(Transport())
        yield Rig(engine, Target("t", upstream.url, "openai", "m", timeouts=PATIENT, api_key="key-canary"), upstream)
        await engine.aclose()


@asynccontextmanager
async def openai_plain() -> AsyncIterator[Rig]:
    """The OpenAI engine and a server that has the OpenAI routes only."""
    async with Upstream() as upstream:
        engine = OpenAIEngine(Transport())
        yield Rig(engine, Target("t", upstream.url, "openai", "m", timeouts=PATIENT), upstream, has_tokenizer=False)
        await engine.aclose()


@asynccontextmanager
async def managed() -> AsyncIterator[Rig]:
    """The engine of managed children and a server of llama-server's kind."""
    async with Upstream(kind="llamacpp") as upstream:
        inner = OpenAIEngine(Transport())
        engine = ManagedEngine(inner, {"t": ChildAddress(upstream.root, "child-key")})
        yield Rig(engine, Target("t", "child:t", "llamacpp", "m", timeouts=PATIENT), upstream)
        await inner.aclose()


RIGS: list[Callable[[], AbstractAsyncContextManager[Rig]]] = [openai, openai_plain, managed]


@pytest.fixture(params=RIGS, ids=lambda rig: rig.__name__)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with request.param() as made:
        yield made


def ask(operation: Operation = Operation.CHAT, **fields: Any) -> Request:
    """Returns a request as a face would make it."""
    if operation is Operation.CHAT and "messages" not in fields:
        fields["messages"] = [{"role": "user", "content": "one two three"}]
    document = {"model": "m", **fields}
    encoded = msgspec.json.encode(document)
    raws = msgspec.json.decode(encoded, type=dict[str, msgspec.Raw])
    stream = bool(fields.get("stream", False))
    wants_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
    return Request(operation, "m", encoded, raws, stream, wants_usage, fields.get("max_tokens"))


async def send(
    rig: Rig, request: Request | None = None, *, timeout_s: float = 30.0, target: Target | None = None
) -> Reply:
    return await rig.engine.send(request or ask(), target or rig.target, request_id="req-1", timeout_s=timeout_s)


async def events(reply: Reply) -> list[bytes]:
    """Pumps a stream to its end and returns the data of its events. What arrived is in the error, if one is raised."""
    aligner = EventAligner()
    found: list[bytes] = []
    try:
        await reply.pump(lambda chunk: found.extend(iter_data(aligner.feed(chunk))))
    except EngineBroke as error:
        error.add_note(str(len(found)))
        raise
    found.extend(iter_data(aligner.flush()))
    return found


async def works(rig: Rig) -> None:
    """Checks that the next request is answered rightly: whatever happened before did no harm."""
    rig.upstream.scenario = None
    answer = json.loads(await (await send(rig, ask(max_tokens=3))).read(LIMIT))
    assert answer["choices"][0]["message"]["content"] == "tok tok tok "


# What a good server gives.


async def test_document(rig: Rig) -> None:
    """A request that does not stream is answered by one JSON document with the server's usage."""
    reply = await send(rig, ask(max_tokens=4))
    answer = json.loads(await reply.read(LIMIT))
    assert reply.status == 200
    assert reply.content_type == b"application/json"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize(
    ("operation", "fields", "path"),
    [
        (Operation.CHAT, {}, "/v1/chat/completions"),
        (Operation.COMPLETION, {"prompt": "a b"}, "/v1/completions"),
        (Operation.EMBEDDING, {"input": ["a b", "c"]}, "/v1/embeddings"),
    ],
)
async def test_operations(rig: Rig, operation: Operation, fields: dict[str, Any], path: str) -> None:
    """Each operation goes to its own path, with our request id and the target's key, as the caller's own bytes."""
    request = ask(operation, **fields)
    await (await send(rig, request)).read(LIMIT)
    seen = rig.upstream.requests[-1]
    assert seen.path == path
    assert seen.body == request.body
    assert seen.headers["x-request-id"] == "req-1"
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers.get("authorization") in (None, "Bearer key-canary", "Bearer child-key")


async def test_stream(rig: Rig) -> None:
    """A stream comes as events that end with [DONE], and with a usage event although the caller asked for none."""
    reply = await send(rig, ask(stream=True, max_tokens=3))
    await reply.first()
    found = await events(reply)
    assert found[-1] == b"[DONE]"
    assert [json.loads(e)["choices"][0]["delta"] for e in found[:3]] == [{"content": f"tok{i} "} for i in range(3)]
    assert json.loads(found[-2])["usage"]["completion_tokens"] == 3


async def test_model_name(rig: Rig) -> None:
    """The server is asked for the name it knows."""
    renamed = replace(ask(), model="public-name")
    await (await send(rig, renamed)).read(LIMIT)
    assert rig.upstream.requests[-1].json["model"] == "m"


async def test_stream_arrives_as_sent(rig: Rig) -> None:
    """A chunk is pushed when it arrives, not when the stream ends."""
    rig.upstream.scenario = [headers(), tokens(1), never()]
    reply = await send(rig, ask(stream=True), target=replace(rig.target, timeouts=Timeouts()))
    arrived = asyncio.Event()
    pumping = asyncio.create_task(reply.pump(lambda _: arrived.set()))
    await asyncio.wait_for(arrived.wait(), 20)
    reply.abort()
    with pytest.raises(EngineBroke):
        await pumping


async def test_connections_are_reused(rig: Rig) -> None:
    """Requests one after the other share a connection, streams included; only the first has a connect time."""
    spent = []
    for stream in (False, True, False, True):
        reply = await send(rig, ask(stream=stream))
        spent.append(reply.connect_s)
        if stream:
            await events(reply)
        else:
            await reply.read(LIMIT)
        reply.abort()
    assert [peer.requests for peer in rig.upstream.peers] == [4]
    assert spent[0] > 0
    assert spent[1:] == [0, 0, 0]


async def test_concurrent(rig: Rig) -> None:
    """Twenty requests at once get twenty right answers."""
    limits = range(1, 21)
    replies = await asyncio.gather(*(send(rig, ask(max_tokens=n)) for n in limits))
    answers = [json.loads(await reply.read(LIMIT)) for reply in replies]
    assert [a["usage"]["completion_tokens"] for a in answers] == [min(n, 8) for n in limits]


async def test_stale_connection(rig: Rig) -> None:
    """A server that closes an idle connection as the next request arrives costs that request nothing."""
    rig.upstream.scenario = lambda seen: [close()] if seen.peer.requests > 1 else [status(200, content=b'{"n": 1}')]
    for _ in range(3):
        assert await (await send(rig)).read(LIMIT) == b'{"n": 1}'
    assert [peer.requests for peer in rig.upstream.peers] == [2, 2, 1]


async def test_fresh_connection_is_not_retried(rig: Rig) -> None:
    """A new connection that closes without an answer is an unknown state: the request is sent once."""
    rig.upstream.scenario = [close()]
    with pytest.raises(EngineBroke):
        await send(rig)
    assert len(rig.upstream.requests) == 1


async def test_probe(rig: Rig) -> None:
    """A probe says ready, which models there are and, where the server tells, their window."""
    probe = await rig.engine.probe(rig.target, timeout_s=20)
    assert (probe.readiness, probe.models) == (Readiness.READY, ("m",))
    assert probe.context_window == (4096 if rig.has_tokenizer else None)


@pytest.mark.parametrize(
    ("answer", "readiness"),
    [
        (status(503, content=b'{"error":{"message":"Loading model","code":503}}'), Readiness.STARTING),
        (status(503, [("retry-after", "3")]), Readiness.BUSY),
        (status(503, content=b""), Readiness.DOWN),
        (status(500), Readiness.DOWN),
        (status(429), Readiness.BUSY),
        (close(), Readiness.DOWN),
        (never(), Readiness.DOWN),
        (raw(b"\x00\x01\x02"), Readiness.DOWN),
    ],
)
async def test_probe_of_a_bad_server(rig: Rig, answer: Any, readiness: Readiness) -> None:
    """A probe never raises, and tells loading, busy and broken apart."""
    rig.upstream.scenario = [answer]
    probe = await rig.engine.probe(rig.target, timeout_s=0.5)
    assert probe.readiness is readiness
    assert probe.why


async def test_probe_of_nothing(rig: Rig) -> None:
    """A probe of a port nobody listens on says down."""
    await rig.upstream.stop()
    assert (await rig.engine.probe(rig.target, timeout_s=0.5)).readiness is Readiness.DOWN


async def test_count_tokens(rig: Rig) -> None:
    """Prompt tokens are counted by the server, or not at all."""
    chat = await rig.engine.count_tokens(ask(), rig.target, timeout_s=20)
    text = await rig.engine.count_tokens(ask(Operation.COMPLETION, prompt="a b c d"), rig.target, timeout_s=20)
    assert (chat, text) == ((4, 4) if rig.has_tokenizer else (None, None))


async def test_tokenize(rig: Rig) -> None:
    """Every server with a tokenizer answers in one shape; one without is said to have none."""
    request = ask(Operation.TOKENIZE, prompt="a bb ccc")
    if not rig.has_tokenizer:
        with pytest.raises(EngineRejected) as caught:
            await send(rig, request)
        assert caught.value.message == "The server of this model offers no tokenizer."
        return
    answer = json.loads(await (await send(rig, request)).read(LIMIT))
    assert (answer["count"], answer["tokens"], answer["max_model_len"]) == (3, [1, 2, 3], 4096)
    back = await send(rig, ask(Operation.DETOKENIZE, tokens=[1, 2]))
    assert json.loads(await back.read(LIMIT)) == {"prompt": "x xx"}


# Leaving: the server's connection is closed within a second, in every window.


async def left(rig: Rig) -> None:
    await rig.upstream.drained(1.0)
    assert rig.upstream.peers[-1].left_at is not None


async def test_leave_before_the_head(rig: Rig) -> None:
    """A cancelled ``send`` closes the connection."""
    rig.upstream.scenario = [never()]
    sending = asyncio.create_task(send(rig, target=replace(rig.target, timeouts=Timeouts())))
    await rig.upstream.until(lambda: bool(rig.upstream.requests), 20)
    sending.cancel()
    await left(rig)
    with pytest.raises(asyncio.CancelledError):
        await sending


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("stream", [True, False])
async def test_leave_within_the_body(rig: Rig, count: int, stream: bool) -> None:
    """``abort`` closes the connection, before the first token and after some, and may be called again."""
    kind = "text/event-stream" if stream else "application/json"
    rig.upstream.scenario = [headers(content_type=kind), tokens(count), never()]
    reply = await send(rig, ask(stream=stream), target=replace(rig.target, timeouts=Timeouts()))
    got = asyncio.Event()
    reading = asyncio.create_task(reply.pump(lambda _: got.set()) if stream else reply.read(LIMIT))
    if stream and count:
        await asyncio.wait_for(got.wait(), 20)
    reply.abort()
    reply.abort()
    await left(rig)
    with pytest.raises(EngineBroke):
        await reading


async def test_cancelled_read(rig: Rig) -> None:
    """Cancelling the reader closes the connection too."""
    rig.upstream.scenario = [headers(content_type="application/json"), body(b"{"), never()]
    reply = await send(rig, target=replace(rig.target, timeouts=Timeouts()))
    reading = asyncio.create_task(reply.read(LIMIT))
    await asyncio.sleep(0)
    reading.cancel()
    await left(rig)
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_endless_answer(rig: Rig) -> None:
    """A13: a server that never stops is stopped by closing its connection."""
    rig.upstream.scenario = [headers(), tokens(10_000_000, 0.001)]
    reply = await send(rig, ask(stream=True, max_tokens=5))
    count = 0

    def feed(chunk: bytes) -> None:
        nonlocal count
        count += chunk.count(b"data:")
        if count >= 5:
            reply.abort()

    with pytest.raises(EngineBroke):
        await reply.pump(feed)
    await left(rig)
    await works(rig)


async def test_late_abort_is_harmless(rig: Rig) -> None:
    """Aborting a reply whose body ended does not touch the request that has its connection now."""
    old = await send(rig)
    await old.read(LIMIT)
    rig.upstream.scenario = [headers(), tokens(2), stall(0.05), tokens(2), finish()]
    new = await send(rig, ask(stream=True))
    old.abort()
    old.pause()
    assert len(await events(new)) == 6
    assert len(rig.upstream.peers) == 1


async def test_backpressure(rig: Rig) -> None:
    """While paused the server has to wait; after resume every byte arrives, in order."""
    block = bytes(range(256)) * 1024
    count = 160
    rig.upstream.scenario = [headers(), *[body(block)] * count, end()]
    reply = await send(rig, ask(stream=True), target=replace(rig.target, timeouts=Timeouts(idle_s=0.5)))
    got = bytearray()

    def feed(chunk: bytes) -> None:
        if not got:
            reply.pause()
        got.extend(chunk)

    pumping = asyncio.create_task(reply.pump(feed))
    sent = -1
    while sent != rig.upstream.bytes_sent:
        sent = rig.upstream.bytes_sent
        await asyncio.sleep(0.3)  # longer in all than the idle deadline, which must not count while paused
    assert sent < len(block) * count / 2
    assert len(got) < 2 * len(block)
    reply.resume()
    await pumping
    assert got == block * count


async def test_unread_answer_is_bounded(rig: Rig) -> None:
    """A body nobody reads yet stays with the server."""
    block = b"x" * 262144
    rig.upstream.scenario = [headers(), *[body(block)] * 160, end()]
    reply = await send(rig, ask(stream=True))
    await reply.first()
    sent = -1
    while sent != rig.upstream.bytes_sent:
        sent = rig.upstream.bytes_sent
        await asyncio.sleep(0.1)
    assert sent < len(block) * 80
    got = 0

    def feed(chunk: bytes) -> None:
        nonlocal got
        got += len(chunk)

    await reply.pump(feed)
    assert got == len(block) * 160


# Rows A1 to A19 of the fault table, at the engine.


async def test_refused(rig: Rig) -> None:
    """A1: nobody listens."""
    await rig.upstream.stop()
    began = time.monotonic()
    with pytest.raises(EngineRefused) as caught:
        await send(rig)
    assert not caught.value.busy
    assert time.monotonic() - began < SOON_S


async def test_no_answer(rig: Rig) -> None:
    """A3: the server takes the request and says nothing."""
    rig.upstream.scenario = [never()]
    began = time.monotonic()
    with pytest.raises(EngineBroke) as caught:
        await send(rig, target=rig.hasty)
    assert caught.value.timeout
    assert time.monotonic() - began < SOON_S
    await left(rig)


async def test_overall_deadline(rig: Rig) -> None:
    """``timeout_s`` holds where the target's own deadline is longer."""
    rig.upstream.scenario = [never()]
    began = time.monotonic()
    with pytest.raises(EngineBroke) as caught:
        await send(rig, timeout_s=0.1, target=replace(rig.target, timeouts=Timeouts()))
    assert caught.value.timeout
    assert time.monotonic() - began < SOON_S


@pytest.mark.parametrize("code", [500, 502, 504, 404, 401, 403, 408])
async def test_broken_status(rig: Rig, code: int) -> None:
    """A4: a server error is a break that keeps its status, and none of the server's words."""
    canary = b'{"error": {"message": "canary /srv/secret"}}'
    rig.upstream.scenario = [status(code, content=canary)]
    with pytest.raises(EngineBroke) as caught:
        await send(rig)
    assert caught.value.status == code
    assert "canary" not in caught.value.reason
    await works(rig)


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("1.5", 1.5, 1.5), ("-3", 0, 0), ("Fri, 31 Dec 2100 23:59:59 GMT", 3600, 3600), ("nan", None, None)],
)
async def test_busy(rig: Rig, code: int, value: str, low: float | None, high: float | None) -> None:
    """A5: 429 and 503 mean busy, with Retry-After in seconds or as a date."""
    rig.upstream.scenario = [status(code, [("Retry-After", value)])]
    with pytest.raises(EngineRefused) as caught:
        await send(rig)
    assert caught.value.busy
    assert caught.value.status == code
    found = caught.value.retry_after_s
    assert found is None if low is None else found is not None and low <= found <= (high or 0)
    await works(rig)


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_rejected(rig: Rig, code: int) -> None:
    """A6: a 4xx passes the server's message when it has a known shape, without addresses and paths."""
    text = "bad at http://10.0.0.1:8000/x in /srv/models/a.py, 'temperature' " + "x" * 1000
    document = {"error": {"message": text, "param": "temperature", "code": "bad_value"}}
    rig.upstream.scenario = [status(code, content=json.dumps(document).encode())]
    with pytest.raises(EngineRejected) as caught:
        await send(rig)
    error = caught.value
    assert error.message is not None
    assert error.message.startswith("bad at [url] in [path], 'temperature' x")
    assert len(error.message) == 500
    assert (error.status, error.param, error.code) == (code, "temperature", "bad_value")
    await works(rig)


@pytest.mark.parametrize("content", [b"canary", b"", b"{}", b'{"detail": "canary"}', b'["canary"]', b"\xff\xfe"])
async def test_rejected_without_words(rig: Rig, content: bytes) -> None:
    """A6: an error of unknown shape passes no text at all."""
    rig.upstream.scenario = [status(400, content=content)]
    with pytest.raises(EngineRejected) as caught:
        await send(rig)
    assert caught.value.message is None
    assert "canary" not in caught.value.reason


@pytest.mark.parametrize("stop", [reset(), close()])
async def test_dies_before_the_first_token(rig: Rig, stop: Any) -> None:
    """A7: a stream that breaks before its first byte says so in ``send`` or ``first``."""
    rig.upstream.scenario = [headers(), stop]
    with pytest.raises(EngineBroke):
        await (await send(rig, ask(stream=True))).first()
    await works(rig)


@pytest.mark.parametrize("stop", [reset(), close()])
async def test_dies_after_tokens(rig: Rig, stop: Any) -> None:
    """A8: what arrived before the break is pushed, then the break is raised."""
    rig.upstream.scenario = [headers(), tokens(5), stall(0.05), stop]
    reply = await send(rig, ask(stream=True))
    await reply.first()
    with pytest.raises(EngineBroke) as caught:
        await events(reply)
    assert caught.value.__notes__ == ["5"]
    assert not caught.value.timeout
    await works(rig)


async def test_stalls_after_tokens(rig: Rig) -> None:
    """A9: silence within a body ends it, and the server is left."""
    rig.upstream.scenario = [headers(), tokens(5), never()]
    reply = await send(rig, ask(stream=True), target=rig.hasty)
    began = time.monotonic()
    with pytest.raises(EngineBroke) as caught:
        await events(reply)
    assert caught.value.__notes__ == ["5"]
    assert caught.value.timeout
    assert time.monotonic() - began < SOON_S
    await left(rig)


async def test_slow_but_alive(rig: Rig) -> None:
    """A stream much longer than the idle deadline is fine as long as tokens come."""
    rig.upstream.scenario = [headers(), tokens(20, 0.1), finish()]
    patient = replace(rig.target, timeouts=replace(PATIENT, idle_s=1.2))
    assert len(await events(await send(rig, ask(stream=True), target=patient))) == 22


async def test_odd_but_legal_events(rig: Rig) -> None:
    """A11: two events in a packet, mixed line ends, comments, no last blank line: all events are found."""
    wire = b'\xef\xbb\xbf: hi\r\ndata: {"n":1}\r\n\r\ndata:{"n":2}\n\ndata: {"n":3}\r\r:x\n\n'
    wire += b'id: 7\ndata: {"n":4}\n\ndata: [DONE]'
    pieces = [body(wire[at : at + 3]) for at in range(0, len(wire), 3)]
    for script in ([headers(), body(wire), end()], [headers(), *pieces, end()]):
        rig.upstream.scenario = script
        found = await events(await send(rig, ask(stream=True)))
        assert found == [b'{"n":1}', b'{"n":2}', b'{"n":3}', b'{"n":4}', b"[DONE]"]


async def test_not_a_stream(rig: Rig) -> None:
    """A14: JSON where a stream was asked for, and HTML where JSON was, are breaks."""
    with pytest.raises(EngineBroke):
        rig.upstream.scenario = [status(200, content=b"{}")]
        await send(rig, ask(stream=True))
    with pytest.raises(EngineBroke):
        rig.upstream.scenario = [status(200, [("content-type", "text/html")], content=b"<html>")]
        await send(rig)
    await works(rig)


OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
MALFORMED = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "short content-length": OK + b"content-length: 1\r\n\r\n{}",
    "two answers": (OK + b"content-length: 2\r\n\r\n{}") * 2,
    "garbage after the end": OK + b"content-length: 2\r\n\r\n{}garbage",
    "garbage after the last chunk": OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\ngarbage",
    "chunk without CRLF": OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "chunk size not hexadecimal": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk size negative": OK + b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk size overflows": OK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "length and chunked": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunked and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "length list": OK + b"content-length: 2, 2\r\n\r\n{}",
    "length negative": OK + b"content-length: -2\r\n\r\n{}",
    "length not a number": OK + b"content-length: 2x\r\n\r\n{}",
    "chunked twice": OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "gzip coding": OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "gzip content": OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
    "folded header": OK + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
    "space before colon": OK + b"content-length : 2\r\n\r\n{}",
    "NUL in a header": OK + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
    "header of 1 MB": OK + b"x: " + b"a" * 1_000_000 + b"\r\ncontent-length: 2\r\n\r\n{}",
    "header name of 1 MB": OK + b"a" * 1_000_000 + b": x\r\ncontent-length: 2\r\n\r\n{}",
    "10,000 headers": OK + b"x: y\r\n" * 10_000 + b"content-length: 2\r\n\r\n{}",
    "status line of 1 MB": b"HTTP/1.1 200 " + b"O" * 1_000_000 + b"\r\ncontent-length: 2\r\n\r\n{}",
    "endless trailers": OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 50_000 + b"\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "2,000 interim answers": b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload; as=style; padding\r\n\r\n" * 2_000,
    "no status": b"HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
    "status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed(rig: Rig, name: str) -> None:
    """A15: whatever breaks HTTP is a break, in any packets, and the connection is not used again."""
    wire = MALFORMED[name]
    small = [raw(wire[at : at + 5]) for at in range(0, len(wire), 5)] if len(wire) < 400 else []
    for script in ([raw(wire), never()], [*small, never()] if small else [raw(wire), close()]):
        rig.upstream.scenario = script
        with pytest.raises(EngineError) as caught:
            await (await send(rig, target=rig.hasty)).read(LIMIT)
        assert isinstance(caught.value, EngineBroke)
        assert "garbage" not in caught.value.reason
    used = {seen.peer.number for seen in rig.upstream.requests}
    await works(rig)
    assert rig.upstream.requests[-1].peer.number not in used


async def test_truncated(rig: Rig) -> None:
    """A15: a body shorter than announced is a break."""
    for wire in (OK + b"content-length: 9\r\n\r\n{}", OK + b"transfer-encoding: chunked\r\n\r\n9\r\n{}"):
        rig.upstream.scenario = [raw(wire), close()]
        with pytest.raises(EngineBroke):
            await (await send(rig)).read(LIMIT)
    await works(rig)


async def test_garbage_while_idle(rig: Rig) -> None:
    """A15: bytes after an answer, in a packet of their own, close the connection before anybody else gets it."""
    rig.upstream.scenario = [status(200, content=b"{}"), stall(0.02), raw(b"HTTP/1.1 200 OK\r\n\r\n"), never()]
    await (await send(rig)).read(LIMIT)
    await left(rig)
    await works(rig)


LEGAL = {
    "until close": (OK + b"\r\n{}", True),
    "until close, HTTP/1.0": (OK.replace(b"1.1", b"1.0") + b"\r\n{}", True),
    "connection: close": (OK + b"connection: close\r\ncontent-length: 2\r\n\r\n{}", True),
    "100 continue first": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\n{}", False),
    "103 with headers first": (b"HTTP/1.1 103 Hints\r\nlink: a\r\n\r\n" + OK + b"content-length: 2\r\n\r\n{}", False),
    "chunk extensions": (OK + b"transfer-encoding: chunked\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\n\r\n", False),
    "trailers": (OK + b"Transfer-Encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\nx-a: b\r\n\r\n", False),
    "identity encoding": (OK + b"content-encoding: identity\r\ncontent-length: 2\r\n\r\n{}", False),
}


@pytest.mark.parametrize("name", LEGAL)
async def test_legal_framing(rig: Rig, name: str) -> None:
    """Every legal way to frame an answer works, whole and byte by byte, and only reusable connections are reused."""
    wire, closes = LEGAL[name]
    for script in ([raw(wire)], [raw(wire[at : at + 1]) for at in range(len(wire))]):
        rig.upstream.scenario = [*script, close()] if closes else script
        assert await (await send(rig)).read(LIMIT) == b"{}"
    assert len(rig.upstream.peers) == (2 if closes else 1)
    await works(rig)


async def test_too_large(rig: Rig) -> None:
    """A document larger than the reader allows is a break, and is not read on."""
    rig.upstream.scenario = [headers(content_type="application/json"), *[body(b"x" * 65536)] * 1000, end()]
    with pytest.raises(EngineBroke):
        await (await send(rig)).read(200_000)
    await left(rig)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
async def test_redirect(rig: Rig, code: int) -> None:
    """A17: a redirect is a break; nobody goes there."""
    async with Upstream() as trap:
        rig.upstream.scenario = [status(code, [("location", trap.root)], content=b"")]
        with pytest.raises(EngineBroke):
            await send(rig)
        assert not trap.peers


async def test_flapping(rig: Rig) -> None:
    """A19: with every other request failing in some way, each answer that comes is right, and no connection is left."""
    ways = [[status(500)], [close()], [reset()], [raw(b"\r\n\r\nx")], [headers(), tokens(1), reset()]]
    rig.upstream.fail_rate = 0.5
    rig.upstream.fail_with = lambda seen: ways[len(rig.upstream.requests) % len(ways)]

    async def one(number: int) -> bool:
        try:
            answer = json.loads(await (await send(rig, ask(max_tokens=number % 8 + 1))).read(LIMIT))
        except EngineBroke:
            return False
        assert answer["usage"]["completion_tokens"] == number % 8 + 1
        return True

    right = 0
    for start in range(0, 100, 10):
        right += sum(await asyncio.gather(*(one(number) for number in range(start, start + 10))))
    assert 20 < right < 80
    rig.upstream.fail_rate = 0.0
    await rig.engine.aclose()


async def test_close(rig: Rig) -> None:
    """A request under way when the engine closes ends with an error, and no connection is left."""
    if isinstance(rig.engine, ManagedEngine):
        return  # its inner engine is what closes
    rig.upstream.scenario = [headers(), tokens(1), never()]
    reply = await send(rig, ask(stream=True), target=replace(rig.target, timeouts=Timeouts()))
    pumping = asyncio.create_task(reply.pump(lambda _: None))
    await asyncio.sleep(0)
    await rig.engine.aclose()
    with pytest.raises(EngineBroke):
        await pumping
    await left(rig)
