"""The routes of LinTO's LLM Gateway: services, uploads, results by polling, health.

Answers are its own, field for field; what differs is told in docs/services.md: an id that is known reads 202 while it
waits, and 404 means that there is no such job; an error's status is that of its cause.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from passerelle.domain.client import Headers
from passerelle.domain.errors import NotFound, PasserelleError
from passerelle.domain.principal import Principal
from passerelle.edge.dispatch import Context
from passerelle.faces.health import respond_json
from passerelle.faces.jobs.access import StoreOf
from passerelle.faces.services.intake import check_size, read_form
from passerelle.faces.services.states import State, state_of
from passerelle.jobs.job import JobState, NewJob
from passerelle.services.extract.extractor import Extractor
from passerelle.services.folder import ServiceHolder
from passerelle.services.job import KIND
from passerelle.services.manifest import Flavor, ServiceManifest

_MISSING_FLAVOR = {
    "detail": [{"type": "missing", "loc": ["body", "flavor"], "msg": "Field required", "input": None}],
}


class LintoFace:
    """The endpoints, but for the websockets (`passerelle.faces.services.sockets`)."""

    def __init__(self, holder: ServiceHolder, store_of: StoreOf, extractor: Extractor) -> None:
        self._holder = holder
        self._store_of = store_of
        self._extractor = extractor

    async def services(self, context: Context) -> None:
        """``GET /services``: as in YAML, those that this key may run; what clients look for is always there."""
        found = [listed(each) for each in runnable(self._holder, context.caller)]
        if not found:
            raise NotFound("No services available")
        await respond_json(context, found)

    async def generate(self, context: Context) -> None:
        """``POST /services/{route}/generate``: the upload becomes a job."""
        service = self._holder.current.by_route(context.parameters["route"])
        if service is None or not context.caller.may_run(service.name):
            raise NotFound("Service not found")
        asked = await read_form(context, self._extractor)
        if asked.flavor is None:
            await respond_json(context, _MISSING_FLAVOR, status=422)
            return
        if service.flavor(asked.flavor) is None:
            raise NotFound("Flavor not found")
        check_size(service, asked.text)
        job = NewJob(
            kind=KIND,
            payload=asked.request(service),
            subject=service.name,
            labels={"file": asked.file},
            deadline_s=service.limits.timeout_s,
            weight=context.caller.weight,
        )
        accepted = await self._store_of(context.caller).submit(job)
        await respond_json(context, {"message": "Request successfully queued", "jobId": accepted.id})

    async def results(self, context: Context) -> None:
        """``GET /results/{id}``: the state of a job, its result once there is one."""
        store = self._store_of(context.caller)
        try:
            job = await store.get(context.parameters["id"])
            text = (await store.result(job.id)).content if job.state is JobState.SUCCEEDED else ""
        except NotFound:
            raise NotFound("Unknown task status") from None
        state = state_of(job, text)
        await respond_json(context, state, status=_status(state))

    async def healthcheck(self, context: Context) -> None:
        """``GET /healthcheck``: the process answers."""
        await respond_json(context, "1")


def runnable(holder: ServiceHolder, caller: Principal) -> list[ServiceManifest]:
    """Returns the services that the caller may run."""
    return [service for service in holder.current.services.values() if caller.may_run(service.name)]


def listed(service: ServiceManifest) -> dict[str, Any]:
    """Returns a service as it is written, with what LinTO's clients read and a manifest may leave out filled in."""
    written = service.document
    flavors = written.get("flavor")
    given = flavors if isinstance(flavors, list) else [{}] * len(service.flavors)
    return {
        "type": service.type,
        "fields": service.fields,
        "name": service.name,
        "route": service.route,
        "description": dict(service.description),
        **{
            name: value for name, value in written.items() if value is not None and name not in ("description", "route")
        },
        "flavor": [_flavor(flavor, own) for flavor, own in zip(service.flavors, given, strict=True)],
    }


def _flavor(flavor: Flavor, written: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": flavor.name,
        "modelName": flavor.model,
        "totalContextLength": flavor.context_tokens,
        "maxGenerationLength": flavor.max_generation_tokens,
        "createNewTurnAfter": flavor.create_new_turn_after,
        "summaryTurns": flavor.summary_turns,
        "maxNewTurns": flavor.max_new_turns,
        "temperature": flavor.temperature,
        "top_p": flavor.top_p,
        "reduceSummary": flavor.reduce,
        "consolidateSummary": flavor.consolidate,
        "type": flavor.type,
        **{name: value for name, value in written.items() if value is not None and name != "name"},
    }


def _status(state: State) -> int:
    return {"complete": 200, "error": 500}.get(state["status"], 202)


def render_error(error: PasserelleError, request_id: str) -> tuple[int, Headers, bytes]:
    """Returns the answer ``{"detail": …}``."""
    headers: Headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    headers.extend(error.headers)
    return error.status, headers, msgspec.json.encode({"detail": error.message})
