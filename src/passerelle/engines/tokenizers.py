"""Tokenising by the server's own tokenizer, in one shape whatever the server: vLLM's.

vLLM:          POST /tokenize {model, prompt | messages} -> {count, max_model_len, tokens}
               POST /detokenize {model, tokens} -> {prompt}
llama-server:  POST /tokenize {content, add_special, parse_special, with_pieces} -> {tokens}
               ``content`` may be a list of texts and token ids: their tokens follow one another in the answer
               POST /detokenize {tokens} -> {content}
               POST /apply-template {messages, tools} -> {prompt}

Servers that have neither are said so; nothing is ever estimated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

import msgspec

from passerelle.domain.portions import portions
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import EngineBroke, EngineRejected

_BETWEEN = -1
"""Stands between texts that are counted together: no token has this id."""
_CHARS_TOGETHER, _TEXTS_TOGETHER = 65_536, 2_048
"""What one request counts at most."""
_COUNTS_AT_ONCE = 16
"""Requests of one count at the same time, where each takes one text."""
MAX_COUNTED_PROMPTS = 16
"""A request that holds more texts than this is not counted beforehand."""


class ServerKind(StrEnum):
    """Servers whose tokenizer routes we know."""

    VLLM = "vllm"
    LLAMACPP = "llamacpp"
    OTHER = "other"


class Document:
    """A `Reply` that is here already."""

    __slots__ = ("_body", "connect_s", "content_type", "status")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.status = 200
        self.content_type = b"application/json"
        self.connect_s = 0.0

    @property
    def in_responses(self) -> bool:
        """Never: it is a chat, or none."""
        return False

    @property
    def pieces(self) -> int:
        """It holds no text of a model."""
        return 0

    async def first(self) -> None:
        """Returns at once."""

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the body. Raises EngineBroke when it is larger than ``limit_bytes``."""
        if len(self._body) > limit_bytes:
            raise EngineBroke(f"the answer is larger than {limit_bytes} bytes")
        return self._body

    async def pump(self, feed: Callable[[bytes], None]) -> None:
        """Pushes the body into ``feed``."""
        feed(self._body)

    def pause(self) -> None:
        """Nothing is read any more."""

    def resume(self) -> None:
        """Nothing is read any more."""

    def abort(self) -> None:
        """Nothing is open any more."""


class _Piece(msgspec.Struct):
    id: int
    piece: str | list[int]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Pieces(msgspec.Struct):
    tokens: list[_Piece]


class _Content(msgspec.Struct):
    content: str


class _Prompt(msgspec.Struct):
    prompt: str


class _Count(msgspec.Struct):
    count: int


class _Tokenized(msgspec.Struct):
    """vLLM's answer to /tokenize."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


_T = TypeVar("_T")
Kind = Callable[[], Awaitable[tuple[ServerKind, int | None]]]
"""Returns the kind of server and the model's context window in tokens."""
Post = Callable[[str, bytes], Awaitable[bytes]]
"""Posts JSON to a path at the server's root and returns the JSON answer. Raises EngineError."""


