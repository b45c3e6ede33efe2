"""No drift: after thousands of calls over real sockets, three in ten left by their callers in every window of a call's
life, what limits say is used is what the ledger says was used, and nothing is set aside any more."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.harness.clients import Caller, Conversation, Tape, chat_body
from tests.harness.gateway import GatewayProcess
from tests.harness.oracles import becomes
from tests.harness.upstreamd import Seen, Step, Upstream, headers, never, normal, reset, tokens
from tests.harness.valkey import ValkeyProcess
from tests.promises.test_workers import Line, eventually, line_to_each

from passerelle.limits.spent import REFUNDED

pytestmark = pytest.mark.slow
CALLERS = 16
SLOW = {"connect_s": 5.0, "first_byte_s": 120.0, "idle_s": 120.0}
LEAVING = ("fin", "rst", "half")
LIMITS: Sequence[dict[str, Any]] = (
    {"measure": "requests", "period": "day", "value": 1_000_000},
    {"measure": "tokens", "period": "month", "value": 100_000_000},
    {"measure": "cost", "period": "total", "value": "10000"},
    {"measure": "concurrent", "value": 1000},
)


class Crowd:
    """Callers of one key, and the model server they come to, which does what the text of a request says."""

    def __init__(self, gateway: GatewayProcess, upstream: Upstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.arrived: dict[str, asyncio.Event] = {}
        self.queued: list[tuple[Conversation, str]] = []
        """Who waits for a turn, and how they will leave."""
        upstream.scenario = self._steps

    def _steps(self, seen: Seen) -> Sequence[Step]:
        if seen.method == "GET":
            return [normal()]
        if (event := self.arrived.get(seen.headers["x-request-id"])) is not None:
            event.set()
        text = seen.json["messages"][0]["content"]
        scenarios: dict[str, Sequence[Step]] = {
            "before the headers": [never()],
            "before the first token": [headers(), never()],
            "mid-stream": [headers(), tokens(3), never()],
            "broken": [headers(), tokens(3), reset()],
        }
        return scenarios.get(text, [normal()])

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Asks the admin API."""
        if method == "GET":
            status, answer = await asyncio.to_thread(self.gateway.get, path, key=self.gateway.key)
        else:
            status, answer = await asyncio.to_thread(self.gateway.post, path, body)
        assert status in (200, 201), answer
        return json.loads(answer)

    async def limited(self) -> tuple[str, str]:
        """Makes a key with a limit of each kind, and prices; returns its id and its secret."""
        for model in ("m", "occupied"):
            await self.ask("POST", "/admin/prices", {"model": model, "input": "2", "cached": "1", "output": "6"})
        key = await self.ask("POST", "/admin/keys", {"name": "crowd", "scopes": ["inference"]})
        for fields in LIMITS:
            await self.ask("POST", "/admin/limits", {"subject_kind": "key", "subject_id": key["id"], **fields})
        return key["id"], key["key"]

    async def call(self, caller: Caller, number: int) -> None:
        """One call; of ten, one is left while it queues, two while the model server works, and one is broken off."""
        how = LEAVING[number // 10 % 3]
        match number % 10:
            case 0:
                conversation, _ = await caller.begin_chat("occupied", text="queued", max_tokens=40)
                self.queued.append((conversation, how))
            case 1:
                await self._leave(caller, ("before the headers", "before the first token")[number // 10 % 2], how)
            case 2:
                await self._leave(caller, "mid-stream", how)
            case 3:
                await self._whole(caller, "broken", stream=True)
            case other:
                await self._whole(caller, "hello", stream=other % 2 == 0)

    async def _leave(self, caller: Caller, window: str, how: str) -> None:
        request_id, event = caller.new_id(), asyncio.Event()
        self.arrived[request_id] = event
        async with await caller.open() as conversation:
            body = chat_body("m", text=window, max_tokens=40)
            await conversation.send(caller.request("/v1/chat/completions", body, request_id=request_id))
            if window == "mid-stream":
                await conversation.until(b"tok ", count=3)
            else:
                await event.wait()
            conversation.leave(how)
            if how == "half":
                await conversation.rest()

    async def _whole(self, caller: Caller, text: str, *, stream: bool) -> None:
        async with await caller.open() as conversation:
            body = chat_body("m", stream=stream, text=text, max_tokens=40)
            request = caller.request("/v1/chat/completions", body, request_id=caller.new_id(), close=True)
            await conversation.send(request)
            assert (await conversation.answer()).status == 200

    async def come(self, secret: str, calls: int) -> None:
        """All calls, so many at a time, while one holds the model on which callers queue."""
        caller = Caller(self.gateway.port, secret, Tape(), name="drift")
        occupant, _ = await Caller(self.gateway.port, self.gateway.key, Tape()).begin_chat(
            "occupied", text="mid-stream"
        )
        async with occupant:
            await occupant.until(b"tok ", count=3)
            numbers = iter(range(calls))

            async def one_after_another() -> None:
                for number in numbers:
                    await self.call(caller, number)

            async with asyncio.timeout(240), asyncio.TaskGroup() as group:
                for _ in range(CALLERS):
                    group.create_task(one_after_another())
            await self._leave_queue()

    async def _leave_queue(self) -> None:
        """All who queue leave, once the gateway has them all in its queue."""

        async def all_wait() -> bool:
            models = (await self.ask("GET", "/admin/router"))["models"]
            waiting = {model["model"]: model["queue"]["waiting"] for model in models}
            return bool(waiting["occupied"] == len(self.queued))

        assert await becomes(all_wait, 60)
        for conversation, how in self.queued:
            conversation.leave(how)
        for conversation, how in self.queued:
            async with conversation:
                if how == "half":
                    await conversation.rest()


@asynccontextmanager
async def crowd(folder: Path, counted_by: str) -> AsyncIterator[Crowd]:
    """A gateway whose limits are counted in memory, on the board of two workers, or in a store."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream())
        target = {"url": upstream.url, "model": "m", "timeouts": SLOW}
        config: dict[str, Any] = {
            "accounting": {"flush_interval_s": 0.05},
            "queue": {"max_waiting": 1000, "max_wait_s": 600},
            "models": [
                {"name": "m", "targets": [target]},
                {"name": "occupied", "max_concurrent": 1, "targets": [target]},
            ],
        }
        if counted_by == "a store":
            store = ValkeyProcess(folder / "valkey")
            await asyncio.to_thread(store.start)
            stack.callback(store.kill)
            config["redis"] = store.url
        arguments = ("--workers", "2") if counted_by == "two workers" else ()
        gateway = GatewayProcess(folder / "home", config, arguments=arguments)
        await asyncio.to_thread(gateway.start)
        stack.push_async_callback(asyncio.to_thread, gateway.stop)
        await asyncio.to_thread(gateway.wait_ready)
        yield Crowd(gateway, upstream)


def wait_for_workers(gateway: GatewayProcess, secret: str) -> None:
    """Returns when each of two workers knows the limits."""

    def limits(line: Line) -> list[Any]:
        found: list[Any] = json.loads(line.ask("GET", "/admin/me/limits", key=secret)[1])["data"]
        return found

    for line in line_to_each(gateway, 2):
        eventually(partial(limits, line), lambda found: len(found) == len(LIMITS), 10)
        line.close()


def ledger(gateway: GatewayProcess, key_id: str) -> list[dict[str, Any]]:
    """Returns the rows of a key."""
    return [row for row in gateway.usage_rows() if row["key_id"] == key_id]


def sums(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[Decimal, Decimal]]:
    """Returns what of each limit should be used, by the rows, and what should be held: nothing."""
    found = {
        "requests": sum(row["outcome"] not in REFUNDED for row in rows),
        "tokens": sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows),
        "cost": Decimal(sum(row["cost_nano"] for row in rows)).scaleb(-9),
        "concurrent": 0,
    }
    return {measure: (Decimal(used), Decimal(0)) for measure, used in found.items()}


@pytest.mark.asyncio
@pytest.mark.parametrize(("counted_by", "calls"), [("one process", 3000), ("two workers", 600), ("a store", 600)])
async def test_limits_say_what_the_ledger_says(tmp_path: Path, counted_by: str, calls: int) -> None:
    """Requests, tokens, money and calls at once; whole calls, broken ones, and those that were left queued, before the
    headers, before the first token and mid-stream, by FIN, RST and half-close."""
    async with crowd(tmp_path, counted_by) as world:
        key_id, secret = await world.limited()
        if counted_by == "two workers":
            await asyncio.to_thread(wait_for_workers, world.gateway, secret)
        await world.come(secret, calls)

        async def standings() -> dict[str, tuple[Decimal, Decimal]]:
            found = (await world.ask("GET", f"/admin/limits?subject_kind=key&subject_id={key_id}"))["data"]
            return {each["measure"]: (Decimal(each["used"]), Decimal(each["held"])) for each in found}

        async def agree() -> bool:
            return await standings() == sums(ledger(world.gateway, key_id))

        await becomes(agree, 20)
        assert await standings() == sums(ledger(world.gateway, key_id))
        _check_windows(ledger(world.gateway, key_id), calls)


def _check_windows(rows: Sequence[dict[str, Any]], calls: int) -> None:
    """Every kind of call is in the ledger as often as it was made."""
    assert len({row["request_id"] for row in rows}) == len(rows)
    kinds = Counter(
        (row["outcome"], "queued" if not row["attempts"] else "mid-stream" if row["completion_tokens"] else "early")
        for row in rows
    )
    tenth = calls // 10
    assert kinds["ok", "mid-stream"] == 6 * tenth
    assert kinds["cancelled", "queued"] == kinds["cancelled", "early"] == kinds["cancelled", "mid-stream"] == tenth
    assert kinds["broken", "mid-stream"] == tenth
    assert sum(kinds.values()) == calls
