"""The embedding server speaks OpenAI's protocol, with the real model, under real HTTP."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import math
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from passerelle.models.embedding_child import DIMENSIONS, MAX_BODY_BYTES, WINDOW_TOKENS, embedding_spec
from passerelle.models.supervisor import Supervisor

FRENCH, ENGLISH, OTHER = "Le chat dort sur le tapis.", "The cat is asleep on the rug.", "Stock prices fell on Monday."


class Server:
    """A running embedding child: its port, its key and a client of the official SDK."""

    def __init__(self, supervisor: Supervisor) -> None:
        address = supervisor.address("e5")
        self.port = int(address.rpartition(":")[2])
        self.key = supervisor.api_key("e5")
        self.client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=self.key, max_retries=0)

    async def embed(self, **fields: Any) -> list[list[float]]:
        """Returns the vectors of one request."""
        answer = await self.client.embeddings.create(model="e5", **fields)
        assert [item.index for item in answer.data] == list(range(len(answer.data)))
        return [item.embedding for item in answer.data]

    def post(self, body: bytes, key: str | None = None) -> tuple[int, dict[str, Any]]:
        """Sends bytes to /v1/embeddings and returns status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/v1/embeddings", body, {"authorization": f"Bearer {key or self.key}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    """A child that is ready."""
    supervisor = Supervisor([embedding_spec("e5")])
    await supervisor.start()
    try:
        await supervisor.wait_ready("e5")
        running = Server(supervisor)
        yield running
        await running.client.close()
    finally:
        await supervisor.stop(5)


def dot(left: list[float], right: list[float]) -> float:
    """The scalar product."""
    return sum(a * b for a, b in zip(left, right, strict=True))


async def test_vectors_have_meaning_in_two_languages(server: Server) -> None:
    """Unit vectors; a translation is nearer than another subject."""
    french, english, other = await server.embed(input=[FRENCH, ENGLISH, OTHER])
    assert len(french) == DIMENSIONS
    assert math.isclose(dot(french, french), 1, abs_tol=1e-5)
    assert dot(french, english) > dot(french, other) + 0.05


async def test_float_base64_string_and_list_agree(server: Server) -> None:
    """The same text gives the same numbers in every form of request."""
    (plain,) = await server.embed(input=FRENCH, encoding_format="float")
    (listed, _) = await server.embed(input=[FRENCH, OTHER], encoding_format="float")
    status, answer = await asyncio.to_thread(
        server.post, json.dumps({"input": FRENCH, "encoding_format": "base64"}).encode()
    )
    packed = base64.b64decode(answer["data"][0]["embedding"])
    assert status == 200
    assert plain == listed == list(struct.unpack(f"<{DIMENSIONS}f", packed))
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 5
    assert answer["model"] == "e5"


async def test_the_input_type_and_the_models_own_prefix_choose_alike(server: Server) -> None:
    """input_type, a written prefix and the default lead to the vectors they stand for, also mixed in one request."""

    async def typed(kind: str) -> list[float]:
        return (await server.embed(input=FRENCH, extra_body={"input_type": kind}))[0]

    query, passage = await typed("query"), await typed("passage")
    assert query != passage
    assert await typed("search_query") == query
    assert await typed("document") == await typed("search_document") == passage
    mixed = await server.embed(input=[f"passage: {FRENCH}", FRENCH, f"query: {FRENCH}"])
    assert mixed == [passage, query, query]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"input": [1, 2, 3]}, "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "takes text"),
        ({"input": []}, "1 to 2048"),
        ({"input": ["x"] * 2049}, "1 to 2048"),
        ({"input": ""}, "empty"),
        ({"input": ["x", ""]}, "input[1]"),
        ({"input": {"a": 1}}, "not valid"),
        ({}, "input"),
        ({"input": "x", "dimensions": 64}, "384"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "input_type": "poem"}, "input_type"),
    ],
)
async def test_wrong_requests_are_refused_with_the_reason(server: Server, body: object, why: str) -> None:
    """Each is a 400 in OpenAI's envelope."""
    status, answer = await asyncio.to_thread(server.post, json.dumps(body).encode())
    assert status == 400
    assert why in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


