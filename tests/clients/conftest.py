"""The server that real clients talk to: `passerelle serve` with its embedded models."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.harness.gateway import GatewayProcess


@dataclass(frozen=True, slots=True)
class Server:
    """What a client needs to know."""

    url: str
    key: str
    model: str
    embedding_model: str


@pytest.fixture(scope="session")
def server(embedded_gateway: GatewayProcess) -> Server:
    """The running gateway."""
    return Server(embedded_gateway.url, embedded_gateway.key, "smollm2-135m-instruct", "multilingual-e5-small")
