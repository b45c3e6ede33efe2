"""The request bodies of the Messages API. Source: Anthropic's API reference, version 2023-06-01.

Fields that change nothing about the answer are known and left out; fields we do not know are named in a header.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MAX_MESSAGES = 100_000


class CacheControl(msgspec.Struct):
    """Where a prompt may be cached; our servers cache prefixes by themselves."""

    type: str = "ephemeral"
    ttl: str | None = None


class TextBlock(msgspec.Struct, tag="text"):
    """Text."""

    text: str
    cache_control: CacheControl | None = None


class Base64Source(msgspec.Struct, tag="base64"):
    """A picture in the request."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(msgspec.Struct, tag="url"):
    """A picture somewhere else."""

    url: str


class ImageBlock(msgspec.Struct, tag="image"):
    """A picture."""

    source: Base64Source | UrlSource
    cache_control: CacheControl | None = None


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    """A call of a tool by the model, as it came in an earlier answer."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(msgspec.Struct, tag="tool_result"):
    """What a tool answered."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock] | None = None
    is_error: bool = False
    cache_control: CacheControl | None = None


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    """The model's own earlier thoughts: not sent again."""

    thinking: str = ""
    signature: str = ""


class RedactedThinkingBlock(msgspec.Struct, tag="redacted_thinking"):
    """Thoughts that were encrypted: not sent again."""

    data: str = ""


Block = TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock


class Message(msgspec.Struct):
    """One message."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool the model may call. ``type`` is "custom"; Anthropic's own server tools are not ours to run."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None


class ToolChoice(msgspec.Struct):
    """Which tool the model may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Metadata(msgspec.Struct):
    """Who the request is for."""

    user_id: str | None = None


class CountBody(msgspec.Struct):
    """``POST /v1/messages/count_tokens``, and what it has in common with a message."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: dict[str, Any] | None = None


class MessageBody(CountBody, kw_only=True):
    """``POST /v1/messages``."""

    max_tokens: Annotated[int, Meta(ge=1)]
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool = False
    metadata: Metadata | None = None


KNOWN = frozenset(MessageBody.__struct_fields__) | {"service_tier", "container", "mcp_servers", "context_management"}
