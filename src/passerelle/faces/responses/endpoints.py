"""OpenAI's Responses: made at once, as a stream, or in the background; read, cancelled and deleted as long as kept."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from passerelle.catalog.holder import Catalog
from passerelle.domain.client import Client, Headers
from passerelle.domain.errors import BadRequest, Conflict, Forbidden, ModelNotFound, NotFound
from passerelle.domain.principal import Principal, Scope
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import flag, query, respond
from passerelle.faces.calls import Calls
from passerelle.faces.openai.files import DeletedAnswer
from passerelle.faces.openai.listing import listed, listing
from passerelle.faces.prompts.references import PromptReferences
from passerelle.faces.responses import background
from passerelle.faces.responses.answers import ResponseRendering
from passerelle.faces.responses.items import Item, text_of
from passerelle.faces.responses.requests import Asked, as_given, chat_request, draft, parse
from passerelle.faces.services.intake import check_size
from passerelle.faces.translated import TranslatingClient, typed
from passerelle.jobs.events import JobEvents
from passerelle.jobs.job import JobState, NewJob
from passerelle.jobs.store import JobStore
from passerelle.responses.store import ENDED, KeptResponse, ResponseStore
from passerelle.services.folder import ServiceHolder
from passerelle.services.job import KIND as SERVICE_KIND
from passerelle.services.job import ServiceRequest

SERVICE: Final = "service/"
MOST_ITEMS = 100
LOOK_S = 0.5
"""How often it is looked whether a job has begun, where somebody follows it."""
KEEP_ALIVE_S = 15.0
EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ResponsesFace:
    """The endpoints. ``store`` gives a caller's kept answers, ``jobs`` the jobs of their project; ``prompts`` fills
    those that a request names."""

    def __init__(
        self,
        calls: Calls,
        catalog: Catalog,
        store: Callable[[Principal], ResponseStore],
        jobs: Callable[[Principal], JobStore],
        services: ServiceHolder,
        prompts: PromptReferences,
        *,
        events: JobEvents,
    ) -> None:
        self._prompts = prompts
        self._calls = calls
        self._catalog = catalog
        self._store = store
        self._jobs = jobs
        self._services = services
        self._events = events

    async def create(self, context: Context) -> None:
        """``POST /v1/responses``."""
        raw = await self._prompts.into_response(context.caller, await context.exchange.body())
        asked = parse(raw)
        body, store = asked.body, self._store(context.caller)
        if body.background:
            await self._begin(context, asked, store)
            return
        if body.model.startswith(SERVICE):
            raise BadRequest("A service runs in the background: send `background: true`.", param="background")
        before = await _before(asked, store)
        request = chat_request(asked, before, stream=body.stream is True)
        if self._passes(body.model):
            request.responses = as_given(raw, asked, before, stream=request.stream)
        del raw  # the request may wait for long, and has what it needs
        rendering = ResponseRendering(draft(asked))
        client = _KeepingClient(context.exchange.client, rendering, store if asked.keeps else None, asked.items)
        await self._calls.run(context, request, client=client)

    def _passes(self, name: str) -> bool:
        """Whether a server of the model has Responses itself."""
        model = self._catalog.current.resolve(name)
        return model is not None and any(target.options.get("responses") for target in model.targets)

    async def _begin(self, context: Context, asked: Asked, store: ResponseStore) -> None:
        """Answers with a response that is made by a job."""
        body, caller = asked.body, context.caller
        if not asked.keeps:
            raise BadRequest("What is made in the background is kept: leave `store` out.", param="store")
        answer = draft(asked) | {"status": "queued"}
        if body.model.startswith(SERVICE):
            job = self._service_job(asked, caller)
        else:
            request = chat_request(asked, await _before(asked, store), stream=False)
            self._check_model(body.model, caller)
            payload = background.payload_of(request, answer)
            job = NewJob(kind=background.KIND, payload=payload, subject=answer["id"], weight=caller.weight)
        await store.add(answer, asked.items)
        accepted = await self._jobs(caller).submit(job)
        await store.begin(answer["id"], accepted.id)
        if body.stream:
            await self._follow(context, await store.get(answer["id"]), -1)
        else:
            await respond(context, answer)

    def _service_job(self, asked: Asked, caller: Principal) -> NewJob:
        name = asked.body.model.removeprefix(SERVICE)
        service = self._services.current.find(name)
        if service is None or not caller.may_run(service.name):
            raise ModelNotFound(f"There is no service {name[:200]!r} for this key.", param="model")
        if not caller.allows(Scope.SERVICES):
            raise Forbidden("This key lacks the scope 'services'; ask an administrator for a key that has it.")
        if asked.body.previous_response_id is not None:
            raise BadRequest("A service continues no conversation.", param="previous_response_id")
        text = text_of(asked.items)
        check_size(service, text)
        payload = ServiceRequest(
            service=service.id, text=text, temperature=asked.body.temperature, top_p=asked.body.top_p
        )
        deadline_s = service.limits.timeout_s
        return NewJob(
            kind=SERVICE_KIND, payload=payload, subject=service.name, deadline_s=deadline_s, weight=caller.weight
        )

    def _check_model(self, name: str, caller: Principal) -> None:
        """Says now what the gateway would say later."""
        model = self._catalog.current.resolve(name)
        if model is None:
            raise ModelNotFound(f"The model '{name[:256]}' does not exist; see /v1/models.", param="model")
        if not caller.may_call(model.name):
            raise Forbidden(f"This key may not call the model '{model.name}'.", code="model_not_allowed", param="model")

    async def show(self, context: Context) -> None:
        """``GET /v1/responses/{response_id}``: as it is now."""
        parameters = query(context, "include[]", "include", "stream", "starting_after", "include_obfuscation")
        after = parameters.get("starting_after", "-1")
        if not re.fullmatch("-1|[0-9]{1,9}", after):
            raise BadRequest("`starting_after` is the number of an event.", param="starting_after")
        kept = await self._store(context.caller).get(context.parameters["response_id"])
        if flag(parameters, "stream", default=False):
            await self._follow(context, kept, int(after))
        else:
            await respond(context, await self._now(context.caller, kept))

    async def _follow(self, context: Context, kept: KeptResponse, after: int) -> None:
        """Tells a response as events, those after a number, until it has ended or the caller has left."""
        client, caller = context.exchange.client, context.caller
        rendering = ResponseRendering({**kept.document, "output": []})
        ending = asyncio.create_task(self._ended(caller, kept), name=f"follow {kept.id}")
        client.on_gone(ending.cancel)
        client.begin(200, [*EVENT_STREAM, (b"x-request-id", context.request_id.encode())])
        number = 0
        for event in rendering.queued():
            number = _tell(client, event, number, after)
        working = False
        try:
            while not ending.done():
                await asyncio.wait([ending], timeout=KEEP_ALIVE_S if working else LOOK_S)
                if not working and (ending.done() or (await self._now(caller, kept))["status"] == "in_progress"):
                    working = True
                    number = _tell(client, rendering.working(), number, after)
                elif not ending.done() and working:
                    client.write(b": still at work\n\n")
            if ending.cancelled():
                return
            for event in rendering.replay(ending.result()):
                number = _tell(client, event, number, after)
        finally:
            ending.cancel()
        await client.end()

    async def _ended(self, caller: Principal, kept: KeptResponse) -> dict[str, Any]:
        """Waits for the end of a response and returns it."""
        if kept.status not in ENDED and kept.job_id is not None:
            await self._events.last(kept.job_id)
        return await self._now(caller, await self._store(caller).get(kept.id))

    async def _now(self, caller: Principal, kept: KeptResponse) -> dict[str, Any]:
        """Returns an answer as it is now; what its job has brought to an end is kept."""
        if kept.status in ENDED or kept.job_id is None:
            return kept.document
        store, jobs = self._store(caller), self._jobs(caller)
        try:
            job = await jobs.get(kept.job_id)
        except NotFound:
            job = None
        if job is not None and job.state is JobState.SUCCEEDED:
            kept = await store.get(kept.id)
            if kept.status in ENDED:
                return kept.document
            found = background.of_service(kept.document, await jobs.result(job.id))
        else:
            found = background.as_job_is(kept.document, job)
        if found["status"] in ENDED:
            await store.finish(found, attempt=0 if job is None else job.attempt)
        return found

    async def cancel(self, context: Context) -> None:
        """``POST /v1/responses/{response_id}/cancel``: of one in the background; of one that has ended, nothing."""
        store = self._store(context.caller)
        kept = await store.get(context.parameters["response_id"])
        if kept.job_id is None:
            raise BadRequest("Only a response that is made in the background can be cancelled.", code="not_background")
        if kept.status not in ENDED:
            try:
                await self._jobs(context.caller).cancel(kept.job_id)
            except (Conflict, NotFound):
                pass  # it has ended meanwhile: what it is now is told below
            else:
                await store.finish({**kept.document, "status": "cancelled"}, attempt=2**31 - 1)
            kept = await store.get(kept.id)
        await respond(context, await self._now(context.caller, kept))

    async def delete(self, context: Context) -> None:
        """``DELETE /v1/responses/{response_id}``: one that is still made is cancelled."""
        store = self._store(context.caller)
        kept = await store.get(context.parameters["response_id"])
        if kept.job_id is not None and kept.status not in ENDED:
            try:
                await self._jobs(context.caller).cancel(kept.job_id)
            except (Conflict, NotFound):
                pass  # it has ended meanwhile
        await store.delete(kept.id)
        await respond(context, DeletedAnswer(kept.id, "response", deleted=True))

    async def input_items(self, context: Context) -> None:
        """``GET /v1/responses/{response_id}/input_items``: what was sent for it, newest first."""
        parameters = query(context, "limit", "after", "order", "include[]", "include")
        asked = listing(parameters, default=20, most=MOST_ITEMS)
        kept = await self._store(context.caller).get(context.parameters["response_id"])
        items = kept.input if asked.ascending else kept.input[::-1]
        if asked.after is not None:
            places = [number for number, item in enumerate(items) if item.get("id") == asked.after]
            if not places:
                raise BadRequest("`after` is the id of an item of this response.", param="after")
            items = items[places[0] + 1 :]
        await respond(context, listed(items[: asked.limit + 1], asked))


async def _before(asked: Asked, store: ResponseStore) -> list[Item]:
    previous = asked.body.previous_response_id
    return [] if previous is None else await store.conversation(previous)


def _tell(client: Client, event: bytes, number: int, after: int) -> int:
    """Sends an event unless its number is not ``after`` that one; returns the next number."""
    if number > after:
        client.write(event)
    return number + 1


class _KeepingClient(TranslatingClient):
    """Keeps the answer before its caller hears that it is whole: what they then ask for is there."""

    def __init__(
        self, inner: Client, rendering: ResponseRendering, store: ResponseStore | None, given: list[Item]
    ) -> None:
        super().__init__(inner, rendering)
        self._told = rendering
        self._store = store
        self._given = given

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Keeps a whole answer, and sends it."""
        rendered = self._told.document(msgspec.json.decode(body))
        await self._keep()
        await self._inner.respond(status, typed(headers, b"application/json"), rendered)

    async def end(self) -> None:
        """Keeps the answer, and sends the event that has it."""
        last, self._told.last = self._told.last, b""
        if last:
            await self._keep()
            self._inner.write(last)
        await super().end()

    async def _keep(self) -> None:
        if self._store is not None:
            await self._store.add(self._told.answer, self._given)
