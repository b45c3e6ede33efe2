"""Fail-over: what is retried, what never, and at what price."""

from __future__ import annotations

import asyncio

import pytest
from tests.harness.clients import good_load
from tests.harness.upstreamd import headers, reset, status, tokens
from tests.harness.world import ModelSpec, World

pytestmark = pytest.mark.asyncio(loop_scope="module")
WORLD = {
    "singles": 6,
    "pairs": 6,
    "settings": {"server": {"request_timeout_s": 6}},
    "models": [
        ModelSpec("first-choice", 1, {"fallbacks": {"error": ["second-choice"], "overload": ["second-choice"]}}),
        ModelSpec("second-choice", 1),
        ModelSpec("tiered", 2, {"policy": "least_busy"}),
    ],
}


async def test_the_request_id_is_the_same_at_every_attempt(world: World) -> None:
    """Both targets see the caller's id, and the usage row counts two attempts."""
    model = world.take(2)
    model.script([status(500)], [status(500)])
    world.tape.allowed.add(503)
    answer = await world.caller.chat(model.name)
    assert {seen.headers["x-request-id"] for seen in model.posts} == {answer.request_id}
    assert len(model.posts) == 3, "one attempt and at most two more"
    assert answer.request_id is not None
    assert (await world.usage(answer.request_id))["attempts"] == 3


async def test_two_generations_are_never_spliced(world: World) -> None:
    """Whatever breaks a stream after its first token, nobody else is asked to go on."""
    model = world.take(2)
    model.script([headers(), tokens(1), reset()], [headers(), tokens(1), reset()])
    for _ in range(4):
        answer = await world.caller.chat(model.name)
        assert answer.text == "tok "
        assert answer.stream_error is not None
    assert len(model.posts) == 4


@pytest.mark.slow
async def test_one_deadline_over_everything(world: World) -> None:
    """Attempts, waits and the stream itself share the request's deadline; a stream past it gets an error event."""
    model = world.take(1)
    model.script([headers(), tokens(1000, 0.1)])
    answer = await world.caller.chat(model.name)
    assert 5 <= answer.took_s < 20  # the whole stream would take 100
    assert answer.stream_error is not None
    assert answer.stream_error["code"] == "upstream_timeout"
    assert answer.request_id is not None
    assert (await world.usage(answer.request_id))["outcome"] == "timeout"


async def test_retries_have_a_budget(world: World) -> None:
    """When everything fails, the extra load stays near a fifth: retries do not make an overload worse."""
    model = world.take(2)
    model.script([status(500)], [status(500)])
    world.tape.allowed.add(503)
    load = await good_load(world.caller, model.name, rate_per_s=100, seconds=2)
    assert load.good == 0
    assert len(model.posts) <= 1.2 * len(load.answers) + 15


async def test_another_model_answers_when_configured(world: World) -> None:
    """The fallback is named in a header and in the usage row, and the caller's own model name stays in the answer."""
    world.models["first-choice"].script([status(500)])
    answer = await world.caller.chat("first-choice", stream=False)
    assert answer.status == 200
    assert answer.headers["x-passerelle-fallback"] == "first-choice -> second-choice"
    assert answer.request_id is not None
    usage = await world.usage(answer.request_id)
    assert (usage["model"], usage["fallback_from"]) == ("second-choice", "first-choice")


async def test_a_callers_mistake_changes_no_targets_health(world: World) -> None:
    """Many 400 in a row leave a target ready."""
    model = world.take(1)
    model.script([status(400)])
    for _ in range(12):
        assert (await world.caller.chat(model.name)).status == 400
    (target,) = (await world.model_state(model.name))["targets"]
    assert (target["state"], target["broken"]) == ("ready", 0)


async def test_a_drained_target_gets_nothing_new(world: World) -> None:
    """Its running answers finish, new calls go elsewhere, and undrained it serves again."""
    model = world.take(2)
    model.upstreams[0].token_every_s = model.upstreams[1].token_every_s = 0.05
    running = [asyncio.create_task(world.caller.chat(model.name)) for _ in range(4)]
    await model.upstreams[0].until(lambda: len(model.posts) == 4, 20)
    target = (await world.model_state(model.name))["targets"][0]
    answer = await world.caller.ask(f"/admin/router/{target['id']}/drain", {})
    assert answer.json["state"] == "draining"
    before = len([seen for seen in model.upstreams[0].requests if seen.method == "POST"])
    assert [(await world.caller.chat(model.name)).status for _ in range(3)] == [200] * 3
    assert len([seen for seen in model.upstreams[0].requests if seen.method == "POST"]) == before
    assert all(answer.data[-1] == "[DONE]" for answer in await asyncio.gather(*running))
    assert (await world.caller.ask(f"/admin/router/{target['id']}/undrain", {})).json["state"] == "ready"
