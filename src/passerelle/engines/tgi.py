"""The engine of Text Generation Inference's own routes: ``/generate_stream``, ``/info``, ``/health``, ``/tokenize``.

Every request streams, also one whose answer is to be one document: only the stream's last event says how many tokens
the prompt had, and only a stream ends the server's work when the caller leaves.

    token                    a piece of text, unless it is a special token
    generated_text, details  the end: finish_reason length -> length, eos_token and stop_sequence -> stop
    error, error_type        in-band with status 200: validation -> EngineRejected, overloaded -> EngineRefused,
                             anything else EngineBroke

A chat needs a template: the server's own, by ``/chat_tokenize``, unless the target's ``chat_template`` names one of
`passerelle.engines.templates`. Source of the wire format: the server's OpenAPI description and router, version 3.3.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec

from passerelle.domain.model import Target
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import (
    EngineBroke,
    EngineError,
    EngineRefused,
    EngineRejected,
    Probe,
    Readiness,
    Reply,
)
from passerelle.engines.client import HttpClient, decoded
from passerelle.engines.generation import Generation, read_generation, refused
from passerelle.engines.rejection import overflow_code, scrub
from passerelle.engines.sse import EventAligner, iter_data
from passerelle.engines.templates import render
from passerelle.engines.tokenizers import Document, count_each
from passerelle.engines.translation import TranslatedReply
from passerelle.engines.transport import Transport
from passerelle.engines.wire import DONE, AnswerWriter, Choice, StopHolder, TokenLogprob

_FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
_WITHOUT = ("tools", "logit_bias", "min_tokens", "min_p", "ignore_eos", "stop_token_ids", "presence_penalty")
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


class _Token(msgspec.Struct):
    text: str
    logprob: float | None = None
    special: bool = False


class _Details(msgspec.Struct):
    finish_reason: str | None = None
    generated_tokens: int = 0
    input_length: int = 0


class _TopToken(msgspec.Struct):
    text: str
    logprob: float | None = None


class _Event(msgspec.Struct):
    token: _Token | None = None
    top_tokens: list[_TopToken] | None = None
    generated_text: str | None = None
    details: _Details | None = None
    error: str | None = None
    error_type: str | None = None


class _Info(msgspec.Struct):
    model_id: str
    max_total_tokens: int | None = None


class _TokenId(msgspec.Struct):
    id: int


class _ChatTokens(msgspec.Struct):
    tokenize_response: list[_TokenId]
    templated_text: str


class _Error(msgspec.Struct):
    error: str
    error_type: str | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


class TgiEngine:
    """Sends requests to TGI servers over one `Transport`.

    ``without`` are fields that its servers cannot follow beside those that TGI itself cannot.
    """

    def __init__(self, transport: Transport, *, without: Sequence[str] = ()) -> None:
        self._client = HttpClient(transport, _explain)
        self._without = (*_WITHOUT, *without)

    async def send(self, request: Request, target: Target, *, request_id: str, timeout_s: float) -> Reply:
        """As `Engine.send`. What the server refuses shows in the first event: see `TranslatedReply`."""
        until = time.monotonic() + timeout_s
        if request.operation is Operation.TOKENIZE:
            return await self._tokenize(request, target, timeout_s)
        if request.operation not in (Operation.CHAT, Operation.COMPLETION):
            message = "The server of this model does not offer this operation."
            raise EngineRejected("no such operation", status=501, message=message)
        generation = read_generation(request, without=self._without)
        prompt = await self._prompt(generation, target, timeout_s)
        body = {"inputs": prompt, "parameters": _parameters(generation)}
        answer = await self._client.post(
            target, "/generate_stream", body, timeout_s=until - time.monotonic(), request_id=request_id
        )
        writer = AnswerWriter(request.operation, request_id, target.model)
        return TranslatedReply(answer, _Reader(writer, generation, stream=request.stream))

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        """As `Engine.probe`: ``/health``, then ``/info`` for the model and its window."""
        until = time.monotonic() + timeout_s
        try:
            status, _ = await self._client.get(target, "/health", timeout_s=timeout_s)
            if status == 429:
                return Probe(Readiness.BUSY, "the server says that it is busy")
            if not 200 <= status < 300:
                return Probe(Readiness.DOWN, f"the health route answered {status}")
            status, body = await self._client.get(target, "/info", timeout_s=until - time.monotonic())
            if status != 200:
                return Probe(Readiness.DOWN, f"the info route answered {status}")
            info = decoded(_Info, body)
        except EngineError as error:
            return Probe(Readiness.DOWN, error.reason)
        return Probe(Readiness.READY, "answers", (info.model_id,), info.max_total_tokens)

    async def count_tokens(self, request: Request, target: Target, *, timeout_s: float) -> int | None:
        """As `Engine.count_tokens`."""
        try:
            generation = read_generation(request, without=self._without)
            if generation.messages is not None and _template(target) is None:
                return len((await self._chat_tokens(generation, target, timeout_s)).tokenize_response)
            prompt = await self._prompt(generation, target, timeout_s)
            return len(await self._tokens(prompt, target, timeout_s))
        except EngineError:
            return None

    async def count_texts(self, texts: Sequence[str], target: Target, *, timeout_s: float) -> list[int] | None:
        """As `Engine.count_texts`: a request for each."""

        async def count(text: str) -> int:
            return len(await self._tokens(text, target, timeout_s))

        try:
            return await count_each(texts, count)
        except EngineError:
            return None

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    async def _prompt(self, generation: Generation, target: Target, timeout_s: float) -> str:
        if generation.messages is None:
            return generation.text
        template = _template(target)
        if template is not None:
            return render(template, generation.messages)
        return (await self._chat_tokens(generation, target, timeout_s)).templated_text

    async def _chat_tokens(self, generation: Generation, target: Target, timeout_s: float) -> _ChatTokens:
        body = {"messages": generation.messages, "model": target.model}
        answer = await self._client.post(target, "/chat_tokenize", body, timeout_s=timeout_s)
        return decoded(_ChatTokens, await answer.read(_MAX_ANSWER_BYTES))

    async def _tokens(self, text: str, target: Target, timeout_s: float) -> list[_TokenId]:
        answer = await self._client.post(target, "/tokenize", {"inputs": text}, timeout_s=timeout_s)
        return decoded(list[_TokenId], await answer.read(_MAX_ANSWER_BYTES))

    async def _tokenize(self, request: Request, target: Target, timeout_s: float) -> Document:
        fields = msgspec.json.decode(request.body, type=Generation, strict=False)
        if fields.messages is not None and _template(target) is None:
            found = (await self._chat_tokens(fields, target, timeout_s)).tokenize_response
        else:
            found = await self._tokens(await self._prompt(fields, target, timeout_s), target, timeout_s)
        ids = [token.id for token in found]
        return Document(msgspec.json.encode({"count": len(ids), "max_model_len": None, "tokens": ids}))


class _Reader:
    """Reads one ``/generate_stream``."""

    def __init__(self, writer: AnswerWriter, generation: Generation, *, stream: bool) -> None:
        self.stream = stream
        self.pieces = 0
        self._writer = writer
        self._with_logprobs = bool(generation.logprobs)
        self._holder = StopHolder(generation.stops)
        self._aligner = EventAligner()
        self._choice = Choice()
        self._details: _Details | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """As `passerelle.engines.translation.Reader.feed`."""
        try:
            block = self._aligner.feed(chunk)
        except ValueError:
            raise EngineBroke("an event is larger than allowed") from None
        yield from self._events(block)

    def end(self) -> Iterator[bytes]:
        """As `passerelle.engines.translation.Reader.end`."""
        yield from self._events(self._aligner.flush())
        details = self._details
        if details is None or details.finish_reason not in _FINISH:
            raise EngineBroke("the stream ended without its details")
        rest = b"" if self._holder.hit else self._say(self._holder.rest(), [])
        reason = _FINISH[details.finish_reason]
        counted = (details.input_length, details.generated_tokens)
        if self.stream:
            yield rest + self._writer.finish(reason) + self._writer.usage(*counted) + DONE
            return
        self._choice.finish_reason = reason
        yield self._writer.document([self._choice], counted)

    def _events(self, block: bytes) -> Iterator[bytes]:
        for data in iter_data(block):
            if out := self._event(data):
                yield out

    def _event(self, data: bytes) -> bytes:
        try:
            event = _decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineBroke("an event is not JSON of the expected shape") from None
        if event.error is not None:
            raise _in_band(event.error, event.error_type)
        if event.details is not None:
            self._details = event.details
        token = event.token
        if token is None:
            raise EngineBroke("an event holds no token")
        if token.special:
            return b""
        return self._say(self._holder.feed(token.text), self._logprobs(token, event.top_tokens))

    def _say(self, text: str, logprobs: list[TokenLogprob]) -> bytes:
        if not text:
            return b""
        self.pieces += 1
        if self.stream:
            return self._writer.text(text, logprobs=logprobs)
        self._choice.text += text
        self._choice.logprobs += logprobs
        return b""

    def _logprobs(self, token: _Token, top: list[_TopToken] | None) -> list[TokenLogprob]:
        if not self._with_logprobs or token.logprob is None:
            return []
        others = [(each.text, each.logprob) for each in top or () if each.logprob is not None]
        return [TokenLogprob(token.text, token.logprob, others)]


def _parameters(generation: Generation) -> dict[str, object]:
    """Returns TGI's parameters. Temperature 0 is its greedy decoding, which it asks for by leaving sampling off."""
    parameters: dict[str, object] = {"details": True, "return_full_text": False, "do_sample": True}
    if generation.temperature is not None:
        if generation.temperature > 0:
            parameters["temperature"] = generation.temperature
        else:
            parameters["do_sample"] = False
    if generation.top_p is not None and 0 < generation.top_p < 1:
        parameters["top_p"] = generation.top_p
    if generation.top_k is not None and generation.top_k > 0:
        parameters["top_k"] = generation.top_k
    if generation.logprobs:
        asked = generation.top_logprobs if generation.logprobs is True else int(generation.logprobs)
        if asked:
            parameters["top_n_tokens"] = asked
    grammar = _grammar(generation)
    given = {
        "max_new_tokens": generation.limit,
        "seed": generation.seed,
        "stop": generation.stops or None,
        "frequency_penalty": generation.frequency_penalty,
        "repetition_penalty": generation.repetition_penalty,
        "grammar": grammar,
    }
    return parameters | {name: value for name, value in given.items() if value is not None}


def _grammar(generation: Generation) -> dict[str, object] | None:
    wanted = generation.response_format or {"type": "text"}
    if wanted.get("type") == "json_object":
        return {"type": "json", "value": {"type": "object"}}
    if wanted.get("type") == "json_schema":
        return {"type": "json", "value": wanted.get("json_schema", {}).get("schema", {"type": "object"})}
    if wanted.get("type") != "text":
        raise refused("response_format", "knows no such format")
    return None


def _template(target: Target) -> str | None:
    """The template the configuration names, None for the server's own."""
    name = target.options.get("chat_template")
    return None if name is None else str(name)


def _in_band(message: str, kind: str | None) -> EngineError:
    if kind == "validation":
        told = scrub(message)
        return EngineRejected("the server refused the request", status=422, message=told, code=overflow_code(message))
    if kind == "overloaded":
        return EngineRefused("the server is overloaded", status=429, busy=True)
    return EngineBroke("the server reported an error in the stream")


def _explain(body: bytes) -> str | None:
    try:
        return scrub(msgspec.json.decode(body, type=_Error).error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
