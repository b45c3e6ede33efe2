"""Whatever is sent as a Responses request, or as a line of a batch, is a request or a 400 that says why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.batches.lines import Line, read_line
from passerelle.domain.errors import PasserelleError
from passerelle.faces.openai.batches import prepare
from passerelle.faces.responses.requests import chat_request, draft, parse

WORDS = st.sampled_from(
    [
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "input_text",
        "output_text",
        "input_image",
        "refusal",
        "user",
        "assistant",
        "system",
        "text",
        "x",
        "json_schema",
        "function",
        "auto",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.just("type"), inner, max_size=4),
    max_leaves=8,
)
NAMES = ("type", "role", "content", "id", "call_id", "name", "arguments", "output", "text", "image_url", "refusal")
PARTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)
ITEMS = st.dictionaries(st.sampled_from(NAMES), VALUES | st.lists(PARTS, max_size=2), max_size=6)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "input": WORDS | st.lists(ITEMS, max_size=3)},
    optional={
        "tools": st.lists(PARTS, max_size=2),
        "tool_choice": VALUES,
        "text": st.dictionaries(st.just("format"), VALUES),
        "instructions": VALUES,
        "reasoning": VALUES,
        "metadata": VALUES,
    },
)


@given(BODIES)
@settings(max_examples=200, deadline=None)
def test_any_request_is_taken_or_refused(body: dict[str, Any]) -> None:
    """What is taken makes a chat request and a draft that is JSON, and each of its items has an id."""
    try:
        asked = parse(json.dumps(body).encode())
        request = chat_request(asked, [], stream=False)
    except PasserelleError as error:
        assert error.status == 400
        return
    assert json.loads(request.body)["messages"]
    json.dumps(draft(asked))
    assert all(isinstance(item["id"], str) and item["id"] for item in asked.items)
    again = parse(json.dumps({"model": "m", "input": asked.items}).encode())
    assert [item["type"] for item in again.items] == [item["type"] for item in asked.items]


@given(st.binary(max_size=60) | BODIES.map(lambda body: json.dumps(body).encode()))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/responses"])
def test_any_line_is_taken_or_told(endpoint: str, data: bytes) -> None:
    """A line is a request or an error with its number, and its body is a request or a 400."""
    wrapped = b'{"custom_id":"a","method":"POST","url":"%b","body":%b}' % (endpoint.encode(), data)
    for line in (data, wrapped):
        found = read_line(3, line, endpoint)
        if not isinstance(found, Line):
            assert found.line == 3
            continue
        try:
            prepare(endpoint, found.body)
        except PasserelleError as error:
            assert error.status == 400
