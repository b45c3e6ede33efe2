"""Rows B: what callers do wrong on the wire, and that nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from pathlib import Path

import pytest
from tests.faults import departures
from tests.faults.departures import LEAVING, WINDOWS, Window
from tests.faults.table import row
from tests.harness.clients import Caller, Tape, chat_body, good_load, trickle
from tests.harness.nginx import Nginx
from tests.harness.oracles import becomes, rss_bytes
from tests.harness.upstreamd import Exchange, headers
from tests.harness.world import ModelSpec, World

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAX_CONNECTIONS = 700
MAX_BODY_BYTES = 6 * 1024 * 1024
WORLD = {
    "singles": 60,
    "models": [*departures.MODELS, ModelSpec("endless", target={"timeouts": departures.SLOW})],
    "settings": {
        "server": {
            "head_timeout_s": 2.0,
            "max_connections": MAX_CONNECTIONS,
            "max_body_bytes": MAX_BODY_BYTES,
        }
    },
}
CHAT = "/v1/chat/completions"


@row("B1")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("how", LEAVING)
async def test_leaving_the_queue(world: World, how: str, stream: bool) -> None:
    """A caller who leaves the queue is never sent upstream."""
    before = await world.metric('passerelle_cancelled_total{phase="queue"}')
    await departures.leave_queue(world, how, stream=stream)
    assert await world.metric('passerelle_cancelled_total{phase="queue"}') == before + 1


@row("B2", "B4")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.name)
async def test_leaving_a_model_server(world: World, window: Window, how: str, stream: bool) -> None:
    """A caller who leaves takes the model server's work along, within a second."""
    await departures.leave_upstream(world, window, how, stream=stream)


@row("B2")
async def test_leaving_while_the_key_is_looked_up(world: World) -> None:
    """A caller with a key nobody has used yet is gone before the database has answered: nothing is sent upstream."""
    model = world.take()
    assert (await world.caller.chat(model.name)).status == 200  # a connection waits in the pool
    keys = [await asyncio.to_thread(world.make_key, f"unused-{n}", "organisation-one") for n in range(2)]
    for key in keys:
        stranger = Caller(world.gateway.port, key, world.tape, name="stranger")
        conversation, _ = await stranger.begin_chat(model.name)
        conversation.leave("rst")
        assert (await stranger.ask("/v1/models", method="GET")).status == 200
    assert len(model.posts) == 1


