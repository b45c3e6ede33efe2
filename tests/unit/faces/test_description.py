"""What /docs says of health and router is what a running gateway answers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest
from tests.harness.gateway import GatewayProcess

from passerelle.faces.description import Health, Readiness, RouterStatus, TargetStatus, Version

pytestmark = pytest.mark.slow

CONFIG = {
    "models": [
        {
            "name": "far",
            "max_concurrent": 3,
            "targets": [
                {"url": "http://127.0.0.1:9/v1", "labels": {"room": "a"}},
                {"url": "http://127.0.0.1:9/v1", "model": "copy", "shadow": True},
            ],
        },
        {"name": "idle", "targets": [{"url": "http://127.0.0.1:9/v1", "model": "none"}]},
    ]
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose model server is away."""
    with GatewayProcess(tmp_path_factory.mktemp("description") / "home", CONFIG) as running:
        yield running


def router_of(gateway: GatewayProcess) -> RouterStatus:
    """Returns the state of the router."""
    status, body = gateway.get("/admin/router", key=gateway.key)
    assert status == 200
    return msgspec.json.decode(body, type=RouterStatus)


@pytest.mark.parametrize(("path", "answer"), [("/health", Health), ("/ready", Readiness), ("/version", Version)])
def test_public_answers_are_as_described(gateway: GatewayProcess, path: str, answer: type[msgspec.Struct]) -> None:
    """Each decodes into its structure, which forbids members that are not in it."""
    msgspec.json.decode(gateway.get(path)[1], type=answer)


def test_the_router_is_as_described(gateway: GatewayProcess) -> None:
    """Models, queues and targets decode; what is configured is in them."""
    router = router_of(gateway)
    assert [model.model for model in router.models] == ["far", "idle"]
    queue = router.models[0].queue
    assert queue is not None
    assert queue.capacity == 3
    assert [target.shadow for target in router.models[0].targets] == [False, True]
    assert router.models[0].targets[0].labels == {"room": "a"}


def test_drain_and_undrain_are_as_described(gateway: GatewayProcess) -> None:
    """Both answer with the target."""
    target = router_of(gateway).models[1].targets[0].id
    drained = msgspec.json.decode(gateway.post(f"/admin/router/{target}/drain", {})[1], type=TargetStatus)
    assert (drained.id, drained.state) == (target, "draining")
    back = msgspec.json.decode(gateway.post(f"/admin/router/{target}/undrain", {})[1], type=TargetStatus)
    assert back.state != "draining"


def test_a_configuration_that_was_refused_is_as_described(gateway: GatewayProcess) -> None:
    """The problems of a broken file are in the answer, and what served goes on."""
    sound = gateway.config_path.read_text()
    try:
        gateway.config_path.write_text("models: 3\n")
        until = time.monotonic() + 20
        while (router := router_of(gateway)).reload_error is None and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        gateway.config_path.write_text(sound)
    assert router.reload_error is not None
    assert "models" in router.reload_error.problems[0]
    assert [model.model for model in router.models] == ["far", "idle"]
