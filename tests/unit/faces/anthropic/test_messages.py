"""Anthropic's requests become OpenAI's, and OpenAI's answers become Anthropic's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from passerelle.domain.errors import BadRequest
from passerelle.domain.request import Operation
from passerelle.faces.anthropic.answers import MessageRendering
from passerelle.faces.anthropic.messages import parse_count, parse_message


def sent(**fields: Any) -> dict[str, Any]:
    """Returns the OpenAI body that a message becomes."""
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}], **fields}
    return dict(json.loads(parse_message(json.dumps(body).encode()).body))


def test_system_and_sampling() -> None:
    """System text goes in front; sampling fields get OpenAI's names."""
    found = sent(system=[{"type": "text", "text": "Brief."}], stop_sequences=["x"], top_k=3, temperature=0.5)
    assert found["messages"] == [{"role": "system", "content": "Brief."}, {"role": "user", "content": "a"}]
    assert (found["stop"], found["top_k"], found["temperature"], found["max_tokens"]) == (["x"], 3, 0.5, 5)


def test_a_stream_asks_for_usage() -> None:
    """Anthropic's streams always tell tokens."""
    assert sent(stream=True)["stream_options"] == {"include_usage": True}


def test_tools_go_both_ways() -> None:
    """Tools, a call in an earlier answer and its result keep their ids, and the result comes before new text."""
    found = sent(
        tools=[{"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        messages=[
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Nice"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
    )
    assert found["tool_choice"] == "required"
    assert found["parallel_tool_calls"] is False
    assert found["tools"][0]["function"]["name"] == "weather"
    _, call, result, text = found["messages"]
    assert call["content"] is None
    assert call["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Nice"}'}
    assert result == {"role": "tool", "tool_call_id": "t1", "content": "sun"}
    assert text == {"role": "user", "content": "So?"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"model":"m","messages":[]}', None),
        (b'{"model":"m","max_tokens":0,"messages":[{"role":"user","content":"a"}]}', "max_tokens"),
        (b'{"model":"m","max_tokens":1,"messages":[{"role":"tool","content":"a"}]}', "messages[0].role"),
        (
            b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_use","id":"a",'
            b'"name":"b","input":{}}]}]}',
            "messages[0].content",
        ),
    ],
)
def test_bad_bodies_name_the_field(body: bytes, param: str | None) -> None:
    """A wrong body is a 400 that names the field."""
    with pytest.raises(BadRequest) as caught:
        parse_message(body)
    if param is not None:
        assert caught.value.param == param


def test_unknown_fields_are_named() -> None:
    """A field nobody knows is left out and told."""
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}], "surprise": 1}
    assert parse_message(json.dumps(body).encode()).dropped == ("surprise",)


def test_count_is_a_tokenize_request() -> None:
    """Counting goes to the model's tokenizer."""
    request = parse_count(b'{"model":"m","messages":[{"role":"user","content":"a"}]}')
    assert request.operation is Operation.TOKENIZE


def events(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Returns name and data of each event."""
    found = []
    for part in data.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in part.splitlines() if line and not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_a_stream_of_text_and_a_tool_call() -> None:
    """Blocks open and close in order, and the message ends with its reason and tokens."""
    rendering = MessageRendering("req_1", "m")
    out = b"".join(
        rendering.event(event)
        for event in (
            chunk(role="assistant", content=""),
            chunk(content="Let"),
            chunk(content=" me see"),
            chunk(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a":1}'}}]),
            chunk("tool_calls"),
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}},
        )
    )
    found = events(out + rendering.end())
    assert [name for name, _ in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(data["type"] == name for name, data in found)
    assert found[5][1]["content_block"] == {"type": "tool_use", "id": "c1", "name": "weather", "input": {}}
    assert found[6][1]["delta"] == {"type": "input_json_delta", "partial_json": '{"a":1}'}
    assert found[8][1]["delta"]["stop_reason"] == "tool_use"
    assert found[8][1]["usage"]["output_tokens"] == 4


def test_a_broken_stream_ends_with_an_error_event() -> None:
    """The gateway's error event becomes Anthropic's, and nothing says that the message ended well."""
    rendering = MessageRendering("req_1", "m")
    out = rendering.event(chunk(content="a")) + rendering.event(
        {"error": {"type": "upstream_error", "message": "The model server broke off; retry the request."}}
    )
    name, data = events(out)[-1]
    assert name == "error"
    assert data["error"]["type"] == "api_error"
