"""Accounting: one usage row for each call, whatever its caller does, and none lost at a stop."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest
from tests.harness.clients import Caller, Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Upstream, headers, never, tokens
from tests.harness.world import SETTINGS, ModelSpec, World, on_posts

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
SLOW = {"timeouts": {"connect_s": 2.0, "first_byte_s": 30.0, "idle_s": 30.0}}
WORLD = {
    "singles": 4,
    "models": [ModelSpec("wide", 1, {}, SLOW), ModelSpec("narrow", 1, {"max_concurrent": 3}, SLOW)],
}


@pytest.mark.parametrize("calls", [120, 1000])
async def test_one_row_for_each_of_many_random_departures(world: World, calls: int) -> None:
    """Callers leave at random moments in random ways: every call that began has one row, and the counts add up."""
    draw = random.Random(calls)
    for name in ("wide", "narrow"):
        world.models[name].upstreams[0].token_every_s = 0.005
    ids: list[str] = []
    before = await world.metric('passerelle_calls_total{model="wide",operation="chat",outcome="ok"}')

    async def one() -> None:
        stream = draw.random() < 0.7
        conversation, request_id = await world.caller.begin_chat(draw.choice(("wide", "narrow")), stream=stream)
        async with conversation:
            ids.append(request_id)
            await asyncio.sleep(draw.random() * 0.08)
            if draw.random() < 0.8:
                conversation.leave(draw.choice(("fin", "rst", "half")))
            elif stream:
                await conversation.until(b"[DONE]")
            else:
                await conversation.answer(request_id=request_id)

    async def some(count: int) -> None:
        for _ in range(count):
            await one()

    await asyncio.gather(*(some(calls // 12) for _ in range(12)))
    reached = {seen.headers["x-request-id"] for name in ("wide", "narrow") for seen in world.models[name].posts}
    for request_id in sorted(reached & set(ids)):
        usage = await world.usage(request_id)
        assert usage["outcome"] in ("ok", "cancelled")
    assert await world.metric('passerelle_calls_total{model="wide",operation="chat",outcome="ok"}') >= before


async def test_tokens_are_counted_as_far_as_they_came(world: World) -> None:
    """A caller who leaves after three tokens pays for three; a whole answer counts what the engine says."""
    model = world.take()
    whole = await world.caller.chat(model.name)
    assert whole.request_id is not None
    usage = await world.usage(whole.request_id)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["token_source"]) == (2, 8, "engine")
    model.script([headers(), tokens(3), never()])
    conversation, request_id = await world.caller.begin_chat(model.name)
    async with conversation:
        await conversation.until(b"tok ", count=3)
    usage = await world.usage(request_id)
    assert (usage["completion_tokens"], usage["token_source"], usage["outcome"]) == (3, "relayed", "cancelled")


async def test_nothing_is_lost_at_sigterm(tmp_path: Path) -> None:
    """Rows that were not written yet when the signal came are written before the end, those of running calls too."""
    async with Upstream() as upstream:
        upstream.scenario = on_posts([headers(), tokens(2), never()])
        config = {
            **SETTINGS,
            "accounting": {"flush_interval_s": 30},
            "server": {"grace_s": 0.5},
            "models": [{"name": "m", "targets": [{"url": upstream.url}]}],
        }
        process = GatewayProcess(tmp_path / "home", config)
        await asyncio.to_thread(process.start)
        caller = Caller(process.port, process.key, Tape())
        cut = [await caller.begin_chat("m") for _ in range(10)]
        for conversation, _ in cut:
            await conversation.until(b"tok ", count=2)
        upstream.scenario = None
        done = [await caller.chat("m") for _ in range(50)]
        assert process.usage_rows() == []
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
        for conversation, _ in cut:
            conversation.leave("rst")
        rows = {row["request_id"]: row for row in process.usage_rows()}
        assert rows.keys() == {answer.request_id for answer in done} | {request_id for _, request_id in cut}
        assert {rows[request_id]["completion_tokens"] for _, request_id in cut} == {2}
