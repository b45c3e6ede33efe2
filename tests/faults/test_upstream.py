"""Rows A: what model servers do wrong, and what a caller sees of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from tests.faults.table import row
from tests.harness.clients import Answer, good_load
from tests.harness.faultproxy import FaultProxy, latency, limit_data, reset_peer, slicer, timeout
from tests.harness.oracles import becomes
from tests.harness.upstreamd import (
    Exchange,
    Scenario,
    Seen,
    Step,
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
from tests.harness.world import ModelSpec, World

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOW_PORTS = {"connect_s": 1.0, "first_byte_s": 10.0, "idle_s": 10.0}
WORLD = {
    "singles": 100,
    "pairs": 22,
    "models": [ModelSpec("least-busy", 2, {"policy": "least_busy"}, {"timeouts": SLOW_PORTS})],
}


def ended_badly(answer: Answer, tokens_seen: int, code: str) -> None:
    """The stream brought so many tokens, then one error event, and no [DONE]."""
    assert answer.status == 200
    assert answer.whole
    assert answer.text == "tok " * tokens_seen
    error = answer.stream_error
    assert error is not None
    assert error["code"] == code
    assert error["request_id"] == answer.request_id
    assert answer.data[-1].startswith('{"error"')
    assert b"[DONE]" not in answer.body


def ended_well(answer: Answer, text: str | None = None) -> None:
    """The stream ended as it should."""
    assert answer.status == 200
    assert answer.whole
    assert answer.stream_error is None
    assert answer.data[-1] == "[DONE]"
    if text is not None:
        assert answer.text == text


@row("A1")
async def test_a_target_that_refuses_is_passed_over_and_put_out(world: World) -> None:
    """Every call is answered by the other target; after five refusals the first is not asked again."""
    model = world.take(2)
    for _ in range(4):
        assert (await world.caller.chat(model.name)).status == 200
    await model.upstreams[0].stop()
    answers = [await world.caller.chat(model.name, stream=n % 2 == 0) for n in range(14)]
    assert [answer.status for answer in answers] == [200] * 14
    assert sorted(answer.took_s for answer in answers)[7] < 1.0  # the deadline of a connection
    target = (await world.model_state(model.name))["targets"][0]
    assert target["state"] == "down"
    assert "5 failures in a row" in target["why"]
    assert target["broken"] == 5


@row("A2")
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("stream", [True, False])
async def test_when_all_refuse_the_answer_comes_at_once(world: World, targets: int, stream: bool) -> None:
    """503 service_unavailable with Retry-After, within a second, at the first call and at the tenth."""
    model = world.take(targets)
    for upstream in model.upstreams:
        await upstream.stop()
    world.tape.allowed.add(503)
    for _ in range(10):
        answer = await world.caller.chat(model.name, stream=stream)
        assert answer.status == 503
        assert answer.error["code"] in ("service_unavailable", "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.took_s < 10


@row("A3")
@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
async def test_a_target_that_never_answers_is_given_up(world: World, stream: bool) -> None:
    """After the target's deadline the next one is asked; with none left the caller gets 504."""
    model = world.take(2)
    model.script([never()], None)
    answer = await world.caller.chat(model.name, stream=stream)
    assert answer.status == 200
    assert answer.took_s < 20
    alone = world.take(1)
    alone.script([never()])
    world.tape.allowed.add(504)
    answer = await world.caller.chat(alone.name, stream=stream)
    assert answer.status == 504
    assert answer.error["code"] == "upstream_timeout"


@row("A3")
async def test_a_connection_that_swallows_everything_is_given_up(world: World) -> None:
    """A path that takes bytes and lets nothing through is a deadline too, and holds no connection afterwards."""
    model = world.take(2)
    port = model.upstreams[0].port
    await model.upstreams[0].stop()
    async with FaultProxy(model.upstreams[1].port, port=port) as proxy:
        proxy.toxics = [timeout()]
        assert [(await world.caller.chat(model.name)).status for _ in range(2)] == [200, 200]
        assert proxy.accepted >= 1


