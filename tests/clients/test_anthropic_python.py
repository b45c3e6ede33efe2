"""Anthropic's own SDK against the embedded model."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest
from tests.clients.conftest import Server

pytestmark = pytest.mark.slow
ASK: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Name one colour."}]


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url.removesuffix("/v1"), api_key=server.key, max_retries=0) as made:
        yield made


def test_message(server: Server, client: anthropic.Anthropic) -> None:
    """A message comes back with text, a stop reason, and tokens."""
    message = client.messages.create(model=server.model, max_tokens=12, system="Be brief.", messages=ASK)
    (block,) = message.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 5
    assert 0 < message.usage.output_tokens <= 12


def test_stream(server: Server, client: anthropic.Anthropic) -> None:
    """The SDK's stream helper puts the events together to the same kind of message."""
    with client.messages.stream(model=server.model, max_tokens=12, messages=ASK) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    (block,) = message.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text == text
    assert text
    assert message.usage.output_tokens > 0
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 0


def test_blocks_and_turns(server: Server, client: anthropic.Anthropic) -> None:
    """Content in blocks, earlier answers and a stop sequence are understood."""
    message = client.messages.create(
        model=server.model,
        max_tokens=30,
        stop_sequences=["."],
        extra_body={"temperature": 0},
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Say hello."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]},
            {"role": "user", "content": [{"type": "text", "text": "Tell me about the sea in one sentence."}]},
        ],
    )
    (block,) = message.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert "." not in block.text


def test_count_tokens(server: Server, client: anthropic.Anthropic) -> None:
    """Counting agrees with what a message is billed."""
    counted = client.messages.count_tokens(model=server.model, messages=ASK)
    message = client.messages.create(model=server.model, max_tokens=1, messages=ASK)
    assert counted.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def test_errors_are_the_sdks_own(server: Server, client: anthropic.Anthropic) -> None:
    """Each error arrives as the SDK's class, with its envelope and our code."""
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nope", max_tokens=1, messages=ASK)
    body = missing.value.body
    assert isinstance(body, dict)
    assert body["error"]["type"] == "not_found_error"
    assert body["error"]["code"] == "model_not_found"
    assert missing.value.request_id == body["request_id"]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model=server.model, max_tokens=0, messages=ASK)
    stranger = anthropic.Anthropic(base_url=server.url.removesuffix("/v1"), api_key="sk-ant-nope", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model=server.model, max_tokens=1, messages=ASK)
