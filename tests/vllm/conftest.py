"""The tier ``vllm``: a real vLLM on this machine's CPU, asked directly and through a real gateway.

The first run builds the environment (see ``environment.py``); every run starts vLLM once, which takes about a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.vllm.environment import BuildError, Environment, build, default_folder
from tests.vllm.servers import MODEL, Gateway, Vllm, free_port, vllm
from tests.vllm.wire import JsonObject, Stream, read_stream

HERE = Path(__file__).parent
TEST_TIMEOUT_S = 180.0
"""For the test itself: building and starting have their own deadlines. The first call of a kind can compile code."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything in this folder, so that other tiers leave it out."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


@pytest.fixture(scope="session")
def vllm_environment() -> Environment:
    """The environment with vLLM and its model; built when it is not there."""
    try:
        return build(default_folder())
    except BuildError as error:
        pytest.fail(f"vLLM's environment could not be built: {error}", pytrace=False)


@pytest.fixture(scope="session")
def vllm_server(vllm_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """A healthy vLLM."""
    with vllm(vllm_environment, tmp_path_factory.mktemp("vllm")) as server:
        yield server


@pytest.fixture(scope="session")
def passerelle(vllm_server: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose models are that vLLM: once under the name it uses itself, once under names of our own."""
    targets = [_target(vllm_server.url)]
    models = [
        {"name": MODEL, "targets": targets},
        {"name": "house-model", "aliases": ["HuggingFaceTB/SmolLM2-135M-Instruct"], "targets": targets},
    ]
    running = Gateway(tmp_path_factory.mktemp("gateway"), models)
    with running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="session")
def misrouted(vllm_server: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a model that vLLM does not know, one whose server is not there, and one with half its servers."""
    gone = f"http://127.0.0.1:{free_port()}"
    models = [
        {"name": "misnamed", "targets": [_target(vllm_server.url, model="no-such-model")]},
        {"name": "unreachable", "targets": [_target(gone)]},
        {"name": "half-there", "targets": [_target(gone), _target(vllm_server.url, priority=1)]},
    ]
    running = Gateway(tmp_path_factory.mktemp("misrouted"), models)
    with running:
        yield running


def _target(url: str, *, model: str = MODEL, priority: int = 0) -> dict[str, object]:
    return {"url": f"{url}/v1", "engine": "openai", "model": model, "priority": priority}


class Door:
    """One way to the model: straight to vLLM, or through the gateway."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def post(self, path: str, body: JsonObject, **headers: str) -> httpx.Response:
        """Posts JSON and returns the whole answer, whatever its status."""
        return self.client.post(path, json=body, headers=headers)

    def ask(self, path: str, body: JsonObject, **headers: str) -> JsonObject:
        """Posts JSON and returns the JSON of a 200."""
        answer = self.post(path, body, **headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("application/json")
        return dict(answer.json())

    def stream(self, path: str, body: JsonObject, **headers: str) -> Stream:
        """Posts JSON with ``stream: true`` and reads the events to their end."""
        answer = self.post(path, body | {"stream": True}, **headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return read_stream(answer.content)


@pytest.fixture
def direct(vllm_server: Vllm) -> Iterator[Door]:
    """Straight to vLLM."""
    with httpx.Client(base_url=vllm_server.url, timeout=120) as client:
        yield Door(client)


@pytest.fixture
def through(passerelle: Gateway) -> Iterator[Door]:
    """Through the gateway, with its administrator's key."""
    headers = {"authorization": f"Bearer {passerelle.key}"}
    with httpx.Client(base_url=passerelle.url, timeout=120, headers=headers) as client:
        yield Door(client)


@pytest.fixture
def through_misrouted(misrouted: Gateway) -> Iterator[Door]:
    """Through the gateway whose models are not what they should be."""
    headers = {"authorization": f"Bearer {misrouted.key}"}
    with httpx.Client(base_url=misrouted.url, timeout=120, headers=headers) as client:
        yield Door(client)
