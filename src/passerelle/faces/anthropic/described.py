"""Anthropic's routes for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.anthropic.bodies import CountBody, MessageBody
from passerelle.faces.described import Described


class AnswerText(msgspec.Struct, tag="text"):
    """Text of the answer."""

    text: str


class AnswerToolUse(msgspec.Struct, tag="tool_use"):
    """A tool the model wants called."""

    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(msgspec.Struct):
    """Tokens. ``input_tokens`` leaves out those that came from a cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int


class MessageAnswer(msgspec.Struct):
    """An answer of the model; with ``stream`` it comes as the events message_start … message_stop."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerText | AnswerToolUse]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"] | None
    stop_sequence: str | None
    usage: MessageUsage


class CountAnswer(msgspec.Struct):
    """How many tokens a message would have."""

    input_tokens: int


class MessageErrorDetail(msgspec.Struct):
    """What went wrong; ``code`` and ``param`` are ours."""

    type: str
    message: str
    code: str
    param: str | None


class MessageError(msgspec.Struct):
    """Anthropic's envelope of an error."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: str


ANTHROPIC = (
    Described(
        "POST",
        "/v1/messages",
        "Anthropic",
        "createMessage",
        "Answer a conversation, for Anthropic's clients",
        Scope.INFERENCE,
        MessageAnswer,
        MessageBody,
        error_answer=MessageError,
    ),
    Described(
        "POST",
        "/v1/messages/count_tokens",
        "Anthropic",
        "countMessageTokens",
        "Count a conversation's tokens by the model's own tokenizer",
        Scope.INFERENCE,
        CountAnswer,
        CountBody,
        error_answer=MessageError,
    ),
)
