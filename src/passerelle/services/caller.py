"""Calls of models by services, through the same gateway as everybody's: the key's limits, the queue, the usage row."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from passerelle.catalog.holder import Catalog
from passerelle.domain.client import Headers
from passerelle.domain.errors import UpstreamFailed
from passerelle.domain.ids import IdSequence
from passerelle.domain.model import Model
from passerelle.domain.principal import Principal
from passerelle.domain.request import Operation, Request
from passerelle.engines.base import Engine
from passerelle.gateway.call import Call
from passerelle.gateway.gateway import Gateway
from passerelle.gateway.queue import Priority
from passerelle.gateway.targets import Fleet

PARALLEL_WITHOUT_LIMIT = 32
"""Calls at one time of a model whose servers name no bound: as many as keep a batching server busy."""
_COUNTS_KEPT = 1_000
"""Counts of texts that one caller remembers, by their digests."""
_COUNT_TRIES = 4
_COUNT_WAIT_S = 0.5
_COUNT_TIMEOUT_S = 10.0
_BYTES_PER_TOKEN = 2.5
"""For servers that offer no tokenizer: fewer bytes than a token of any common vocabulary has on average."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How one call is made. ``schema`` asks for JSON that follows it; ``json`` for any JSON object."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    json: bool = False
    schema: Mapping[str, Any] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model answered, and what it took. ``cut`` means that the answer came to ``max_tokens``."""

    text: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nano: int
    cut: bool
    seconds: float


class ModelCaller(Protocol):
    """What strategies call models by, on behalf of one principal."""

    async def ask(self, model: str, prompt: str, options: Options) -> Answer:
        """Returns the answer to one user message. Raises PasserelleError."""

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        """Returns the tokens of each text, by the model's own tokenizer where its server has one."""

    async def count_prompt(self, model: str, prompt: str) -> int:
        """Returns the tokens of a whole request with this one user message, the chat template's included."""

    def window(self, model: str) -> int | None:
        """Returns the context window in tokens, None when it is not known."""

    def parallel(self, model: str) -> int:
        """Returns how many calls its servers can work on at one time now, at least 1."""


class GatewayCaller:
    """As `ModelCaller`, over the gateway of this process. ``window`` knows models' context windows.

    ``timeout_s`` is for one call; ``max_parallel`` bounds those of all services together.
    """

    def __init__(
        self,
        gateway: Gateway,
        catalog: Catalog,
        fleet: Fleet,
        engines: Mapping[str, Engine],
        window: Callable[[Model], int | None],
        *,
        timeout_s: float,
        max_parallel: int | None = None,
    ) -> None:
        self._places = None if max_parallel is None else asyncio.Semaphore(max_parallel)
        self._max_parallel = max_parallel
        self._gateway = gateway
        self._catalog = catalog
        self._fleet = fleet
        self._engines = engines
        self._window = window
        self._timeout_s = timeout_s
        self._ids = IdSequence("req")

    def of(self, principal: Principal, service: str, priority: Priority = Priority.JOB) -> _Caller:
        """Returns what calls models for one principal and service."""
        return _Caller(self, principal, service, priority)

    def model(self, name: str) -> Model | None:
        """Returns the model of that name or alias."""
        return self._catalog.current.resolve(name)

    async def run(
        self, principal: Principal, service: str | None, priority: Priority, request: Request
    ) -> tuple[Call, bytes]:
        """Makes one call and returns it with the body of its answer; ``service`` is who makes it, for the usage row.

        Raises PasserelleError.
        """
        if self._places is None or service is None:
            return await self._run(principal, service, priority, request)
        async with self._places:
            return await self._run(principal, service, priority, request)

    async def _run(
        self, principal: Principal, service: str | None, priority: Priority, request: Request
    ) -> tuple[Call, bytes]:
        now = time.monotonic()
        call = Call(
            request_id=self._ids.next(),
            principal=principal,
            request=request,
            snapshot=self._catalog.current,
            arrived=now,
            deadline=now + self._timeout_s,
            priority=priority,
            service=service,
        )
        waiting = _Waiting()
        task = asyncio.create_task(self._gateway.handle(call, waiting), name=call.request_id)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # Who asked has left, as a caller of HTTP may: the gateway ends the call upstream and settles it.
            waiting.leave()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
            raise
        return call, waiting.body

    async def count_one(self, model: Model, request: Request) -> int | None:
        """Returns the tokens of a request by the tokenizer of one of the model's servers, None without one."""
        pool = self._fleet.pool(model.name)
        candidates = None if pool is None else pool.candidates()
        if candidates is None:
            return None
        target = candidates[0].target
        return await self._engines[target.engine].count_tokens(request, target, timeout_s=_COUNT_TIMEOUT_S)

    async def count_texts(self, model: Model, texts: Sequence[str]) -> list[int] | None:
        """Returns the tokens of texts by the tokenizer of one of the model's servers, None without one."""
        pool = self._fleet.pool(model.name)
        candidates = None if pool is None else pool.candidates()
        if candidates is None:
            return None
        target = candidates[0].target
        return await self._engines[target.engine].count_texts(texts, target, timeout_s=_COUNT_TIMEOUT_S)

    def window_of(self, name: str) -> int | None:
        """Returns a model's context window in tokens."""
        model = self.model(name)
        return None if model is None else self._window(model)

    def capacity_of(self, name: str) -> int | None:
        """Returns how many calls the model's servers bear at once, None for any number."""
        model = self.model(name)
        pool = None if model is None else self._fleet.pool(model.name)
        known = [most for most in (None if pool is None else pool.capacity, self._max_parallel) if most is not None]
        return min(known, default=None)


