"""The websockets of LinTO's LLM Gateway: the state of one job, or of all of the caller's, every few seconds.

Its messages are kept; the end of a job is told at once, not at the next interval, and a socket for a job that is not
there says so and closes. Any number of sockets on one job cost one reader of its events (`passerelle.jobs.events`).
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec

from passerelle.domain.errors import NotFound
from passerelle.edge.dispatch import Context
from passerelle.edge.socket import Socket, SocketClosed
from passerelle.faces.jobs.access import StoreOf
from passerelle.faces.services.states import UNKNOWN, State, complete, state_after, state_of
from passerelle.faces.sockets import Origins, Presence, converse, socket_of
from passerelle.jobs.job import Job, JobState
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.store import JobStore
from passerelle.services.job import KIND
from passerelle.storage.engine import StorageError

MAX_IDS = 1000
_FIRST_MESSAGE_S = 30.0
_AGAIN_S = 1.0
"""After the database could not be read."""
_ALIVE = b'{"status":"alive"}'
_ENDED = frozenset({"complete", "error", "unknown"})
_ids = msgspec.json.Decoder(list[str])


class LintoSockets:
    """The endpoints. ``interval_s`` is how often a state is sent again (``services.ws_polling_interval_s``)."""

    def __init__(
        self, queue: JobQueue, store_of: StoreOf, presence: Presence, origins: Origins, *, interval_s: float
    ) -> None:
        self._store_of = store_of
        self._queue = queue
        self._presence = presence
        self._origins = origins
        self._interval_s = interval_s
        self._texts: dict[str, asyncio.Task[str]] = {}

    async def one(self, context: Context) -> None:
        """``/ws/results/{id}``: the state now, and every interval until its end."""
        self._origins.check(context)
        store, socket = self._store_of(context.caller), socket_of(context)
        job: Job | None
        try:
            job = await store.get(context.parameters["id"])
        except NotFound:
            job = None
        await socket.accept()
        with self._presence.of(context.caller) as ended:
            await converse(socket, ended, self._tell(socket, store, job))

    async def _tell(self, socket: Socket, store: JobStore, job: Job | None) -> None:
        if job is None:
            await _send(socket, UNKNOWN)
            return
        follower = _Follower(job)
        following = asyncio.create_task(follower.run(self._queue), name=f"follow {job.id}")
        try:
            while True:
                state = await self._known(store, job.id, follower.state)
                await _send(socket, state)
                if state["status"] in _ENDED:
                    return
                try:
                    async with asyncio.timeout(self._interval_s):
                        await follower.ended.wait()
                except TimeoutError:
                    pass
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _known(self, store: JobStore, job_id: str, state: State | None) -> State:
        """Returns the state with the result in it, which is read once for all who wait for it."""
        if state is not None:
            return state
        task = self._texts.get(job_id)
        if task is None:
            task = self._texts[job_id] = asyncio.create_task(_text(store, job_id))
            task.add_done_callback(lambda _: self._texts.pop(job_id, None))
        try:
            return complete(await asyncio.shield(task))
        except NotFound:
            return UNKNOWN

    async def many(self, context: Context) -> None:
        """``/ws/results``: states of the jobs that the client names, then every change of any job of the caller's."""
        self._origins.check(context)
        store, socket = self._store_of(context.caller), socket_of(context)
        await socket.accept()
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                asked = _asked(await socket.receive())
        except SocketClosed:
            return
        except TimeoutError:
            asked = None
        if asked is None:
            await socket.close(1008, f"send a JSON array of at most {MAX_IDS} ids first")
            return
        with self._presence.of(context.caller) as ended:
            await converse(socket, ended, self._tell_all(socket, store, asked))

    async def _tell_all(self, socket: Socket, store: JobStore, asked: list[str]) -> None:
        states = {job_id: await _state(store, job_id) for job_id in asked}
        await _send(socket, [{"task_id": job_id, **_told(state)} for job_id, state in states.items()])
        told: dict[str, tuple[str, str]] = {}
        watched = {job_id for job_id, state in states.items() if state is not UNKNOWN}
        while True:
            active = {job.id: job for job in await store.list(kind=KIND, states=_ACTIVE, limit=MAX_IDS)}
            for job_id in sorted(watched | active.keys()):
                job = active.get(job_id)
                state = await _state(store, job_id) if job is None else state_of(job, "")
                mark = (state["status"], state.get("progress", ""))
                if told.get(job_id) != mark:
                    told[job_id] = mark
                    await _send(socket, {"task_id": job_id, **_told(state)})
            watched = set(active)
            told = {job_id: mark for job_id, mark in told.items() if job_id in watched}
            await socket.send(_ALIVE.decode())
            await asyncio.sleep(self._interval_s)


_ACTIVE = (JobState.QUEUED, JobState.RUNNING)


class _Follower:
    """The state of a job as its events tell it; None once it has a result."""

    def __init__(self, job: Job) -> None:
        self.state: State | None = None if job.state is JobState.SUCCEEDED else state_of(job, "")
        self.ended = asyncio.Event()
        self._job = job

    async def run(self, queue: JobQueue) -> None:
        """Follows until the end."""
        since, over = self._job.last_seq, self._job.state.terminal
        while not over:
            try:
                async with aclosing(queue.events.follow(self._job.id, since)) as events:
                    async for event in events:
                        since, over = event.seq, event.last
                        self.state = state_after(self.state or {}, event)
                if not over:  # it was deleted
                    self.state, over = UNKNOWN, True
            except StorageError:
                await asyncio.sleep(_AGAIN_S)
        self.ended.set()


async def _text(store: JobStore, job_id: str) -> str:
    return (await store.result(job_id)).content


async def _state(store: JobStore, job_id: str) -> State:
    try:
        job = await store.get(job_id)
        return state_of(job, await _text(store, job_id) if job.state is JobState.SUCCEEDED else "")
    except NotFound:
        return UNKNOWN


def _told(state: State) -> State:
    return {**state, "progress": "100"} if state["status"] == "complete" else state


def _asked(message: str | bytes) -> list[str] | None:
    try:
        ids = list(dict.fromkeys(_ids.decode(message)))
    except msgspec.DecodeError:
        return None
    return ids if len(ids) <= MAX_IDS else None


async def _send(socket: Socket, value: object) -> None:
    await socket.send(msgspec.json.encode(value).decode())
