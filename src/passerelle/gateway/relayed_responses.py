"""Answers in the form of OpenAI's Responses, from a server that has it: relayed whole, as chats are."""

from __future__ import annotations

import msgspec

from passerelle.domain.usage import Usage, UsageSource
from passerelle.engines.base import EngineBroke, Reply
from passerelle.engines.sse import iter_data
from passerelle.gateway.call import Call
from passerelle.gateway.relay import MAX_DOCUMENT_BYTES, StreamRelay

_ENDS = ("response.completed", "response.incomplete")
_BREAKS = ("response.failed", "response.cancelled", "error")


_ABSENT = msgspec.Raw()


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _InputDetails | None = None


class _Response(msgspec.Struct):
    status: str
    output: list[msgspec.Raw]
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    type: str
    response: _Response | None = None
    delta: msgspec.Raw = _ABSENT


_decode_response = msgspec.json.Decoder(_Response).decode
_decode_event = msgspec.json.Decoder(_Event).decode


async def read_response(call: Call, reply: Reply) -> bytes:
    """Returns an answer that is one document and takes its usage. Raises EngineBroke."""
    body = await reply.read(MAX_DOCUMENT_BYTES)
    try:
        body.decode()
        response = _decode_response(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineBroke("the answer is not JSON of the expected shape") from error
    if response.status not in ("completed", "incomplete"):
        raise EngineBroke("the server reported an error in the answer")
    _take(response.usage, call.usage)
    return body


class ResponseRelay(StreamRelay):
    """As `StreamRelay`. The stream ends with response.completed or response.incomplete, and has no ``[DONE]``."""

    def _inspect(self, event: bytes) -> bool:
        if self._done or self._fault is not None:
            return False
        payloads = list(iter_data(event))
        if not payloads:
            return self._seen
        if payloads[0].strip() == b"[DONE]":
            return False
        try:
            payloads[0].decode()
            parsed = _decode_event(payloads[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._break("an event is not JSON of the expected shape")
        if parsed.type in _BREAKS:
            return self._break("the server reported an error in the stream")
        self._seen = True
        if parsed.delta:
            self.tokens += 1
        if parsed.type in _ENDS:
            if parsed.response is None:
                return self._break("the last event has no answer")
            _take(parsed.response.usage, self._call.usage)
            self._done = True
        return True


def _take(usage: _Usage | None, into: Usage) -> None:
    if usage is None:
        return
    into.prompt_tokens, into.completion_tokens = usage.input_tokens, usage.output_tokens
    details = usage.input_tokens_details
    into.cached_tokens = (details.cached_tokens or 0) if details else 0
    into.source = UsageSource.ENGINE
