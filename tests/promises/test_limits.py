"""Limits: what may run, what may wait, and what those are told who may not."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.harness.oracles import becomes
from tests.harness.upstreamd import Exchange, finish, headers, never, tokens
from tests.harness.world import ModelSpec, World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
SLOW = {"timeouts": {"connect_s": 2.0, "first_byte_s": 30.0, "idle_s": 30.0}}
WORLD = {
    "models": [
        ModelSpec("three", 1, {"max_concurrent": 3}, SLOW),
        ModelSpec("two-each", 2, {}, {**SLOW, "max_concurrent": 2}),
        ModelSpec("full", 1, {"max_concurrent": 1}, SLOW),
        ModelSpec("late", 1, {"max_concurrent": 1}, SLOW),
        ModelSpec("told", 1, {"max_concurrent": 1}, SLOW),
    ],
    "settings": {"queue": {"max_waiting": 5, "max_wait_s": 6.0}},
}


async def test_no_more_run_than_may(world: World) -> None:
    """At eight callers and three places, never more than three are at the model server, and all are served."""
    model = world.models["three"]
    most = 0

    async def watch(exchange: Exchange) -> None:
        nonlocal most
        most = max(most, exchange.upstream.busy)

    model.script([watch, headers(), tokens(3, 0.03), finish()])
    answers = await asyncio.gather(*(world.caller.chat("three") for _ in range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    assert most == 3


async def test_targets_have_places_of_their_own(world: World) -> None:
    """Two targets with two places each run four calls, two at each."""
    model = world.models["two-each"]
    model.script(*([headers(), tokens(3, 0.05), finish()] for _ in range(2)))
    running = [asyncio.create_task(world.caller.chat("two-each")) for _ in range(8)]
    await model.upstreams[0].until(lambda: model.upstreams[0].busy + model.upstreams[1].busy == 4, 20)
    assert [upstream.busy for upstream in model.upstreams] == [2, 2]
    assert [answer.status for answer in await asyncio.gather(*running)] == [200] * 8


async def test_a_full_room_sheds_at_once(world: World) -> None:
    """Whoever finds every place taken gets 503 with Retry-After, while the others still wait; those are served."""
    model = world.models["full"]
    told = asyncio.Event()

    async def hold(_: Exchange) -> None:
        await told.wait()

    model.script([headers(), hold, tokens(1), finish()])
    world.tape.allowed.add(503)
    first = asyncio.create_task(world.caller.chat("full"))
    await model.upstreams[0].until(lambda: model.upstreams[0].busy == 1, 20)
    model.script([headers(), tokens(1), finish()])
    waiting = [asyncio.create_task(world.caller.chat("full", stream=False)) for _ in range(5)]

    async def full() -> bool:
        return bool((await world.model_state("full"))["queue"]["waiting"] == 5)

    assert await becomes(full, 15)
    shed = await world.caller.chat("full")
    assert (shed.status, shed.error["code"]) == (503, "overloaded")
    assert int(shed.headers["retry-after"]) >= 1
    assert not any(task.done() for task in (first, *waiting))
    told.set()
    assert (await first).data[-1] == "[DONE]"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_waiting_has_an_end(world: World) -> None:
    """A call that waited as long as the queue allows gets 503, or, where its stream began already, an error event."""
    model = world.models["late"]
    model.script([headers(), tokens(1), never()])
    world.tape.allowed.add(503)
    conversation, _ = await world.caller.begin_chat("late")
    async with conversation:
        await conversation.until(b"tok")
        streamed, whole = await asyncio.gather(world.caller.chat("late"), world.caller.chat("late", stream=False))
    assert whole.status == 503
    assert 5.5 < whole.took_s < 20
    assert streamed.stream_error is not None
    assert streamed.stream_error["code"] == "overloaded"


async def test_a_stream_that_waits_is_told_its_place(world: World) -> None:
    """Comments, which clients ignore, say the position; then the answer follows as usual."""
    model = world.models["told"]
    told = asyncio.Event()

    async def hold(_: Exchange) -> None:
        await told.wait()

    model.script([headers(), tokens(1), hold, finish()])
    first = asyncio.create_task(world.caller.chat("told"))
    await model.upstreams[0].until(lambda: model.upstreams[0].busy == 1, 20)
    model.script([headers(), tokens(2), finish()])
    conversation, request_id = await world.caller.begin_chat("told")
    async with conversation:
        await conversation.until(b": queued position=1")
        told.set()
        answer = await conversation.answer(request_id=request_id)
    await first
    assert answer.text == "tok tok "
    assert all(json.loads(data) for data in answer.data[:-1])
