"""A Responses request in, a chat request out, and what of it the answer repeats."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from passerelle.domain.errors import BadRequest
from passerelle.domain.request import Request
from passerelle.faces.body import decode
from passerelle.faces.openai import wire
from passerelle.faces.responses.bodies import DECODER, KNOWN, REFUSED, ResponseBody
from passerelle.faces.responses.items import Item, given_items, messages_of, new_item_id

_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OURS = frozenset({"background", "metadata", "previous_response_id", "prompt", "store", "stream"})
_LOGPROBS = "message.output_text.logprobs"


@dataclass(slots=True)
class Asked:
    """One request: its body, its own items, and the names that were left out."""

    body: ResponseBody
    items: list[Item]
    dropped: tuple[str, ...]

    @property
    def keeps(self) -> bool:
        """Whether the answer is to be kept."""
        return self.body.store is not False


def parse(raw: bytes) -> Asked:
    """Parses the body of POST /v1/responses. Raises BadRequest that names the field."""
    body, fields = decode(raw, DECODER), decode(raw, _TOP_LEVEL)
    for name, instead in REFUSED.items():
        if name in fields and bytes(fields[name]) != b"null":
            raise BadRequest(f"The field `{name}` is not served here: {instead}.", param=name, code="field_refused")
    return Asked(body, given_items(body.input), tuple(sorted(fields.keys() - KNOWN)))


def chat_request(asked: Asked, before: Sequence[Item], *, stream: bool) -> Request:
    """Returns the chat request; ``before`` are the items of the conversation so far. Raises BadRequest."""
    body = asked.body
    document: dict[str, Any] = {
        "model": body.model,
        "messages": messages_of([*before, *asked.items], body.instructions),
        "stream": stream,
    }
    if stream:
        document["stream_options"] = {"include_usage": True}
    for theirs, ours in (
        ("max_output_tokens", "max_completion_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("user", "user"),
        ("prompt_cache_key", "prompt_cache_key"),
        ("safety_identifier", "safety_identifier"),
    ):
        if (value := getattr(body, theirs)) is not None:
            document[ours] = value
    if body.reasoning is not None and body.reasoning.effort is not None:
        document["reasoning_effort"] = body.reasoning.effort
    if body.include and _LOGPROBS in body.include:
        document |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    if body.text is not None and body.text.format is not None:
        document["response_format"] = _format(body.text.format)
    if body.tools:
        document["tools"] = [_tool(tool, number) for number, tool in enumerate(body.tools)]
        document |= _choice(body)
    request = wire.parse_chat(msgspec.json.encode(document))
    request.dropped += asked.dropped
    return request


def as_given(raw: bytes, asked: Asked, before: Sequence[Item], *, stream: bool) -> dict[str, msgspec.Raw]:
    """Returns the request as it is, for a server that has Responses itself: with the conversation so far in its input,
    as such a server keeps nothing here. Fields that are ours to serve are left out.
    """
    fields = {name: value for name, value in decode(raw, _TOP_LEVEL).items() if name in KNOWN - _OURS}
    fields |= {"stream": _encoded(stream), "store": _encoded(False)}
    if before:
        fields["input"] = _encoded([*before, *asked.items])
    return fields


def _encoded(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return {"type": given.get("type")}
    inner = {name: given[name] for name in ("name", "schema", "strict", "description") if given.get(name) is not None}
    return {"type": "json_schema", "json_schema": inner}


def _tool(tool: dict[str, Any], number: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:64]
        raise BadRequest(f"Tools of the type {kind!r} are not served: send functions.", param=f"tools[{number}].type")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _choice(body: ResponseBody) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if body.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = body.parallel_tool_calls
    choice = body.tool_choice
    if isinstance(choice, dict):
        if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
            raise BadRequest('`tool_choice` is "auto", "none", "required" or a function.', param="tool_choice")
        choice = {"type": "function", "function": {"name": choice["name"]}}
    return fields if choice is None else {**fields, "tool_choice": choice}


def draft(asked: Asked) -> dict[str, Any]:
    """Returns the answer before there is one: a new id, and what of the request it repeats."""
    body = asked.body
    text = {"format": (body.text.format if body.text is not None else None) or {"type": "text"}}
    return {
        "id": new_item_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": body.background is True,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "store": asked.keeps,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": text,
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }
