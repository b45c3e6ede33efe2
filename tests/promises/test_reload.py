"""Hot reload: nothing fails, nothing is cut, and what is wrong is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.harness.clients import good_load
from tests.harness.oracles import becomes
from tests.harness.upstreamd import finish, headers, tokens
from tests.harness.world import ModelSpec, World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
WORLD = {"singles": 6, "pairs": 2, "models": [ModelSpec("busy", 2, {"policy": "least_busy"})]}


async def generation(world: World) -> int:
    """Returns the number of the catalog that serves."""
    return int((await world.router())["generation"])


async def reloaded(world: World, document: dict[str, Any], within_s: float = 20.0) -> int:
    """Writes a configuration and waits until it serves; returns its generation."""
    before = await generation(world)
    world.rewrite(document)

    async def changed() -> bool:
        return await generation(world) > before

    assert await becomes(changed, within_s), world.gateway.log[-3:]
    return await generation(world)


@pytest.mark.parametrize("reloads", [5, 80])
async def test_reloads_under_load_fail_no_request(world: World, reloads: int) -> None:
    """Many reloads while callers ask and streams run: every call is answered, every stream whole."""
    long = world.models[f"single-{0 if reloads == 5 else 1}"]
    long.script([headers(), tokens(reloads * 6, 0.02 if reloads == 5 else 0.04), finish()])
    streams = [asyncio.create_task(world.second.chat(long.name, within_s=90)) for _ in range(5)]
    stop = asyncio.Event()

    async def ask() -> list[int]:
        found = []
        while not stop.is_set():
            load = await good_load(world.caller, "busy", rate_per_s=25, seconds=1)
            found += [answer.status for answer in load.answers]
        return found

    asking = asyncio.create_task(ask())
    document = world.configuration()
    for number in range(reloads):
        document["models"][-1]["aliases"] = [f"alias-{number}"]
        if number % 10 < 5:
            await reloaded(world, document)
        else:
            world.rewrite(document)  # overlapping ones too
            await asyncio.sleep(0.03)
    stop.set()
    statuses = await asking
    assert statuses and set(statuses) == {200}
    for answer in await asyncio.gather(*streams):
        assert answer.stream_error is None
        assert answer.text == "tok " * (reloads * 6)


async def test_a_target_removed_under_a_stream(world: World) -> None:
    """Its streams finish, new calls go to the target that stays, and the old one is forgotten afterwards."""
    model = world.take(2)
    model.script([headers(), tokens(30, 0.05), finish()], [headers(), tokens(30, 0.05), finish()])
    streams = [asyncio.create_task(world.caller.chat(model.name)) for _ in range(4)]
    await model.upstreams[0].until(lambda: len(model.posts) == 4, 20)
    document = world.configuration()
    section = next(each for each in document["models"] if each["name"] == model.name)
    del section["targets"][0]
    await reloaded(world, document)
    model.script(None, None)
    before = len([seen for seen in model.upstreams[0].requests if seen.method == "POST"])
    assert [(await world.caller.chat(model.name)).status for _ in range(4)] == [200] * 4
    assert len([seen for seen in model.upstreams[0].requests if seen.method == "POST"]) == before == 2
    for answer in await asyncio.gather(*streams):
        assert answer.text == "tok " * 30
        assert answer.data[-1] == "[DONE]"


BROKEN = {
    "not yaml": "models: [\n",
    "unknown key": '{"models": [], "sever": {}}',
    "wrong type": '{"server": {"keep_alive_s": "many"}}',
    "no targets": '{"models": [{"name": "x", "targets": []}]}',
    "twice": json.dumps({"models": [{"name": "x", "targets": [{"url": "http://a/v1"}]}] * 2}),
    "dangling": '{"models": [{"name": "x", "targets": [{"url": "http://a/v1"}], "fallbacks": {"error": ["y"]}}]}',
    "python object": "models: !!python/object/apply:os.system ['true']\n",
    "aliases": "a: &a [x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\nmodels: [*c,*c]\n",
    "secret missing": '{"models": [{"name": "x", "targets": [{"url": "http://a/v1", "api_key": "${NO_SUCH}"}]}]}',
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_configuration_is_refused(world: World, name: str) -> None:
    """What served goes on, the operator sees the file and the line, and the mended file is taken."""
    before = await generation(world)
    errors = await world.metric('passerelle_reloads_total{result="error"}')
    fresh = world.gateway.config_path.with_suffix(".new")
    fresh.write_text(BROKEN[name])
    fresh.replace(world.gateway.config_path)

    async def refused() -> bool:
        return (await world.router())["reload_error"] is not None

    assert await becomes(refused, 20)
    router = await world.router()
    assert router["generation"] == before
    problem = str(router["reload_error"]["problems"])
    assert world.gateway.config_path.name in problem

    async def counted() -> bool:
        return await world.metric('passerelle_reloads_total{result="error"}') == errors + 1

    assert await becomes(counted, 15)
    assert (await world.caller.chat("busy")).status == 200
    await reloaded(world, world.configuration())
    assert (await world.router())["reload_error"] is None
    assert (await world.caller.chat("busy")).status == 200


async def test_a_stream_of_ten_seconds_over_twenty_reloads(world: World) -> None:
    """A rotation of the configuration never cuts a running stream, even when its model's policy and keys change."""
    model = world.take(1)
    model.script([headers(), tokens(100, 0.1), finish()])
    stream = asyncio.create_task(world.caller.chat(model.name, within_s=60))
    document = json.loads(json.dumps(world.configuration()))
    section = next(each for each in document["models"] if each["name"] == model.name)
    for number in range(20):
        section["policy"] = ("least_busy", "round_robin")[number % 2]
        section["targets"][0]["api_key"] = f"sk-upstream-CANARY-{number:06d}"
        await reloaded(world, document)
        await asyncio.sleep(0.2)
    answer = await stream
    assert answer.text == "tok " * 100
    assert answer.data[-1] == "[DONE]"
