"""Any bytes become a request or an error a client can read, and nothing unknown is ever forwarded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passerelle.domain.errors import PasserelleError
from passerelle.domain.request import Request, dropped_header
from passerelle.faces.openai import wire
from passerelle.faces.openai.fields import CONSUME, DROP, FORWARD, REFUSE, refusal

PARSERS = [wire.parse_chat, wire.parse_completion, wire.parse_embedding, wire.parse_tokenize, wire.parse_detokenize]
EVERY_FIELD = sorted(
    frozenset[str]().union(*FORWARD.values()) | CONSUME | DROP | REFUSE.keys() | {"guided_x", "lora_x"}
)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio", "refusal", "video_url"])},
    optional={
        "text": st.text(max_size=8) | ANY_JSON,
        "image_url": st.fixed_dictionaries({"url": st.sampled_from(["data:image/png;base64,AAAA", "http://127.1/"])}),
        "input_audio": st.fixed_dictionaries({"data": st.text(max_size=8), "format": st.just("wav")}),
        "uuid": ANY_JSON,
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "root"])},
    optional={
        "content": st.none() | st.text(max_size=8) | st.lists(PART, max_size=3),
        "tool_call_id": st.text(max_size=4),
        "tool_calls": ANY_JSON,
        "odd": ANY_JSON,
    },
)
SCHEMA = st.recursive(
    st.sampled_from([{"type": "string"}, {"$ref": "#"}, {"pattern": "(a+)+"}, {"minLength": 5}, True]),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"properties": st.dictionaries(st.text(max_size=3), inner), "items": inner, "$defs": inner}
    ),
    max_leaves=6,
)
TOOL = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["f", "g", "a b"])}, optional={"parameters": SCHEMA}
        ),
    }
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["phi", "org/phi", ""]),
    "messages": st.lists(MESSAGE, max_size=4),
    "prompt": st.text(max_size=8) | st.lists(st.text(max_size=4), max_size=3) | st.lists(st.integers(0, 9), max_size=3),
    "input": st.text(max_size=8) | st.lists(st.text(max_size=4), max_size=3),
    "tokens": st.lists(st.integers(-1, 9), max_size=3),
    "tools": st.lists(TOOL, max_size=3),
    "n": st.integers(-1, 20),
    "max_tokens": st.integers(-1, 2**21),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "odd": ANY_JSON}),
    "temperature": st.floats(-1, 3),
}


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Objects that are mostly right: likely values in known fields, and a few of anything."""
    body = {name: draw(LIKELY[name]) for name in draw(st.sets(st.sampled_from(sorted(LIKELY))))}
    body |= {"model": "phi"} if draw(st.booleans()) else {}
    for name in draw(st.sets(st.sampled_from(EVERY_FIELD) | st.text(max_size=8), max_size=2)):
        body[name] = draw(ANY_JSON)
    return body


def checked(parse: Any, body: bytes) -> Request | None:
    """Parses and checks what must hold of every outcome."""
    try:
        request = parse(body)
    except PasserelleError as error:
        assert error.status in (400, 413)
        assert 0 < len(error.message) < 500
        return None
    assert isinstance(request, Request)
    forwarded = json.loads(request.body)
    assert forwarded.keys() == request.fields.keys()
    assert forwarded.keys() <= FORWARD[request.operation]
    assert not [name for name in forwarded if refusal(name)]
    assert set(json.loads(request.render("other", include_usage=True))) <= FORWARD[request.operation]
    assert "127.1" not in str(pictures(forwarded))
    assert 1 <= request.n <= 128
    dropped_header(request.dropped).decode("ascii")
    again = parse(request.body)
    assert (again.body, again.n, again.max_tokens, again.dropped) == (request.body, request.n, request.max_tokens, ())
    return request


def pictures(body: dict[str, Any]) -> list[Any]:
    """Every picture in a forwarded body."""
    contents = [message.get("content") for message in body.get("messages") or ()]
    return [
        part["image_url"]
        for content in contents
        if isinstance(content, list)
        for part in content
        if "image_url" in part
    ]


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_become_a_request_or_an_error(parse: Any, body: bytes) -> None:
    """No input raises anything but an error of the tree."""
    checked(parse, body)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(body=ANY_JSON.map(json.dumps))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_becomes_a_request_or_an_error(parse: Any, body: str) -> None:
    """No JSON does, lone surrogates in it or not."""
    checked(parse, body.encode())


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(body=bodies())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_forwarded_is_on_the_list(parse: Any, body: dict[str, Any]) -> None:
    """Promise 20: the forwarded body's keys are a subset of the allow-list, and parsing it again changes nothing."""
    request = checked(parse, json.dumps(body).encode())
    if request is not None:
        left_out = body.keys() - request.fields.keys() - CONSUME - {"stream_options", "content"}
        assert left_out <= set(request.dropped)
        assert not [name for name in body if refusal(name)]


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(body=bodies(), at=st.integers(0, 2000), put=st.binary(min_size=1, max_size=3))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_body_becomes_a_request_or_an_error(parse: Any, body: dict[str, Any], at: int, put: bytes) -> None:
    """Bytes thrown into a good body do no harm."""
    text = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    at %= len(text) + 1
    checked(parse, text[:at] + put + text[at + 1 :])
