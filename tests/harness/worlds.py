"""Fixtures: one world for each test module, configured by the module's ``WORLD``, and the oracles after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.harness.world import World


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """The gateway of a module."""
    options: dict[str, Any] = request.module.WORLD
    home: Path = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2]) / "home"
    world = await World(home, **options).start()
    try:
        yield world
    finally:
        await world.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def world(module_world: World) -> AsyncIterator[World]:
    """The module's gateway; the oracles are asked after the test."""
    module_world.oracles.begin()
    yield module_world
    await module_world.oracles.check()
