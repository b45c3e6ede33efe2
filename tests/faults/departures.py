"""The caller leaves: four windows, three ways, streaming and not. The same rows for every server under us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.harness.oracles import becomes
from tests.harness.upstreamd import Step, headers, never, raw, tokens
from tests.harness.world import ModelSpec, World

LEAVING = ("fin", "rst", "half")
SLOW = {"connect_s": 5.0, "first_byte_s": 60.0, "idle_s": 60.0}
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Window:
    """Where in its life the call is when its caller leaves. ``tokens`` are what the caller had got."""

    name: str
    streamed: Sequence[Step]
    whole: Sequence[Step]
    tokens: int = 0


WINDOWS = (
    Window("before the headers", [never()], [never()]),
    Window("before the first token", [headers(), never()], [raw(_HEAD), never()]),
    Window("mid-stream", [headers(), tokens(3), never()], [raw(_HEAD + b'{"choices":['), never()], tokens=3),
)
MODELS = [ModelSpec(f"leaving-{n}", target={"timeouts": SLOW}) for n in range(len(WINDOWS) * len(LEAVING) * 2)] + [
    ModelSpec(f"queue-{n}", fields={"max_concurrent": 1}, target={"timeouts": SLOW}) for n in range(len(LEAVING) * 2)
]


async def leave_upstream(world: World, window: Window, how: str, *, stream: bool) -> None:
    """Leaves while a model server works: it is left within a second, and the call is settled as cancelled."""
    number = (WINDOWS.index(window) * len(LEAVING) + LEAVING.index(how)) * 2 + stream
    model = world.models[f"leaving-{number}"]
    model.script(window.streamed if stream else window.whole)
    upstream = model.upstreams[0]
    conversation, request_id = await world.caller.begin_chat(model.name, stream=stream)
    async with conversation:
        await upstream.until(lambda: len(model.posts) == 1, 20)
        if stream and window.tokens:
            await conversation.until(b"tok ", count=window.tokens)
        peer = model.posts[0].peer
        await upstream.until(lambda: bool(peer.bytes_sent) or window is WINDOWS[0], 20)
        conversation.leave(how)
        await upstream.until(lambda: upstream.busy == 0, 1.0)
        assert peer.left_at is not None
        usage = await world.usage(request_id)
    assert (usage["outcome"], usage["attempts"]) == ("cancelled", 1)
    assert usage["error_code"] == "client_left"
    if stream:
        assert usage["completion_tokens"] == window.tokens


async def leave_queue(world: World, how: str, *, stream: bool) -> None:
    """Leaves while waiting for a turn: the place is free at once, and no model server ever hears of the call."""
    model = world.models[f"queue-{LEAVING.index(how) * 2 + stream}"]
    model.script([headers(), tokens(1), never()])
    upstream = model.upstreams[0]
    first, _ = await world.caller.begin_chat(model.name)
    async with first:
        await first.until(b"tok ")
        second, request_id = await world.caller.begin_chat(model.name, stream=stream)
        async with second:

            async def waits() -> bool:
                return bool((await world.model_state(model.name))["queue"]["waiting"] == 1)

            assert await becomes(waits, 15)
            second.leave(how)
            usage = await world.usage(request_id)
            assert (usage["outcome"], usage["attempts"], usage["target"]) == ("cancelled", 0, None)
            assert (await world.model_state(model.name))["queue"]["waiting"] == 0
        assert len(model.posts) == 1
    await upstream.until(lambda: upstream.busy == 0, 1.0)
    assert len(model.posts) == 1
