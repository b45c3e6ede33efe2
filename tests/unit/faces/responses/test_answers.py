"""Chat answers told as Responses: every event fits the official client's own types, and the last one tells it all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from passerelle.faces.responses.answers import ResponseRendering
from passerelle.faces.responses.requests import draft, parse

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def rendering() -> ResponseRendering:
    """An answer before there is one."""
    return ResponseRendering(draft(parse(b'{"model": "m", "input": "x"}')))


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """One chunk of a chat stream."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def told(*chunks: dict[str, Any], ends: bool = True) -> list[dict[str, Any]]:
    """All events of a stream, each checked against the client's types."""
    made = rendering()
    data = b"".join(made.event(each) for each in chunks)
    if ends:
        data += made.end() + made.last
    events = []
    for block in data.decode().split("\n\n")[:-1]:
        name, payload = block.split("\n")
        event = json.loads(payload.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds(events: Sequence[dict[str, Any]]) -> list[str]:
    """The types of events, without what all have in common, deltas in a row once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]


def test_a_text() -> None:
    """One message with one part; usage in the last event, with what was cached and thought."""
    events = told(
        chunk(role="assistant"),
        chunk(content="Hel"),
        chunk(content="lo"),
        chunk("stop"),
        {"choices": [], "usage": USAGE},
    )
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    answer = Response.model_validate(events[-1]["response"])
    assert answer.output_text == "Hello"
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert answer.usage.output_tokens_details.reasoning_tokens == 3
    assert events[0]["response"]["output"] == []


def test_thoughts_then_text_then_calls() -> None:
    """Each is an item of its own, in order; calls that are told side by side keep their own arguments."""
    call = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}}
    other = {"index": 1, "id": "call_b", "type": "function", "function": {"name": "g", "arguments": '{"b":'}}
    events = told(
        chunk(reasoning_content="hm"),
        chunk(reasoning_content="m"),
        chunk(content="I look."),
        chunk(tool_calls=[call]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]),
        chunk(tool_calls=[other]),
        chunk(tool_calls=[{"index": 1, "function": {"arguments": "1}"}}]),
        chunk("tool_calls"),
    )
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "hmm"}]
    assert [(item["name"], item["arguments"], item["call_id"]) for item in output[2:]] == [
        ("f", "{}", "call_a"),
        ("g", '{"b":1}', "call_b"),
    ]
    assert {item["status"] for item in output} == {"completed"}
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["output_index"] for event in events if event["type"] == "response.output_item.done"]
    assert added == done == [0, 1, 2, 3]


def test_a_refusal() -> None:
    """It is a part of its own kind."""
    events = told(chunk(refusal="I will"), chunk(refusal=" not."), chunk("stop"))
    assert "refusal.delta" in kinds(events)
    (item,) = events[-1]["response"]["output"]
    assert item["content"] == [{"type": "refusal", "refusal": "I will not."}]


@pytest.mark.parametrize(("finish", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut(finish: str, why: str) -> None:
    """It ends as incomplete, and says why."""
    last = told(chunk(content="Hel"), chunk(finish))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": why}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_an_answer_of_nothing() -> None:
    """A model that says nothing has said an empty text."""
    (item,) = told(chunk("stop"))[-1]["response"]["output"]
    assert item["content"][0]["text"] == ""


def test_a_stream_that_breaks() -> None:
    """The last event is response.failed with the code and words of the error, before the first token and after."""
    error = {"error": {"message": "It broke.", "type": "upstream_error", "code": "upstream_failed", "param": None}}
    for before in ([], [chunk(content="Hel")]):
        made = rendering()
        data = b"".join(made.event(each) for each in [*before, error]).decode()
        last = json.loads(data.split("\n\n")[-2].split("data: ")[1])
        assert last["type"] == "response.failed"
        assert last["response"]["error"] == {"code": "upstream_failed", "message": "It broke."}


def test_a_whole_answer_is_as_its_stream() -> None:
    """The same text, thought and call have the same items, but for their ids."""
    function = {"name": "f", "arguments": "{}"}
    call = {"id": "call_a", "type": "function", "function": function}
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "tool_calls": [call]}
    made = rendering()
    whole = json.loads(made.document({"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE}))
    Response.model_validate(whole)
    streamed = told(
        chunk(reasoning_content="hm"),
        chunk(content="Hi"),
        chunk(tool_calls=[{"index": 0, **call}]),
        chunk("stop"),
        {"choices": [], "usage": USAGE},
    )[-1]["response"]
    for answer in (whole, streamed):
        for item in answer["output"]:
            item.pop("id")
    assert whole["output"] == streamed["output"]
    assert whole["usage"] == streamed["usage"]


def test_an_answer_is_told_again() -> None:
    """What was made in the background has the events of the client's own types, and ids that stay."""
    document = told(
        chunk(reasoning_content="hm"),
        chunk(content="Hi"),
        chunk(refusal="No."),
        chunk(tool_calls=[{"index": 0, "id": "call_a", "function": {"name": "f", "arguments": "{}"}}]),
        chunk("tool_calls"),
    )[-1]["response"]
    runs = []
    for _ in range(2):
        made = ResponseRendering({**document, "output": []})
        blocks = [*made.queued(), made.working(), *made.replay(document)]
        events = [json.loads(block.decode().split("data: ")[1]) for block in blocks]
        for number, event in enumerate(events):
            EVENTS.validate_python(event)
            assert event["sequence_number"] == number
        runs.append(events)
    assert runs[0] == runs[1]
    assert runs[0][-1]["response"] == document
    done = [event["item"] for event in runs[0] if event["type"] == "response.output_item.done"]
    assert done == document["output"]