class _Caller:
    def __init__(self, gateway: GatewayCaller, principal: Principal, service: str, priority: Priority) -> None:
        self._gateway = gateway
        self._principal = principal
        self._service = service
        self._priority = priority
        self._counted: dict[tuple[str, bytes], int] = {}
        self._exact: set[str] = set()
        """Models whose tokens were counted by their own tokenizer."""

    async def ask(self, model: str, prompt: str, options: Options) -> Answer:
        began = time.monotonic()
        request = _chat(model, prompt, options)
        call, body = await self._gateway.run(self._principal, self._service, self._priority, request)
        text, cut = _read(body)
        return Answer(
            text=text,
            model=model if call.model is None else call.model.name,
            prompt_tokens=call.usage.prompt_tokens,
            cached_tokens=call.usage.cached_tokens,
            completion_tokens=call.usage.completion_tokens,
            cost_nano=call.cost_nano,
            cut=cut,
            seconds=round(time.monotonic() - began, 3),
        )

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        keys = [(model, _digest(text)) for text in texts]
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._counted}
        if fresh:
            found = await self._count_texts(model, [*fresh.values()])
            self._counted.update(zip(fresh, found, strict=True))
        counts = [self._counted[key] for key in keys]
        if len(self._counted) > _COUNTS_KEPT:
            self._counted.clear()
        return counts

    async def count_prompt(self, model: str, prompt: str) -> int:
        found = self._gateway.model(model)
        request = _chat(model, prompt, Options(max_tokens=1))
        tokens = None if found is None else await self._gateway.count_one(found, request)
        return _guess(prompt) if tokens is None else tokens

    def window(self, model: str) -> int | None:
        return self._gateway.window_of(model)

    def parallel(self, model: str) -> int:
        capacity = self._gateway.capacity_of(model)
        return PARALLEL_WITHOUT_LIMIT if capacity is None else max(1, capacity)

    async def _count_texts(self, model: str, texts: Sequence[str]) -> list[int]:
        """Counts by the model's tokenizer, or guesses where it has none.

        A tokenizer that counted before and does not answer is asked again: a text that is cut by guesses now and by
        counts in a later attempt would be cut at other places, and no finished call would be found again.
        """
        found = self._gateway.model(model)
        for attempt in range(_COUNT_TRIES):
            counts = None if found is None else await self._gateway.count_texts(found, texts)
            if counts is not None:
                self._exact.add(model)
                return counts
            if model not in self._exact:
                return [_guess(text) for text in texts]
            await asyncio.sleep(_COUNT_WAIT_S * 2**attempt)
        raise UpstreamFailed(f"The tokenizer of '{model}' does not answer any more; retry the job.")


class _Waiting:
    """As `passerelle.domain.client.Client`: keeps the answer in memory for who awaits it."""

    def __init__(self) -> None:
        self.gone = False
        self.started = False
        self.status = 0
        self.body = b""
        self._on_gone: Callable[[], object] | None = None

    def leave(self) -> None:
        """Tells the gateway that nobody waits any more."""
        self.gone = True
        if self._on_gone is not None:
            self._on_gone()

    def on_gone(self, callback: Callable[[], object]) -> None:
        self._on_gone = callback
        if self.gone:
            callback()

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Memory never pushes back; an answer that is not streamed is bounded by the gateway."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.started = True
        self.status = status
        self.body = body

    def begin(self, status: int, headers: Headers) -> None:
        self.started = True
        self.status = status

    def write(self, data: bytes) -> None:
        self.body += data

    def last(self) -> None:
        """There is no connection to close."""

    async def end(self) -> None:
        """Everything is here already."""

    def abort(self) -> None:
        """There is no connection to close."""


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Document(msgspec.Struct):
    choices: list[_Choice]


_decode = msgspec.json.Decoder(_Document).decode


def _read(body: bytes) -> tuple[str, bool]:
    try:
        choice = _decode(body).choices[0]
    except (msgspec.DecodeError, IndexError):
        raise UpstreamFailed("The model server's answer cannot be read; retry the job.") from None
    return choice.message.content or "", choice.finish_reason == "length"


def _chat(model: str, prompt: str, options: Options) -> Request:
    document: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": options.max_tokens,
    }
    for name in ("temperature", "top_p"):
        if (value := getattr(options, name)) is not None:
            document[name] = value
    if options.schema is not None:
        schema = {"name": "result", "schema": dict(options.schema), "strict": True}
        document["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif options.json:
        document["response_format"] = {"type": "json_object"}
    return _request(Operation.CHAT, model, document, options.max_tokens)


def _guess(text: str) -> int:
    return max(1, round(len(text.encode()) / _BYTES_PER_TOKEN))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _request(operation: Operation, model: str, document: Mapping[str, Any], max_tokens: int | None) -> Request:
    fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in document.items()}
    return Request(operation, model, msgspec.json.encode(document), fields, max_tokens=max_tokens)
