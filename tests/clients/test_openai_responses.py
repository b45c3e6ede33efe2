"""The official Python client's Responses against a running Passerelle with its embedded models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import openai
import pytest

from passerelle.faces.responses.described import ResponseAnswer

pytestmark = pytest.mark.slow


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    """A client as the documentation shows it."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


def ended(client: openai.OpenAI, response_id: str) -> Any:
    """Reads a response until it has ended."""
    until = time.monotonic() + 60
    while (found := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return found


def test_a_response_is_made_kept_and_deleted(client: openai.OpenAI, server: Any) -> None:
    """Text, usage that adds up and the documented shape; what is read later is what was answered."""
    raw = client.responses.with_raw_response.create(
        model=server.model, input="Say hello.", instructions="Be short.", max_output_tokens=64, temperature=0
    )
    shown = msgspec.convert(raw.http_response.json(), ResponseAnswer)
    made = raw.parse()
    assert made.id == shown.id
    assert made.output_text
    assert made.status in ("completed", "incomplete")
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens > 0
    assert client.responses.retrieve(made.id) == made
    (item,) = client.responses.input_items.list(made.id).data
    assert item.type == "message"
    assert item.content[0].to_dict() == {"type": "input_text", "text": "Say hello."}
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_stream_has_every_event_in_order(client: openai.OpenAI, server: Any) -> None:
    """Numbers without a gap, deltas that make up the text, and an end that is the answer which is kept."""
    with client.responses.stream(model=server.model, input="Count to three.", max_output_tokens=24) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    final: Any = events[-1]
    final = final.response
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == final.output_text
    assert client.responses.retrieve(final.id).output_text == final.output_text


def test_an_answer_that_was_cut_says_so(client: openai.OpenAI, server: Any) -> None:
    """``incomplete``, because of ``max_output_tokens``."""
    made = client.responses.create(model=server.model, input="Count to a hundred.", max_output_tokens=4)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_goes_on(client: openai.OpenAI, server: Any) -> None:
    """What was said before is read again: the prompt grows by it; without what came before there is no going on."""
    first = client.responses.create(model=server.model, input="My name is Ada.", max_output_tokens=16)
    second = client.responses.create(
        model=server.model, input="What is my name?", previous_response_id=first.id, max_output_tokens=16
    )
    alone = client.responses.create(model=server.model, input="What is my name?", max_output_tokens=16, store=False)
    assert first.usage is not None
    assert second.usage is not None
    assert alone.usage is not None
    assert second.usage.input_tokens > alone.usage.input_tokens
    assert second.previous_response_id == first.id
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(alone.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=server.model, input="And?", previous_response_id=second.id)
    assert refused.value.param == "previous_response_id"


def test_in_the_background(client: openai.OpenAI, server: Any) -> None:
    """Queued at once, completed later; an answer that is already made is not cancelled."""
    made = client.responses.create(model=server.model, input="Say hello.", background=True, max_output_tokens=64)
    assert made.status == "queued"
    found = ended(client, made.id)
    assert found.status in ("completed", "incomplete")
    assert found.output_text
    assert client.responses.cancel(made.id).status == found.status
    at_once = client.responses.create(model=server.model, input="Say hello.", max_output_tokens=4)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(at_once.id)


def test_one_in_the_background_is_cancelled(client: openai.OpenAI, server: Any) -> None:
    """It stays cancelled, and has no answer."""
    made = client.responses.create(model=server.model, input="Write a book.", background=True, max_output_tokens=1500)
    assert client.responses.cancel(made.id).status == "cancelled"
    found = client.responses.retrieve(made.id)
    assert (found.status, found.output) == ("cancelled", [])


def test_one_in_the_background_is_followed(client: openai.OpenAI, server: Any) -> None:
    """Its events come as of any other, and a caller who comes back hears the rest and nothing twice."""
    events = list(
        client.responses.create(
            model=server.model, input="Say hello.", background=True, stream=True, max_output_tokens=64
        )
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
    ]
    last: Any = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == ended(client, last.response.id).output_text != ""
    rest = list(client.responses.retrieve(last.response.id, stream=True, starting_after=4))
    assert rest == events[5:]


def test_what_cannot_be_says_why(client: openai.OpenAI, server: Any) -> None:
    """Each is a 400 or 404 that names its field, before anything runs."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
        ({"input": "x", "background": True, "store": False}, "store"),
        ({"input": "x", "temperature": 9}, "temperature"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
    ]
    for fields, param in wrong:
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model=server.model, **fields)
        assert refused.value.param == param
    for model in ("nothing", "service/nothing"):
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model=model, input="x", background=True)
