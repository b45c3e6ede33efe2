"""The end: asked once, nothing new, what runs finishes, nothing stays behind, exit 0."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.harness.clients import Caller, Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.killer import children, kill, model_servers
from tests.harness.oracles import becomes
from tests.harness.upstreamd import Upstream, finish, headers, never, tokens
from tests.harness.world import SETTINGS, on_posts

pytestmark = pytest.mark.slow


@asynccontextmanager
async def running(tmp_path: Path, upstream: Upstream, **sections: Any) -> AsyncIterator[tuple[GatewayProcess, Caller]]:
    """A gateway in front of one upstream."""
    model = {"name": "m", "max_concurrent": 2, "targets": [{"url": upstream.url}]}
    settings = {**SETTINGS, "server": {"grace_s": 30}, **sections, "models": [model]}
    process = GatewayProcess(tmp_path / "home", settings)
    await asyncio.to_thread(process.start)
    try:
        yield process, Caller(process.port, process.key, Tape())
    finally:
        await asyncio.to_thread(process.stop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
async def test_what_runs_finishes_and_nothing_new_begins(tmp_path: Path, number: signal.Signals) -> None:
    """After one signal: running streams end well, waiting calls are sent away, connections are refused, exit 0."""
    async with Upstream() as upstream:
        upstream.scenario = on_posts([headers(), tokens(20, 0.05), finish()])
        async with running(tmp_path, upstream) as (process, caller):
            streams = [asyncio.create_task(caller.chat("m")) for _ in range(2)]
            await upstream.until(lambda: upstream.busy == 2, 20)
            waiting = asyncio.create_task(caller.chat("m", stream=False))

            async def waits() -> bool:
                _, body = await asyncio.to_thread(process.get, "/metrics", key=process.key)
                return b'passerelle_queue_waiting{model="m"} 1' in body

            assert await becomes(waits, 15)
            process.signal(number)
            sent_away = await waiting
            assert sent_away.status == 503
            assert sent_away.took_s < 15

            async def refuses() -> bool:
                try:
                    (await caller.open()).leave()
                except OSError:
                    return True
                return False

            assert await becomes(refuses, 15)
            for answer in await asyncio.gather(*streams):
                assert answer.text == "tok " * 20
                assert answer.data[-1] == "[DONE]"
            assert await asyncio.to_thread(process.wait, 40) == 0
            assert len(process.usage_rows()) == 3


async def test_an_idle_gateway_stops_at_once(tmp_path: Path) -> None:
    """Open connections that say nothing do not hold it up, nor does a long grace."""
    async with Upstream() as upstream, running(tmp_path, upstream, server={"grace_s": 60}) as (process, caller):
        assert (await caller.chat("m")).status == 200
        idle = [await caller.open() for _ in range(5)]
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
        for each in idle:
            each.leave()
        assert "Traceback" not in "".join(process.log)


async def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    """The first signal drains; the second ends what runs, and still writes its rows."""
    async with Upstream() as upstream:
        upstream.scenario = on_posts([headers(), tokens(2), never()])
        async with running(tmp_path, upstream, server={"grace_s": 60}) as (process, caller):
            conversation, request_id = await caller.begin_chat("m")
            async with conversation:
                await conversation.until(b"tok ", count=2)
                process.signal(signal.SIGINT)
                await conversation.until(b"tok ", count=2)

                async def draining() -> bool:
                    try:
                        (await caller.open()).leave()
                    except OSError:
                        return True
                    return False

                assert await becomes(draining, 15)
                process.signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, 30) == 0
            rows = process.usage_rows()
            assert [row["request_id"] for row in rows] == [request_id]


async def test_readiness_says_so(tmp_path: Path) -> None:
    """/ready turns to 503 "draining" on connections that are still open, /health stays 200."""
    async with Upstream() as upstream:
        upstream.scenario = on_posts([headers(), tokens(20, 0.05), finish()])
        async with running(tmp_path, upstream) as (process, caller):
            stream = asyncio.create_task(caller.chat("m"))
            await upstream.until(lambda: upstream.busy == 1, 20)
            async with await caller.open() as conversation:
                await conversation.send(caller.request("/ready", method="GET"))
                process.signal(signal.SIGTERM)
                answer = await conversation.answer(15)
                assert answer.status in (200, 503)
            assert (await stream).data[-1] == "[DONE]"
            assert await asyncio.to_thread(process.wait, 40) == 0


@pytest.mark.parametrize("how", ["TERM", "KILL"])
async def test_no_model_server_stays_behind(tmp_path: Path, how: str) -> None:
    """The embedded model server ends with the gateway, also when that is killed and can do nothing about it."""
    config = {"models": [{"name": "tiny", "targets": [{"engine": "llamacpp", "model": "smollm2-135m-instruct"}]}]}
    process = GatewayProcess(tmp_path / "home", config)
    await asyncio.to_thread(process.start)
    await asyncio.to_thread(process.wait_ready)
    servers = model_servers(process.pid)
    below = children(process.pid)
    assert servers
    kill(process.pid, signal.SIGTERM if how == "TERM" else signal.SIGKILL)
    status = await asyncio.to_thread(process.wait, 40)
    assert status == (0 if how == "TERM" else -signal.SIGKILL)
    assert await becomes(lambda: not any(Path(f"/proc/{pid}").exists() for pid in {*servers, *below}), 30)
