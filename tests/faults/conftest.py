"""One world for each module of rows, and the oracles after each row."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.harness.world import World


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark that ties a test to a row of the table."""
    config.addinivalue_line("markers", "row(id): the row of the fault table that the test proves")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """The gateway of a module, configured by its ``WORLD``."""
    options: dict[str, Any] = request.module.WORLD
    home: Path = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2]) / "home"
    world = await World(home, **options).start()
    try:
        yield world
    finally:
        await world.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def world(module_world: World) -> AsyncIterator[World]:
    """The module's gateway; the oracles are asked after the row."""
    module_world.oracles.begin()
    yield module_world
    await module_world.oracles.check()
