"""The caller of a face that does not speak OpenAI's wire: takes the gateway's bytes and sends them in its own form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from passerelle.domain.client import Client, Headers
from passerelle.engines.sse import EventAligner, iter_data

_REPLACED = frozenset({b"content-type", b"content-length"})


class Rendering(Protocol):
    """How one answer leaves a face. Its input are OpenAI's documents and events, decoded."""

    content_type: bytes
    """Of a streamed answer."""

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns the body for a whole answer."""

    def comment(self, text: bytes) -> bytes:
        """Returns what to send for a comment of ours (a place in the queue)."""

    def event(self, event: dict[str, Any]) -> bytes:
        """Returns what to send for one event; one with ``error`` is the last."""

    def end(self) -> bytes:
        """Returns what to send when the stream ended well."""


class TranslatingClient:
    """As `passerelle.domain.client.Client`, in front of another one."""

    def __init__(self, inner: Client, rendering: Rendering) -> None:
        self._inner = inner
        self._rendering = rendering
        self._aligner = EventAligner()

    @property
    def gone(self) -> bool:
        """Whether the caller has left."""
        return self._inner.gone

    @property
    def started(self) -> bool:
        """Whether a head was sent."""
        return self._inner.started

    def on_gone(self, callback: Callable[[], object]) -> None:
        """As `Client.on_gone`."""
        self._inner.on_gone(callback)

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """As `Client.on_flow`."""
        self._inner.on_flow(pause, resume)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends a whole answer, rendered."""
        rendered = self._rendering.document(msgspec.json.decode(body))
        await self._inner.respond(status, typed(headers, b"application/json"), rendered)

    def begin(self, status: int, headers: Headers) -> None:
        """Queues the head of a streamed answer."""
        self._inner.begin(status, typed(headers, self._rendering.content_type))

    def write(self, data: bytes) -> None:
        """Queues the rendered form of whatever events are whole by now."""
        out = b"".join([self._event(event) for event in _events(self._aligner.feed(data))])
        if out:
            self._inner.write(out)

    def last(self) -> None:
        """As `Client.last`."""
        self._inner.last()

    async def end(self) -> None:
        """Finishes the body."""
        await self._inner.end()

    def abort(self) -> None:
        """As `Client.abort`."""
        self._inner.abort()

    def _event(self, event: bytes) -> bytes:
        payloads = list(iter_data(event))
        if not payloads:
            return self._rendering.comment(event.strip().removeprefix(b":").strip())
        if payloads[0].strip() == b"[DONE]":
            return self._rendering.end()
        return self._rendering.event(msgspec.json.decode(payloads[0]))


def _events(block: bytes) -> list[bytes]:
    return [part + b"\n\n" for part in block.split(b"\n\n") if part]


def typed(headers: Headers, content_type: bytes) -> Headers:
    """Returns the headers with another type, and without a length."""
    return [(b"content-type", content_type), *((name, value) for name, value in headers if name not in _REPLACED)]
