"""Requests of the OpenAI face: what passes, what is refused and which field is named."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from passerelle.domain.errors import BadRequest, PasserelleError, PayloadTooLarge
from passerelle.domain.request import Operation, Request
from passerelle.faces.openai import wire
from passerelle.faces.openai.fields import FORWARD
from passerelle.faces.openai.media import MAX_MEDIA_BYTES

HELLO = {"role": "user", "content": "Hello!"}
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)


def chat(**fields: Any) -> Request:
    """Parses a chat with these fields beside a model and one message."""
    return wire.parse_chat(json.dumps({"model": "phi", "messages": [HELLO]} | fields).encode())


def completion(**fields: Any) -> Request:
    """Parses a completion with these fields beside a model and a prompt."""
    return wire.parse_completion(json.dumps({"model": "phi", "prompt": "Say"} | fields).encode())


def embedding(**fields: Any) -> Request:
    """Parses an embedding request with these fields beside a model and an input."""
    return wire.parse_embedding(json.dumps({"model": "e5", "input": "chat"} | fields).encode())


def tokenize(**fields: Any) -> Request:
    """Parses a tokenize request with these fields beside a model."""
    return wire.parse_tokenize(json.dumps({"model": "phi"} | fields).encode())


def detokenize(**fields: Any) -> Request:
    """Parses a detokenize request with these fields beside a model."""
    return wire.parse_detokenize(json.dumps({"model": "phi"} | fields).encode())


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    """One tool as OpenAI's clients write it."""
    return {"type": "function", "function": {"name": name, **function}}


def test_a_chat_is_forwarded_as_the_client_wrote_its_values() -> None:
    """Nothing that is allowed is changed, and the request says what the gateway needs to know."""
    body = (
        b'{"model":"phi","messages":[{"role":"user","content":"\\u00e9t\\u00e9"}],"max_tokens":20,"stream":true,"n":2}'
    )
    request = wire.parse_chat(body)
    assert request.body == body
    assert (request.operation, request.model, request.stream) == (Operation.CHAT, "phi", True)
    assert (request.max_tokens, request.n, request.dropped) == (20, 2, ())
    assert bytes(request.fields["max_tokens"]) == b"20"


