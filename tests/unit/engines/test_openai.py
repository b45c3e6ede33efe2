"""Tests of the OpenAI engine beyond the contract: paths, keys, kinds of servers, tokenizers."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.harness.upstreamd import Seen, Step, Upstream, body, end, headers, never, normal, stall, status
from tests.unit.engines.test_transport import TLS, server_context

from passerelle.domain.model import Target, Timeouts
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import EngineBroke, EngineRefused, EngineRejected, Readiness
from passerelle.engines.openai import OpenAIEngine
from passerelle.engines.transport import Origin, Transport

SHORT = Timeouts(connect_s=1.0, first_byte_s=1.0, idle_s=1.0)


@pytest.fixture
async def engine() -> AsyncIterator[OpenAIEngine]:
    made = OpenAIEngine(Transport())
    yield made
    await made.aclose()


def target(url: str, **more: Any) -> Target:
    return Target("t", url, "openai", "m", timeouts=SHORT, **more)


def ask(operation: Operation, **fields: Any) -> Request:
    encoded = msgspec.json.encode({"model": "m", **fields})
    return Request(operation, "m", encoded, msgspec.json.decode(encoded, type=dict[str, msgspec.Raw]))


CHAT = ask(Operation.CHAT, messages=[{"role": "user", "content": "a b"}])


def at(path: str, *steps: Step) -> Callable[[Seen], Sequence[Step]]:
    """Answers one path by a script, and all others well."""
    return lambda seen: steps if seen.path == path else [normal()]


async def send(engine: OpenAIEngine, to: Target, request: Request = CHAT) -> bytes:
    reply = await engine.send(request, to, request_id="r-1", timeout_s=5.0)
    await reply.first()
    return await reply.read(100_000)


@pytest.mark.parametrize(
    ("base", "path", "health"),
    [
        ("/v1", "/v1/chat/completions", "/health"),
        ("", "/chat/completions", "/health"),
        ("/api/openai", "/api/openai/chat/completions", "/api/openai/health"),
        ("/proxy/v1", "/proxy/v1/chat/completions", "/proxy/health"),
    ],
)
async def test_paths(engine: OpenAIEngine, base: str, path: str, health: str) -> None:
    """Paths are appended to the target's base; a trailing /v1 is left out for the server's own routes."""
    async with Upstream() as upstream:
        to = target(upstream.root + base)
        await send(engine, to)
        await engine.probe(to, timeout_s=20)
        assert [seen.path for seen in upstream.requests[:2]] == [path, health]


async def test_key_is_sent_and_never_shown(engine: OpenAIEngine) -> None:
    """The target's key is a bearer token; a server that repeats it in an error does not give it away."""
    content = b'{"error": {"message": "key sk-canary is odd"}}'
    async with Upstream(scenario=[status(400, content=content)]) as upstream:
        with pytest.raises(EngineRejected) as caught:
            await send(engine, target(upstream.url, api_key="sk-canary"))
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-canary"
        assert caught.value.message == "key [secret] is odd"


async def test_keys_do_not_mix(engine: OpenAIEngine) -> None:
    """Two targets of one server each send their own key."""
    async with Upstream() as upstream:
        for key in ("one", "two", None, "one"):
            await send(engine, target(upstream.url, api_key=key))
        sent = [seen.headers.get("authorization") for seen in upstream.requests]
        assert sent == ["Bearer one", "Bearer two", None, "Bearer one"]


@pytest.mark.parametrize("key", ["a\r\nx: y", "clé", "a\x00"])
async def test_key_cannot_add_headers(engine: OpenAIEngine, key: str) -> None:
    """A key that a header cannot carry is refused before anything is sent, without showing it."""
    async with Upstream() as upstream:
        with pytest.raises(EngineRefused) as caught:
            await send(engine, target(upstream.url, api_key=key))
        assert key not in caught.value.reason
        assert not upstream.peers


