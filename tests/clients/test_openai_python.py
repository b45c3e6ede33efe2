"""The official Python client against a running Passerelle with its embedded models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import openai
import pytest

from passerelle.faces.openai import answers

pytestmark = pytest.mark.slow

HELLO: Any = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    """A client as the documentation shows it; it does not retry, so that each answer is seen."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    """The same, async."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


def test_models_are_listed_and_shown(client: openai.OpenAI, server: Any) -> None:
    """Every listed model can be retrieved, slashes in the name or not, and has the documented shape."""
    listed = client.models.list().data
    assert {server.model, server.embedding_model} <= {entry.id for entry in listed}
    for entry in listed:
        shown = client.models.retrieve(entry.id)
        assert shown == entry
        msgspec.convert(shown.model_dump(), answers.ModelEntry)


def test_a_chat_is_answered(client: openai.OpenAI, server: Any) -> None:
    """Text, usage that adds up, and an answer of the documented shape."""
    answer = client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=16, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    msgspec.convert(answer.model_dump(exclude_unset=True), answers.ChatCompletion)


def test_max_completion_tokens_is_a_bound_too(client: openai.OpenAI, server: Any) -> None:
    """The newer name of the bound is honoured by the embedded engine."""
    answer = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "Count from one to one hundred."}],
        max_completion_tokens=5,
        temperature=0,
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 5
    assert answer.choices[0].finish_reason == "length"


def test_a_streamed_chat_is_the_same_text_and_ends_with_usage(client: openai.OpenAI, server: Any) -> None:
    """The deltas joined are the whole answer; the last chunk has the engine's usage and no choices."""
    fields: Any = {"model": server.model, "messages": HELLO, "max_tokens": 16, "temperature": 0, "seed": 7}
    whole = client.chat.completions.create(**fields)
    with client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    for chunk in chunks:
        msgspec.convert(chunk.model_dump(exclude_unset=True), answers.ChatCompletionChunk)


def test_a_stream_without_usage_has_none(client: openai.OpenAI, server: Any) -> None:
    """Usage that the gateway asks for itself is not shown to a client that did not."""
    with client.chat.completions.create(
        model=server.model, messages=HELLO, max_tokens=4, temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    assert len(chunks) > 1
    assert not any(chunk.usage for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)


async def test_the_async_client_chats_and_streams(async_client: openai.AsyncOpenAI, server: Any) -> None:
    """Both ways of the async client."""
    answer = await async_client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content
    text = ""
    async with await async_client.chat.completions.create(
        model=server.model, messages=HELLO, max_tokens=8, temperature=0, stream=True
    ) as stream:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text


async def test_a_stream_that_is_left_does_no_harm(async_client: openai.AsyncOpenAI, server: Any) -> None:
    """The client leaves after one chunk; the next request is served."""
    async with await async_client.chat.completions.create(
        model=server.model, messages=HELLO, max_tokens=512, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        async for _ in stream:
            break
    answer = await async_client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=4, temperature=0)
    assert answer.choices[0].message.content


def test_text_is_completed(client: openai.OpenAI, server: Any) -> None:
    """Whole and streamed, and with a list of prompts one choice each."""
    answer = client.completions.create(model=server.model, prompt="Once upon a", max_tokens=8, temperature=0)
    assert answer.choices[0].text
    with client.completions.create(
        model=server.model, prompt="Once upon a", max_tokens=8, temperature=0, stream=True
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == answer.choices[0].text
    both = client.completions.create(model=server.model, prompt=["Once upon a", "The cat"], max_tokens=4)
    assert [choice.index for choice in both.choices] == [0, 1]


def test_stop_ends_an_answer(client: openai.OpenAI, server: Any) -> None:
    """The stop text is where the answer ends, and is not part of it."""
    fields: Any = {"model": server.model, "prompt": "1, 2, 3, 4, 5,", "max_tokens": 16, "temperature": 0}
    whole = client.completions.create(**fields).choices[0].text
    assert "," in whole
    cut = client.completions.create(**fields, stop=[","]).choices[0]
    assert cut.text == whole.partition(",")[0]
    assert cut.finish_reason == "stop"


def test_n_answers_are_given(client: openai.OpenAI, server: Any) -> None:
    """As many choices as were asked for."""
    answer = client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=4, n=3, temperature=1)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]


