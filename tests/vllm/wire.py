"""OpenAI's wire format as these tests read it: events out of bytes, and answers without what differs by nature."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

OF_ONE_CALL = re.compile(rb'"(id|created)":("[^"]*"|[0-9]+)')
"""Members that differ between two calls of the same server: ids of the answer and of tool calls, and the time."""

JsonObject = dict[str, Any]


@dataclass
class Choice:
    """One choice of a stream, put together."""

    text: str = ""
    roles: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    stop_reason: int | str | None = None
    logprobs: list[JsonObject] = field(default_factory=list)
    tool_calls: dict[int, list[str]] = field(default_factory=dict)
    """By index: the name and the arguments."""


@dataclass
class Stream:
    """A whole stream: its events as they came, whether it ended with ``[DONE]``, and what they add up to."""

    events: list[JsonObject]
    done: bool
    choices: dict[int, Choice]
    usages: list[JsonObject]

    @property
    def result(self) -> tuple[dict[int, Choice], list[JsonObject], bool]:
        """What two runs of the same request have in common; how the text is cut into events is not part of it."""
        return self.choices, self.usages, self.done


def events_of(raw: bytes) -> tuple[list[JsonObject], bool]:
    """Splits server-sent events; returns the JSON events and whether ``[DONE]`` came last."""
    text = raw.decode()
    assert text.endswith("\n\n"), f"the stream ends within an event: {text[-80:]!r}"
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    for block in blocks:
        assert block.startswith("data: ") and "\n" not in block, f"not one line of data: {block!r}"
    payloads = [block.removeprefix("data: ") for block in blocks]
    done = bool(payloads) and payloads[-1] == "[DONE]"
    return [json.loads(payload) for payload in (payloads[:-1] if done else payloads)], done


def read_stream(raw: bytes) -> Stream:
    """Puts a chat or completion stream together."""
    events, done = events_of(raw)
    choices: dict[int, Choice] = {}
    for event in events:
        for part in event["choices"]:
            _add(choices.setdefault(part["index"], Choice()), part)
    return Stream(events, done, choices, [event["usage"] for event in events if event.get("usage")])


def _add(choice: Choice, part: Mapping[str, Any]) -> None:
    delta = part.get("delta") or {"content": part.get("text")}
    choice.text += delta.get("content") or ""
    if delta.get("role"):
        choice.roles.append(delta["role"])
    if part.get("finish_reason"):
        choice.finish_reasons.append(part["finish_reason"])
        choice.stop_reason = part.get("stop_reason")
    choice.logprobs.extend((part.get("logprobs") or {}).get("content") or [])
    for call in delta.get("tool_calls") or []:
        name_and_arguments = choice.tool_calls.setdefault(call["index"], ["", ""])
        name_and_arguments[0] += call["function"].get("name") or ""
        name_and_arguments[1] += call["function"].get("arguments") or ""


def masked(raw: bytes) -> bytes:
    """Returns an answer, byte for byte, but for the values that differ from call to call."""
    return OF_ONE_CALL.sub(rb'"\1":0', raw)


def shape(value: Any) -> Any:
    """Returns JSON with every value replaced by its type, and lists by the shapes they hold."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in sorted(value.items())}
    if isinstance(value, list):
        return _distinct(shape(member) for member in value)
    return type(value).__name__


def shapes(events: list[JsonObject]) -> list[Any]:
    """Returns the shapes of a stream's events in order of first appearance."""
    return _distinct(shape(event) for event in events)


def _distinct(values: Iterable[Any]) -> list[Any]:
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