@pytest.mark.parametrize("request_id", ["a\r\nx: y", "é", "a\nb"])
async def test_request_id_cannot_add_headers(engine: OpenAIEngine, request_id: str) -> None:
    """A request id that a header cannot carry is a defect of the caller."""
    with pytest.raises(ValueError, match="printable"):
        await engine.send(CHAT, target("http://127.0.0.1:1/v1"), request_id=request_id, timeout_s=1.0)


async def test_tls_option(engine: OpenAIEngine, tmp_path: Path) -> None:
    """The option ``ca_file`` makes a private TLS server a target."""
    async with Upstream(tls=server_context()) as upstream:
        await send(engine, target(upstream.url, options={"ca_file": str(TLS / "ca.pem")}))
        with pytest.raises(EngineRefused, match="ca_file"):
            await send(engine, target(upstream.url, options={"ca_file": str(tmp_path / "none.pem")}))


async def test_slow_error_body(engine: OpenAIEngine) -> None:
    """A 400 whose body drips costs one second at most, and its message."""
    drip = [step for _ in range(300) for step in (body(b" "), stall(0.1))]
    async with Upstream(scenario=[headers(400), *drip]) as upstream:
        began = time.monotonic()
        with pytest.raises(EngineRejected) as caught:
            await send(engine, target(upstream.url))
        assert caught.value.message is None
        assert time.monotonic() - began < 10
        await upstream.drained(5)


@pytest.mark.parametrize("pieces", [1, 3])
async def test_errors_keep_their_connection(engine: OpenAIEngine, pieces: int) -> None:
    """Errors that are framed well do not cost a new connection each, in one packet or in several."""
    async with Upstream() as upstream:
        for code in (400, 429, 503, 500, 404, 200):
            slow = [headers(code), *[step for _ in range(3) for step in (stall(0.01), body(b"x"))], end()]
            upstream.scenario = None if code == 200 else [status(code)] if pieces == 1 else slow
            try:
                await send(engine, target(upstream.url))
            except (EngineBroke, EngineRefused, EngineRejected) as error:
                assert error.status == code
            pool = engine._transport.pool(Origin.of(upstream.url))
            await upstream.until(lambda pool=pool: pool.idle_count == 1, 10)  # type: ignore[misc]
        assert len(upstream.peers) == 1


@pytest.mark.parametrize("rest", [[body(b"x" * 65536)] * 1000, [never()], [stall(0.01), body(b"x")] * 1000])
async def test_endless_errors_are_cut(engine: OpenAIEngine, rest: list[Step]) -> None:
    """An error whose body is long or never ends is answered at once, and its connection closed within a second."""
    async with Upstream(scenario=[headers(500), *rest, end()]) as upstream:
        began = time.monotonic()
        with pytest.raises(EngineBroke):
            await send(engine, target(upstream.url))
        assert time.monotonic() - began < 10
        await upstream.drained(5)


async def test_operation_nobody_offers(engine: OpenAIEngine) -> None:
    """501 is an answer about the request: the target is well."""
    async with Upstream(scenario=[status(501)]) as upstream:
        with pytest.raises(EngineRejected) as caught:
            await send(engine, target(upstream.url))
        assert caught.value.message == "The server of this model does not offer this operation."


@pytest.mark.parametrize("code", [404, 405, 501])
async def test_probe_without_health_route(engine: OpenAIEngine, code: int) -> None:
    """A server without a health route is ready when it lists its models."""
    async with Upstream(kind="vllm", scenario=at("/health", status(code))) as upstream:
        probe = await engine.probe(target(upstream.url), timeout_s=20)
        assert (probe.readiness, probe.models, probe.context_window) == (Readiness.READY, ("m",), 4096)


