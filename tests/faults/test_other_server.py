"""Rows B1, B2 and B4 under another ASGI server: what holds under ours must not depend on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.faults import departures
from tests.faults.departures import LEAVING, WINDOWS, Window
from tests.faults.table import row
from tests.harness.oracles import becomes
from tests.harness.otherserver import HypercornWorld

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hypercorn_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HypercornWorld]:
    """The application under hypercorn; nothing is left running for a request at the end."""
    home: Path = tmp_path_factory.mktemp("hypercorn") / "home"
    world = HypercornWorld(home, singles=2, models=departures.MODELS)
    await world.start()
    try:
        yield world
        assert await becomes(lambda: world.passerelle.metrics.in_flight._value.get() == 0, 15)
        names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
        assert not [name for name in names if "AsgiClient" in name or "AsgiApplication.__call__" in name]
    finally:
        await world.stop()


@row("B1")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("how", LEAVING)
async def test_leaving_the_queue(hypercorn_world: HypercornWorld, how: str, stream: bool) -> None:
    """A caller who leaves the queue is never sent upstream."""
    await departures.leave_queue(hypercorn_world, how, stream=stream)


@row("B2", "B4")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.name)
async def test_leaving_a_model_server(hypercorn_world: HypercornWorld, window: Window, how: str, stream: bool) -> None:
    """A caller who leaves takes the model server's work along, within a second."""
    await departures.leave_upstream(hypercorn_world, window, how, stream=stream)