async def test_a_text_longer_than_the_window_is_refused_not_cut(server: Server) -> None:
    """Both numbers are in the message; the longest text that fits is embedded."""
    status, answer = await asyncio.to_thread(server.post, json.dumps({"input": "chat " * 700}).encode())
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "70" in answer["error"]["message"]
    assert str(WINDOW_TOKENS) in answer["error"]["message"]
    await server.embed(input="chat " * 500)


async def test_broken_bytes_are_refused(server: Server) -> None:
    """No JSON, half JSON, lone surrogates and oversized bodies; the server goes on."""
    for body in (b"", b"{", b"[]", b"\xff\xfe", b'{"input": "\\ud800"}'):
        status, _ = await asyncio.to_thread(server.post, body)
        assert status == 400
    status, answer = await asyncio.to_thread(server.post, b'{"input":"' + b"x" * MAX_BODY_BYTES + b'"}')
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    await server.embed(input=FRENCH)


async def test_a_nul_does_not_end_a_text(server: Server) -> None:
    """What follows a NUL character counts: the engine's strings would end there."""
    with_nul, cut, spaced = await server.embed(input=["chat\0noir", "chat", "chat noir"])
    assert with_nul == spaced
    assert with_nul != cut


async def test_the_key_is_asked_for(server: Server) -> None:
    """Only /health answers without it."""
    assert (await asyncio.to_thread(server.post, b"{}", "wrong"))[0] == 401
    cards = await server.client.models.list()
    assert [(card.id, card.model_extra["max_model_len"]) for card in cards.data if card.model_extra] == [("e5", 512)]
    with pytest.raises(openai.NotFoundError):
        await server.client.completions.create(model="e5", prompt="x")


async def test_concurrent_requests_keep_their_own_vectors(server: Server) -> None:
    """Thirty requests at once over pooled connections: each gets what it gets alone."""
    texts = [f"phrase numéro {number} sur le sujet {number * 7}" for number in range(30)]
    alone = [await server.embed(input=text) for text in texts]
    together = await asyncio.gather(*(server.embed(input=text) for text in texts))
    assert together == alone


async def test_a_connection_is_kept_over_many_requests_and_errors(server: Server) -> None:
    """One connection carries forty answers, refusals among them."""

    def many() -> set[tuple[int, int]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        seen = set()
        for number in range(40):
            body = json.dumps({"input": "chat" if number % 3 else []})
            connection.request("POST", "/v1/embeddings", body, {"authorization": f"Bearer {server.key}"})
            answer = connection.getresponse()
            answer.read()
            seen.add((answer.status, connection.sock.getsockname()[1]))
        connection.close()
        return seen

    seen = await asyncio.to_thread(many)
    assert {status for status, _ in seen} == {200, 400}
    assert len({port for _, port in seen}) == 1


@pytest.mark.slow
async def test_a_large_request_lets_small_ones_pass_and_ends_with_its_client(server: Server) -> None:
    """While hundreds of texts wait, a short one is answered; when their client leaves, they are not computed."""
    texts = [f"{number} " + "le chat noir dort " * 25 for number in range(600)]
    body = json.dumps({"input": texts}).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as large:
        await asyncio.to_thread(large.sendall, head.encode() + body)
        async with asyncio.timeout(30):
            await server.embed(input=FRENCH)
        large.setblocking(False)
        with pytest.raises(BlockingIOError):  # it is still being computed
            large.recv(1)
    began = time.monotonic()
    async with asyncio.timeout(30):
        for _ in range(10):
            await server.embed(input=FRENCH)
    alone = time.monotonic() - began
    assert alone < 20, "the server still computes for a client that left"
