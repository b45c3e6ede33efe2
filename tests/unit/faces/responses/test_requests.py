"""A Responses request in, a chat request out: nothing lost, nothing made up, what cannot be is refused by name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from passerelle.domain.errors import BadRequest
from passerelle.faces.responses.answers import text_message
from passerelle.faces.responses.items import Item
from passerelle.faces.responses.requests import as_given, chat_request, draft, parse

IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


def chat(before: list[Item] | None = None, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """The chat request for a Responses request."""
    asked = parse(json.dumps({"model": "m", "input": "hi", **fields}).encode())
    return dict(json.loads(chat_request(asked, before or [], stream=stream).body))


def test_a_text_and_options() -> None:
    """A text is a user's message; options get their names there."""
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    made = chat(
        instructions="Be short.",
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.9,
        reasoning={"effort": "low"},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
    )
    assert made == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}],
        "stream": False,
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
    }
    assert chat(stream=True)["stream_options"] == {"include_usage": True}


def test_tools_and_their_calls() -> None:
    """Functions, the choice of one, earlier calls side by side, and what came of them."""
    tool = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}
    items = [
        {"role": "user", "content": "look"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "one"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "two"}]},
    ]
    made = chat(input=items, tools=[tool], tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False)
    called = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in ("a", "b")]
    assert made["messages"] == [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": "a", "content": "one"},
        {"role": "tool", "tool_call_id": "b", "content": "two"},
    ]
    assert made["tools"][0]["function"] == {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert made["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert made["parallel_tool_calls"] is False


def test_what_was_said_before_goes_before() -> None:
    """Items of the conversation, then instructions in front of all, then the new ones."""
    first = parse(b'{"model": "m", "input": "one"}').items
    made = chat([*first, text_message("two")], input="three", instructions="now")
    assert [(each["role"], each["content"]) for each in made["messages"]] == [
        ("system", "now"),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]


def test_pictures() -> None:
    """A picture is a part of the user's message."""
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    data = f"data:image/png;base64,{pixel}"
    parts = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": data}]
    (message,) = chat(input=[{"role": "user", "content": parts}])["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url"]
    assert message["content"][1]["image_url"]["url"] == data


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]}, "input[0].content[0]"),
        ({"input": 5}, "input"),
        (
            {"input": [{"type": "function_call_output", "call_id": "a", "output": [IMAGE]}]},
            "input[0].output",
        ),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """A 400 that names the field; nothing is guessed."""
    with pytest.raises(BadRequest) as refused:
        chat(**fields)
    assert refused.value.param == param


def test_what_nobody_knows_is_left_out_and_told() -> None:
    """Unknown fields are named, null for a refused one is as if it was not there."""
    asked = parse(b'{"model": "m", "input": "x", "service_tier": "auto", "conversation": null, "zzz": 1}')
    assert chat_request(asked, [], stream=False).dropped == ("conversation", "service_tier", "zzz")
    assert draft(asked)["store"] is True


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": "m"}', b"\xff", b'{"model": "m", "input": "\\ud800"}'])
def test_what_is_no_request(body: bytes) -> None:
    """Bodies that are none are a 400."""
    with pytest.raises(BadRequest):
        chat_request(parse(body), [], stream=False)


def test_a_bound_on_the_answer_reaches_a_server_with_responses() -> None:
    """Where the gateway shortens an answer, the field has the name it has there; the model's name is the server's."""
    raw = b'{"model":"house","input":"x","max_output_tokens":500,"metadata":{"a":"b"}}'
    asked = parse(raw)
    request = chat_request(asked, [], stream=False)
    request.responses = as_given(raw, asked, [], stream=False)
    request.changes = {"max_completion_tokens": msgspec.Raw(b"42")}
    assert msgspec.json.decode(request.render_responses("theirs")) == {
        "model": "theirs",
        "input": "x",
        "max_output_tokens": 42,
        "store": False,
        "stream": False,
    }