BROKEN_JSON = {
    "empty": (b"", "empty"),
    "white space": (b" \n", "empty"),
    "text": (b"hello", "not valid JSON"),
    "cut": (b'{"model":"phi"', "too early"),
    "two documents": (b'{"model":"a"}{"model":"b"}', "not valid JSON"),
    "array": (b"[]", "object"),
    "string": (b'"x"', "object"),
    "null": (b"null", "object"),
    "byte order mark": (b'\xef\xbb\xbf{"model":"phi"}', "byte order mark"),
    "UTF-16": ('{"model":"phi"}'.encode("utf-16"), "byte order mark"),
    "UTF-16 without mark": ('{"model":"phi"}'.encode("utf-16-le"), "UTF-16"),
    "UTF-32": ('{"model":"phi"}'.encode("utf-32-be"), "UTF-16"),
    "invalid UTF-8": (b'{"model":"ph\xff"}', "not UTF-8"),
    "invalid UTF-8 in a dropped field": (b'{"model":"phi","x":"\xc0\xaf"}', "not UTF-8"),
    "surrogate in UTF-8": (b'{"model":"\xed\xa0\x80"}', "not UTF-8"),
    "lone high surrogate": (b'{"model":"\\ud800"}', "not valid JSON"),
    "lone high surrogate before text": (b'{"model":"\\ud800 and more text"}', "not valid JSON"),
    "lone low surrogate": (b'{"model":"\\udc00"}', "not valid JSON"),
    "lone surrogate in a dropped field": (b'{"model":"phi","x":"\\udc00"}', "not valid JSON"),
    "NaN": (b'{"temperature":NaN}', "not valid JSON"),
    "Infinity": (b'{"temperature":Infinity}', "not valid JSON"),
    "-Infinity": (b'{"temperature":-Infinity}', "not valid JSON"),
    "comment": (b'{"model":"phi"/**/}', "not valid JSON"),
    "single quotes": (b"{'model':'phi'}", "not valid JSON"),
    "control character": (b'{"model":"a\x00b"}', "not valid JSON"),
    "depth": (b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "depth never closed": (b"[" * 1_000_000, "not valid JSON|object|nested|early"),
}

PARSERS = [wire.parse_chat, wire.parse_completion, wire.parse_embedding, wire.parse_tokenize, wire.parse_detokenize]


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@pytest.mark.parametrize(("body", "says"), BROKEN_JSON.values(), ids=BROKEN_JSON.keys())
def test_a_body_that_is_no_json_object_is_refused(parse: Any, body: bytes, says: str) -> None:
    """Faults row C1: 400, with a sentence that says what is wrong."""
    with pytest.raises(BadRequest, match=says) as caught:
        parse(body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


REFUSED_IN_ANY_GENERATION = [
    ("model", None, "model"),
    ("model", "", "model"),
    ("model", "m" * 257, "model"),
    ("model", ["phi"], "model"),
    ("n", 0, "n"),
    ("n", -1, "n"),
    ("n", 17, "n"),
    ("n", 10**9, "n"),
    ("n", 10**40, "n"),
    ("n", 1.5, "n"),
    ("n", "2", "n"),
    ("n", True, "n"),
    ("max_tokens", -1, "max_tokens"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", 2**20 + 1, "max_tokens"),
    ("max_tokens", 2**63, "max_tokens"),
    ("max_tokens", "20", "max_tokens"),
    ("temperature", -0.1, "temperature"),
    ("temperature", 2.1, "temperature"),
    ("temperature", "1e999", "temperature"),
    ("top_p", 1.01, "top_p"),
    ("top_p", -0.01, "top_p"),
    ("presence_penalty", 2.01, "presence_penalty"),
    ("presence_penalty", -2.01, "presence_penalty"),
    ("frequency_penalty", 2.01, "frequency_penalty"),
    ("frequency_penalty", -2.01, "frequency_penalty"),
    ("seed", 2**63, "seed"),
    ("seed", -(2**63) - 1, "seed"),
    ("seed", "7", "seed"),
    ("stop", "", "stop"),
    ("stop", "x" * 257, "stop"),
    ("stop", [""], "stop[0]"),
    ("stop", ["a", "x" * 257], "stop[1]"),
    ("stop", ["a"] * 17, "stop"),
    ("stop", ["a"] * 10**5, "stop"),
    ("stop", 3, "stop"),
    ("stop", [3], "stop[0]"),
    ("logit_bias", {str(i): 0 for i in range(1025)}, "logit_bias"),
    ("logit_bias", {"5": 100.1}, "logit_bias"),
    ("logit_bias", {"5": -101}, "logit_bias"),
    ("logit_bias", {"word": 1}, "logit_bias"),
    ("logit_bias", {"-1": 1}, "logit_bias"),
    ("logit_bias", [1], "logit_bias"),
    ("stream", "yes", "stream"),
    ("stream", 1, "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("stream_options", {}, "stream_options"),
    ("user", "u" * 513, "user"),
    ("user", 3, "user"),
    ("prompt_cache_key", "u" * 513, "prompt_cache_key"),
    ("safety_identifier", "u" * 513, "safety_identifier"),
    ("top_k", -2, "top_k"),
    ("top_k", 2**31, "top_k"),
    ("min_p", 1.1, "min_p"),
    ("min_p", -0.1, "min_p"),
    ("min_tokens", -1, "min_tokens"),
    ("min_tokens", 2**20 + 1, "min_tokens"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("repetition_penalty", 10.1, "repetition_penalty"),
    ("stop_token_ids", [-1], "stop_token_ids[0]"),
    ("stop_token_ids", [2**31], "stop_token_ids[0]"),
    ("stop_token_ids", [1] * 129, "stop_token_ids"),
    ("ignore_eos", "true", "ignore_eos"),
    ("ignore_eos", None, "ignore_eos"),
    ("skip_special_tokens", 0, "skip_special_tokens"),
    ("spaces_between_special_tokens", 0, "spaces_between_special_tokens"),
    ("include_stop_str_in_output", 0, "include_stop_str_in_output"),
]


@pytest.mark.parametrize("parse", [chat, completion], ids=lambda parse: parse.__name__)
@pytest.mark.parametrize(("field", "value", "param"), REFUSED_IN_ANY_GENERATION)
def test_a_sampling_field_out_of_bounds_is_refused_by_name(parse: Any, field: str, value: Any, param: str) -> None:
    """Faults rows C4 and C7: 400 that names the field."""
    with pytest.raises(BadRequest) as caught:
        parse(**{field: value})
    assert caught.value.param == param
    assert param in caught.value.message


ACCEPTED_IN_ANY_GENERATION = [
    ("n", 1),
    ("n", 16),
    ("n", None),
    ("max_tokens", 1),
    ("max_tokens", 2**20),
    ("max_tokens", None),
    ("temperature", 0),
    ("temperature", 2),
    ("temperature", None),
    ("top_p", 0),
    ("top_p", 1.0),
    ("presence_penalty", -2),
    ("frequency_penalty", 2),
    ("seed", 2**63 - 1),
    ("seed", -(2**63)),
    ("stop", "END"),
    ("stop", ["x" * 256] * 16),
    ("stop", []),
    ("stop", None),
    ("logit_bias", {str(i): -100 for i in range(1024)}),
    ("logit_bias", {"50256": 100}),
    ("logit_bias", None),
    ("top_k", -1),
    ("min_p", 1),
    ("min_tokens", 0),
    ("repetition_penalty", 1.1),
    ("stop_token_ids", [32007]),
    ("ignore_eos", True),
    ("skip_special_tokens", False),
    ("stream", False),
    ("stream", None),
]


@pytest.mark.parametrize("parse", [chat, completion], ids=lambda parse: parse.__name__)
@pytest.mark.parametrize(("field", "value"), ACCEPTED_IN_ANY_GENERATION)
def test_a_sampling_field_at_its_bound_is_forwarded(parse: Any, field: str, value: Any) -> None:
    """The bounds are where the tables say, and the value goes on as it came."""
    request = parse(**{field: value})
    assert json.loads(request.body)[field] == value
    assert request.dropped == ()


REFUSED_IN_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [HELLO] * 10_001}, "messages"),
    ({"messages": ["Hello"]}, "messages[0]"),
    ({"messages": [HELLO, {"content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": 3, "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": {"text": "x"}}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 1025}]}, "messages[0].content"),
    ({"messages": [{"role": "system", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"messages": [HELLO, {"role": "tool", "content": "12"}]}, "messages[1].tool_call_id"),
    ({"messages": [HELLO, {"role": "tool", "content": "12", "tool_call_id": ""}]}, "messages[1].tool_call_id"),
    ({"messages": [HELLO, {"role": "tool", "tool_call_id": "1"}]}, "messages[1].content"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 2**63}, "max_completion_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ({"tools": {}}, "tools"),
    ({"tools": [tool(f"t{i}") for i in range(129)]}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [tool("")]}, "tools[0].function.name"),
    ({"tools": [tool("a b")]}, "tools[0].function.name"),
    ({"tools": [tool("weather\n")]}, "tools[0].function.name"),
    ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
    ({"tools": [tool(), tool()]}, "tools[1].function.name"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool(description="x" * 65_537)]}, "tools[0].function.description"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "time"}}}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
        "response_format.json_schema.schema",
    ),
    ({"stream": True, "stream_options": True}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
]


