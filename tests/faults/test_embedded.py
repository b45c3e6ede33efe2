"""Row A23: the embedded model server dies under the gateway."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.faults.table import row
from tests.harness.clients import Caller, Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.killer import kill, model_servers
from tests.harness.oracles import Health, becomes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
MODEL = "tiny"
CONFIG = {"models": [{"name": MODEL, "targets": [{"engine": "llamacpp", "model": "smollm2-135m-instruct"}]}]}

ENDLESS = {"max_tokens": 1500, "ignore_eos": True}
"""A model asked to count may be done after three tokens; one that must not end is still at it when it is killed."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """A gateway with the real embedded model."""
    home: Path = tmp_path_factory.mktemp("embedded") / "home"
    with GatewayProcess(home, CONFIG) as process:
        await asyncio.to_thread(process.wait_ready)
        yield process


@row("A3")
async def test_a_call_waits_for_a_model_that_starts(tmp_path: Path) -> None:
    """A call that comes before the model is loaded waits for it, and is told its place if it streams."""
    with GatewayProcess(tmp_path / "home", CONFIG) as process:
        caller = Caller(process.port, process.key, Tape())
        whole, streamed = await asyncio.gather(
            caller.chat(MODEL, stream=False, max_tokens=4), caller.chat(MODEL, max_tokens=4)
        )
        assert whole.status == streamed.status == 200
        assert streamed.data[-1] == "[DONE]"
        gone, request_id = await caller.begin_chat(MODEL, **ENDLESS)
        async with gone:
            await gone.until(b'"content"', count=2)
        rows = await asyncio.to_thread(process.wait_usage, 3)
        assert next(row for row in rows if row["request_id"] == request_id)["outcome"] == "cancelled"


@row("A23")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL], ids=["SEGV", "KILL"])
async def test_the_model_server_dies_in_a_stream(gateway: GatewayProcess, number: signal.Signals) -> None:
    """Its caller gets an error event, a call some seconds later an answer, and the gateway answers all through."""
    tape = Tape()
    caller = Caller(gateway.port, gateway.key, tape)
    health = Health(gateway.port, gateway.pid)
    health.start()
    (server,) = model_servers(gateway.pid)
    conversation, request_id = await caller.begin_chat(MODEL, text="Count to one thousand.", **ENDLESS)
    async with conversation:
        await conversation.until(b'"content"', count=5)
        kill(server, number)
        answer = await conversation.answer(30, request_id=request_id)
    assert answer.stream_error is not None
    assert answer.stream_error["request_id"] == request_id
    assert b"[DONE]" not in answer.body
    began = time.monotonic()

    async def serves() -> bool:
        answer = await caller.chat(MODEL, stream=False, max_tokens=4)
        assert answer.status in (200, 502, 503, 504)
        return answer.status == 200

    assert await becomes(serves, 60)
    assert time.monotonic() - began < 60
    assert server not in model_servers(gateway.pid)
    assert len(model_servers(gateway.pid)) == 1
    health.stop()
    health.check()


@row("A23")
async def test_a_model_server_that_keeps_dying_takes_nothing_along(gateway: GatewayProcess) -> None:
    """Killed again and again as soon as it is back, it is started again each time, later each time."""
    caller = Caller(gateway.port, gateway.key, Tape())
    health = Health(gateway.port, gateway.pid)
    health.start()
    for _ in range(3):
        assert await becomes(lambda: bool(model_servers(gateway.pid)), 60)
        for server in model_servers(gateway.pid):
            kill(server)
        answer = await caller.chat(MODEL, stream=False, max_tokens=2)
        assert answer.status in (200, 502, 503, 504)

    async def serves() -> bool:
        return (await caller.chat(MODEL, stream=False, max_tokens=4)).status == 200

    assert await becomes(serves, 60)
    health.stop()
    health.check()
