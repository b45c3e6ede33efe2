"""Answers in the background: a job of the kind ``response`` for a model, one of the service's own for a service.

Whether an answer has ended stands in its own row; until then its job says how it is.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from passerelle.domain.principal import Principal
from passerelle.domain.request import Request
from passerelle.faces.openai import wire
from passerelle.faces.responses.answers import ResponseRendering, text_message, usage_of
from passerelle.gateway.queue import Priority
from passerelle.jobs.context import JobContext, JobFailed, Kind
from passerelle.jobs.job import Claim, Job, JobState, ResultVersion
from passerelle.responses.store import ResponseStore
from passerelle.services.caller import GatewayCaller

KIND: Final = "response"
_STATUS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.CANCELLED: "cancelled",
    JobState.FAILED: "failed",
    JobState.DEAD: "failed",
}


class ResponseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The payload: the chat request as JSON, and the answer before there is one."""

    body: str
    draft: dict[str, Any]


def payload_of(request: Request, draft: dict[str, Any]) -> ResponseRequest:
    """Returns the payload for a chat request that does not stream."""
    return ResponseRequest(body=request.body.decode(), draft=draft)


class ResponseJobs:
    """Runs jobs of the kind ``response``. ``principal`` says whose rights a job has now."""

    def __init__(
        self,
        caller: GatewayCaller,
        principal: Callable[[Claim], Awaitable[Principal | None]],
        store: Callable[[Principal], ResponseStore],
    ) -> None:
        self._caller = caller
        self._principal = principal
        self._store = store

    @property
    def kind(self) -> Kind:
        """What to register with the runner."""
        return Kind(KIND, self.run)

    async def run(self, context: JobContext) -> None:
        """Makes one answer. Raises JobFailed or PasserelleError."""
        asked = context.payload(ResponseRequest)
        principal = await self._principal(context.job)
        if principal is None:
            raise JobFailed("The key of this response was revoked or has expired.", code="key_ended")
        request = wire.parse_chat(asked.body.encode())
        _, body = await self._caller.run(principal, None, Priority.JOB, request)
        rendering = ResponseRendering(asked.draft)
        rendering.document(msgspec.json.decode(body))
        await self._store(principal).finish(rendering.answer, context.job.attempt)


def as_job_is(document: dict[str, Any], job: Job | None) -> dict[str, Any]:
    """Returns an answer that has not ended, as its job is; one whose job is gone has failed."""
    if job is None:
        error = {"code": "server_error", "message": "Its job does not exist any more."}
        return {**document, "status": "failed", "error": error}
    if job.state is JobState.SUCCEEDED:
        return document
    told = {**document, "status": _STATUS[job.state]}
    if told["status"] == "failed" and job.error is not None:
        told["error"] = {"code": job.error.code, "message": job.error.message}
    return told


def of_service(document: dict[str, Any], result: ResultVersion) -> dict[str, Any]:
    """Returns the answer of a service whose job has succeeded."""
    details = (result.details or {}).get("usage") or {}
    details = details | {"prompt_tokens_details": {"cached_tokens": details.get("cached_tokens")}}
    return {
        **document,
        "status": "completed",
        "completed_at": int(time.time()),
        "output": [text_message(result.content)],
        "usage": usage_of(details),
    }
