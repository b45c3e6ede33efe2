"""Triton behind the gateway: answers, streams, usage, errors, cancellation, many at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import numpy
import openai
import pytest
import tritonclient.grpc as triton_grpc
from openai.types.chat import ChatCompletionMessageParam
from tests.harness.gateway import GatewayProcess
from tests.triton.server import Triton


def say(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as made:
        yield made


def direct(server: Triton, prompt: str, tokens: int) -> str:
    """Returns what Triton's own client gets from the same model."""
    pieces: list[str] = []
    with triton_grpc.InferenceServerClient(server.url.removeprefix("grpc://")) as client:
        inputs = []
        sampling = json.dumps({"max_tokens": tokens}).encode()
        for name, value in (("text_input", prompt.encode()), ("sampling_parameters", sampling), ("stream", True)):
            kind, dtype = ("BOOL", numpy.bool_) if value is True else ("BYTES", numpy.object_)
            tensor = triton_grpc.InferInput(name, [1], kind)
            tensor.set_data_from_numpy(numpy.array([value], dtype=dtype))
            inputs.append(tensor)
        client.start_stream(lambda result, error: pieces.append(result.as_numpy("text_output")[0].decode()))
        client.async_stream_infer("phi3", inputs)
        client.stop_stream()
    return "".join(pieces)


def test_the_same_text_as_triton_itself(server: Triton, client: openai.OpenAI) -> None:
    """What the gateway tells is what Triton's own client gets, whole and streamed, with tokens and reason."""
    wanted = direct(server, "one two three", 5)
    answer = client.chat.completions.create(model="phi3", messages=say("one two three"), max_tokens=5)
    assert answer.choices[0].message.content == wanted == "tok0 tok1 tok2 tok3 tok4 "
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 5)
    options = openai.types.chat.ChatCompletionStreamOptionsParam(include_usage=True)
    stream = client.chat.completions.create(
        model="phi3", messages=say("one two three"), max_tokens=5, stream=True, stream_options=options
    )
    events = list(stream)
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == wanted
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 5


def test_stop_and_unicode(client: openai.OpenAI) -> None:
    """A stop sequence ends the answer before it; text of any script comes whole."""
    stopped = client.completions.create(model="phi3", prompt="a", max_tokens=9, stop="tok3")
    assert stopped.choices[0].text == "tok0 tok1 tok2 "
    assert client.completions.create(model="phi3", prompt="é", max_tokens=2).choices[0].text == "é0 é1 "


def test_tensorrt_llm_tensors(client: openai.OpenAI) -> None:
    """The ensemble's tensors are filled by their own names and shapes."""
    answer = client.completions.create(
        model="trt", prompt="a", max_tokens=4, temperature=0.5, top_p=0.9, seed=7, stop="trt2"
    )
    assert answer.choices[0].text == "trt0 trt1 "


def test_errors(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    """A model that is not there is 503, one that fails in a stream an error event; Triton's own words go nowhere."""
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="gone", prompt="a", max_tokens=2)
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model="phi3", messages=say("fail"), max_tokens=5, stream=True))
    assert "secret" not in str(caught.value)
    assert not any("secret" in line for line in gateway.log)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="phi3", messages=say("a"), tools=[{"type": "function", "function": {"name": "f"}}]
        )


def test_leaving_frees_the_model(server: Triton, client: openai.OpenAI) -> None:
    """The model's own view: it sees that its request was cancelled, within a second."""
    stream = client.chat.completions.create(
        model="phi3", messages=say("slow leaver"), max_tokens=400, stream=True, timeout=20
    )
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 5
    while not any(note.startswith("leaver ") for note in server.notes()):
        assert time.monotonic() < until
        time.sleep(0.02)
    after = int(next(note for note in server.notes() if note.startswith("leaver ")).split()[1])
    assert after < 60


async def test_many_at_once_never_mix(gateway: GatewayProcess) -> None:
    """Forty streams over one connection, of different lengths: each gets its own answer, and they run together."""
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=gateway.key, max_retries=0) as client:

        async def one(number: int) -> None:
            answer = await client.chat.completions.create(
                model="phi3", messages=say("slow " * (number % 7 + 1)), max_tokens=number % 5 + 3
            )
            assert answer.choices[0].message.content == "".join(f"tok{n} " for n in range(number % 5 + 3))
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == number % 7 + 1

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(40)))
        assert time.monotonic() - began < 10