@pytest.mark.parametrize(("changed", "param"), REFUSED_IN_CHAT)
def test_a_chat_field_out_of_bounds_is_refused_by_name(changed: dict[str, Any], param: str) -> None:
    """Faults rows C4, C7 and C10: 400 that names the place."""
    with pytest.raises(BadRequest) as caught:
        chat(**changed)
    assert caught.value.param == param


def test_a_missing_field_is_named() -> None:
    """What is required and not there is named like what is wrong."""
    for parse, body, param in [
        (wire.parse_chat, b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (wire.parse_chat, b'{"model":"phi"}', "messages"),
        (wire.parse_completion, b'{"model":"phi"}', "prompt"),
        (wire.parse_embedding, b'{"model":"phi"}', "input"),
        (wire.parse_tokenize, b'{"model":"phi"}', "prompt"),
        (wire.parse_detokenize, b'{"model":"phi"}', "tokens"),
    ]:
        with pytest.raises(BadRequest) as caught:
            parse(body)
        assert caught.value.param == param


def test_temperature_out_of_the_range_of_numbers_is_refused() -> None:
    """Faults row C4: 1e999 as a number is infinite."""
    with pytest.raises(BadRequest) as caught:
        wire.parse_chat(b'{"model":"phi","messages":[{"role":"user","content":"x"}],"temperature":1e999}')
    assert caught.value.param == "temperature"


def test_a_conversation_of_every_role_passes() -> None:
    """All roles and shapes of content that OpenAI's clients send go on unchanged, 10,000 messages too."""
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image(PICTURE)], "name": "ada"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}]},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "12", "tool_call_id": "1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    request = chat(messages=messages)
    assert json.loads(request.body)["messages"] == messages
    assert request.dropped == ()
    assert len(json.loads(chat(messages=[HELLO] * 10_000).body)["messages"]) == 10_000


