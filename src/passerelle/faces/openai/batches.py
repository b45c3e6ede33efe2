"""OpenAI's batches: a file of requests in, files of answers and errors out, within a day."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from passerelle.batches.job import KIND, BatchRequest, Prepared
from passerelle.batches.store import Batch, BatchStore, InputError
from passerelle.domain.errors import BadRequest, Conflict, NotFound
from passerelle.domain.principal import Principal, Scope
from passerelle.domain.request import Request
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import query, respond
from passerelle.faces.body import decode
from passerelle.faces.described import Described
from passerelle.faces.openai import wire
from passerelle.faces.openai.listing import list_parameters, listed, listing
from passerelle.faces.responses.answers import ResponseRendering
from passerelle.faces.responses.requests import chat_request, draft
from passerelle.faces.responses.requests import parse as parse_response
from passerelle.files.store import FileStore, now_ms
from passerelle.jobs.job import Job, JobState, NewJob
from passerelle.jobs.store import JobStore

MOST_LISTED: Final = 100
PRIORITY: Final = -10
"""Behind the services, which somebody waits for."""
MAX_RUNNING: Final = 4
"""Batches of one key that run at once: each holds a place among the jobs for as long as it takes."""
MAX_ATTEMPTS: Final = 50
"""A day has many restarts; what is written is not asked again."""
_ORPHAN_MS = 60_000
_PARSERS: Mapping[str, Callable[[bytes], Request]] = MappingProxyType(
    {
        "/v1/chat/completions": wire.parse_chat,
        "/v1/completions": wire.parse_completion,
        "/v1/embeddings": wire.parse_embedding,
    }
)
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


class OutputLife(msgspec.Struct):
    """How long the files that come out are kept: seconds from their making."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class BatchBody(msgspec.Struct):
    """``POST /v1/batches``. ``input_file_id`` is a file of the purpose ``batch``."""

    input_file_id: Annotated[str, Meta(min_length=1, max_length=200)]
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None = None
    output_expires_after: OutputLife | None = None


class BatchErrors(msgspec.Struct):
    """What is wrong with the input."""

    object: Literal["list"]
    data: list[InputError]


class RequestCounts(msgspec.Struct):
    """How many requests there are, have an answer, and have failed."""

    total: int
    completed: int
    failed: int


class BatchAnswer(msgspec.Struct):
    """A batch. Times are seconds since the epoch; files are there once it has ended."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchListAnswer(msgspec.Struct):
    """One page of batches."""

    object: Literal["list"]
    data: list[BatchAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


_BODY = msgspec.json.Decoder(BatchBody)


class BatchesFace:
    """The endpoints. Each store is made for the caller."""

    def __init__(
        self,
        store: Callable[[Principal], BatchStore],
        files: Callable[[Principal], FileStore],
        jobs: Callable[[Principal], JobStore],
    ) -> None:
        self._store = store
        self._files = files
        self._jobs = jobs

    async def create(self, context: Context) -> None:
        """``POST /v1/batches``: it is accepted once this answers, and looked into by its job."""
        asked = decode(await context.exchange.body(), _BODY)
        caller = context.caller
        try:
            file = await self._files(caller).get(asked.input_file_id)
        except NotFound:
            raise BadRequest("There is no file of that id.", param="input_file_id") from None
        if file.purpose != "batch":
            raise BadRequest("The input file must have the purpose `batch`.", param="input_file_id")
        store = self._store(caller)
        batch = await store.add(asked.endpoint, file.id, asked.metadata)
        life = asked.output_expires_after
        job = NewJob(
            kind=KIND,
            payload=BatchRequest(batch=batch.id, output_s=None if life is None else float(life.seconds)),
            subject=batch.id,
            priority=PRIORITY,
            max_attempts=MAX_ATTEMPTS,
            max_running=MAX_RUNNING,
            weight=caller.weight,
        )
        accepted = await self._jobs(caller).submit(job)
        await respond(context, shown(await store.note_job(batch.id, accepted.id)))

    async def list(self, context: Context) -> None:
        """``GET /v1/batches``: newest first."""
        asked = listing(query(context, "limit", "after"), default=20, most=MOST_LISTED)
        found = await self._store(context.caller).list(after=asked.after, limit=asked.limit + 1)
        await respond(context, listed([shown(await self._now(context.caller, each)) for each in found], asked))

    async def show(self, context: Context) -> None:
        """``GET /v1/batches/{batch_id}``."""
        batch = await self._store(context.caller).get(context.parameters["batch_id"])
        await respond(context, shown(await self._now(context.caller, batch)))

    async def cancel(self, context: Context) -> None:
        """``POST /v1/batches/{batch_id}/cancel``: what runs is finished, and what is there is written."""
        store = self._store(context.caller)
        batch = await store.cancel(context.parameters["batch_id"])
        if not batch.ended and batch.status == "validating" and batch.job_id is not None:
            try:  # nothing was asked yet: it need not wait for a place among the jobs
                await self._jobs(context.caller).cancel(batch.job_id)
            except (Conflict, NotFound):
                pass  # it has ended meanwhile: what the batch is now is told below
        await respond(context, shown(await self._now(context.caller, await store.get(batch.id))))

    async def _now(self, caller: Principal, batch: Batch) -> Batch:
        """Returns a batch as it is now: one whose job has ended without it, or is gone, ends."""
        if batch.ended:
            return batch
        store = self._store(caller)
        if batch.job_id is None:
            orphan = now_ms() - batch.created_at_ms > _ORPHAN_MS
            return await store.give_up(batch.id, "failed", [_LOST]) if orphan else batch
        job: Job | None
        try:
            job = await self._jobs(caller).get(batch.job_id)
        except NotFound:
            job = None
        if job is not None and not job.state.terminal:
            return batch
        if job is not None and job.state is JobState.CANCELLED:
            return await store.give_up(batch.id, "cancelled")
        why = _LOST if job is None or job.error is None else InputError(job.error.code, job.error.message)
        return await store.give_up(batch.id, "failed", [why])


_LOST = InputError("job_lost", "The job of this batch does not exist any more; create the batch again.")


def prepare(endpoint: str, body: bytes) -> Prepared:
    """Returns a line's request, checked as on its route. Raises BadRequest."""
    if endpoint == "/v1/responses":
        return _prepare_response(body)
    request = _PARSERS[endpoint](body)
    if request.stream:
        raise BadRequest("A batch does not stream: leave `stream` out.", param="stream")
    return Prepared(request, lambda answer: answer)


