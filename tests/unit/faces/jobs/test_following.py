"""Websockets on jobs: thousands on one, slow ones, silent ones. The sockets are ASGI's, without a network between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from passerelle.domain.principal import Principal, Scope
from passerelle.edge.dispatch import Context
from passerelle.edge.origins import TrustedOrigins
from passerelle.edge.socket import SocketExchange
from passerelle.faces.jobs.access import stores
from passerelle.faces.jobs.backlog import COALESCED_FROM
from passerelle.faces.jobs.following import FollowingFace
from passerelle.faces.jobs.tickets import Tickets
from passerelle.faces.services.sockets import LintoSockets
from passerelle.faces.sockets import Origins, Presence
from passerelle.identity.idempotency import IdempotentAnswers
from passerelle.identity.secrets import Secrets
from passerelle.jobs.job import JobState, NewJob, Result
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.writes import Append, Settlement
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade

OWNER = Principal("key_1", "mine", scopes=frozenset({Scope.SERVICES}))
SOCKETS = 1_000


class Peer:
    """The other side of one websocket. While ``reading`` is not set, nothing more fits into its connection."""

    def __init__(self, path: str, query: bytes = b"") -> None:
        self.messages: list[dict[str, Any]] = []
        self.closed: int | None = None
        self.accepted = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self._left: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        scope = {"path": path, "query_string": query, "headers": [(b"host", b"localhost")], "client": None}
        self.context = Context(SocketExchange(scope, self._receive, self._send), "req_1", OWNER)

    def leave(self) -> None:
        """Goes away."""
        self._left.set_result({"type": "websocket.disconnect", "code": 1001})

    async def _receive(self) -> dict[str, Any]:
        return await self._left

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.accept":
            self.accepted.set()
        elif message["type"] == "websocket.close":
            self.closed = message["code"]
        else:
            await self.reading.wait()
            self.messages.append(json.loads(message["text"]))


class World:
    """A queue with one running job, and the faces that tell of it."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.presence = Presence()

        async def holder(key_id: str, user: str | None) -> Principal | None:
            return OWNER

        self.tickets = Tickets(Secrets(queue.database), IdempotentAnswers(queue.database), holder)
        store_of = stores(queue, nobody="nobody")
        self.following = FollowingFace(queue, store_of, self.tickets, self.presence, Origins(TrustedOrigins()))
        self.linto = LintoSockets(queue, store_of, self.presence, Origins(TrustedOrigins()), interval_s=60.0)

    async def begin(self) -> str:
        """Returns the id of a running job."""
        await self.queue.store(OWNER).submit(NewJob(kind="k"))
        (claim,) = await self.queue.claim("worker", 1)
        return claim.id

    async def note(self, job_id: str, *events: tuple[str, str]) -> None:
        """Writes events."""
        newest = next((data for kind, data in reversed(events) if kind == "progress"), None)
        await self.queue.append(Append(job_id, 1, events, newest))

    async def end(self, job_id: str) -> None:
        """Ends the job with a result."""
        await self.queue.settle(Settlement(job_id, 1, JobState.SUCCEEDED, result=Result(content="done")))

    async def open(self, job_id: str, since: int = 0) -> tuple[Peer, asyncio.Task[None]]:
        """Opens a websocket with a ticket."""
        ticket, _ = await self.tickets.issue(OWNER, job_id)
        peer = Peer(f"/v1/jobs/{job_id}/ws", f"ticket={ticket}&since={since}".encode())
        peer.context.parameters = {"id": job_id}
        task = asyncio.create_task(self.following.socket(peer.context))
        await asyncio.wait([task, asyncio.create_task(peer.accepted.wait())], return_when=asyncio.FIRST_COMPLETED)
        return peer, task


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """The world on a database of its own."""
    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    queue = JobQueue(database)
    await queue.start()
    yield World(queue)
    await queue.aclose()
    await database.aclose()


def progress(percent: int) -> tuple[str, str]:
    """Returns an event of progress, as it stands in the log."""
    return "progress", json.dumps({"percent": percent, "current": percent, "total": 100})


async def test_a_thousand_sockets_read_the_log_once(world: World) -> None:
    """All get every state to the end, and their followers cost one reader of the database (row F5)."""
    job_id = await world.begin()
    before = world.queue.events.reads
    peers = []
    tasks = []
    for _ in range(SOCKETS):
        peer = Peer(f"/ws/results/{job_id}")
        peer.context.parameters = {"id": job_id}
        peers.append(peer)
        tasks.append(asyncio.create_task(world.linto.one(peer.context)))
    for peer in peers:
        await peer.accepted.wait()
    for percent in range(20):
        await world.note(job_id, progress(percent))
    await world.end(job_id)
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)
    assert world.queue.events.reads - before <= 30
    last = {"status": "complete", "message": "success", "summarization": "done"}
    assert all(peer.messages[-1] == last and peer.closed == 1000 for peer in peers)


async def test_a_slow_reader_misses_progress_only(world: World) -> None:
    """While it does not read, a bounded number of events waits; then come the newest, others, and the end (F2)."""
    job_id = await world.begin()
    peer, task = await world.open(job_id)
    peer.reading.clear()
    for number in range(40):
        await world.note(job_id, *[progress(number) for _ in range(25)])
    await world.note(job_id, ("note", "{}"))
    await world.end(job_id)
    last = await world.queue.events.last(job_id)
    assert last is not None
    peer.reading.set()
    async with asyncio.timeout(30):
        await task
    numbers = [message["seq"] for message in peer.messages]
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 1000
    assert len(numbers) <= 3 * COALESCED_FROM
    assert [message["type"] for message in peer.messages[-2:]] == ["note", "succeeded"]
    assert (numbers[-1], peer.closed) == (last.seq, 1000)


async def test_a_reader_far_behind_catches_up(world: World) -> None:
    """A thousand events that may not be dropped all arrive, in order, from the log; so they do in two pieces."""
    job_id = await world.begin()
    peer, task = await world.open(job_id)
    peer.reading.clear()
    for _ in range(40):
        await world.note(job_id, *[("note", "{}") for _ in range(25)])
    await world.end(job_id)
    again, second = await world.open(job_id, 500)
    peer.reading.set()
    async with asyncio.timeout(60):
        await asyncio.gather(task, second)
    assert [message["seq"] for message in peer.messages] == list(range(1, 1004))
    assert [message["seq"] for message in again.messages] == list(range(501, 1004))
    assert (peer.closed, again.closed) == (1000, 1000)


async def test_who_leaves_is_forgotten(world: World) -> None:
    """A socket that goes away ends its endpoint; nobody follows the job any more, and no task is left."""
    job_id = await world.begin()
    before = len(asyncio.all_tasks())
    peers = [await world.open(job_id) for _ in range(20)]
    for peer, task in peers:
        peer.leave()
        async with asyncio.timeout(30):
            await task
    async with asyncio.timeout(30):
        while len(asyncio.all_tasks()) > before + 2:
            await asyncio.sleep(0.01)


async def test_the_end_of_a_key_closes_its_sockets(world: World) -> None:
    """Revoked and expired keys close what they hold with 4401."""
    job_id = await world.begin()
    peer, task = await world.open(job_id)
    world.presence.end("key_2")
    assert not task.done()
    world.presence.end("key_1")
    async with asyncio.timeout(30):
        await task
    assert peer.closed == 4401
