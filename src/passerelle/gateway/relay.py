"""Bytes from a reply to the caller: whole documents, and event streams chunk by chunk.

A stream is relayed by whole events, so that whatever breaks it, the caller never sees half of one. Each event is
checked to be JSON by a decoder that looks at four top-level keys; nothing is parsed deeper and nothing is re-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from passerelle.domain.client import Client
from passerelle.domain.request import MEDIA, Operation
from passerelle.domain.usage import Usage, UsageSource
from passerelle.engines.base import EngineBroke, Reply
from passerelle.engines.sse import EventAligner, iter_data
from passerelle.gateway.call import Call

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""An answer that is not streamed and larger than this is not read on."""

RUNAWAY_SLACK_TOKENS = 16
"""Token events beyond ``max_tokens`` before a stream is cut: engines differ in how they split text."""

_EVENT = b"data: {"
_QUOTE = ord('"')
DONE = b"data: [DONE]\n\n"
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_TOKEN = re.compile(rb'"(?:content|text|reasoning_content|arguments)"\s*:\s*"[^"]')


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None


_ABSENT = msgspec.Raw()


class _Document(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[msgspec.Raw] | None = None
    data: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    choices: msgspec.Raw = _ABSENT
    usage: _Usage | None = None
    error: msgspec.Raw = _ABSENT
    object: str | None = None


class _MediaUsage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Media(msgspec.Struct):
    usage: _MediaUsage | None = None


_decode_media = msgspec.json.Decoder(_Media).decode
_decode_document = msgspec.json.Decoder(_Document).decode
_decode_event = msgspec.json.Decoder(_Event).decode


class Renaming:
    """Puts the name the caller asked for where the server wrote its own."""

    __slots__ = ("_public", "_upstream", "_upstream_spaced")

    def __init__(self, upstream: str, public: str) -> None:
        self._upstream = b'"model":' + msgspec.json.encode(upstream)
        self._upstream_spaced = b'"model": ' + msgspec.json.encode(upstream)
        self._public = b'"model":' + msgspec.json.encode(public)

    def __call__(self, data: bytes) -> bytes:
        """Returns ``data`` with the member renamed; inside a JSON string its quotes would be escaped."""
        if self._upstream in data:
            return data.replace(self._upstream, self._public)
        return data.replace(self._upstream_spaced, self._public)


def renaming(call: Call) -> Renaming | None:
    """Returns what renames the answer of ``call``, None when server and caller use the same name."""
    assert call.target is not None
    upstream, public = call.target.model, call.request.model
    return None if upstream == public else Renaming(upstream, public)


def _take(usage: _Usage, into: Usage) -> None:
    into.prompt_tokens = usage.prompt_tokens
    into.completion_tokens = usage.completion_tokens or 0
    details = usage.prompt_tokens_details
    into.cached_tokens = (details.cached_tokens or 0) if details else 0
    into.source = UsageSource.ENGINE


async def read_document(call: Call, reply: Reply) -> bytes:
    """Returns an answer that is one JSON document, renamed, and takes its usage. Raises EngineBroke."""
    if call.request.operation in MEDIA:
        return await _read_media(call, reply)
    body = await reply.read(MAX_DOCUMENT_BYTES)
    try:
        document = _decode_document(body)
        if not body.isascii():
            body.decode()  # the decoder skips over what it is not asked for, broken UTF-8 included
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineBroke("the answer is not JSON of the expected shape") from error
    if not _answers(document, call.request.operation):
        raise EngineBroke("the answer holds no result")
    if document.usage is not None:
        _take(document.usage, call.usage)
    elif reply.pieces:
        # The server tells no tokens: what it wrote is counted all the same, or limits would not see it.
        call.usage.completion_tokens, call.usage.source = reply.pieces, UsageSource.RELAYED
    rename = renaming(call)
    return body if rename is None else rename(body)


async def _read_media(call: Call, reply: Reply) -> bytes:
    """Returns an answer of sound or pictures as it came; takes the tokens from one that is JSON and tells them."""
    body = await reply.read(MAX_DOCUMENT_BYTES)
    if not body:
        raise EngineBroke("the answer is empty")
    if b"json" in reply.content_type:
        try:
            told = _decode_media(body).usage
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineBroke("the answer is not JSON of the expected shape") from error
        if told is not None and (told.input_tokens or told.output_tokens):
            call.usage.prompt_tokens, call.usage.completion_tokens = told.input_tokens, told.output_tokens
            call.usage.source = UsageSource.ENGINE
    return body


def _answers(document: _Document, operation: Operation) -> bool:
    """Whether the result is there: a list that is not empty. An error that came with 200 has none."""
    if operation in (Operation.CHAT, Operation.COMPLETION):
        return bool(document.choices)
    if operation is Operation.EMBEDDING:
        return bool(document.data)
    return True  # the engine has read these already


class StreamRelay:
    """Relays one event stream, from the first byte to the end.

    ``begin`` is called once, before the first byte goes to the caller. Until then nothing has reached the caller, and
    the call may go to another target.
    """

    def __init__(self, call: Call, reply: Reply, client: Client, begin: Callable[[], None]) -> None:
        request = call.request
        self.begun = False
        self.tokens = 0
        """Events that carried text: the best count of tokens when the engine's own figure never came."""
        self._call = call
        self._reply = reply
        self._client = client
        self._begin = begin
        self._fault: EngineBroke | None = None
        self._seen = False
        self._done = False
        self._finished = False
        self._aligner = EventAligner()
        self._rename = renaming(call)
        self._plain = False
        """Whether the next read may be passed on as it is: the answer has begun, and no part of an event waits."""
        self._wants_usage = request.wants_usage
        self._max_tokens = (request.max_tokens + RUNAWAY_SLACK_TOKENS) * request.n if request.max_tokens else None
        self._tail = b""

    async def run(self) -> None:
        """Relays until the stream's end. Raises EngineBroke when it breaks, before or after the first byte."""
        client, reply = self._client, self._reply
        client.on_flow(reply.pause, reply.resume)
        try:
            await reply.pump(self._feed)
        except EngineBroke:
            if self._fault is not None:
                raise self._fault from None
            if not self._done:
                raise
        self._flush()
        if self._fault is not None:
            raise self._fault
        if not self._done:
            if not self._finished:
                raise EngineBroke("the stream ended without a finish reason")
            self._write(DONE)

    def _feed(self, chunk: bytes) -> None:
        """Takes bytes as they arrived, in an event-loop callback: it neither blocks nor raises."""
        if self._plain and self._is_token(chunk):
            self._client.write(chunk if self._rename is None else self._rename(chunk))
            return
        if self._done or self._fault is not None:
            return
        try:
            block = self._aligner.feed(chunk)
        except ValueError:
            self._break("an event is larger than allowed")
            return
        if block:
            self._relay(block)
        self._plain = self.begun and not self._aligner.holding and not self._done

    def _is_token(self, chunk: bytes) -> bool:
        """Whether a read is one whole event of one more token, and nothing else: most are, and go out as they came."""
        if not chunk.startswith(_EVENT) or chunk.find(b"\n") != len(chunk) - 2 or not chunk.endswith(b"\n\n"):
            return False
        text = chunk.find(b'"content":"')
        if text < 0 or chunk[text + 11] == _QUOTE or b'"finish_reason":null' not in chunk:
            return False
        try:
            parsed = _decode_event(chunk[6:-2])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if parsed.error or parsed.usage is not None or parsed.object == "error" or len(parsed.choices) <= 2:
            return False
        if self._max_tokens is not None and self.tokens >= self._max_tokens:
            return False
        self.tokens += 1
        return True

    def _flush(self) -> None:
        """Takes the end of the stream: a last event may lack its blank line."""
        if not self._done and self._fault is None and (block := self._aligner.flush()):
            self._relay(block)

    def _relay(self, block: bytes) -> None:
        if block.count(b"\n\n") == 1:
            out = block if self._inspect(block) else b""
        else:
            events = [part + b"\n\n" for part in block.split(b"\n\n") if part]
            out = b"".join([event for event in events if self._inspect(event)])
        if out and self._rename is not None:
            out = self._rename(out)
        if out or self._tail:
            self._write(out + self._tail)

    def _write(self, data: bytes) -> None:
        if not self.begun:
            self.begun = True
            self._begin()
        self._client.write(data)

    def _inspect(self, event: bytes) -> bool:
        """Whether the caller gets this event; takes usage, faults and the end from it."""
        if self._done or self._fault is not None:
            return False
        data = event[6:-2] if event.startswith(b"data: {") and event.find(b"\n", 6) == len(event) - 2 else None
        if data is None:
            payloads = list(iter_data(event))
            if not payloads:
                return self._seen  # a comment: the server's keep-alive, of no use as the first thing a caller gets
            data = payloads[0]
            if data.strip() == b"[DONE]":
                self._done = True
                return True
        try:
            if not data.isascii():
                data.decode()
            parsed = _decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._break("an event is not JSON of the expected shape")
        if (parsed.error and bytes(parsed.error) != b"null") or parsed.object == "error":
            return self._break("the server reported an error in the stream")
        if not parsed.choices:
            return self._break("an event has no choices")
        self._seen = True
        empty = len(parsed.choices) <= 2
        if parsed.usage is not None:
            _take(parsed.usage, self._call.usage)
            if empty and not self._wants_usage:
                return False
        return empty or self._count(event)

    def _count(self, event: bytes) -> bool:
        if _TOKEN.search(event):
            self.tokens += 1
            if self._max_tokens is not None and self.tokens > self._max_tokens:
                self._cut()
                return False
        if not self._finished and _FINISHED.search(event):
            self._finished = True
        return True

    def _break(self, reason: str) -> bool:
        self._plain = False
        self._fault = EngineBroke(reason)
        self._reply.abort()
        return False

    def _cut(self) -> None:
        """Ends a stream whose server ignores ``max_tokens``, as the server should have."""
        self._reply.abort()
        call = self._call
        chat = call.request.operation is Operation.CHAT
        empty: dict[str, object] = {"delta": {}} if chat else {"text": ""}
        last = {
            "id": call.request_id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(call.arrived_at),
            "model": call.request.model,
            "choices": [{"index": index, **empty, "finish_reason": "length"} for index in range(call.request.n)],
        }
        self._tail = b"data: " + msgspec.json.encode(last) + b"\n\n" + DONE
        self._done = True

    def settle_usage(self) -> None:
        """Gives the call what was relayed, when the engine never gave its own figure."""
        usage = self._call.usage
        if usage.source is not UsageSource.ENGINE and self.tokens:
            usage.completion_tokens = self.tokens
            usage.source = UsageSource.RELAYED