def _prepare_response(body: bytes) -> Prepared:
    asked = parse_response(body)
    for name in ("background", "stream", "previous_response_id", "prompt"):
        if getattr(asked.body, name, None):
            raise BadRequest(f"A batch takes no `{name}`: leave it out.", param=name)
    asked.body.store = False
    rendering = ResponseRendering(draft(asked))
    request = chat_request(asked, [], stream=False)
    return Prepared(request, lambda answer: rendering.document(msgspec.json.decode(answer)))


def shown(batch: Batch) -> dict[str, Any]:
    """Returns a batch as answers show it."""
    ended = _seconds(batch.ended_at_ms)
    cancelling = batch.cancelling_at_ms is not None and not batch.ended
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": "cancelling" if cancelling else batch.status,
        "output_file_id": batch.output_file_id if batch.ended else None,
        "error_file_id": batch.error_file_id if batch.ended else None,
        "created_at": batch.created_at_ms // 1000,
        "in_progress_at": _seconds(batch.in_progress_at_ms),
        "expires_at": batch.expires_at_ms // 1000,
        "finalizing_at": _seconds(batch.finalizing_at_ms),
        **{f"{state}_at": ended if batch.status == state else None for state in ("completed", "failed", "expired")},
        "cancelling_at": _seconds(batch.cancelling_at_ms),
        "cancelled_at": ended if batch.status == "cancelled" else None,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000


BATCHES = (
    Described(
        "POST",
        "/v1/batches",
        "Batches",
        "createBatch",
        "Answer a file of requests within a day",
        Scope.INFERENCE,
        BatchAnswer,
        BatchBody,
    ),
    Described(
        "GET",
        "/v1/batches",
        "Batches",
        "listBatches",
        "List batches, newest first",
        Scope.INFERENCE,
        BatchListAnswer,
        parameters=list_parameters(default=20, most=MOST_LISTED, order=False),
    ),
    Described("GET", "/v1/batches/{batch_id}", "Batches", "showBatch", "Show a batch", Scope.INFERENCE, BatchAnswer),
    Described(
        "POST",
        "/v1/batches/{batch_id}/cancel",
        "Batches",
        "cancelBatch",
        "End a batch with what it has",
        Scope.INFERENCE,
        BatchAnswer,
        errors={409: "The batch is over."},
    ),
)
