"""A job's events as server-sent events, and on a websocket that a ticket opens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from passerelle.domain.errors import BadRequest, Forbidden, NotFound
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import header
from passerelle.edge.socket import Socket
from passerelle.faces.admin.resource import query
from passerelle.faces.jobs.access import StoreOf
from passerelle.faces.jobs.answers import event_message
from passerelle.faces.jobs.backlog import Backlog, TooSlow
from passerelle.faces.jobs.tickets import Tickets
from passerelle.faces.sockets import Origins, Presence, converse, socket_of
from passerelle.jobs.job import Job, JobEvent
from passerelle.jobs.queue import JobQueue

KEEP_ALIVE_S = 15.0
TRY_AGAIN_LATER = 1013
_MAX_DIGITS = 15


class FollowingFace:
    """The endpoints."""

    def __init__(
        self, queue: JobQueue, store_of: StoreOf, tickets: Tickets, presence: Presence, origins: Origins
    ) -> None:
        self._queue = queue
        self._store_of = store_of
        self._tickets = tickets
        self._presence = presence
        self._origins = origins

    async def stream(self, context: Context) -> None:
        """``GET /v1/jobs/{id}/events``: server-sent events after ``Last-Event-ID`` (or ``since``), to the end."""
        parameters = query(context, "since")
        last = header(context.exchange.headers, b"last-event-id")
        text = parameters.get("since", "0") if last is None else last.decode("latin-1").strip()
        job = await self._store_of(context.caller).get(context.parameters["id"])
        async with self._backlog(job, _number(text)) as backlog:
            with self._presence.of(context.caller) as ended:
                await self._send_events(context, backlog, ended)

    async def _send_events(self, context: Context, backlog: Backlog, ended: asyncio.Event) -> None:
        client = context.exchange.client
        gone, room = asyncio.Event(), asyncio.Event()
        room.set()
        client.on_gone(gone.set)
        client.on_flow(room.clear, room.set)
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", context.request_id.encode()),
        ]
        client.begin(200, headers)
        stop = asyncio.ensure_future(_first(gone, ended))
        try:
            while True:
                taking = asyncio.ensure_future(_take(room, backlog))
                await asyncio.wait((taking, stop), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    if stop.done():
                        break
                    client.write(b": alive\n\n")
                    continue
                try:
                    events = taking.result()
                except TooSlow:
                    client.abort()
                    return
                if not events:
                    break
                client.write(b"".join([_event(event) for event in events]))
        finally:
            stop.cancel()
        if ended.is_set():
            client.write(b": the key was revoked or has expired\n\n")
        await client.end()

    async def socket(self, context: Context) -> None:
        """``/v1/jobs/{id}/ws?ticket=…&since=N``: the same as messages. 403 before the handshake without a ticket."""
        self._origins.check(context)
        parameters = query(context, "ticket", "since")
        job_id, since = context.parameters["id"], _number(parameters.get("since", "0"))
        holder = await self._tickets.redeem(parameters.get("ticket", ""), job_id, context.address)
        try:
            job = await self._store_of(holder).get(job_id)
        except NotFound:
            raise Forbidden("The job is not there any more.", code="ticket_refused") from None
        socket = socket_of(context)
        await socket.accept()
        with self._presence.of(holder) as ended:
            async with self._backlog(job, since) as backlog:
                await converse(socket, ended, _tell(socket, backlog))

    @asynccontextmanager
    async def _backlog(self, job: Job, since: int) -> AsyncIterator[Backlog]:
        backlog = Backlog()

        async def fill() -> None:
            async with aclosing(self._queue.events.follow(job.id, min(since, job.last_seq))) as events:
                await backlog.fill(events)

        filling = asyncio.create_task(fill(), name=f"follow {job.id}")
        try:
            yield backlog
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)


async def _tell(socket: Socket, backlog: Backlog) -> None:
    try:
        while events := await backlog.take():
            for event in events:
                await socket.send(event_message(event).decode())
    except TooSlow:
        await socket.close(TRY_AGAIN_LATER, "you are too far behind: come back with since")


async def _take(room: asyncio.Event, backlog: Backlog) -> list[JobEvent]:
    await room.wait()
    return await backlog.take()


async def _first(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _event(event: JobEvent) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), event_message(event))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise BadRequest("The number of an event is a whole number from 0.", param="since")
    return int(text)
