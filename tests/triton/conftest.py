"""The tier ``triton``: a real Triton server, asked directly and through the gateway (``make test-triton``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.harness.gateway import GatewayProcess
from tests.triton.server import BuildError, Triton, build, default_folder, triton

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything in this folder, so that other tiers leave it out."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.triton)
            item.add_marker(pytest.mark.timeout(120, func_only=True))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A ready Triton with our models."""
    try:
        site = build(default_folder())
    except BuildError as error:
        pytest.fail(f"Triton's environment could not be built: {error}", pytrace=False)
    with triton(site, tmp_path_factory.mktemp("triton")) as running:
        yield running


@pytest.fixture(scope="session")
def gateway(server: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway in front of it."""
    models = [
        {"name": "phi3", "targets": [{"url": server.url, "engine": "triton", "model": "phi3"}]},
        {"name": "trt", "targets": [{"url": server.url, "engine": "triton", "model": "ensemble"}]},
        {"name": "gone", "targets": [{"url": server.url, "engine": "triton", "model": "nowhere"}]},
    ]
    with GatewayProcess(tmp_path_factory.mktemp("gateway") / "home", {"models": models}) as process:
        yield process
