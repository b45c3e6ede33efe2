"""Where a managed target's call goes, and what its engine is told; overflow by whatever words a server has for it."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from tests.conformance.test_engine import ask

from passerelle.domain.model import Target
from passerelle.domain.request import Request
from passerelle.engines.base import EngineRefused, Probe, Readiness, Reply
from passerelle.engines.managed import ChildAddress, ManagedEngine
from passerelle.engines.rejection import overflow_code
from passerelle.engines.tokenizers import Document


class Noting:
    """An engine that remembers the target it was given."""

    def __init__(self) -> None:
        self.target: Target | None = None

    async def send(self, request: Request, target: Target, *, request_id: str, timeout_s: float) -> Reply:
        self.target = target
        return Document(b"{}")

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        self.target = target
        return Probe(Readiness.READY, "answers")

    async def count_tokens(self, request: Request, target: Target, *, timeout_s: float) -> int | None:
        self.target = target
        return 3

    async def aclose(self) -> None:
        """Nothing is open."""


CHILD = ChildAddress("http://127.0.0.1:7", "key", {"chat_template": "chatml", "other": 1})


async def sent_to(target: Target, *, path: str = "/v1") -> Target:
    inner = Noting()
    await ManagedEngine(inner, {"t": CHILD}, path=path).send(ask(), target, request_id="r", timeout_s=1)  # type: ignore[arg-type]
    assert inner.target is not None
    return inner.target


async def test_a_child_gets_its_address_key_and_options() -> None:
    """The path is its engine's; what the configuration says wins over what the child says of itself."""
    target = Target("t", "", "gpt4all", "m", options=MappingProxyType({"chat_template": "plain"}))
    placed = await sent_to(target, path="")
    assert (placed.url, placed.api_key) == ("http://127.0.0.1:7", "key")
    assert dict(placed.options) == {"chat_template": "plain", "other": 1}
    assert (await sent_to(target)).url == "http://127.0.0.1:7/v1"


async def test_a_server_of_another_process_is_used_where_it_is() -> None:
    """A target with an address of its own passes as it came."""
    target = Target("served-1", "http://127.0.0.1:9/v1", "vllm", "m", api_key="its-own")
    assert await sent_to(target) is target


async def test_without_a_child_nothing_is_sent() -> None:
    """A target added by a reload has no child before the next start: requests go elsewhere, a probe says so."""
    engine, target = ManagedEngine(Noting(), {}), Target("new", "", "vllm", "m")  # type: ignore[arg-type]
    with pytest.raises(EngineRefused, match="needs a restart"):
        await engine.send(ask(), target, request_id="r", timeout_s=1)
    assert (await engine.probe(target, timeout_s=1)).readiness is Readiness.DOWN


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("This model's maximum context length is 2048 tokens.", "context_length_exceeded"),
        (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512. Given: 600",
            "context_length_exceeded",
        ),
        ("Input validation error: `inputs` must have less than 511 tokens. Given: 600", "context_length_exceeded"),
        ("Input validation error: `temperature` must be strictly positive", None),
        (None, None),
    ],
)
def test_overflow(message: str | None, code: str | None) -> None:
    """Clients know an overflow by its code, whichever server found it."""
    assert overflow_code(message) == code