def image(url: Any) -> dict[str, Any]:
    """A picture as a part of a message."""
    return {"type": "image_url", "image_url": {"url": url}}


FETCHED_URLS = [
    "http://example.org/a.png",
    "https://example.org/a.png",
    "HTTP://EXAMPLE.ORG/A.PNG",
    "http://127.0.0.1:8000/metrics",
    "http://localhost/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://metadata.google.internal/",
    "http://127\u30020\u30020\u30021/",
]
HOSTILE_URLS = [
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "ftp://example.org/a.png",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://0/",
    "http://a@127.0.0.1/",
    "http://ok.example\\@127.0.0.1/",
    "http://127.0.0.1./",
    "//127.0.0.1/a.png",
    "/etc/passwd",
    " data:image/png;base64,iVBORw0KGgo=",
    "DATA:image/png;base64,iVBORw0KGgo=",
    "data:text/html;base64,PGh0bWw+",
    "data:image/svg+xml;base64,PHN2Zz4=",
    "data:image/png,raw",
    "data:image/png;base64,",
    "data:image/png;charset=x;base64,iVBORw0KGgo=",
    "data:;base64,iVBORw0KGgo=",
    "data:image/png;base64,://127.0.0.1/",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    "jar:http://example.org!/",
    "dict://127.0.0.1:11211/stats",
    "\thttp://127.0.0.1/",
    "http:\n//127.0.0.1/",
    "x",
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_a_picture_at_an_odd_address_is_refused(url: str) -> None:
    """Faults row C11: what is neither a picture nor a plain http or https URL goes nowhere."""
    with pytest.raises(BadRequest) as caught:
        chat(messages=[HELLO, {"role": "user", "content": [{"type": "text", "text": "?"}, image(url)]}])
    assert caught.value.param == "messages[1].content[1].image_url.url"
    assert caught.value.error_code == "invalid_image_url"


@pytest.mark.parametrize("url", FETCHED_URLS)
def test_a_picture_at_an_address_is_noted(url: str) -> None:
    """The gateway learns what is to be fetched, before any model server may see the request; tokenize takes none."""
    messages = [HELLO, {"role": "user", "content": [image(PICTURE), image(url)]}]
    request = chat(messages=messages)
    assert request.pictures == 2
    assert request.remote_pictures == (("messages[1].content[1].image_url.url", url),)
    with pytest.raises(BadRequest, match="data:"):
        wire.parse_tokenize(json.dumps({"model": "phi", "messages": messages}).encode())


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "http://127.0.0.1/"}},
        {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/"}},
        {"type": "image_embeds", "image_embeds": "gASV"},
        {"type": "image_pil", "image_pil": "x"},
        {"type": "file", "file": {"file_id": "1"}},
        {"type": "input_text", "text": "x"},
        {"image_url": {"url": "http://127.0.0.1/"}},
        {"type": "image_url", "image_url": "http://127.0.0.1/"},
        {"type": "image_url"},
    ],
)
def test_a_part_of_an_unknown_type_is_refused(part: dict[str, Any]) -> None:
    """A model server could fetch or load what such a part names."""
    with pytest.raises(BadRequest) as caught:
        chat(messages=[{"role": "user", "content": [part]}])
    assert caught.value.param is not None and caught.value.param.startswith("messages[0].content[0]")