@row("B6")
@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
async def test_many_leave_at_once_with_large_bodies(world: World, count: int) -> None:
    """Health answers all through, and every call that began is settled (the oracles look)."""
    model = world.take()
    model.upstreams[0].token_every_s = 0.05
    size = 1024 * 1024 if count < 100 else 256 * 1024
    data = world.caller.request(CHAT, chat_body(model.name, text="word " * (size // 5)))

    async def come_and_go(number: int) -> None:
        async with await world.caller.open() as conversation:
            await conversation.send(data if number % 2 else data[: len(data) // 2])
            conversation.leave("rst")

    upstream = model.upstreams[0]
    resident = []
    for _ in range(3):
        for at in range(0, count, 50):
            await asyncio.gather(*(come_and_go(number) for number in range(at, min(count, at + 50))))
        await upstream.until(lambda: upstream.busy == 0, 15)
        resident.append(rss_bytes(world.gateway.pid))
    assert resident[2] < resident[1] * 1.1 + 16 * 1024 * 1024, "it grows each time"
    world.oracles.accept_memory()  # the allocator keeps some of what large bodies took
    assert (await world.caller.chat(model.name)).status == 200


@row("B8")
@pytest.mark.slow
async def test_a_caller_who_never_reads(world: World) -> None:
    """The model server is paused, memory stays bounded, another caller is served, and in the end the call is cut."""
    model = world.models["endless"]
    upstream = model.upstreams[0]

    async def endless(exchange: Exchange) -> None:
        while True:
            await exchange.event({"choices": [{"index": 0, "delta": {"content": "x" * 4000}}]})
            await asyncio.sleep(0)

    model.script([headers(), endless])
    before = rss_bytes(world.gateway.pid)
    conversations = [await world.caller.begin_chat(model.name, receive_bytes=4096) for _ in range(10)]
    for conversation, _ in conversations:
        conversation.pause()
    await upstream.until(lambda: upstream.bytes_sent > 1_000_000, 30)
    sent = -1

    async def stands_still() -> bool:
        nonlocal sent
        last, sent = sent, upstream.bytes_sent
        await asyncio.sleep(0.5)
        return sent == last

    assert await becomes(stands_still, 30), "the upstream was never paused"
    assert rss_bytes(world.gateway.pid) - before < 10 * 256 * 1024 + 4 * 1024 * 1024
    assert (await world.second.chat(world.take().name)).status == 200
    await upstream.until(lambda: upstream.busy == 0, 40)
    for conversation, request_id in conversations:
        conversation.leave("rst")
        assert (await world.usage(request_id))["outcome"] in ("cancelled", "broken")


@row("B8")
@pytest.mark.slow
async def test_a_slow_caller_gets_everything(world: World) -> None:
    """A caller who reads little by little gets the whole stream: paused is not lost."""
    model = world.take()

    async def plenty(exchange: Exchange) -> None:
        for number in range(300):
            await exchange.event({"choices": [{"index": 0, "delta": {"content": f"<{number}>" + "y" * 4000}}]})
        await exchange.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await exchange.body(b"data: [DONE]\n\n")
        await exchange.send(b"0\r\n\r\n")

    model.script([headers(), plenty])
    conversation, _ = await world.caller.begin_chat(model.name, receive_bytes=4096)
    async with conversation:
        began = time.monotonic()
        while b"0\r\n\r\n" not in conversation.received[-20:] and time.monotonic() - began < 60:
            await conversation.sip(32_768)
            await asyncio.sleep(0.002)
        for number in range(300):
            assert f"<{number}>".encode() in conversation.received
        assert conversation.received.endswith(b"0\r\n\r\n")


@row("B9")
async def test_idle_connections_disturb_nobody(world: World) -> None:
    """500 connections that say nothing: a good caller is served; past the cap a newcomer is told 503."""
    model = world.take()
    idle = [await world.caller.open() for _ in range(500)]
    try:
        load = await good_load(world.second, model.name, rate_per_s=30, seconds=1)
        assert load.success == 1.0
        more = [await world.caller.open() for _ in range(MAX_CONNECTIONS - 500)]
        idle += more
        world.tape.allowed.add(503)
        refused = await more[-1].answer(15)
        assert refused.status == 503
        assert refused.error["code"] == "too_many_connections"
        world.oracles.check_health = False  # it may have lost its connection to the cap
    finally:
        for conversation in idle:
            conversation.leave("rst")

    async def served() -> bool:
        return (await world.caller.chat(model.name)).status == 200

    assert await becomes(served, 15)


@row("B10")
@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow)])
async def test_slow_heads_are_closed(world: World, count: int) -> None:
    """A head that trickles is cut at its deadline, all the same how many, and a good caller does not notice."""
    model = world.take()
    head = world.caller.request(CHAT, chat_body(model.name))
    slow = [await world.caller.open() for _ in range(count)]
    began = time.monotonic()
    trickling = [asyncio.create_task(trickle(each, head[:100], 0.25)) for each in slow]
    load = await good_load(world.second, model.name, rate_per_s=20, seconds=2)
    answers = await asyncio.gather(*(each.answer(25) for each in slow))
    took_s = time.monotonic() - began
    for task in trickling:
        task.cancel()
    for each in slow:
        each.leave("rst")
    assert load.success == 1.0
    assert load.latency_s(0.9) < 2.0  # the slow ones hold their connections for two seconds and more
    assert {answer.status for answer in answers} <= {408, 0}
    assert sum(answer.status == 408 for answer in answers) > count * 0.9
    assert took_s < 20  # all of a head would take longer


@row("B11")
@pytest.mark.slow
async def test_slow_bodies_are_closed(world: World) -> None:
    """300 bodies of one byte each half second get 408 after the grace; a good caller does not notice."""
    model = world.take()
    request = world.caller.request(CHAT, chat_body(model.name, text="z" * 2000))
    head, _, content = request.partition(b"\r\n\r\n")
    slow = [await world.caller.open() for _ in range(300)]
    began = time.monotonic()
    for each in slow:
        await each.send(head + b"\r\n\r\n")
    trickling = [asyncio.create_task(trickle(each, content, 0.5)) for each in slow]
    load = await good_load(world.second, model.name, rate_per_s=10, seconds=8)
    answers = await asyncio.gather(*(each.answer(45) for each in slow))
    took_s = time.monotonic() - began
    for task in trickling:
        task.cancel()
    for each in slow:
        each.leave("rst")
    assert load.success == 1.0
    assert {answer.status for answer in answers} == {408}
    assert 9 < took_s < 40
    assert model.posts != []


@row("B12")
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\nbig: " + b"z" * 65_536 + b"\r\n\r\n", 431),
        (b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\n" + b"x-y: z\r\n" * 1000 + b"\r\n", 431),
        (b"GET /health?" + b"a" * 65_536 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * 65_536, 414),
    ],
    ids=["64 KB header", "1,000 headers", "64 KB query", "64 KB address without an end"],
)
async def test_large_heads_are_refused(world: World, request_bytes: bytes, status: int) -> None:
    """The refusal comes at once, in the envelope, and the connection closes."""
    async with await world.caller.open() as conversation:
        await conversation.send(request_bytes)
        answer = await conversation.answer(15)
        assert answer.status == status
        await conversation.rest(3)


def _framings(model: str, key: str) -> dict[str, bytes]:
    """Returns malformed requests; each would bring a second one if its framing were read another way."""
    inner = Caller(80, key, Tape()).request(CHAT, chat_body(model, stream=False), close=True)
    start = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n".encode()
    chunked = b"0\r\n\r\n"
    length = b"content-length: %d\r\n" % len(chunked)
    te = b"transfer-encoding: chunked\r\n"
    lines = {
        "length and chunks": length + te,
        "chunks and length": te + length,
        "length 0 and chunks": b"content-length: 0\r\n" + te,
        "chunked twice": te + te,
        "chunked, x": b"transfer-encoding: chunked, x\r\n",
        "chunked ,x": b"transfer-encoding: chunked ,x\r\n",
        "x, chunked": b"transfer-encoding: x, chunked\r\n",
        "xchunked": b"transfer-encoding: xchunked\r\n" + length,
        "chunked with a vertical tab": b"transfer-encoding: \x0bchunked\r\n" + length,
        "chunked with a tab before": b"transfer-encoding:\tchunked\r\n" + length,
        "space before the colon": b"transfer-encoding : chunked\r\n" + length,
        "folded": b"transfer-encoding:\r\n chunked\r\n" + length,
        "te in another case": b"Transfer-Encoding: CHUNKED\r\n" + length,
        "identity": b"transfer-encoding: identity\r\n" + length,
        "length -1": b"content-length: -1\r\n",
        "length +5": b"content-length: +5\r\n",
        "length 1.5": b"content-length: 1.5\r\n",
        "length 5,5": b"content-length: 5,5\r\n",
        "length 5 5": b"content-length: 5 5\r\n",
        "length 0x5": b"content-length: 0x5\r\n",
        "length 1e1": b"content-length: 1e1\r\n",
        "length of unicode digits": "content-length: \N{ARABIC-INDIC DIGIT FIVE}\r\n".encode(),
        "length empty": b"content-length:\r\n",
        "length past 64 bits": b"content-length: 18446744073709551621\r\n",
        "two lengths": length + b"content-length: 0\r\n",
        "two equal lengths": length + length,
        "length with a space before the colon": b"content-length : 5\r\n",
        "NUL in a header": length + b"x: a\x00b\r\n",
        "bare CR in a header": length + b"x: a\rtransfer-encoding: chunked\r\n",
        "no colon": length + b"x\r\n",
        "space in a name": length + b"x y: z\r\n",
        "empty name": length + b": z\r\n",
    }
    found = {name: start + line + b"\r\n" + chunked + inner for name, line in lines.items()}
    found["bare LF"] = (start + length).replace(b"\r\n", b"\n") + b"\n" + chunked + inner
    found["bare LF in the head"] = start + b"x: y\ncontent-length: 5\r\n\r\n" + chunked + inner
    bodies = {
        "chunk size with a sign": b"+0\r\n\r\n",
        "chunk size in hex with 0x": b"0x0\r\n\r\n",
        "chunk size with a space": b"0 \r\n\r\n",
        "chunk size of nothing": b"\r\n\r\n",
        "chunk longer than said": b"1\r\nAB\r\n0\r\n\r\n",
        "chunk ended by LF": b"1\nA\n0\n\n",
        "chunk ended by CR": b"1\r\nA\r0\r\n\r\n",
        "any two bytes after a chunk": b"1\r\nAXX0\r\n\r\n",
        "chunk size past 64 bits": b"10000000000000000\r\nA\r\n0\r\n\r\n",
        "negative chunk": b"-1\r\nA\r\n0\r\n\r\n",
    }
    found |= {name: start + te + b"\r\n" + data + inner for name, data in bodies.items()}
    return found


FRAMINGS = tuple(_framings("model", "key"))


@row("B13")
@pytest.mark.parametrize("name", FRAMINGS)
async def test_malformed_framing_is_refused(world: World, name: str) -> None:
    """400 and the connection closed: what follows is not taken for a request, and no model server hears of it."""
    model = world.models["single-39"]
    before = len(model.posts)
    async with await world.caller.open() as conversation:
        await conversation.send(_framings(model.name, world.gateway.key)[name])
        answer = await conversation.answer(20)
        assert answer.status in (400, 411, 413, 431)
        rest = await conversation.rest(5)
    assert b"HTTP/1.1" not in rest
    assert len(model.posts) == before


@row("B13")
async def test_nginx_and_we_count_the_same_requests(world: World, tmp_path: Path) -> None:
    """Behind nginx each malformed request is refused there, or read by us as nginx read it: never as two."""
    model = world.models["single-39"]
    with Nginx(tmp_path / "nginx", [world.gateway.port]) as nginx:
        behind = Caller(nginx.port, world.gateway.key, world.tape)
        for name, data in _framings(model.name, world.gateway.key).items():
            passed, posts = nginx.passed(), len(model.posts)
            async with await behind.open() as conversation:
                await conversation.send(data)
                with contextlib.suppress(TimeoutError):  # nginx may wait for the rest of a body
                    await conversation.rest(1)
            seen = conversation.received.count(b"HTTP/1.1 ")
            served = conversation.received.count(b"HTTP/1.1 200")
            assert len(model.posts) - posts == served, name
            assert nginx.passed() - passed <= seen, name
        good = await behind.chat(model.name)
        assert good.status == 200


@row("B16")
@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("path", [CHAT, "/health", "/admin/router"])
async def test_other_methods_are_refused(world: World, method: str, path: str) -> None:
    """405 with Allow, without the request being echoed."""
    answer = await world.caller.ask(path, method=method, headers=[("x-echo", "CANARY")])
    assert answer.status in (400, 405)
    if answer.status == 405:
        assert answer.headers["allow"]
    assert b"CANARY" not in answer.body


@row("B16")
@pytest.mark.parametrize("name", ["x-http-method-override", "x-http-method", "x-method-override"])
async def test_a_method_in_a_header_counts_for_nothing(world: World, name: str) -> None:
    """The method is the one on the request line."""
    model = world.take()
    answer = await world.caller.ask(CHAT, chat_body(model.name), headers=[(name, "DELETE")])
    assert answer.status == 200
    answer = await world.caller.ask("/health?_method=DELETE", method="GET", headers=[(name, "POST")])
    assert answer.status == 200


@row("B17")
@pytest.mark.parametrize("stream", [True, False])
async def test_http_1_0(world: World, stream: bool) -> None:
    """A caller of 1997 gets plain bytes and the end of the connection."""
    model = world.take()
    data = world.caller.request(CHAT, chat_body(model.name, stream=stream)).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with await world.caller.open() as conversation:
        await conversation.send(data)
        answer = await conversation.answer(20)
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert answer.text.count("tok") == 8


@row("B17")
async def test_a_hundred_pipelined_requests(world: World) -> None:
    """Those that are answered come in order; none runs without being answered."""
    model = world.take()
    ids = [world.caller.new_id() for _ in range(100)]
    data = [world.caller.request(CHAT, chat_body(model.name, stream=False), request_id=each) for each in ids]
    async with await world.caller.open() as conversation:
        await conversation.send(b"".join(data))
        answered = []
        while len(answered) < 100:
            answer = await conversation.answer(20, request_id=ids[len(answered)])
            if not answer.status:
                break
            assert answer.status == 200
            assert answer.headers["x-request-id"] == ids[len(answered)]
            answered.append(answer)
    assert len(answered) >= 10
    assert len(model.posts) == len(answered)


@row("B17")
async def test_expect_100_continue(world: World) -> None:
    """The body is asked for with 100, and the answer follows; a body that is too large is refused before it is sent."""
    model = world.take()
    request = world.caller.request(CHAT, chat_body(model.name), headers=[("expect", "100-continue")])
    head, _, content = request.partition(b"\r\n\r\n")
    async with await world.caller.open() as conversation:
        await conversation.send(head + b"\r\n\r\n")
        await conversation.until(b"HTTP/1.1 100", within_s=15)
        await conversation.send(content)
        answer = await conversation.answer(20)
        assert answer.status == 200
        assert answer.data[-1] == "[DONE]"
    large = head.replace(b"content-length: %d" % len(content), b"content-length: %d" % (MAX_BODY_BYTES + 1))
    async with await world.caller.open() as conversation:
        await conversation.send(large + b"\r\n\r\n")
        assert (await conversation.until(b"\r\n\r\n", within_s=15)).startswith(b"HTTP/1.1 413")


@row("B13")
async def test_trailers_are_not_headers(world: World) -> None:
    """What follows a chunked body neither identifies the caller nor changes anything else."""
    model = world.take()
    stranger = Caller(world.gateway.port, None, world.tape)
    content = json.dumps(chat_body(model.name)).encode()
    chunks = b"%x\r\n%b\r\n0\r\n" % (len(content), content)
    key = world.gateway.key.encode()
    for sender, status, trailer in (
        (stranger, 401, b"authorization: Bearer " + key),
        (stranger, 401, b"x-api-key: " + key),
        (world.caller, 200, b"authorization: Bearer other\r\nhost: a b\r\ncontent-encoding: gzip"),
    ):
        head = sender.request(CHAT, b"", close=True).replace(b"content-length: 0", b"transfer-encoding: chunked")
        async with await sender.open() as conversation:
            await conversation.send(head + chunks + trailer + b"\r\n\r\n")
            assert (await conversation.answer(20)).status == status, trailer


@row("B16")
@pytest.mark.parametrize(
    "target", ["http://evil.example/admin/router", "/admin/router?x=/health", "/admin/router#/health"]
)
async def test_the_route_is_found_by_the_path_alone(world: World, target: str) -> None:
    """However the address is written, the route asks for its own right."""
    stranger = Caller(world.gateway.port, None, world.tape)
    answer = await stranger.ask(target, method="GET")
    assert answer.status in (400, 401)
    answer = await world.caller.ask(target, method="GET")
    assert answer.status in (200, 400)


@row("B16")
@pytest.mark.parametrize(
    "first_line",
    [
        b"PRI * HTTP/2.0", b"GET / HTTP/3.0", b"GET /health HTTP/9.9", b"GET /health",
        b"POST http:/x HTTP/1.1", b"POST //x HTTP/1.1", b"POST * HTTP/1.1", b"POST x HTTP/1.1",
        b"GET /h\xe9alth HTTP/1.1",
        b"GET /%ff%fe HTTP/1.1", b"GET /%00 HTTP/1.1", b"GET /a\x00b HTTP/1.1",
        b"POST /v1/chat/completions%00 HTTP/1.1",
        b"POST http://[::1/v1/chat/completions HTTP/1.1", b"POST http://x:99999/v1/chat/completions HTTP/1.1",
    ],
    ids=repr,
)  # fmt: skip
async def test_odd_first_lines(world: World, first_line: bytes) -> None:
    """An error below 500 in the envelope, and never a connection that hangs."""
    async with await world.caller.open() as conversation:
        await conversation.send(first_line + b"\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        answer = await conversation.answer(4)
        assert 400 <= answer.status < 500, answer
        await conversation.rest(4)


@row("B16")
@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
async def test_an_upgrade_is_not_made(world: World, protocol: str) -> None:
    """The request is answered as it stands, over HTTP/1.1."""
    model = world.take()
    upgrade = [("connection", "upgrade"), ("upgrade", protocol), ("sec-websocket-version", "13")]
    answer = await world.caller.ask(CHAT, chat_body(model.name, stream=False), headers=upgrade)
    assert answer.status in (200, 400, 426)


@row("B13")
@pytest.mark.parametrize(
    "given", ["a b c d e f g h", "x" * 300, "sk-pas-secret\x7f", '"><script>', "\xe9" * 10, "short"]
)
async def test_a_request_id_of_the_wrong_form_is_replaced(world: World, given: str) -> None:
    """What could not stand in a log or a header comes back as an id of ours."""
    model = world.take()
    request = world.caller.request(CHAT, chat_body(model.name), request_id=given, close=True)
    async with await world.caller.open() as conversation:
        await conversation.send(request)
        answer = await conversation.answer(20)
    assert answer.status in (200, 400)
    found = answer.headers["x-request-id"]
    assert found.isascii() and found.isprintable() and 1 <= len(found) <= 128 and " " not in found and "<" not in found


@row("B18")
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "GZIP"])
async def test_a_compressed_body_is_not_opened(world: World, encoding: str) -> None:
    """A kilobyte that would be a megabyte, or more, gets 415."""
    bomb = gzip.compress(b" " * 1_000_000)
    answer = await world.caller.ask(CHAT, bomb, headers=[("content-encoding", encoding)])
    assert answer.status == 415


@row("C3")
async def test_an_answer_comes_while_the_body_still_does(world: World) -> None:
    """A request that is refused by its head is answered before its body has arrived, and the connection closes."""
    stranger = Caller(world.gateway.port, "sk-pas-nobody", world.tape)
    request = stranger.request(CHAT, b"x" * 5_000_000)
    async with await stranger.open() as conversation:
        await conversation.send(request[:100_000])
        answer = await conversation.answer(15)
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
