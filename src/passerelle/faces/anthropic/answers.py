"""OpenAI's answers, told as Anthropic's: one message, or the events message_start … message_stop."""

from __future__ import annotations

from typing import Any

import msgspec

from passerelle.faces.anthropic.errors import error_type

_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessageRendering:
    """As `passerelle.faces.translated.Rendering`. ``model`` is the name the caller asked for."""

    content_type = b"text/event-stream"

    def __init__(self, request_id: str, model: str) -> None:
        self._id = f"msg_{request_id.removeprefix('req_')}"
        self._model = model
        self._started = False
        self._block = -1
        self._kind: str | None = None
        """Of the open block: "text", or the index of a tool call."""
        self._stop: tuple[str | None, str | None] = (None, None)
        self._usage: dict[str, int] = {"input_tokens": 0, "output_tokens": 0}

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns the message."""
        choice = answer["choices"][0]
        message = choice["message"]
        content: list[dict[str, Any]] = []
        if message.get("content"):
            content.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls") or ():
            function = call["function"]
            content.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": _object(function)})
        reason, sequence = _stopped(choice)
        document = {**self._message(content), "stop_reason": reason, "stop_sequence": sequence}
        return msgspec.json.encode({**document, "usage": _usage(answer.get("usage") or {})})

    def comment(self, text: bytes) -> bytes:
        """A ping, which clients ignore; the comment rides along."""
        return b": " + text + b"\n" + _event("ping", {})

    def event(self, event: dict[str, Any]) -> bytes:
        """Returns the events that one chunk makes."""
        if event.get("error"):
            error = event["error"]
            body = {"type": error_type(error.get("type"), 500), "message": error.get("message", "")}
            return _event("error", {"error": body})
        if event.get("usage"):
            self._usage = _usage(event["usage"])
        out = b"" if self._started else self._begin()
        for choice in event.get("choices") or ():
            out += self._delta(choice.get("delta") or {})
            if choice.get("finish_reason"):
                self._stop = _stopped(choice)
        return out

    def end(self) -> bytes:
        """Returns the events that end the message."""
        out = b"" if self._started else self._begin()
        reason, sequence = self._stop
        delta = {"stop_reason": reason or "end_turn", "stop_sequence": sequence}
        out += self._close() + _event("message_delta", {"delta": delta, "usage": self._usage})
        return out + _event("message_stop", {})

    def _begin(self) -> bytes:
        self._started = True
        message = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": self._usage}
        return _event("message_start", {"message": message})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        out = b""
        if delta.get("content"):
            out += self._open("text", {"type": "text", "text": ""})
            out += self._say({"type": "text_delta", "text": delta["content"]})
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            key = str(call.get("index", 0))
            if self._kind != key:
                block = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
                out += self._open(key, block)
            if function.get("arguments"):
                out += self._say({"type": "input_json_delta", "partial_json": function["arguments"]})
        return out

    def _open(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._kind == kind:
            return b""
        out = self._close()
        self._block += 1
        self._kind = kind
        return out + _event("content_block_start", {"index": self._block, "content_block": block})

    def _say(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._block, "delta": delta})

    def _close(self) -> bytes:
        if self._kind is None:
            return b""
        self._kind = None
        return _event("content_block_stop", {"index": self._block})

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content}


class CountRendering:
    """Renders a tokenize answer as ``{"input_tokens": …}``; it is never a stream."""

    content_type = b"application/json"

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns the count."""
        return msgspec.json.encode({"input_tokens": answer["count"]})

    def comment(self, text: bytes) -> bytes:
        """Nothing: a count does not stream."""
        return b""

    def event(self, event: dict[str, Any]) -> bytes:
        """Nothing: a count does not stream."""
        return b""

    def end(self) -> bytes:
        """Nothing: a count does not stream."""
        return b""


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **fields}))


def _stopped(choice: dict[str, Any]) -> tuple[str | None, str | None]:
    """Returns stop_reason and stop_sequence; a server that names the sequence (vLLM) does so in ``stop_reason``."""
    sequence = choice.get("stop_reason")
    if choice.get("finish_reason") == "stop" and isinstance(sequence, str):
        return "stop_sequence", sequence
    return _STOP.get(choice.get("finish_reason") or "", "end_turn"), None


def _usage(usage: dict[str, Any]) -> dict[str, int]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": usage.get("prompt_tokens", 0) - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }


def _object(function: dict[str, Any]) -> Any:
    """The arguments of a call as an object; what a model wrote that is none stays readable."""
    try:
        found = msgspec.json.decode(function.get("arguments") or "{}")
    except msgspec.DecodeError:
        found = None
    return found if isinstance(found, dict) else {"arguments": function.get("arguments")}