@pytest.mark.parametrize(
    "part",
    [
        image("data:image/png;base64," + "A" * MAX_MEDIA_BYTES),
        {"type": "input_audio", "input_audio": {"data": "A" * (MAX_MEDIA_BYTES + 1), "format": "mp3"}},
    ],
    ids=["picture", "sound"],
)
def test_a_picture_or_sound_past_the_bound_is_too_large(part: dict[str, Any]) -> None:
    """Faults row C15: 413."""
    with pytest.raises(PayloadTooLarge) as caught:
        chat(messages=[{"role": "user", "content": [part]}])
    assert caught.value.status == 413
    assert len(caught.value.message) < 200


def test_unknown_fields_in_messages_are_left_out_and_named() -> None:
    """A text part cannot carry a URL beside it, and what siblings of another kind may hold stays."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "x", "tool_calls": [call], "cache_control": {"type": "ephemeral"}},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": "y", "tool_calls": [call]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "z", "uuid": "1", "image_url": {"url": "http://127.1/"}}],
        },
    ]
    request = chat(messages=messages)
    assert json.loads(request.body)["messages"] == [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": "y"},
        {"role": "user", "content": [{"type": "text", "text": "z"}]},
    ]
    assert set(request.dropped) == {
        "messages[].tool_calls",
        "messages[].cache_control",
        "messages[].content[].uuid",
        "messages[].content[].image_url",
    }


def test_many_unknown_inner_fields_are_left_out_in_one_pass() -> None:
    """A thousand of them cost no thousand passes, and what is wrong beside them is still refused."""
    odd = {f"x{i}": i for i in range(1000)}
    assert json.loads(chat(messages=[HELLO | odd] * 10).body)["messages"] == [HELLO] * 10
    with pytest.raises(BadRequest) as caught:
        chat(messages=[HELLO | odd, {"role": "user"} | odd])
    assert caught.value.param == "messages[1].content"
    request = chat(tools=[tool() | odd], response_format={"type": "json_object", "schema": {"$ref": "#"}})
    assert json.loads(request.body)["tools"] == [tool()]
    assert json.loads(request.body)["response_format"] == {"type": "json_object"}
    assert "response_format.schema" in request.dropped


@pytest.mark.parametrize("value", ["1e999", "-1e400"])
def test_an_unknown_inner_field_that_cannot_be_read_is_refused(value: str) -> None:
    """What cannot be decoded to be left out ends in 400 too."""
    body = '{"model":"phi","messages":[{"role":"user","content":"x","odd":' + value + "}]}"
    with pytest.raises(BadRequest):
        wire.parse_chat(body.encode())


DANGEROUS = {
    "prompt_embeds": "gASVCw==",
    "chat_template": "{{ ''.__class__ }}",
    "chat_template_kwargs": {"x": 1},
    "n_discard": -1,
    "n_keep": -1,
    "lora_path": "/etc",
    "lora_request": {},
    "lora": [{"id": 0, "scale": 1}],
    "documents": [{"text": "x"}],
    "guided_regex": "(a+)+$",
    "guided_json": {},
    "guided_grammar": "root ::= root",
    "guided_choice": ["a"],
    "guided_decoding_backend": "outlines",
    "structured_outputs": {"regex": "(a+)+$"},
    "regex": "(a+)+$",
    "ebnf": "root ::= root",
    "grammar": "root ::= root",
    "json_schema": {},
    "kv_transfer_params": {"remote_host": "10.0.0.1"},
    "cache_salt": "x",
    "logits_processors": ["os.system"],
    "custom_logit_processor": "gASV",
    "mm_processor_kwargs": {"trust_remote_code": True},
    "media_io_kwargs": {},
    "vllm_xargs": {},
    "bootstrap_host": "169.254.169.254",
    "id_slot": 0,
    "input_embeds": [[0.1]],
    "session_params": {},
}


@pytest.mark.parametrize("field", sorted(DANGEROUS))
def test_a_dangerous_field_is_refused_by_every_operation(field: str) -> None:
    """Faults row C5 and promise 20: 400 that names the field, whatever its value."""
    for parse, more in [
        (chat, {}),
        (completion, {}),
        (embedding, {}),
        (tokenize, {"prompt": "x"}),
        (detokenize, {"tokens": [1]}),
    ]:
        for value in (DANGEROUS[field], None):
            with pytest.raises(BadRequest, match="not accepted") as caught:
                parse(**more, **{field: value})
            assert caught.value.param == field


@pytest.mark.parametrize(
    "name", ["foo", "store", "metadata", "service_tier", "best_of", "n_predict", "use_beam_search", "PROMPT_EMBEDS", ""]
)
def test_an_unknown_or_meaningless_field_is_dropped_and_named(name: str) -> None:
    """Faults row C5: it never goes on, and the answer can say so."""
    for parse in (chat, completion, embedding):
        request = parse(**{name: {"a": [1, 2]}})
        assert request.dropped == (name,)
        assert name not in json.loads(request.body)
        assert name not in request.fields


def test_who_asks_stays_here_and_keeps_the_conversation_on_one_target() -> None:
    """The names of people and conversations are used, not forwarded and not reported as dropped."""
    for parse in (chat, completion, embedding):
        request = parse(user="ada", safety_identifier="hash", prompt_cache_key="thread-1")
        assert (request.session, request.dropped) == ("thread-1", ())
        assert not {"user", "safety_identifier", "prompt_cache_key"} & set(json.loads(request.body))
        assert parse(user="ada", safety_identifier="hash").session == "hash"
        assert parse(user="ada").session == "ada"
        assert parse().session is None


def test_a_key_given_twice_reaches_the_target_once() -> None:
    """The last one counts, for our bounds and for the target alike."""
    body = b'{"model":"phi","messages":[{"role":"user","content":"x"}],"n":1,"n":2,"\\u006e":3}'
    request = wire.parse_chat(body)
    assert request.n == 3
    assert request.body.count(b'"n":') == 1
    assert json.loads(request.body)["n"] == 3
    with pytest.raises(BadRequest) as caught:
        wire.parse_chat(body.replace(b":3}", b":1000000000}"))
    assert caught.value.param == "n"


def test_max_completion_tokens_counts_before_max_tokens() -> None:
    """Both names are forwarded as given; the newer one is the bound."""
    request = chat(max_tokens=10, max_completion_tokens=20)
    assert request.max_tokens == 20
    assert chat(max_completion_tokens=5).max_tokens == 5
    assert chat().max_tokens is None
    assert json.loads(request.body)["max_completion_tokens"] == 20


def test_usage_in_a_stream_is_asked_for_and_nothing_else() -> None:
    """Of the stream options only ``include_usage`` reaches a target."""
    request = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert request.wants_usage
    assert json.loads(request.body)["stream_options"] == {"include_usage": True}
    for options in ({}, {"include_usage": False}, {"include_usage": None, "include_obfuscation": False}, None):
        request = chat(stream=True, stream_options=options)
        assert not request.wants_usage
        assert "stream_options" not in json.loads(request.body)
        assert json.loads(request.render("phi", include_usage=True))["stream_options"] == {"include_usage": True}


def test_tools_and_formats_pass_as_written() -> None:
    """A usual tool with a schema, a named choice and a JSON schema for the answer go on unchanged."""
    schema = {"type": "object", "properties": {"city": {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$"}}}
    fields: dict[str, Any] = {
        "tools": [tool(description="The weather", parameters=schema, strict=True), tool("time", parameters=None)],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
    }
    request = chat(**fields)
    body = json.loads(request.body)
    assert {name: body[name] for name in fields} == fields
    for wanted in ({"type": "text"}, {"type": "json_object"}, None):
        assert json.loads(chat(response_format=wanted).body)["response_format"] == wanted
    for choice in ("none", "auto", None):
        assert json.loads(chat(tool_choice=choice).body)["tool_choice"] == choice


def test_messages_at_completions_name_the_right_path() -> None:
    """The copied demo of a well-known README posts a chat to /v1/completions."""
    with pytest.raises(BadRequest, match="/v1/chat/completions") as caught:
        wire.parse_completion(json.dumps({"model": "phi", "messages": [HELLO]}).encode())
    assert caught.value.param == "prompt"
    with pytest.raises(BadRequest, match="to /v1/completions") as caught:
        wire.parse_chat(b'{"model":"phi","prompt":"Say"}')
    assert caught.value.param == "messages"


REFUSED_IN_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", 3]}, "prompt"),
    ({"prompt": ["a", [3]]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [[2**31]]}, "prompt[0][0]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": [0] * (2**17 + 1)}, "prompt"),
    ({"prompt": ["a"] * 65, "n": 2}, "n"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": "yes"}, "echo"),
    ({"suffix": 3}, "suffix"),
]


@pytest.mark.parametrize(("changed", "param"), REFUSED_IN_COMPLETION)
def test_a_completion_field_out_of_bounds_is_refused_by_name(changed: dict[str, Any], param: str) -> None:
    """Faults rows C4 and C7 for text completion."""
    with pytest.raises(BadRequest) as caught:
        completion(**changed)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [("", 2), ("Say", 2), (["a", "b"], 4), ([1, 2, 3], 2), ([[1], [2, 3]], 4), ([0] * 2**17, 2), (["a"] * 64, 128)],
)
def test_a_prompt_in_each_shape_passes_and_its_choices_are_counted(prompt: Any, choices: int) -> None:
    """Texts, token ids and lists of either; the gateway sees how many choices they make."""
    request = completion(prompt=prompt, n=2, logprobs=20, echo=True, suffix="end")
    assert request.n == choices
    assert json.loads(request.body)["prompt"] == prompt
    assert request.operation is Operation.COMPLETION


REFUSED_IN_EMBEDDING: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": ["a", ""]}, "input"),
    ({"input": ["a", 1]}, "input"),
    ({"input": [[1], []]}, "input"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": [[-1]]}, "input[0][0]"),
    ({"input": {"text": "a"}}, "input"),
    ({"encoding_format": "hex"}, "encoding_format"),
    ({"dimensions": 0}, "dimensions"),
    ({"dimensions": 10**9}, "dimensions"),
    ({"input_type": "q" * 33}, "input_type"),
    ({"model": 1}, "model"),
]


@pytest.mark.parametrize(("changed", "param"), REFUSED_IN_EMBEDDING)
def test_an_embedding_field_out_of_bounds_is_refused_by_name(changed: dict[str, Any], param: str) -> None:
    """Faults row C7 for embeddings."""
    with pytest.raises(BadRequest) as caught:
        embedding(**changed)
    assert caught.value.param == param


def test_an_embedding_request_in_each_shape_passes() -> None:
    """Texts and token ids, both encodings, dimensions and the kind of input."""
    for value in ("a", ["a", "b"], [1, 2], [[1, 2], [3]], ["a"] * 2048):
        request = embedding(input=value, encoding_format="base64", dimensions=384, input_type="query")
        assert json.loads(request.body)["input"] == value
        assert (request.operation, request.dropped) == (Operation.EMBEDDING, ())
    with pytest.raises(BadRequest, match="takes `input`"):
        wire.parse_embedding(json.dumps({"model": "e5", "messages": [HELLO]}).encode())


def test_tokenize_takes_vllm_and_llama_server_names() -> None:
    """Targets get one vocabulary, whichever the client speaks."""
    request = tokenize(content="Hello", add_special=False, with_pieces=True)
    assert json.loads(request.body) == {
        "model": "phi",
        "prompt": "Hello",
        "add_special_tokens": False,
        "return_token_strs": True,
    }
    assert json.loads(tokenize(prompt="a", content="b").body) == {"model": "phi", "prompt": "a"}
    assert json.loads(tokenize(messages=[HELLO], add_generation_prompt=False).body)["messages"] == [HELLO]
    assert tokenize(prompt="").operation is Operation.TOKENIZE


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [HELLO]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "a", "add_special_tokens": "yes"}, "add_special_tokens"),
        ({"messages": []}, "messages"),
        (
            {"messages": [{"role": "user", "content": [image("http://127.0.0.1/")]}]},
            "messages[0].content[0].image_url.url",
        ),
    ],
)
def test_a_tokenize_field_out_of_bounds_is_refused_by_name(changed: dict[str, Any], param: str) -> None:
    """Exactly one of prompt and messages, with the bounds of chat."""
    with pytest.raises(BadRequest) as caught:
        tokenize(**changed)
    assert caught.value.param == param


def test_detokenize_takes_token_ids() -> None:
    """Non-negative 32-bit integers, up to the bound."""
    request = detokenize(tokens=[1, 2, 3])
    assert json.loads(request.body) == {"model": "phi", "tokens": [1, 2, 3]}
    assert request.operation is Operation.DETOKENIZE
    for tokens in ([-1], [2**31], ["a"], "a", [0] * (2**17 + 1)):
        with pytest.raises(BadRequest):
            detokenize(tokens=tokens)


def test_every_forwarded_field_is_checked() -> None:
    """No name stands in a forward list without bounds in the typed body."""
    from passerelle.faces.openai import bodies

    for operation, body in {
        Operation.CHAT: bodies.ChatBody,
        Operation.COMPLETION: bodies.CompletionBody,
        Operation.EMBEDDING: bodies.EmbeddingBody,
        Operation.TOKENIZE: bodies.TokenizeBody,
        Operation.DETOKENIZE: bodies.DetokenizeBody,
    }.items():
        checked = {field.encode_name for field in msgspec.structs.fields(body)}
        assert FORWARD[operation] <= checked


def test_refusals_do_not_echo_what_was_sent_at_length() -> None:
    """A megabyte in the wrong place comes back as a sentence."""
    for changed in ({"x" * 10**6: 1, "guided_" + "y" * 10**6: 1}, {"tool_choice": "z" * 10**6}):
        with pytest.raises(PasserelleError) as caught:
            chat(**changed)
        assert len(caught.value.message) < 500
        assert len(caught.value.param or "") < 300
