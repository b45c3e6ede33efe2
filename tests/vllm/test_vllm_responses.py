"""Responses by vLLM itself: the gateway passes the request and the events on, keeps the answer and continues it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.vllm.servers import MODEL, Gateway, Vllm


@pytest.fixture(scope="module")
def client(vllm_server: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's client at a gateway that knows the server to have Responses."""
    target = {"url": f"{vllm_server.url}/v1", "model": MODEL, "responses": True}
    running = Gateway(tmp_path_factory.mktemp("responses"), [{"name": "house", "targets": [target]}])
    with running:
        running.wait_ready()
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0) as made:
            yield made


def test_an_answer_and_what_follows_it(client: openai.OpenAI) -> None:
    """The second answer has read the first: its prompt is longer than the new question alone."""
    first = client.responses.create(model="house", input="Say hello.", max_output_tokens=8, temperature=0)
    assert first.model == "house"
    assert first.output_text
    assert first.usage is not None
    assert 0 < first.usage.output_tokens <= 8
    again = client.responses.create(
        model="house", input="Again.", max_output_tokens=8, temperature=0, previous_response_id=first.id
    )
    assert again.usage is not None
    assert again.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    assert client.responses.retrieve(again.id).output_text == again.output_text


def test_events_are_vllms_own(client: openai.OpenAI) -> None:
    """From response.created to the last one without a gap; the text of the deltas is that of the answer."""
    asked = {"model": "house", "input": "Count to ten.", "max_output_tokens": 12, "temperature": 0}
    events: list[Any] = list(client.responses.create(**asked, stream=True))  # type: ignore[call-overload]
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    said = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert said == events[-1].response.output_text
    assert client.responses.retrieve(events[-1].response.id).output_text == said
