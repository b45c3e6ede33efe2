"""Streams: whole, in order, as they come, and many at once."""

from __future__ import annotations

import asyncio

import pytest
from tests.harness.clients import Answer
from tests.harness.oracles import rss_bytes
from tests.harness.upstreamd import Exchange, body, end, finish, headers, tokens
from tests.harness.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
WORLD = {"singles": 8}


async def test_tokens_come_when_they_are_made(world: World) -> None:
    """Each token is here before the next is made: nothing gathers the stream."""
    model = world.take()
    arrived = asyncio.Event()

    async def seen(_: Exchange) -> None:
        await arrived.wait()
        arrived.clear()

    one_by_one = [step for _ in range(5) for step in (tokens(1), seen)]
    model.script([headers(), *one_by_one, finish()])
    conversation, _ = await world.caller.begin_chat(model.name)
    async with conversation:
        for count in range(1, 6):
            await conversation.until(b"tok", count=count)
            assert b"[DONE]" not in conversation.received
            arrived.set()
        await conversation.until(b"[DONE]")


@pytest.mark.parametrize("count", [30, 150])
async def test_many_streams_at_once_are_whole_and_unmixed(world: World, count: int) -> None:
    """Each of many concurrent streams brings its own tokens in order, and little memory is taken for it."""
    model = world.take()

    async def own(exchange: Exchange) -> None:
        name = exchange.seen.json["messages"][0]["content"]
        for number in range(20):
            await exchange.event({"choices": [{"index": 0, "delta": {"content": f"{name}.{number} "}}]})
            await asyncio.sleep(0.02)
        await exchange.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await exchange.body(b"data: [DONE]\n\n")

    model.script([headers(), own, end()])
    before = rss_bytes(world.gateway.pid)
    running = [asyncio.create_task(world.caller.chat(model.name, text=f"s{n}")) for n in range(count)]
    answers: list[Answer] = await asyncio.gather(*running)
    for number, answer in enumerate(answers):
        assert answer.text == "".join(f"s{number}.{k} " for k in range(20))
        assert answer.data[-1] == "[DONE]"
    assert rss_bytes(world.gateway.pid) - before < count * 64 * 1024 + 8 * 1024 * 1024


async def test_an_event_of_many_kilobytes_passes(world: World) -> None:
    """A large event (a tool call's arguments) is one event for the caller too; one without an end is cut."""
    model = world.take()
    large = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 900_000 + b'"}}]}\n\n'
    finish = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    model.script([headers(), body(large), body(finish), end()])
    answer = await world.caller.chat(model.name)
    assert len(answer.text) == 900_000
    model.script([headers(), tokens(1), body(b'data: {"choices":"' + b"x" * 3_000_000), end()])
    answer = await world.caller.chat(model.name)
    assert answer.stream_error is not None
    assert len(answer.body) < 10_000


async def test_what_a_stream_says_of_itself(world: World) -> None:
    """The head names the request, where the time went, and that nobody on the way is to gather or keep it."""
    answer = await world.caller.chat(world.take().name)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "auth;dur=" in answer.headers["server-timing"] and "first_byte;dur=" in answer.headers["server-timing"]
