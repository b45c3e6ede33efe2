"""Whatever ends a key ends it everywhere within five seconds, in the middle of a stream too (promise 14, row D3)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.faults.table import row
from tests.harness.clients import Answer, Caller
from tests.harness.upstreamd import end, headers, tokens
from tests.harness.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
WORLD = {"singles": 9}
WITHIN_S = 5.0
SLOW = [headers(), tokens(600, 0.05), end()]


@dataclass
class Team:
    """An organisation with a project, a user and a key of that user, made through the admin API."""

    world: World
    organisation: str
    project: str
    other_project: str
    user: str
    key: str
    token: str

    async def act(self, method: str, path: str, body: Any = None) -> Any:
        """Does something as the operator."""
        return await admin(self.world, method, f"{path}?organisation={self.organisation}", body)


async def admin(world: World, method: str, path: str, body: Any = None) -> Any:
    """Asks the admin API with the administrator's key."""
    content = b"" if body is None else json.dumps(body).encode()
    fields = [("content-length", str(len(content)))] if method == "PATCH" else []
    answer = await world.caller.ask(path, content, method=method, headers=fields)
    assert answer.status in (200, 201), answer.body
    return answer.json


async def make_team(world: World, name: str) -> Team:
    """Makes one."""
    organisation = (await admin(world, "POST", "/admin/organisations", {"name": name}))["id"]
    query = f"?organisation={organisation}"
    project = (await admin(world, "POST", f"/admin/projects{query}", {"name": "p"}))["id"]
    other = (await admin(world, "POST", f"/admin/projects{query}", {"name": "q"}))["id"]
    user = (await admin(world, "POST", f"/admin/users{query}", {"name": "ann", "role": "member"}))["id"]
    body = {"name": "k", "project": project, "user": user, "scopes": ["inference"]}
    key = await admin(world, "POST", f"/admin/keys{query}", body)
    return Team(world, organisation, project, other, user, key["id"], key["key"])


async def _revoke(team: Team) -> None:
    await team.act("POST", f"/admin/keys/{team.key}/revoke")


async def _expire(team: Team) -> None:
    end = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    await team.act("PATCH", f"/admin/keys/{team.key}", {"expires_at": end})


async def _disable(team: Team) -> None:
    await team.act("PATCH", f"/admin/users/{team.user}", {"disabled": True})


async def _lower(team: Team) -> None:
    await team.act("PATCH", f"/admin/users/{team.user}", {"role": "viewer"})


async def _move(team: Team) -> None:
    await team.act("PATCH", f"/admin/users/{team.user}", {"project": team.other_project})


async def _archive_project(team: Team) -> None:
    await asyncio.to_thread(team.world.command, "project", "archive", team.project, "--org", team.organisation)


async def _archive_organisation(team: Team) -> None:
    await admin(team.world, "POST", f"/admin/organisations/{team.organisation}/archive")


ENDS: dict[str, Callable[[Team], Awaitable[None]]] = {
    "revoked": _revoke,
    "expired": _expire,
    "user disabled": _disable,
    "role lowered": _lower,
    "user moved": _move,
    "project archived by a command": _archive_project,
    "organisation archived": _archive_organisation,
}


@row("D3")
@pytest.mark.parametrize("how", ENDS)
async def test_a_running_stream_and_new_calls_end(module_world: World, how: str) -> None:
    """The stream ends with one error event, its upstream is let go, and the key gets 401."""
    world = module_world
    model = world.take()
    model.script(SLOW)
    team = await make_team(world, how)
    caller = Caller(world.gateway.port, team.token, world.tape)
    conversation, request_id = await caller.begin_chat(model.name)
    async with conversation:
        await conversation.until(b"tok")
        await ENDS[how](team)
        ended = time.monotonic()
        answer = await conversation.answer(WITHIN_S + 1, request_id=request_id)
        assert time.monotonic() - ended < WITHIN_S
    assert answer.stream_error is not None
    assert answer.stream_error["code"] == "invalid_api_key"
    assert "[DONE]" not in answer.data
    refused = await caller.chat(model.name, stream=False)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    await _let_go(world, model.name)


async def _let_go(world: World, model: str) -> None:
    until = time.monotonic() + WITHIN_S
    while (await world.model_state(model))["targets"][0]["outstanding"]:
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


@row("D3")
async def test_what_is_restored_works_again(module_world: World) -> None:
    """Keys of an archived project are refused, not revoked; keys of another project never notice."""
    world = module_world
    model = world.take()
    team = await make_team(world, "restored")
    body = {"name": "other", "project": team.other_project, "user": team.user, "scopes": ["inference"]}
    other = Caller(world.gateway.port, (await team.act("POST", "/admin/keys", body))["key"], world.tape)
    caller = Caller(world.gateway.port, team.token, world.tape)
    for path, status in (("archive", 401), ("restore", 200)):
        await team.act("POST", f"/admin/projects/{team.project}/{path}")
        assert (await caller.chat(model.name, stream=False)).status == status
        assert (await other.chat(model.name, stream=False)).status == 200


@row("D3")
async def test_a_bound_that_changes_is_known_at_the_next_call(module_world: World) -> None:
    """What organisation, project and key all allow is what a call may do: 403 for the rest, from one second to the
    next, and running streams go on."""
    world = module_world
    model = world.take()
    team = await make_team(world, "bounds")
    caller = Caller(world.gateway.port, team.token, world.tape)

    async def status(after: Callable[[Answer], bool]) -> Answer:
        until = time.monotonic() + WITHIN_S
        while not after(answer := await caller.chat(model.name, stream=False)):
            assert time.monotonic() < until
        return answer

    for path in (f"/admin/organisations/{team.organisation}", f"/admin/projects/{team.project}"):
        query = "" if "organisations" in path else f"?organisation={team.organisation}"
        assert (await status(lambda answer: answer.status == 200)).text
        await admin(world, "PATCH", path + query, {"models": ["warm-up"]})
        assert (await status(lambda answer: answer.status != 200)).error["code"] == "model_not_allowed"
        await admin(world, "PATCH", path + query, {"models": None})
    assert (await status(lambda answer: answer.status == 200)).text
    await team.act("PATCH", f"/admin/keys/{team.key}", {"networks": ["192.0.2.0/24"]})
    assert (await status(lambda answer: answer.status != 200)).error["code"] == "address_not_allowed"
    await team.act("PATCH", f"/admin/keys/{team.key}", {"networks": ["192.0.2.0/24", "127.0.0.0/8"]})
    assert (await status(lambda answer: answer.status == 200)).text
