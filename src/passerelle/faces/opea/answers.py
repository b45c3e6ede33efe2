"""Answers in OPEA's form: ``{id, text, prompt}``, or frames ``data: b'…'`` that end with ``data: [DONE]``.

The frame is Python's ``repr`` of the text's bytes: user interfaces written for OPEA parse it. With
``opea.stream_format: openai`` a stream has OpenAI's chunks instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from passerelle.domain.client import Headers
from passerelle.domain.errors import Overloaded, PasserelleError, Unavailable, UpstreamTimeout
from passerelle.faces.openai import errors as openai_errors


class OpeaRendering:
    """As `passerelle.faces.translated.Rendering`. ``note`` hears of the first text and of the end."""

    content_type = b"text/event-stream"

    def __init__(self, document_id: str, query: str, note: Callable[[bool], None], *, openai_chunks: bool) -> None:
        self._id = document_id
        self._query = query
        self._note = note
        self._openai_chunks = openai_chunks

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns id, text and prompt."""
        self._note(True)
        self._note(False)
        text = answer["choices"][0]["text"]
        return msgspec.json.encode({"id": self._id, "text": text, "prompt": self._query})

    def comment(self, text: bytes) -> bytes:
        """Nothing: the clients of this face read every line."""
        return b""

    def event(self, event: dict[str, Any]) -> bytes:
        """Returns the frame of one piece of text."""
        if event.get("error"):
            return b"data: [ERROR]\n\n"
        text = "".join(choice.get("text") or "" for choice in event.get("choices") or ())
        if not text:
            return b""
        self._note(True)
        if self._openai_chunks:
            return b"data: " + msgspec.json.encode(_as_chat(event)) + b"\n\n"
        return f"data: {text.encode()!r}\n\n".encode()

    def end(self) -> bytes:
        """Returns the end."""
        self._note(False)
        return b"data: [DONE]\n\n"


def _as_chat(event: dict[str, Any]) -> dict[str, Any]:
    choices = [
        {"index": each["index"], "delta": {"content": each.get("text")}, "finish_reason": each.get("finish_reason")}
        for each in event["choices"]
    ]
    return {**event, "object": "chat.completion.chunk", "choices": choices}


def render_error(error: PasserelleError, request_id: str) -> tuple[int, Headers, bytes]:
    """Returns the answer of the later versions: ``{"detail": …}``, 408 for a deadline, 404 for a server away."""
    status, headers, _ = openai_errors.render(error, request_id)
    if isinstance(error, UpstreamTimeout):
        status, kind = 408, "timeout"
    elif isinstance(error, Unavailable) and not isinstance(error, Overloaded):
        status, kind = 404, "connection"
    else:
        kind = "validation" if status == 422 else "request"
    detail = f"A {kind} error occurred while processing: {error.message}"
    return status, headers, msgspec.json.encode({"detail": detail, "code": error.error_code, "request_id": request_id})


class Latencies:
    """The times of this process's last answers, for ``/v1/statistics``."""

    def __init__(self, keep: int = 1000) -> None:
        self._keep = keep
        self._whole: list[float] = []
        self._first: list[float] = []

    def watch(self) -> Callable[[bool], None]:
        """Returns what hears of an answer's pieces (True) and of its end (False)."""
        began = time.monotonic()
        first_s: float | None = None

        def note(piece: bool) -> None:
            nonlocal first_s
            passed_s = time.monotonic() - began
            if piece and first_s is None:
                first_s = passed_s
                self._add(self._first, passed_s)
            elif not piece:
                self._add(self._whole, passed_s)

        return note

    def statistics(self) -> dict[str, float | None]:
        """Returns median, 99th percentile and mean of both, in seconds; None before the first answer."""
        found: dict[str, float | None] = {}
        for suffix, times in (("", sorted(self._whole)), ("_first_token", sorted(self._first))):
            count = len(times)
            found[f"p50_latency{suffix}"] = times[count // 2] if times else None
            found[f"p99_latency{suffix}"] = times[min(count - 1, int(count * 0.99))] if times else None
            found[f"average_latency{suffix}"] = sum(times) / count if times else None
        return found

    def _add(self, times: list[float], value: float) -> None:
        times.append(value)
        if len(times) > self._keep:
            del times[: len(times) - self._keep]
