"""A Messages request in, an OpenAI chat request out.

system                     a system message in front
text, image                parts of the content
tool_use (assistant)       tool_calls of the assistant message
tool_result (user)         messages of role "tool", before the rest of the user's message
thinking                   left out: models that think again do not want it
stop_sequences, tools, tool_choice, metadata.user_id, max_tokens …    their names there
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from passerelle.domain.errors import BadRequest
from passerelle.domain.request import Operation, Request
from passerelle.faces.anthropic import bodies
from passerelle.faces.body import decode
from passerelle.faces.openai import wire

_Body = TypeVar("_Body")
_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MESSAGE = msgspec.json.Decoder(bodies.MessageBody)
_COUNT = msgspec.json.Decoder(bodies.CountBody)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def parse_message(body: bytes) -> Request:
    """Parses the body of POST /v1/messages. Raises BadRequest that names the field."""
    asked, unknown = _decoded(_MESSAGE, body)
    document: dict[str, Any] = {
        "model": asked.model,
        "messages": _messages(asked),
        "max_tokens": asked.max_tokens,
        "stream": asked.stream,
    }
    if asked.stream:
        document["stream_options"] = {"include_usage": True}
    for name in ("temperature", "top_p"):
        if (value := getattr(asked, name)) is not None:
            document[name] = value
    if asked.top_k:
        document["top_k"] = asked.top_k
    if asked.stop_sequences:
        document["stop"] = asked.stop_sequences
    if asked.metadata is not None and asked.metadata.user_id is not None:
        document["user"] = asked.metadata.user_id
    if asked.tools:
        document["tools"] = [_tool(tool) for tool in asked.tools]
        document |= _choice(asked.tool_choice)
    request = wire.parse_chat(msgspec.json.encode(document))
    request.dropped += unknown
    return request


def parse_count(body: bytes) -> Request:
    """Parses the body of POST /v1/messages/count_tokens. Raises BadRequest that names the field."""
    asked, unknown = _decoded(_COUNT, body)
    if asked.tools:
        raise BadRequest(
            "Tokens of `tools` cannot be counted here: leave them out, or read the usage of an answer.", param="tools"
        )
    document = {"model": asked.model, "messages": _messages(asked)}
    request = wire.parse_tokenize(msgspec.json.encode(document))
    request.dropped += unknown
    assert request.operation is Operation.TOKENIZE
    return request


def _decoded(decoder: msgspec.json.Decoder[_Body], body: bytes) -> tuple[_Body, tuple[str, ...]]:
    asked, names = decode(body, decoder), decode(body, _TOP_LEVEL).keys()
    return asked, tuple(sorted(names - bodies.KNOWN))


def _messages(asked: bodies.CountBody) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if asked.system is not None:
        text = asked.system if isinstance(asked.system, str) else "\n".join(block.text for block in asked.system)
        if text:
            made.append({"role": "system", "content": text})
    for number, message in enumerate(asked.messages):
        if isinstance(message.content, str):
            made.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            made.append(_assistant(message.content, number))
        else:
            made += _user(message.content, number)
    return made


def _assistant(blocks: list[bodies.Block], number: int) -> dict[str, Any]:
    text, calls = "", []
    for block in blocks:
        if isinstance(block, bodies.TextBlock):
            text += block.text
        elif isinstance(block, bodies.ToolUseBlock):
            arguments = msgspec.json.encode(block.input).decode()
            function = {"name": block.name, "arguments": arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, bodies.ImageBlock | bodies.ToolResultBlock):
            raise _misplaced(number, "an assistant's message holds text and tool_use blocks")
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = calls
    elif not text:
        message["content"] = ""
    return message


def _user(blocks: list[bodies.Block], number: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block in blocks:
        if isinstance(block, bodies.ToolResultBlock):
            made.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block, number)})
        elif isinstance(block, bodies.TextBlock | bodies.ImageBlock):
            parts.append(_part(block))
        elif isinstance(block, bodies.ToolUseBlock):
            raise _misplaced(number, "a user's message holds no tool_use block")
    if parts:
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        made.append({"role": "user", "content": parts[0]["text"] if plain else parts})
    return made


def _part(block: bodies.TextBlock | bodies.ImageBlock) -> dict[str, Any]:
    if isinstance(block, bodies.TextBlock):
        return {"type": "text", "text": block.text}
    source = block.source
    url = source.url if isinstance(source, bodies.UrlSource) else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _result(block: bodies.ToolResultBlock, number: int) -> str:
    if isinstance(block.content, list):
        if not all(isinstance(part, bodies.TextBlock) for part in block.content):
            raise _misplaced(number, "a tool's result holds text only, for the models behind this gateway")
        text = "".join(part.text for part in block.content if isinstance(part, bodies.TextBlock))
    else:
        text = block.content or ""
    return f"Error: {text}" if block.is_error else text


def _tool(tool: bodies.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _choice(choice: bodies.ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    fields: dict[str, Any] = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type == "tool":
        if not choice.name:
            raise BadRequest("A `tool_choice` of type `tool` needs a `name`.", param="tool_choice.name")
        return {**fields, "tool_choice": {"type": "function", "function": {"name": choice.name}}}
    return {**fields, "tool_choice": _CHOICES[choice.type]}


def _misplaced(number: int, why: str) -> BadRequest:
    return BadRequest(f"Field `messages[{number}].content`: {why}.", param=f"messages[{number}].content")