def test_logprobs_are_given(client: openai.OpenAI, server: Any) -> None:
    """One entry a token, each with as many alternatives as were asked for."""
    answer = client.chat.completions.create(
        model=server.model, messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3


def test_a_json_schema_is_kept(client: openai.OpenAI, server: Any) -> None:
    """The embedded engine enforces the schema whatever the model would have said."""
    answer = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "Where is the Eiffel tower?"}],
        max_tokens=64,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "place",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"city": {"enum": ["Paris", "London"]}, "sure": {"type": "boolean"}},
                    "required": ["city", "sure"],
                    "additionalProperties": False,
                },
            },
        },
    )
    place = json.loads(answer.choices[0].message.content or "")
    assert place.keys() == {"city", "sure"}
    assert place["city"] in ("Paris", "London")


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_a_conversation_with_tools_is_answered(client: openai.OpenAI, server: Any) -> None:
    """A call and its result go through; whether it calls again is up to the model, and then in the SDK's shape."""
    answer = client.chat.completions.create(
        model=server.model,
        messages=[
            {"role": "user", "content": "What is the weather in Paris?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 21 degrees."},
        ],
        max_tokens=16,
        temperature=0,
        tools=[WEATHER],
        tool_choice="auto",
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    for call in message.tool_calls or ():
        assert call.type == "function"
        assert call.function.name == "weather"


def test_a_choice_of_a_tool_that_is_not_there_is_a_bad_request_error(client: openai.OpenAI, server: Any) -> None:
    """It is found before a model is asked."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=server.model,
            messages=HELLO,
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "time"}},
        )
    assert caught.value.param == "tool_choice"


def test_texts_are_embedded(client: openai.OpenAI, server: Any) -> None:
    """The client asks for base64 by default; as numbers the vectors are the same, and meaning is near meaning."""
    texts = ["Le chat dort sur le lit.", "The cat is asleep on the bed.", "Stock prices fell sharply in autumn."]
    packed = client.embeddings.create(model=server.embedding_model, input=texts)
    plain = client.embeddings.create(model=server.embedding_model, input=texts, encoding_format="float")
    assert [entry.index for entry in packed.data] == [0, 1, 2]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-5)
    french, english, stocks = (entry.embedding for entry in packed.data)
    assert dot(french, english) > dot(french, stocks)
    assert packed.usage.prompt_tokens > 0
    assert client.embeddings.create(model=server.embedding_model, input="chat").data[0].embedding


def dot(one: list[float], other: list[float]) -> float:
    """The product of two vectors of length 1: their similarity."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_a_wrong_key_is_an_authentication_error(server: Any) -> None:
    """401 in the envelope becomes the SDK's own class, with and without a key-like key."""
    for key in ("wrong", server.key[:-1] + ("a" if server.key[-1] != "a" else "b")):
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.models.list()
        assert caught.value.code == "invalid_api_key"


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    """404 on every operation, and for the model itself."""
    for call in (
        lambda: client.chat.completions.create(model="missing", messages=HELLO),
        lambda: client.completions.create(model="missing", prompt="x"),
        lambda: client.embeddings.create(model="missing", input="x"),
        lambda: client.models.retrieve("missing/model"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"


def test_text_asked_of_an_embedding_model_is_a_bad_request_error(client: openai.OpenAI, server: Any) -> None:
    """The mistake is the caller's, and the error names the right operation."""
    for call in (
        lambda: client.chat.completions.create(model=server.embedding_model, messages=HELLO),
        lambda: client.completions.create(model=server.embedding_model, prompt="x"),
    ):
        with pytest.raises(openai.BadRequestError, match="/v1/embeddings") as caught:
            call()
        assert (caught.value.code, caught.value.param) == ("wrong_endpoint", "model")


def test_a_bad_field_is_a_bad_request_error(client: openai.OpenAI, server: Any) -> None:
    """400 names the field, also when a stream was asked for."""
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=server.model, messages=HELLO, n=10**9, stream=stream)
        assert caught.value.param == "n"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.model, messages=HELLO, extra_body={"prompt_embeds": "gASV"})
    assert caught.value.param == "prompt_embeds"


def test_a_prompt_past_the_window_is_a_bad_request_error(client: openai.OpenAI, server: Any) -> None:
    """The code is the one OpenAI's clients look for."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.model, messages=[{"role": "user", "content": "hello " * 40_000}])
    assert caught.value.code == "context_length_exceeded"


def test_headers_name_the_request_and_what_was_dropped(client: openai.OpenAI, server: Any) -> None:
    """A client's own id is echoed; without one there is one; timings and dropped fields are told."""
    answer = client.chat.completions.with_raw_response.create(
        model=server.model,
        messages=HELLO,
        max_tokens=2,
        extra_headers={"x-request-id": "my-own-id.1"},
        extra_body={"odd_field": 1, "store": True},
    )
    assert answer.headers["x-request-id"] == "my-own-id.1"
    assert answer.headers["x-passerelle-dropped-fields"] == "odd_field, store"
    assert "server-timing" in answer.headers
    assert answer.parse().choices[0].message.content
    answer = client.chat.completions.with_raw_response.create(model=server.model, messages=HELLO, max_tokens=2)
    assert answer.headers["x-request-id"]
    assert "x-passerelle-dropped-fields" not in answer.headers
