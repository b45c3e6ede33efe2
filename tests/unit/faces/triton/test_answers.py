"""Answers in Triton's forms."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from passerelle.domain.errors import RateLimited
from passerelle.faces.triton.answers import GenerateRendering, render_error

ANSWER = {
    "choices": [{"text": " there", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1},
}
ALL = frozenset({"finish_reason", "num_input_tokens", "num_output_tokens"})


def events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(part.removeprefix(b"data: ")) for part in data.split(b"\n\n") if part]


def test_a_document() -> None:
    """The text, after the prompt where it is asked for, and the other outputs that are asked for."""
    whole = json.loads(GenerateRendering("m", "7", "hi", ALL).document(ANSWER))
    assert whole == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "text_output": "hi there",
        "finish_reason": "length",
        "num_input_tokens": 2,
        "num_output_tokens": 1,
    }
    bare = json.loads(GenerateRendering("m", "", "", frozenset()).document(ANSWER))
    assert bare == {"model_name": "m", "model_version": "1", "text_output": " there"}


def test_a_stream() -> None:
    """Each piece is an event, results come once at the end, and there is no mark of the end."""
    rendering = GenerateRendering("m", "", "", ALL)
    data = rendering.event({"choices": [{"text": "a", "finish_reason": None}]})
    data += rendering.event({"choices": [{"text": "", "finish_reason": "stop"}]})
    data += rendering.event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    data += rendering.comment(b"queued") + rendering.end()
    assert [event["text_output"] for event in events(data)] == ["a", ""]
    assert events(data)[-1]["num_input_tokens"] == 3
    assert "finish_reason" not in events(data)[0]
    assert GenerateRendering("m", "", "", frozenset()).end() == b""


def test_one_event_for_all() -> None:
    """A stream that is not to stream is one event with the whole text."""
    rendering = GenerateRendering("m", "", "hi", frozenset(), whole=True)
    data = rendering.event({"choices": [{"text": " a"}]}) + rendering.event({"choices": [{"text": "b"}]})
    assert data == b""
    assert [event["text_output"] for event in events(rendering.end())] == ["hi ab"]


def test_an_error_in_the_stream() -> None:
    """A stream that breaks says so in Triton's words."""
    data = GenerateRendering("m", "", "", frozenset()).event({"error": {"message": "broke"}})
    assert events(data) == [{"error": "broke"}]


def test_an_error_before() -> None:
    """The envelope is Triton's; status and headers are the usual ones."""
    status, headers, body = render_error(RateLimited("Slow down.", retry_after_s=2), "req_1")
    assert status == 429
    assert (b"retry-after", b"2") in headers
    assert msgspec.json.decode(body) == {"error": "Slow down.", "code": "rate_limit_exceeded", "request_id": "req_1"}
