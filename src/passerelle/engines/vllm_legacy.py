"""The engine of model servers with vLLM's first route: ``POST /generate``, JSON documents parted by NUL bytes.

    {"prompt": …, "stream": true, …}  ->  {"text": ["…"]}\\0{"text": ["… …"]}\\0

Each document holds the whole text so far, of some servers with the prompt before it, of some as a bare string. They say
nothing of tokens or of why they ended: an answer that came to ``max_tokens`` cannot be told from one that was done, so
the reason is always "stop", and tokens are what was relayed. A chat is rendered by the target's ``chat_template``
(``plain`` when there is none).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from passerelle.domain.model import Target
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import EngineBroke, EngineError, EngineRejected, Probe, Readiness, Reply
from passerelle.engines.client import HttpClient
from passerelle.engines.generation import Generation, read_generation
from passerelle.engines.rejection import scrub
from passerelle.engines.templates import render
from passerelle.engines.translation import TranslatedReply
from passerelle.engines.transport import Transport
from passerelle.engines.wire import DONE, AnswerWriter, Choice, StopHolder

_WITHOUT = ("tools", "logit_bias", "logprobs", "top_logprobs", "response_format")
_PASSED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
)
_MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


class _Text(msgspec.Struct):
    text: list[str] | str


class _Detail(msgspec.Struct):
    detail: str


_decode = msgspec.json.Decoder(_Text).decode


class VllmLegacyEngine:
    """Sends requests to ``/generate`` over one `Transport`."""

    def __init__(self, transport: Transport) -> None:
        self._client = HttpClient(transport, _explain)

    async def send(self, request: Request, target: Target, *, request_id: str, timeout_s: float) -> Reply:
        """As `Engine.send`. It always streams, so that the server stops when the caller leaves."""
        if request.operation not in (Operation.CHAT, Operation.COMPLETION):
            message = "The server of this model does not offer this operation."
            raise EngineRejected("no such operation", status=501, message=message)
        generation = read_generation(request, without=_WITHOUT)
        prompt = _prompt(generation, target)
        body: dict[str, object] = {"prompt": prompt, "stream": True}
        body |= {name: value for name in _PASSED if (value := getattr(generation, name)) is not None}
        if generation.limit is not None:
            body["max_tokens"] = generation.limit
        if generation.stops:
            body["stop"] = generation.stops
        answer = await self._client.post(target, "/generate", body, timeout_s=timeout_s, request_id=request_id)
        writer = AnswerWriter(request.operation, request_id, target.model)
        return TranslatedReply(answer, _Reader(writer, prompt, generation, stream=request.stream))

    async def probe(self, target: Target, *, timeout_s: float) -> Probe:
        """As `Engine.probe`: ``/health``; a server without that route is up when it answers at all."""
        try:
            status, _ = await self._client.get(target, "/health", timeout_s=timeout_s)
        except EngineError as error:
            return Probe(Readiness.DOWN, error.reason)
        if status in (429, 503):
            return Probe(Readiness.BUSY, "the server says that it is busy")
        if status >= 500:
            return Probe(Readiness.DOWN, f"the health route answered {status}")
        return Probe(Readiness.READY, "answers", (target.model,))

    async def count_tokens(self, request: Request, target: Target, *, timeout_s: float) -> int | None:
        """As `Engine.count_tokens`: these servers offer no tokenizer."""
        return None

    async def count_texts(self, texts: Sequence[str], target: Target, *, timeout_s: float) -> list[int] | None:
        """As `Engine.count_texts`: these servers offer no tokenizer."""
        return None

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._client.aclose()


class _Reader:
    """Reads documents parted by NUL bytes; a byte of a JSON text is never NUL, so no parsing is needed to part them."""

    def __init__(self, writer: AnswerWriter, prompt: str, generation: Generation, *, stream: bool) -> None:
        self.stream = stream
        self.pieces = 0
        self._writer = writer
        self._prompt = prompt
        self._holder = StopHolder(generation.stops)
        self._waiting = bytearray()
        self._seen = ""
        self._came = False
        self._repeated = 0
        self._choice = Choice()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """As `passerelle.engines.translation.Reader.feed`."""
        *whole, rest = chunk.split(b"\0")
        if not whole:
            self._keep(rest)
            return
        whole[0] = bytes(self._waiting) + whole[0]
        self._waiting = bytearray(rest)
        for part in whole:
            if part.strip() and (out := self._document(part)):
                yield out

    def end(self) -> Iterator[bytes]:
        """As `passerelle.engines.translation.Reader.end`; the last document may lack its NUL."""
        out = self._document(bytes(self._waiting)) if self._waiting.strip() else b""
        if not self._came:
            raise EngineBroke("the answer holds no text")
        if not self._holder.hit:
            out += self._say(self._holder.rest())
        if self.stream:
            yield out + self._writer.finish("stop") + DONE
            return
        self._choice.finish_reason = "stop"
        yield self._writer.document([self._choice])

    def _keep(self, part: bytes) -> None:
        self._waiting += part
        if len(self._waiting) > _MAX_DOCUMENT_BYTES:
            raise EngineBroke("a document of the stream is larger than allowed")

    def _document(self, data: bytes) -> bytes:
        try:
            found = _decode(data).text
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineBroke("a document of the stream is not JSON of the expected shape") from None
        text = found if isinstance(found, str) else (found[0] if found else "")
        if not self._came:
            # The first document tells whether this server repeats the prompt: a first token is shorter than that.
            self._repeated = len(self._prompt) if text.startswith(self._prompt) else 0
            self._came = True
        text = text[self._repeated :]
        if not text.startswith(self._seen):
            raise EngineBroke("the server took back text that it had sent")
        fresh, self._seen = text[len(self._seen) :], text
        if not fresh:
            return b""
        return self._say(self._holder.feed(fresh))

    def _say(self, text: str) -> bytes:
        if not text:
            return b""
        self.pieces += 1
        if self.stream:
            return self._writer.text(text)
        self._choice.text += text
        return b""


def _prompt(generation: Generation, target: Target) -> str:
    if generation.messages is None:
        return generation.text
    return render(str(target.options.get("chat_template") or "plain"), generation.messages)


def _explain(body: bytes) -> str | None:
    try:
        return scrub(msgspec.json.decode(body, type=_Detail).detail)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