class Tokenizer:
    """The tokenizer of one target, for the length of one request."""

    def __init__(self, model: str, kind: Kind, post: Post) -> None:
        self._model = model
        self._kind = kind
        self._post = post

    async def answer(self, request: Request) -> Document:
        """Answers a TOKENIZE or DETOKENIZE request. Raises EngineError."""
        kind, window = await self._kind()
        tokenize = request.operation is Operation.TOKENIZE
        if kind is ServerKind.VLLM:
            path = "/tokenize" if tokenize else "/detokenize"
            return Document(await self._post(path, request.render(self._model, include_usage=False)))
        if kind is ServerKind.LLAMACPP:
            return Document(await (self._llama_tokenize(request, window) if tokenize else self._llama_text(request)))
        message = "The server of this model offers no tokenizer."
        raise EngineRejected("no tokenizer routes", status=404, message=message, code="tokenizer_not_available")

    async def count(self, request: Request) -> int | None:
        """Returns the tokens of the request's longest prompt; None when the exact number cannot be had."""
        kind, _ = await self._kind()
        if kind is ServerKind.OTHER:
            return None
        fields = request.fields
        if request.operation is Operation.CHAT:
            return await self._count_chat(request, kind)
        given = fields.get("prompt" if request.operation is Operation.COMPLETION else "input")
        prompts = _prompts(msgspec.json.decode(given)) if given is not None else None
        if prompts is None or len(prompts) > MAX_COUNTED_PROMPTS:
            return None
        counts = await asyncio.gather(*(self._count_text(prompt, kind) for prompt in prompts))
        return max(counts, default=None)

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        """Returns the tokens of each text as the prompt of a completion, None without tokenizer. Raises EngineError."""
        kind, _ = await self._kind()
        if kind is ServerKind.OTHER:
            return None
        if kind is ServerKind.VLLM:
            return await count_each(texts, lambda text: self._count_text(text, kind))
        counts: list[int] = []
        for some in portions(texts, len, most_size=_CHARS_TOGETHER, most_items=_TEXTS_TOGETHER):
            counts += await self._llama_counts(some)
        return counts

    async def _llama_counts(self, texts: Sequence[str]) -> list[int]:
        """Counts texts in one request, with ids that no token has between them.

        llama-server adds what begins a prompt (BOS) to the first text of a list only: that is an empty one here, and
        what it takes is added to each.
        """
        content: list[str | int] = [""]
        for text in texts:
            content += (_BETWEEN, text)
        document = {"content": content, "add_special": True, "parse_special": True}
        tokens = _decoded(_Tokens, await self._post("/tokenize", msgspec.json.encode(document))).tokens
        ends = [at for at, token in enumerate(tokens) if token == _BETWEEN]
        if len(ends) != len(texts):
            raise EngineBroke("the tokenizer's answer does not part the texts it was given")
        special = ends[0]
        return [special + high - low - 1 for low, high in pairwise([*ends, len(tokens)])]

    async def _count_chat(self, request: Request, kind: ServerKind) -> int:
        if kind is ServerKind.VLLM:
            names = ("messages", "tools")
            document = {name: request.fields[name] for name in names if name in request.fields}
            body = msgspec.json.encode({"model": self._model, **document})
            return _decoded(_Count, await self._post("/tokenize", body)).count
        return len(await self._llama_tokens(await self._llama_prompt(request)))

    async def _count_text(self, prompt: str | list[int], kind: ServerKind) -> int:
        if isinstance(prompt, list):
            return len(prompt)
        if kind is ServerKind.VLLM:
            body = msgspec.json.encode({"model": self._model, "prompt": prompt})
            return _decoded(_Count, await self._post("/tokenize", body)).count
        return len(await self._llama_tokens(prompt))

    async def _llama_prompt(self, request: Request) -> str:
        names = ("messages", "tools", "tool_choice", "add_generation_prompt")
        document = {name: request.fields[name] for name in names if name in request.fields}
        return _decoded(_Prompt, await self._post("/apply-template", msgspec.json.encode(document))).prompt

    async def _llama_tokens(self, prompt: str) -> list[int]:
        # As llama-server itself does with a prompt: with BOS, and with the template's special tokens as tokens.
        document = {"content": prompt, "add_special": True, "parse_special": True}
        return _decoded(_Tokens, await self._post("/tokenize", msgspec.json.encode(document))).tokens

    async def _llama_tokenize(self, request: Request, window: int | None) -> bytes:
        fields = request.fields
        if "messages" in fields:
            prompt = await self._llama_prompt(request)
        else:
            prompt = msgspec.json.decode(fields["prompt"], type=str)
        special = msgspec.json.decode(fields["add_special_tokens"]) if "add_special_tokens" in fields else True
        pieces = msgspec.json.decode(fields["return_token_strs"]) if "return_token_strs" in fields else False
        document = {"content": prompt, "add_special": special, "parse_special": True, "with_pieces": bool(pieces)}
        body = await self._post("/tokenize", msgspec.json.encode(document))
        if not pieces:
            tokens = _decoded(_Tokens, body).tokens
            return msgspec.json.encode(_Tokenized(len(tokens), window, tokens))
        split = _decoded(_Pieces, body).tokens
        texts = [_text(piece.piece) for piece in split]
        return msgspec.json.encode(_Tokenized(len(split), window, [piece.id for piece in split], texts))

    async def _llama_text(self, request: Request) -> bytes:
        body = msgspec.json.encode({"tokens": request.fields["tokens"]})
        return msgspec.json.encode(_Prompt(_decoded(_Content, await self._post("/detokenize", body)).content))


async def count_each(texts: Sequence[str], count: Callable[[str], Awaitable[int]]) -> list[int]:
    """Counts texts one by one, some at a time, by servers that take one. Raises EngineError."""
    counts = [0] * len(texts)
    waiting = iter(enumerate(texts))

    async def some() -> None:
        for index, text in waiting:
            counts[index] = await count(text)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_COUNTS_AT_ONCE, len(texts))):
                group.create_task(some())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return counts


def _prompts(given: object) -> list[str | list[int]] | None:
    """Reads ``prompt`` or ``input``: a text, texts, token ids, or lists of token ids."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        return None
    if all(isinstance(item, int) for item in given):
        return [given]
    if all(isinstance(item, str | list) for item in given):
        return given
    return None


def _text(piece: str | list[int]) -> str:
    """llama-server gives a piece that is not UTF-8 by itself as a list of bytes."""
    return piece if isinstance(piece, str) else bytes(piece).decode("utf-8", "replace")


def _decoded(kind: type[_T], body: bytes) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise EngineBroke("the tokenizer's answer is not JSON of the expected shape") from None
