"""A service as a model: ``service/<name>`` on ``/v1/chat/completions``, the last user message is its input.

Each request is a job, durable like any other, that is waited for: progress arrives as comments of the stream, the
result as its text. Who leaves cancels the job. Its calls are counted where they are made; the usage of the answer is
their sum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec

from passerelle.domain.client import Client, Headers
from passerelle.domain.errors import (
    BadRequest,
    Conflict,
    ModelNotFound,
    Overloaded,
    PasserelleError,
    UpstreamFailed,
    UpstreamTimeout,
)
from passerelle.domain.model import Model
from passerelle.domain.principal import Principal, Scope
from passerelle.domain.request import Request
from passerelle.edge.dispatch import Context
from passerelle.faces.jobs.access import StoreOf
from passerelle.faces.openai import errors
from passerelle.faces.services.intake import check_size, check_temperature
from passerelle.faces.services.linto import runnable
from passerelle.jobs.job import EventType, Job, JobError, JobEvent, JobState, NewJob, ResultVersion
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.store import JobStore
from passerelle.services.folder import ServiceHolder
from passerelle.services.job import KIND, ServiceRequest
from passerelle.services.manifest import ServiceManifest

PREFIX: Final = "service/"
PRIORITY = 10
"""Somebody waits for the answer."""
KEEP_ALIVE_S = 15.0
_PIECE = 2000
"""Characters of one chunk of a streamed result."""
_HEADERS: Headers = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


_messages = msgspec.json.Decoder(list[_Message])


class ServiceModels:
    """``timeout_s`` is how long a request waits for its job at most."""

    def __init__(self, holder: ServiceHolder, queue: JobQueue, store_of: StoreOf, *, timeout_s: float) -> None:
        self._holder = holder
        self._queue = queue
        self._store_of = store_of
        self._timeout_s = timeout_s

    def is_asked(self, model: str) -> bool:
        """Whether a model's name is a service's."""
        return model.startswith(PREFIX)

    def models(self, caller: Principal) -> list[Model]:
        """Returns the services that the caller may run, as models for a list."""
        if not caller.allows(Scope.SERVICES):
            return []
        return [Model(PREFIX + service.name, ()) for service in runnable(self._holder, caller)]

    async def chat(self, context: Context, request: Request) -> None:
        """Answers a chat request. Raises PasserelleError."""
        service = self._service(context.caller, request.model)
        store = self._store_of(context.caller)
        accepted = await store.submit(self._job(context.caller, service, request))
        answer = _Answer(context, request, accepted.id, accepted.created_at_ms // 1000)
        if request.stream:
            answer.begin()
        waiting = asyncio.create_task(self._wait(accepted.id, answer), name=f"wait for {accepted.id}")
        gone = asyncio.Event()
        context.exchange.client.on_gone(gone.set)
        leaving = asyncio.create_task(gone.wait())
        try:
            while not (waiting.done() or leaving.done()):
                await asyncio.wait((waiting, leaving), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                answer.keep_alive()
            if not waiting.done():
                await _cancel(store, accepted.id)
                return
            waiting.result()
            await answer.end(store)
        finally:
            for task in (waiting, leaving):
                task.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

    async def _wait(self, job_id: str, answer: _Answer) -> None:
        async with aclosing(self._queue.events.follow(job_id)) as events:
            async for event in events:
                answer.tell(event)

    def _service(self, caller: Principal, model: str) -> ServiceManifest:
        service = self._holder.current.find(model.removeprefix(PREFIX))
        if service is None or not caller.allows(Scope.SERVICES) or not caller.may_run(service.name):
            raise ModelNotFound(f"The model '{model[:256]}' does not exist or is not yours to use.", param="model")
        return service

    def _job(self, caller: Principal, service: ServiceManifest, request: Request) -> NewJob:
        if request.n != 1:
            raise BadRequest("A service gives one answer: leave `n` out.", param="n")
        text = _text(request)
        check_size(service, text)
        temperature = _number(request.fields, "temperature")
        check_temperature(temperature)
        payload = ServiceRequest(
            service=service.id, text=text, temperature=temperature, top_p=_number(request.fields, "top_p")
        )
        limit_s = service.limits.timeout_s
        return NewJob(
            kind=KIND,
            payload=payload,
            subject=service.name,
            priority=PRIORITY,
            weight=caller.weight,
            deadline_s=self._timeout_s if limit_s is None else min(limit_s, self._timeout_s),
        )


class _Answer:
    """One answer, whole or as a stream."""

    def __init__(self, context: Context, request: Request, job_id: str, created: int) -> None:
        self._client: Client = context.exchange.client
        self._request_id = context.request_id
        self._request = request
        self._job_id = job_id
        self._created = created

    def begin(self) -> None:
        """Begins a stream."""
        self._client.begin(200, [(b"content-type", b"text/event-stream"), *_HEADERS, *self._ids()])
        self._client.write(b": job %s\n\n" % self._job_id.encode())

    def tell(self, event: JobEvent) -> None:
        """Tells what happened, as a comment."""
        if not self._request.stream or event.last:
            return
        words = [event.type]
        if event.type == EventType.PROGRESS:
            fields = event.fields()
            words += [f"{fields.get('percent', 0)}%", str(fields.get("phase") or "")]
        self._client.write(b": " + " ".join(words).strip().encode() + b"\n\n")

    def keep_alive(self) -> None:
        """Tells proxies in between that the stream lives."""
        if self._request.stream:
            self._client.write(b": alive\n\n")

    async def end(self, store: JobStore) -> None:
        """Sends the result of a job that has ended. Raises PasserelleError unless a stream has begun."""
        try:
            job = await store.get(self._job_id)
            if job.state is not JobState.SUCCEEDED:
                raise failure(job)
            result = await store.result(self._job_id)
        except PasserelleError as error:
            if not self._request.stream:
                raise
            self._client.write(errors.stream_event(error, self._request_id))
            await self._client.end()
            return
        if self._request.stream:
            for piece in self._chunks(result):
                self._client.write(b"data: " + msgspec.json.encode(piece) + b"\n\n")
            self._client.write(b"data: [DONE]\n\n")
            await self._client.end()
            return
        message = {"role": "assistant", "content": result.content}
        document = self._document("chat.completion", [{"index": 0, "message": message, "finish_reason": "stop"}])
        headers = [(b"content-type", b"application/json"), *self._ids()]
        await self._client.respond(200, headers, msgspec.json.encode(document | {"usage": usage(result)}))

    def _chunks(self, result: ResultVersion) -> Iterator[dict[str, Any]]:
        def chunk(delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
            return self._document("chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": finish}])

        yield chunk({"role": "assistant", "content": ""})
        for at in range(0, len(result.content), _PIECE):
            yield chunk({"content": result.content[at : at + _PIECE]})
        yield chunk({}, "stop")
        if self._request.wants_usage:
            yield self._document("chat.completion.chunk", []) | {"usage": usage(result)}

    def _document(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ids = {"id": f"chatcmpl-{self._job_id}", "object": kind, "created": self._created}
        return {**ids, "model": self._request.model, "choices": choices}

    def _ids(self) -> Headers:
        return [(b"x-request-id", self._request_id.encode()), (b"x-passerelle-job", self._job_id.encode())]


def usage(result: ResultVersion) -> dict[str, Any]:
    """Returns the sum of the tokens that a job took, as OpenAI writes it."""
    taken = (result.details or {}).get("usage") or {}
    prompt, made = int(taken.get("prompt_tokens", 0)), int(taken.get("completion_tokens", 0))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": int(taken.get("cached_tokens", 0))},
    }


def failure(job: Job) -> PasserelleError:
    """Returns the error of a job that ended without a result."""
    if job.state is JobState.CANCELLED:
        return Conflict("The job was cancelled.", code="job_cancelled")
    error = job.error or JobError("job_failed", "The job failed.")
    match error.kind:
        case "permanent":
            return BadRequest(error.message, code=error.code)
        case "overload":
            return Overloaded(error.message, retry_after_s=1.0)
        case "timeout":
            return UpstreamTimeout(error.message)
        case _:
            return UpstreamFailed(error.message)


def _text(request: Request) -> str:
    for message in reversed(_messages.decode(request.fields["messages"])):
        if message.role == "user":
            content = message.content or ""
            if isinstance(content, list):
                if any(part.type != "text" for part in content):
                    raise BadRequest("A service reads text: send no pictures or files here.", param="messages")
                content = "\n".join(part.text for part in content)
            if content.strip():
                return content
            break
    raise BadRequest("The last user message is the text to work on, and it is empty.", param="messages")


def _number(fields: Mapping[str, msgspec.Raw], name: str) -> float | None:
    value = fields.get(name)
    return None if value is None else msgspec.json.decode(value, type=float | None)


async def _cancel(store: JobStore, job_id: str) -> None:
    try:
        await store.cancel(job_id)
    except Conflict:
        pass  # it ended just now
