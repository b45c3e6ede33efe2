"""Answers in TGI's form: ``generated_text`` and ``details``, whole or token by token.

A token's id is 0: the model behind may have any vocabulary, and OpenAI's wire tells none. The last event of a stream
holds an empty special token, the whole text and the details.
"""

from __future__ import annotations

from typing import Any

import msgspec

from passerelle.domain.client import Headers
from passerelle.domain.errors import PasserelleError
from passerelle.faces.openai import errors as openai_errors

_FINISH = {"length": "length", "stop": "eos_token"}


class GenerateRendering:
    """As `passerelle.faces.translated.Rendering`. ``prompt`` goes in front where ``return_full_text`` asks for it."""

    content_type = b"text/event-stream"

    def __init__(self, *, prompt: str = "", details: bool = False, in_list: bool = False) -> None:
        self._text = prompt
        self._details = details
        self._in_list = in_list
        self._index = 0
        self._finish = "eos_token"
        self._usage: dict[str, Any] = {}

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns the whole answer; a list of one on ``/``."""
        choice = answer["choices"][0]
        self._usage = answer.get("usage") or {}
        self._finish = _FINISH.get(choice.get("finish_reason") or "stop", "eos_token")
        document: dict[str, Any] = {"generated_text": self._text + choice["text"]}
        if self._details:
            document["details"] = {**self._ending(), "prefill": [], "tokens": []}
        return msgspec.json.encode([document] if self._in_list else document)

    def comment(self, text: bytes) -> bytes:
        """The comment itself: TGI sends comments too."""
        return b": " + text + b"\n\n"

    def event(self, event: dict[str, Any]) -> bytes:
        """Returns the event of a piece of text, or of an error."""
        if event.get("error"):
            return _event({"error": event["error"].get("message", ""), "error_type": "generation"})
        self._usage = event.get("usage") or self._usage
        out = b""
        for choice in event.get("choices") or ():
            if choice.get("finish_reason"):
                self._finish = _FINISH.get(choice["finish_reason"], "eos_token")
            if choice.get("text"):
                self._text += choice["text"]
                out += self._token(choice["text"], special=False)
        return out

    def end(self) -> bytes:
        """Returns the last event."""
        details = {**self._ending(), "input_length": self._usage.get("prompt_tokens", 0)} if self._details else None
        return self._token("", special=True, generated_text=self._text, details=details)

    def _ending(self) -> dict[str, Any]:
        tokens = self._usage.get("completion_tokens") or self._index
        return {"finish_reason": self._finish, "generated_tokens": tokens, "seed": None}

    def _token(self, text: str, *, special: bool, **end: Any) -> bytes:
        self._index += 1
        token = {"id": 0, "text": text, "logprob": 0.0, "special": special}
        return _event({"index": self._index, "token": token, "generated_text": None, "details": None, **end})


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def render_error(error: PasserelleError, request_id: str) -> tuple[int, Headers, bytes]:
    """Returns the answer ``{"error", "error_type"}``: 422 for a bad request, 429 when overloaded, 424 for a failure."""
    status, headers, _ = openai_errors.render(error, request_id)
    kind = "authentication" if status in (401, 403) else "not_found" if status == 404 else "validation"
    if status in (429, 503):
        status, kind = 429, "overloaded"
    elif status >= 500:
        status, kind = 424, "generation"
    elif status in (400, 413):
        status = 422
    body = {"error": error.message, "error_type": kind, "code": error.error_code, "request_id": request_id}
    return status, headers, msgspec.json.encode(body)
