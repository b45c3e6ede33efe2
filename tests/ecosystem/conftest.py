"""The tier ``clients``: frameworks against a running Passerelle with its embedded models (``make test-clients``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.ecosystem.environments import build, run
from tests.harness.gateway import GatewayProcess
from tests.triton.server import BuildError

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything in this folder, so that other tiers leave it out."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.clients)
            item.add_marker(pytest.mark.timeout(300, func_only=True))


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest, embedded_gateway: GatewayProcess) -> dict[str, Any]:
    """What the module's client saw; its name is the module's ``CLIENT``."""
    name: str = request.module.CLIENT
    try:
        build(name)
    except BuildError as error:
        pytest.fail(f"The client's environment could not be built: {error}", pytrace=False)
    return run(name, [embedded_gateway.url, embedded_gateway.key, "smollm2-135m-instruct", "multilingual-e5-small"])
