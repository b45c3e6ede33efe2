"""Jobs over HTTP: list, show, cancel, replay, delete; results read, edited, restored and exported."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from passerelle.domain.client import Headers
from passerelle.domain.errors import BadRequest
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import Body, listed, moment, page, query, read_nothing, respond
from passerelle.faces.body import decode
from passerelle.faces.jobs.access import StoreOf
from passerelle.faces.jobs.answers import JobAnswer, TicketAnswer, job_answer, result_answer
from passerelle.faces.jobs.tickets import Tickets
from passerelle.jobs.job import Job, JobState, Result, ResultVersion
from passerelle.jobs.webhooks import KIND as WEBHOOK
from passerelle.services.export import docx, pdf
from passerelle.services.export.blocks import blocks

FORMATS = {"docx": docx.MEDIA_TYPE, "pdf": pdf.MEDIA_TYPE, "txt": "text/plain; charset=utf-8"}
MAX_RESULT = 20_000_000
"""Characters of an edited result."""


class ResultBody(Body):
    """A new version of a result; ``media_type`` None keeps that of the newest."""

    content: Annotated[str, msgspec.Meta(max_length=MAX_RESULT)]


_decoder = msgspec.json.Decoder(ResultBody)


class JobsFace:
    """The endpoints, but for those that follow (`passerelle.faces.jobs.following`). ``font`` is for PDF."""

    def __init__(self, store_of: StoreOf, tickets: Tickets, font: Path | None = None) -> None:
        self._font = font
        self._store_of = store_of
        self._tickets = tickets

    async def list(self, context: Context) -> None:
        """``GET /v1/jobs``: newest first, page by page."""
        parameters = query(context, "limit", "after", "status", "service", "kind")
        wanted = page(parameters, str)
        kind = parameters.get("kind")
        found = await self._store_of(context.caller).list(
            states=_states(parameters.get("status")),
            subject=parameters.get("service"),
            kind=kind,
            hidden=() if kind == WEBHOOK else (WEBHOOK,),
            before=None if wanted.after is None else str(wanted.after[0]),
            limit=wanted.limit + 1,
        )
        answers = [job_answer(job) for job in found]
        await respond(context, listed(answers, wanted, lambda answer: (answer.id,)))

    async def show(self, context: Context) -> None:
        """``GET /v1/jobs/{id}``."""
        await respond(context, job_answer(await self._job(context)))

    async def cancel(self, context: Context) -> None:
        """``POST /v1/jobs/{id}/cancel``: again does nothing; 409 for a job that ended otherwise."""
        await read_nothing(context)
        job = await self._store_of(context.caller).cancel(context.parameters["id"])
        await respond(context, job_answer(job))

    async def replay(self, context: Context) -> None:
        """``POST /v1/jobs/{id}/replay``: a job that failed, once more, as a new one."""
        await read_nothing(context)
        store = self._store_of(context.caller)
        accepted = await store.replay(context.parameters["id"])
        await respond(context, job_answer(await store.get(accepted.id)), status=202)

    async def delete(self, context: Context) -> None:
        """``DELETE /v1/jobs/{id}``: with all that belongs to it."""
        await self._store_of(context.caller).delete(context.parameters["id"])
        await context.exchange.client.respond(204, [(b"x-request-id", context.request_id.encode())], b"")

    async def result(self, context: Context) -> None:
        """``GET /v1/jobs/{id}/result``: the newest version, or ``?version=``."""
        version = _version(query(context, "version").get("version"))
        found = await self._store_of(context.caller).result(context.parameters["id"], version)
        await respond(context, result_answer(found))

    async def results(self, context: Context) -> None:
        """``GET /v1/jobs/{id}/results``: all versions, oldest first."""
        query(context)
        found = await self._store_of(context.caller).results(context.parameters["id"])
        await respond(context, {"object": "list", "data": [result_answer(each) for each in found]})

    async def edit(self, context: Context) -> None:
        """``PATCH /v1/jobs/{id}/result``: a new version."""
        body = decode(await context.exchange.body(), _decoder)
        store = self._store_of(context.caller)
        newest = await store.result(context.parameters["id"])
        if newest.media_type == "application/json":
            _check_json(body.content)
        made = await store.edit(newest.job_id, Result(content=body.content, media_type=newest.media_type))
        await respond(context, result_answer(made))

    async def restore(self, context: Context) -> None:
        """``POST /v1/jobs/{id}/results/{version}/restore``: an older version becomes the newest, as a copy."""
        await read_nothing(context)
        text = context.parameters["version"]
        version = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
        made = await self._store_of(context.caller).restore(context.parameters["id"], version)
        await respond(context, result_answer(made))

    async def export(self, context: Context) -> None:
        """``GET /v1/jobs/{id}/export?format=docx``: a version of the result as a document: docx, pdf or txt."""
        parameters = query(context, "format", "version")
        form = parameters.get("format", "docx")
        if form not in FORMATS:
            raise BadRequest(f"`format` is one of: {', '.join(FORMATS)}.", param="format")
        version = _version(parameters.get("version"))
        found = await self._store_of(context.caller).result(context.parameters["id"], version)
        body = await asyncio.to_thread(self._document, form, found)
        name = f"{found.job_id}-{found.version}.{form}"
        headers: Headers = [
            (b"content-type", FORMATS[form].encode()),
            (b"content-disposition", f'attachment; filename="{name}"'.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", context.request_id.encode()),
        ]
        await context.exchange.client.respond(200, headers, body)

    def _document(self, form: str, result: ResultVersion) -> bytes:
        if form == "txt":
            return result.content.encode()
        found = blocks(result.content, markdown=result.media_type.startswith("text/markdown"))
        return docx.docx(found) if form == "docx" else pdf.pdf(found, self._font)

    async def ticket(self, context: Context) -> None:
        """``POST /v1/jobs/{id}/ticket``: opens one websocket within 30 seconds."""
        await read_nothing(context)
        job = await self._job(context)
        ticket, expires_at_ms = await self._tickets.issue(context.caller, job.id)
        path = f"/v1/jobs/{job.id}/ws?ticket={ticket}"
        await respond(context, TicketAnswer(ticket, path, moment(expires_at_ms)), status=201)

    async def _job(self, context: Context) -> Job:
        return await self._store_of(context.caller).get(context.parameters["id"])


def _states(text: str | None) -> list[JobState]:
    if text is None:
        return []
    try:
        return [JobState(word) for word in text.split(",")]
    except ValueError:
        there = ", ".join(JobState)
        raise BadRequest(f"`status` is one or several of: {there}.", param="status") from None


def _version(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 9 and int(text) > 0):
        raise BadRequest("A version is a whole number from 1.", param="version")
    return int(text)


def _check_json(content: str) -> None:
    try:
        msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise BadRequest(f"This result is JSON, and the new one is not: {error}.", param="content") from None


__all__ = ["JobAnswer", "JobsFace"]