@pytest.mark.parametrize(
    ("answer", "readiness"),
    [
        (status(401), Readiness.DOWN),
        (status(500), Readiness.DOWN),
        (status(503), Readiness.BUSY),
        (status(200, content=b"<html>"), Readiness.DOWN),
        (status(200, content=b'{"data": [{"name": "m"}]}'), Readiness.DOWN),
        (status(404), Readiness.READY),
    ],
)
async def test_probe_of_models(engine: OpenAIEngine, answer: Step, readiness: Readiness) -> None:
    """A healthy server whose model list is wrong is told apart: our key, nonsense, no such route."""
    async with Upstream(scenario=at("/v1/models", answer)) as upstream:
        assert (await engine.probe(target(upstream.url), timeout_s=20)).readiness is readiness


async def test_probe_spends_no_tokens(engine: OpenAIEngine) -> None:
    """A probe only reads."""
    async with Upstream(kind="llamacpp") as upstream:
        await engine.probe(target(upstream.url), timeout_s=20)
        assert {seen.method for seen in upstream.requests} == {"GET"}


async def test_probe_deadline_covers_all(engine: OpenAIEngine) -> None:
    """The deadline of a probe is for all its requests together."""
    async with Upstream(scenario=[stall(0.3), status(404)]) as upstream:
        began = time.monotonic()
        probe = await engine.probe(target(upstream.url), timeout_s=0.5)
        assert probe.readiness is Readiness.DOWN
        assert time.monotonic() - began < 10


async def test_a_server_that_is_well_is_not_asked_for_its_models_each_time(engine: OpenAIEngine) -> None:
    """Probes of a healthy server are one request; after a failure it is asked again what it serves."""
    ill = False

    def script(seen: Seen) -> Sequence[Step]:
        return [status(500)] if ill and seen.path == "/health" else [normal()]

    async with Upstream(kind="vllm", scenario=script) as upstream:
        to = target(upstream.url)
        probes = [await engine.probe(to, timeout_s=20) for _ in range(3)]
        assert len({probe.context_window for probe in probes}) == 1
        assert [seen.path for seen in upstream.requests].count("/v1/models") == 1
        ill = True
        assert (await engine.probe(to, timeout_s=20)).readiness is Readiness.DOWN
        ill = False
        assert (await engine.probe(to, timeout_s=20)).models == probes[0].models
        assert [seen.path for seen in upstream.requests].count("/v1/models") == 2


async def test_window_of_the_right_model(engine: OpenAIEngine) -> None:
    """Of several models the window is that of the target's own; an unknown name among several has none."""
    entries = [{"id": "x", "max_model_len": 1}, {"id": "m", "max_model_len": 2, "owned_by": "vllm"}]
    content = json.dumps({"object": "list", "data": entries}).encode()
    async with Upstream(scenario=at("/v1/models", status(200, content=content))) as upstream:
        probe = await engine.probe(target(upstream.url), timeout_s=20)
        assert (probe.models, probe.context_window) == (("x", "m"), 2)
        other = Target("u", upstream.url, "openai", "y", timeouts=SHORT)
        assert (await engine.probe(other, timeout_s=20)).context_window is None


async def test_window_without_props(engine: OpenAIEngine) -> None:
    """A llama-server that hides its properties still tells the window the model was trained with."""
    async with Upstream(kind="llamacpp", scenario=at("/props", status(404))) as upstream:
        assert (await engine.probe(target(upstream.url), timeout_s=20)).context_window == 8192


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
async def test_kind_without_owner(engine: OpenAIEngine, kind: str) -> None:
    """A server whose model list names no owner is known by its own routes, and asked once."""
    content = b'{"object": "list", "data": [{"id": "m"}]}'
    async with Upstream(kind=kind, scenario=at("/v1/models", status(200, content=content))) as upstream:
        to = target(upstream.url)
        for _ in range(3):
            assert await engine.count_tokens(ask(Operation.COMPLETION, prompt="a b"), to, timeout_s=20) == 2
        paths = [seen.path for seen in upstream.requests]
        assert paths.count("/v1/models") == 1
        assert paths[-3:] == ["/tokenize"] * 3


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
@pytest.mark.parametrize(
    ("operation", "fields", "count"),
    [
        (Operation.COMPLETION, {"prompt": "a b c"}, 3),
        (Operation.COMPLETION, {"prompt": ["a b c", "a", "a b c d"]}, 4),
        (Operation.COMPLETION, {"prompt": [5, 6, 7, 8, 9]}, 5),
        (Operation.EMBEDDING, {"input": [[5, 6], [7, 8, 9]]}, 3),
        (Operation.EMBEDDING, {"input": ["a"] * 17}, None),
        (Operation.EMBEDDING, {"input": []}, None),
        (Operation.EMBEDDING, {"input": [1.5]}, None),
        (Operation.EMBEDDING, {}, None),
    ],
)
async def test_counts(
    engine: OpenAIEngine, kind: str, operation: Operation, fields: dict[str, Any], count: int | None
) -> None:
    """The count is that of the longest prompt; what cannot be counted exactly is not counted."""
    async with Upstream(kind=kind) as upstream:
        assert await engine.count_tokens(ask(operation, **fields), target(upstream.url), timeout_s=20) == count


