"""Rows D: bursts at a limit, callers who leave while tokens are set aside for them, a shared store that goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.faults.table import row
from tests.harness.clients import Answer, Caller, Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.oracles import becomes
from tests.harness.upstreamd import Seen, Step, Upstream, finish, headers, normal, reset, tokens
from tests.harness.valkey import ValkeyProcess
from tests.harness.world import SETTINGS, World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
WORLD = {"singles": 2}


async def limit(world: World | GatewayProcess, key: str, **fields: Any) -> str:
    """Sets a limit on a key by the admin API, and returns its id."""
    gateway = world.gateway if isinstance(world, World) else world
    body = {"subject_kind": "key", "subject_id": key, **fields}
    status, answer = await asyncio.to_thread(gateway.post, "/admin/limits", body)
    assert status == 201, answer
    return str(json.loads(answer)["id"])


async def standing(gateway: GatewayProcess, limit_id: str) -> dict[str, Any]:
    """Returns how a limit stands."""
    status, body = await asyncio.to_thread(gateway.get, f"/admin/limits/{limit_id}", key=gateway.key)
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


async def new_key(gateway: GatewayProcess, name: str) -> tuple[str, str]:
    """Makes a key by the admin API, and returns its id and secret."""
    status, body = await asyncio.to_thread(gateway.post, "/admin/keys", {"name": name, "scopes": ["inference"]})
    assert status == 201, body
    made = json.loads(body)
    return made["id"], made["key"]


@row("D8")
async def test_a_burst_gets_exactly_the_limit(world: World) -> None:
    """200 at once against a limit of 50: 50 pass; the others get 429, when to come back, and the headers."""
    model = world.take()
    key_id, secret = await new_key(world.gateway, "burst")
    await limit(world, key_id, measure="requests", period="day", value=50)
    caller = Caller(world.gateway.port, secret, world.tape)
    answers = await asyncio.gather(*(caller.chat(model.name, stream=number % 2 == 0) for number in range(200)))
    refused = [answer for answer in answers if answer.status == 429]
    assert sum(answer.status == 200 for answer in answers) == 50
    assert len(refused) == 150
    assert len(model.posts) == 50
    for answer in refused:
        assert answer.error["code"] == "rate_limit_exceeded"
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
        assert answer.headers["x-ratelimit-limit-requests"] == "50"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    remaining = sorted(int(a.headers["x-ratelimit-remaining-requests"]) for a in answers if a.status == 200)
    assert remaining == list(range(50))


@row("D11")
async def test_who_leaves_gets_back_what_was_not_used(world: World) -> None:
    """Streams that are left, broken, and whole ones: in the end nothing is held, and what is used is the rows' sum."""
    model = world.take()
    model.upstreams[0].token_every_s = 0.01

    def often_broken(seen: Seen) -> Sequence[Step]:
        if "break" in seen.json["messages"][0]["content"]:
            return [headers(), tokens(3), reset()]
        return [headers(), tokens(12, 0.01), finish()]

    model.script(often_broken)
    world.tape.allowed |= {502}
    key_id, secret = await new_key(world.gateway, "leaver")
    of_tokens = await limit(world, key_id, measure="tokens", period="day", value=1_000_000)
    at_once = await limit(world, key_id, measure="concurrent", value=100)
    caller = Caller(world.gateway.port, secret, world.tape)

    async def one(number: int) -> None:
        if number % 3 == 0:
            conversation, _ = await caller.begin_chat(model.name, max_tokens=50)
            async with conversation:
                if number % 2:
                    await conversation.until(b"tok")
                conversation.leave("rst" if number % 4 else "fin")
        else:
            await caller.chat(model.name, text="break" if number % 3 == 1 else "hello", max_tokens=50)

    for _ in range(3):
        await asyncio.gather(*(one(number) for number in range(30)))

    async def free() -> bool:
        found = [await standing(world.gateway, limit_id) for limit_id in (of_tokens, at_once)]
        return [each["held"] for each in found] == [0, 0]

    assert await becomes(free, 20)

    async def agrees() -> bool:
        rows = [row for row in world.gateway.usage_rows() if row["key_id"] == key_id]
        used = (await standing(world.gateway, of_tokens))["used"]
        return used > 0 and used == sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)

    assert await becomes(agrees, 20)


@row("D10")
async def test_limits_go_on_without_their_store(tmp_path: Path) -> None:
    """The store is killed under load: every answer is 200, or 429 at the limit; it comes back without a restart."""
    async with Upstream() as upstream:
        with ValkeyProcess(tmp_path / "valkey") as store:
            config = {**SETTINGS, "redis": store.url, "models": [{"name": "m", "targets": [{"url": upstream.url}]}]}
            upstream.scenario = lambda seen: [normal()]
            process = GatewayProcess(tmp_path / "home", config)
            await asyncio.to_thread(process.start)
            try:
                await _store_comes_and_goes(process, store)
            finally:
                assert await asyncio.to_thread(process.stop) == 0


async def _store_comes_and_goes(process: GatewayProcess, store: ValkeyProcess) -> None:
    key_id, secret = await new_key(process, "steady")
    limit_id = await limit(process, key_id, measure="requests", period="day", value=40)
    caller = Caller(process.port, secret, Tape())

    async def ask(count: int) -> list[Answer]:
        return list(await asyncio.gather(*(caller.chat("m", stream=False) for _ in range(count))))

    assert [answer.status for answer in await ask(10)] == [200] * 10
    burst = asyncio.create_task(ask(10))
    store.kill()
    assert {answer.status for answer in await burst} == {200}
    without = await ask(10)
    assert [answer.status for answer in without] == [200] * 10
    assert max(answer.took_s for answer in without) < 10
    process.wait_usage(30)
    await asyncio.to_thread(store.start)

    async def counted() -> bool:
        found = await standing(process, limit_id)
        return bool(found["used"] == 30 and found["held"] == 0)

    assert await becomes(counted, 20), await standing(process, limit_id)
    rest = await ask(15)
    assert sorted(answer.status for answer in rest) == [200] * 10 + [429] * 5
    # An unknown key is refused because it is unknown, never because a store is away.
    store.kill()
    assert (await Caller(process.port, "sk-pas-unknown", Tape()).chat("m")).status == 401
    assert (await caller.chat("m", stream=False)).status == 429
