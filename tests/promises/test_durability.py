"""Durability: what kill -9 may cost, in each mode of ``accounting.durability``."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.harness.clients import Caller, Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Upstream, headers, never, reset, tokens
from tests.harness.world import SETTINGS, on_posts

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


def gateway(home: Path, upstream: Upstream, **accounting: Any) -> GatewayProcess:
    """A gateway with these settings of accounting."""
    config = {**SETTINGS, "accounting": accounting, "models": [{"name": "m", "targets": [{"url": upstream.url}]}]}
    return GatewayProcess(home, config)


async def test_strict_loses_nothing_on_kill_9(tmp_path: Path) -> None:
    """Callers ask without a pause until the process is killed: every answer that came whole has its row after the next
    start, once, though not one had reached the database."""
    async with Upstream() as upstream:
        process = gateway(tmp_path / "home", upstream, durability="strict", flush_interval_s=60)
        await asyncio.to_thread(process.start)
        caller = Caller(process.port, process.key, Tape())
        done: list[str] = []

        async def ask(stream: bool) -> None:
            while True:
                answer = await caller.chat("m", stream=stream)
                if answer.status != 200 or not answer.whole or (stream and b"[DONE]" not in answer.body):
                    return
                assert answer.request_id is not None
                done.append(answer.request_id)

        asking = [asyncio.create_task(ask(number % 2 == 0)) for number in range(8)]
        async with asyncio.timeout(60):
            while len(done) < 60:
                await asyncio.sleep(0.01)
        process.signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait, 30)
        await asyncio.gather(*asking, return_exceptions=True)
        before = {row["request_id"] for row in process.usage_rows()}
        process._listening.clear()
        await asyncio.to_thread(process.start)
        rows = [row["request_id"] for row in await asyncio.to_thread(process.wait_usage, len(done))]
        assert await asyncio.to_thread(process.stop) == 0
        assert len(set(done) - before) > 0, "the kill came after a flush: nothing was proved"
        assert set(done) - set(rows) == set()
        assert len(rows) == len(set(rows))
        assert list((tmp_path / "home" / "journal").iterdir()) == []


async def test_strict_keeps_errors_and_broken_streams_too(tmp_path: Path) -> None:
    """A refusal that the caller has seen, and the error at the end of a stream, are on disk before they are told."""
    async with Upstream() as upstream:
        upstream.scenario = on_posts([headers(), tokens(2), reset()])
        process = gateway(tmp_path / "home", upstream, durability="strict", flush_interval_s=60)
        await asyncio.to_thread(process.start)
        caller = Caller(process.port, process.key, Tape())
        unknown = await caller.chat("no-such-model")
        broken = await caller.chat("m", stream=True)
        assert unknown.status == 404 and broken.stream_error is not None
        process.signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait, 30)
        process._listening.clear()
        await asyncio.to_thread(process.start)
        rows = {row["request_id"]: row["outcome"] for row in await asyncio.to_thread(process.wait_usage, 2)}
        assert await asyncio.to_thread(process.stop) == 0
        assert rows == {unknown.request_id: "rejected", broken.request_id: "broken"}


async def test_batch_loses_at_most_the_last_window(tmp_path: Path) -> None:
    """Of calls that ended longer ago than the window, and the time of one commit, none is lost."""
    window_s = 0.2
    async with Upstream() as upstream:
        process = gateway(tmp_path / "home", upstream, flush_interval_s=window_s)
        await asyncio.to_thread(process.start)
        caller = Caller(process.port, process.key, Tape())
        ended: dict[str, float] = {}
        until = time.monotonic() + 3
        while time.monotonic() < until:
            answer = await caller.chat("m")
            assert answer.request_id is not None
            ended[answer.request_id] = time.monotonic()
        killed = time.monotonic()
        process.signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait, 30)
        rows = {row["request_id"] for row in process.usage_rows()}
        lost = [killed - at for request_id, at in ended.items() if request_id not in rows]
        assert len(rows) > len(ended) / 2
        assert all(age_s < window_s + 1.0 for age_s in lost)


async def test_strict_frees_a_caller_who_left(tmp_path: Path) -> None:
    """A caller who leaves in a stream is settled as in the other mode, and a stop ends well."""
    async with Upstream() as upstream:
        upstream.scenario = on_posts([headers(), tokens(3), never()])
        process = gateway(tmp_path / "home", upstream, durability="strict", flush_interval_s=0.05)
        await asyncio.to_thread(process.start)
        caller = Caller(process.port, process.key, Tape())
        conversation, request_id = await caller.begin_chat("m")
        async with conversation:
            await conversation.until(b"tok ", count=3)
        (row,) = await asyncio.to_thread(process.wait_usage, 1)
        assert (row["request_id"], row["outcome"], row["completion_tokens"]) == (request_id, "cancelled", 3)
        assert await asyncio.to_thread(process.stop) == 0