async def test_count_passes_tools(engine: OpenAIEngine) -> None:
    """Tools are part of the prompt, so the server that counts gets them."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = ask(Operation.CHAT, messages=[{"role": "user", "content": "a b"}], tools=tools, temperature=0)
    async with Upstream(kind="vllm") as upstream:
        assert await engine.count_tokens(request, target(upstream.url), timeout_s=20) == 3
        assert set(upstream.requests[-1].json) == {"model", "messages", "tools"}
    async with Upstream(kind="llamacpp") as upstream:
        assert await engine.count_tokens(request, target(upstream.url), timeout_s=20) == 3
        assert set(upstream.requests[-2].json) == {"messages", "tools"}


@pytest.mark.parametrize("answer", [status(500), status(400), status(200, content=b"{}"), never()])
async def test_count_that_fails(engine: OpenAIEngine, answer: Step) -> None:
    """A tokenizer that fails gives no count, and no error."""
    async with Upstream(kind="vllm", scenario=at("/tokenize", answer)) as upstream:
        assert await engine.count_tokens(CHAT, target(upstream.url), timeout_s=0.3) is None


async def test_llama_pieces(engine: OpenAIEngine) -> None:
    """llama-server's pieces, bytes among them, come in vLLM's shape."""
    content = json.dumps({"tokens": [{"id": 5, "piece": "a"}, {"id": 6, "piece": [195]}]}).encode()
    request = ask(Operation.TOKENIZE, prompt="x", add_special_tokens=False, return_token_strs=True)
    async with Upstream(kind="llamacpp", scenario=at("/tokenize", status(200, content=content))) as upstream:
        answer = json.loads(await send(engine, target(upstream.url), request))
        assert answer == {"count": 2, "max_model_len": 4096, "tokens": [5, 6], "token_strs": ["a", "\ufffd"]}
        sent = upstream.requests[-1].json
        assert sent == {"content": "x", "add_special": False, "parse_special": True, "with_pieces": True}


async def test_llama_messages(engine: OpenAIEngine) -> None:
    """Messages are put into the model's own template first."""
    request = ask(Operation.TOKENIZE, messages=[{"role": "user", "content": "a b"}])
    async with Upstream(kind="llamacpp") as upstream:
        assert json.loads(await send(engine, target(upstream.url), request))["count"] == 3
        assert upstream.requests[-1].json["content"] == "<user> a b"


@pytest.mark.parametrize("operation", [Operation.TOKENIZE, Operation.DETOKENIZE])
async def test_tokenizer_nonsense(engine: OpenAIEngine, operation: Operation) -> None:
    """A tokenizer's answer of another shape is a break."""
    wrong = status(200, content=b'{"x": 1}')
    async with Upstream(kind="llamacpp", scenario=at(f"/{operation}", wrong)) as upstream:
        with pytest.raises(EngineBroke, match="tokenizer"):
            await send(engine, target(upstream.url), ask(operation, prompt="a", tokens=[1]))