@row("A4")
@pytest.mark.parametrize("code", [500, 502, 503, 504])
async def test_a_5xx_is_taken_elsewhere(world: World, code: int) -> None:
    """The other target answers; the caller sees 200. When both fail it is 503, and no text of theirs."""
    model = world.take(2)
    failing = status(code, content=b'{"error":{"message":"CANARY /srv/canary/model.py","type":"x"}}')
    model.script([failing], None)
    answers = [await world.caller.chat(model.name, stream=n % 2 == 0) for n in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    model.script([failing], [failing])
    world.tape.allowed.add(503)
    answer = await world.caller.chat(model.name)
    assert answer.status == 503
    assert answer.error["code"] in ("service_unavailable", "overloaded")


@row("A5")
async def test_a_429_is_taken_elsewhere(world: World) -> None:
    """A target at its limit is left alone for as long as it asks; the other one serves."""
    model = world.take(2)
    model.script([status(429, [("retry-after", "20")])], None)
    answers = [await world.caller.chat(model.name) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 6
    assert len([seen for seen in model.upstreams[0].requests if seen.method == "POST"]) == 1
    target = (await world.model_state(model.name))["targets"][0]
    assert target["state"] == "busy"


@row("A5")
@pytest.mark.parametrize("waits", [(7, 19), (19, 7)])
async def test_when_all_are_at_their_limit_the_larger_wait_is_passed_on(world: World, waits: tuple[int, int]) -> None:
    """429 with the larger Retry-After, whichever target said it."""
    model = world.take(2)
    model.script(*([status(429, [("retry-after", str(wait))])] for wait in waits))
    answer = await world.caller.chat(model.name)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "19"
    assert answer.error["type"] == "rate_limit_error"


@row("A6")
async def test_a_400_is_the_callers_own(world: World) -> None:
    """One attempt; the message comes through short and scrubbed; the target's health is untouched."""
    model = world.take(2)
    text = "bad tool at /srv/canary/tools.py, see http://10.1.2.3:8000/x " + "y" * 800
    rejecting = status(400, content=json.dumps({"error": {"message": text, "type": "t", "param": "tools"}}).encode())
    model.script([rejecting], [rejecting])
    answer = await world.caller.chat(model.name)
    assert answer.status == 400
    message = answer.error["message"]
    assert message.startswith("bad tool at [path]")
    assert len(message) <= 500
    assert "10.1.2.3" not in message
    assert len(model.posts) == 1
    assert {t["state"] for t in (await world.model_state(model.name))["targets"]} == {"ready"}


@row("A6")
@pytest.mark.parametrize("content", [b"CANARY <html>", b'{"detail":"CANARY"}', b"", b'"CANARY"', b"\xff\xfe CANARY"])
async def test_a_400_of_unknown_shape_says_nothing(world: World, content: bytes) -> None:
    """Text that is not in a known error shape is not passed on."""
    model = world.take(1)
    model.script([status(400, content=content)])
    answer = await world.caller.chat(model.name)
    assert answer.status == 400
    assert "CANARY" not in answer.body.decode()


@row("A7")
@pytest.mark.parametrize("last", [reset, close])
async def test_a_death_after_the_headers_is_not_seen(world: World, last: Any) -> None:
    """Nothing had reached the caller, so another target answers."""
    model = world.take(2)
    model.script([headers(), last()], None)
    for stream in (True, True, False, False):
        answer = await world.caller.chat(model.name, stream=stream)
        assert answer.status == 200
        assert answer.text.count("tok") == 8


@row("A7")
async def test_a_comment_is_not_the_first_token(world: World) -> None:
    """A server that sent only keep-alive comments and died is passed over."""
    model = world.take(2)
    model.script([headers(), body(b": ping\n\n"), reset()], None)
    for _ in range(2):
        ended_well(await world.caller.chat(model.name))


@row("A8")
@pytest.mark.parametrize("last", [reset, close, end])
async def test_a_death_after_five_tokens_is_told(world: World, last: Any) -> None:
    """Five tokens, one error event, no [DONE]; five tokens are accounted, and nobody else is asked."""
    model = world.take(2)
    dying: Scenario = [headers(), tokens(5), last()]
    model.script(dying, dying)
    answer = await world.caller.chat(model.name)
    ended_badly(answer, 5, "upstream_failed")
    assert len(model.posts) == 1
    assert answer.request_id is not None
    usage = await world.usage(answer.request_id)
    assert (usage["completion_tokens"], usage["token_source"], usage["outcome"]) == (5, "relayed", "broken")


@row("A8")
async def test_the_connection_ends_with_a_broken_stream(world: World) -> None:
    """After the error event the connection is closed, so that no client takes the answer for a good one."""
    model = world.take(1)
    model.script([headers(), tokens(5), reset()])
    conversation, request_id = await world.caller.begin_chat(model.name)
    async with conversation:
        answer = await conversation.answer(request_id=request_id)
        ended_badly(answer, 5, "upstream_failed")
        assert await conversation.rest(within_s=2) == b""


@row("A8")
async def test_a_connection_cut_on_the_way_is_told(world: World) -> None:
    """The network between us and the server cuts after some bytes: the same as a death."""
    model = world.take(1)
    port = model.upstreams[0].port
    await model.upstreams[0].stop()
    target = world.take(1).upstreams[0]
    target.token_every_s = 0.02
    async with FaultProxy(target.port, port=port) as proxy:
        for toxics in ([limit_data(900)], [limit_data(900, reset=True)]):
            proxy.toxics = toxics
            answer = await world.caller.chat(model.name)
            assert answer.stream_error is not None
            assert b"[DONE]" not in answer.body
        proxy.toxics = [reset_peer(0.02)]
        world.tape.allowed |= {502, 503}
        answer = await world.caller.chat(model.name)
        assert answer.status in (502, 503) or answer.stream_error is not None


@row("A9")
@pytest.mark.slow
async def test_a_stall_is_a_death(world: World) -> None:
    """A target that goes silent in the middle is given up after its idle deadline, and its connection closed."""
    model = world.take(1)
    model.script([headers(), tokens(5), stall(60)])
    answer = await world.caller.chat(model.name)
    ended_badly(answer, 5, "upstream_timeout")
    assert answer.took_s < 20
    await model.upstreams[0].drained(1.0)


def _events(*, usage: bool = True) -> list[str]:
    base = {"id": "u", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    texts = [{**base, "choices": [{"index": 0, "delta": {"content": t}}]} for t in ("one ", "two ", '"model":"m" ')]
    last = [{**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    counts = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    tail = [{**base, "choices": [], "usage": counts}] if usage else []
    return [json.dumps(each) for each in (*texts, *last, *tail)] + ["[DONE]"]


def _framed(line: str = "\n", *, final: bool = True, comments: bool = False) -> bytes:
    parts = []
    for data in _events():
        if comments:
            parts.append(f": keep-alive{line}{line}")
        parts.append(
            f"event: message{line}id: 7{line}data: {data}{line}{line}" if comments else f"data: {data}{line * 2}"
        )
    text = "".join(parts)
    return (text if final else text.rstrip("\r\n")).encode()


STREAMS = {
    "one packet": _framed(),
    "crlf": _framed("\r\n"),
    "cr": _framed("\r"),
    "comments and fields": _framed(comments=True),
    "no final blank line": _framed(final=False),
    "crlf, no final blank line": _framed("\r\n", final=False),
    "byte order mark": b"\xef\xbb\xbf" + _framed(),
    "no space after data": _framed().replace(b"data: ", b"data:"),
    "data over two lines": _framed().replace(b', "choices"', b',\ndata:  "choices"'),
}


@row("A11")
@pytest.mark.parametrize("form", STREAMS)
@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "bytewise"])
async def test_event_streams_are_read_by_the_standard(world: World, form: str, sliced: bool) -> None:
    """The text, the model's public name and the usage come through however the events were framed and cut."""
    model = world.take(1)
    data = STREAMS[form]

    async def bytewise(exchange: Exchange) -> None:
        for at in range(0, len(data), 1 if sliced else len(data)):
            await exchange.body(data[at : at + 1] if sliced else data)
            if sliced and at % 64 == 0:
                await asyncio.sleep(0)

    model.script([headers(), bytewise, end()])
    answer = await world.caller.chat(model.name, stream_options={"include_usage": True})
    ended_well(answer, 'one two "model":"m" ')
    chunks = [json.loads(each) for each in answer.data[:-1]]
    assert {chunk["model"] for chunk in chunks} == {model.name}
    assert chunks[-1]["usage"]["completion_tokens"] == 7
    assert answer.request_id is not None
    usage = await world.usage(answer.request_id)
    assert (usage["completion_tokens"], usage["token_source"]) == (7, "engine")


@row("A11")
async def test_a_stream_sliced_on_the_wire_is_the_same(world: World) -> None:
    """Packets of seven bytes change nothing."""
    model = world.take(1)
    port = model.upstreams[0].port
    await model.upstreams[0].stop()
    async with FaultProxy(world.take(1).upstreams[0].port, port=port) as proxy:
        proxy.toxics = [slicer(7)]
        ended_well(await world.caller.chat(model.name), "".join(f"tok{n} " for n in range(8)))


@row("A13")
async def test_a_runaway_stream_is_cut(world: World) -> None:
    """A server that ignores max_tokens is cut near the limit and aborted; the stream ends as it should."""
    model = world.take(1)
    model.script([headers(), tokens(100_000, 0.001), finish()])
    answer = await world.caller.chat(model.name, max_tokens=5)
    ended_well(answer)
    assert 5 <= answer.text.count("tok") <= 30
    assert json.loads(answer.data[-2])["choices"][0]["finish_reason"] == "length"
    await model.upstreams[0].drained(1.0)


_CHUNK = '{"id":"x","object":"chat.completion.chunk","model":"m","choices":[%s]}'
_NONSENSE_EVENTS = {
    "not json": "CANARY nonsense",
    "half a document": '{"choices":[{"delta":{"content":"CANARY',
    "a list": '["CANARY"]',
    "no choices": '{"id":"x","text":"CANARY"}',
    "NaN": '{"choices":NaN,"x":"CANARY"}',
    "an error": '{"error":{"message":"CANARY at /srv/canary"}}',
    "vllm's error": '{"object":"error","message":"CANARY"}',
    "not utf-8": "\udcff\udcfe CANARY",
    "not utf-8 within": _CHUNK % '{"index":0,"delta":{"content":"CANARY \udcff"}}',
}


@row("A14")
@pytest.mark.parametrize("name", _NONSENSE_EVENTS)
async def test_nonsense_in_a_stream_is_never_shown(world: World, name: str) -> None:
    """Before the first token it is 502 (or another target); after it, an error event; never the server's text."""
    event = b"data: " + _NONSENSE_EVENTS[name].encode("utf-8", "surrogateescape") + b"\n\n"
    model = world.take(1)
    model.script([headers(), body(event), end()])
    world.tape.allowed |= {502, 503}
    answer = await world.caller.chat(model.name)
    assert answer.status in (502, 503)
    model.script([headers(), tokens(2), body(event), tokens(2), finish()])
    ended_badly(await world.caller.chat(model.name), 2, "upstream_failed")


_NONSENSE_DOCUMENTS = {
    "not json": b"CANARY",
    "empty": b"",
    "a list": b'["CANARY"]',
    "null": b"null",
    "no choices": b'{"id":"x","text":"CANARY"}',
    "choices null": b'{"choices":null,"text":"CANARY"}',
    "choices empty": b'{"choices":[],"text":"CANARY"}',
    "choices a number": b'{"choices":7,"text":"CANARY"}',
    "NaN": b'{"choices":[{"index":0,"message":{"content":NaN}}],"x":"CANARY"}',
    "truncated": b'{"choices":[{"index":0,"message":{"content":"CANARY',
    "not utf-8": b'{"choices":[{"index":0,"message":{"content":"CANARY\xff\xfe"}}]}',
    "usage of the wrong type": b'{"choices":[{}],"usage":{"prompt_tokens":"CANARY"}}',
    "an error with 200": b'{"error":{"message":"CANARY"}}',
    "vllm's error with 200": b'{"object":"error","message":"CANARY"}',
}


@row("A14")
@pytest.mark.parametrize("name", _NONSENSE_DOCUMENTS)
async def test_nonsense_in_a_document_is_502(world: World, name: str) -> None:
    """A document that is no completion is a failure of its server, and no word of it is shown."""
    model = world.take(1)
    model.script([status(200, content=_NONSENSE_DOCUMENTS[name])])
    world.tape.allowed |= {502, 503}
    answer = await world.caller.chat(model.name, stream=False)
    assert answer.status in (502, 503)
    assert "CANARY" not in answer.body.decode()


@row("A14")
async def test_what_is_odd_but_harmless_passes(world: World) -> None:
    """A second finish reason and a wrong model name are the server's business; the caller sees the public name."""
    model = world.take(1)
    twice = (_CHUNK % '{"index":0,"delta":{},"finish_reason":"stop"}').encode()
    model.script([headers(), tokens(2), body(b"data: " + twice + b"\n\n" + b"data: " + twice + b"\n\n"), finish()])
    ended_well(await world.caller.chat(model.name), "tok tok ")


def _ok(extra: str = "", content: bytes = b"{}") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{extra}\r\n".encode() + content


FRAMINGS: dict[str, Sequence[Step]] = {
    "length too long": [raw(_ok("content-length: 1000\r\n")), close()],
    "length not a number": [raw(_ok("content-length: abc\r\n")), stall(0.2), close()],
    "two lengths": [raw(_ok("content-length: 2\r\ncontent-length: 3\r\n")), stall(0.2), close()],
    "length and chunks": [raw(_ok("content-length: 2\r\ntransfer-encoding: chunked\r\n")), stall(0.2), close()],
    "chunk without its end": [raw(_ok("transfer-encoding: chunked\r\n", b"2\r\n{}2\r\n{}\r\n0\r\n\r\n")), stall(0.2)],
    "chunk size not hex": [raw(_ok("transfer-encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n")), stall(0.2)],
    "header of 1 MB": [raw(_ok("x-big: " + "a" * 1_000_000 + "\r\n" + "content-length: 2\r\n")), stall(0.2)],
    "10,000 headers": [raw(_ok("x-many: a\r\n" * 10_000 + "content-length: 2\r\n")), stall(0.2)],
    "not http": [raw(b"SSH-2.0-OpenSSH CANARY\r\n\r\n"), stall(0.2)],
    "101": [raw(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), stall(0.2)],
    "endless 100": [raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000), stall(0.2), close()],
    "gzip": [raw(_ok("content-encoding: gzip\r\ncontent-length: 2\r\n")), stall(0.2)],
}


@row("A15")
@pytest.mark.parametrize("name", FRAMINGS)
async def test_broken_framing_is_502_and_the_connection_is_dropped(world: World, name: str) -> None:
    """What breaks HTTP is a failure of the server; the connection never serves another request."""
    model = world.take(1)
    model.script(FRAMINGS[name])
    world.tape.allowed |= {502, 503}
    answer = await world.caller.chat(model.name, stream=False)
    assert answer.status in (502, 503)
    numbers = [seen.peer.number for seen in model.posts]
    model.script(None)
    assert (await world.caller.chat(model.name, stream=False)).status == 200
    assert model.posts[-1].peer.number not in numbers


@row("A15")
async def test_bytes_after_the_end_are_not_the_next_answer(world: World) -> None:
    """An answer with something behind it is good, or a failure; what follows never answers another caller."""
    model = world.take(1)
    document = json.dumps({"choices": [{"index": 0, "message": {"content": "mine"}}]}).encode()
    forged = _ok(f"content-length: {len(document)}\r\n", document.replace(b"mine", b"your"))
    model.script([raw(_ok(f"content-length: {len(document)}\r\n", document) + forged), stall(5)])
    world.tape.allowed |= {502, 503}
    first = await world.caller.chat(model.name, stream=False)
    assert b"your" not in first.body
    number = model.posts[-1].peer.number
    model.script(None)
    second = await world.caller.chat(model.name, stream=False)
    assert b"your" not in second.body
    assert second.status == 200
    assert model.posts[-1].peer.number != number


@row("A17")
@pytest.mark.parametrize("code", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(world: World, code: int) -> None:
    """No packet goes to where a server points."""
    sink: list[str] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sink.append("connected")
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    model = world.take(1)
    model.script([status(code, [("location", f"http://127.0.0.1:{port}/latest/meta-data")], b"")])
    world.tape.allowed |= {502, 503}
    for stream in (True, False):
        assert (await world.caller.chat(model.name, stream=stream)).status in (502, 503)
    server.close()
    assert sink == []


@row("A19")
@pytest.mark.slow
async def test_a_flapping_target_costs_no_caller_an_answer(world: World) -> None:
    """One of two targets fails every other request: nearly all callers get 200, for little extra load."""
    model = world.take(2)
    flaps = iter(range(10**9))

    def flapping(seen: Seen) -> Sequence[Step]:
        return [status(500)] if next(flaps) % 2 else [headers(), tokens(3), finish()]

    model.script(flapping, None)
    load = await good_load(world.caller, model.name, rate_per_s=80, seconds=5, stream=True)
    assert load.success >= 0.999
    assert len(model.posts) <= 1.2 * len(load.answers)


@row("A20")
@pytest.mark.slow
async def test_a_slow_target_gets_less(world: World) -> None:
    """least_busy sends nearly everything to the fast target, so that the tail is the fast one's."""
    model = world.models["least-busy"]
    port = model.upstreams[0].port
    await model.upstreams[0].stop()
    slow = world.take(1).upstreams[0]
    async with FaultProxy(slow.port, port=port) as proxy:
        proxy.toxics = [latency(3.0)]
        load = await good_load(world.caller, model.name, rate_per_s=60, seconds=4)
    assert load.success == 1.0
    late = [answer for answer in load.answers if answer.took_s > 2.5]
    assert len(late) <= 0.05 * len(load.answers)
    assert load.latency_s(0.9) < 1.0


@row("A22")
async def test_our_ids_are_used(world: World) -> None:
    """What a server says of time and ids changes neither the request id nor the usage row."""
    model = world.take(1)
    lying = [("x-request-id", "theirs-CANARY"), ("date", "Thu, 01 Jan 1970 00:00:00 GMT"), ("set-cookie", "CANARY=1")]
    model.script([headers(extra=lying), tokens(2), finish(usage=True)])
    answers = [await world.caller.chat(model.name) for _ in range(2)]
    for answer in answers:
        ended_well(answer)
        assert answer.headers["x-request-id"] == answer.request_id
        assert answer.request_id is not None
        row_ = await world.usage(answer.request_id)
        assert row_["at_ms"] > 1_600_000_000_000
        assert model.posts[-1].headers["x-request-id"] in {a.request_id for a in answers}


@row("A5", "A4")
async def test_a_model_recovers(world: World) -> None:
    """A target that was put out is tried again after its time out, and serves."""
    model = world.take(1)
    model.script([status(500)])
    world.tape.allowed |= {502, 503}
    for _ in range(3):
        await world.caller.chat(model.name)
    model.script(None)

    async def serves() -> bool:
        return (await world.caller.chat(model.name)).status == 200

    assert await becomes(serves, 20)
