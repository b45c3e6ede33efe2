"""Jobs followed over websockets: thousands at once, slow ones, hostile ones, and while their gateway stops or dies."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.conformance.services_gateway import ServiceClient, service_gateway
from tests.faults.table import row
from tests.harness.crowd import SPARE_DESCRIPTORS, Crowd, raise_descriptors
from tests.harness.gateway import GatewayProcess
from tests.harness.oracles import rss_bytes
from tests.harness.upstreamd import Exchange, never, normal, stall
from tests.unit.edge.test_websocket import REFUSED
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from passerelle.jobs.queue import JobQueue
from passerelle.jobs.writes import Append
from passerelle.storage.engine import open_database
from passerelle.storage.tables import job_events

pytestmark = pytest.mark.slow
SOCKETS = int(os.environ.get("PASSERELLE_TEST_SOCKETS", "1000"))
"""How many websockets follow one job; 5,000 for the figures in docs/jobs.md."""
MOST_BYTES_A_SOCKET = 80 * 1024
LONG = "\n".join(f"{'AB'[n % 2]} : said number {n} and more" for n in range(45))
"""Fifteen calls of the service."""


def held(client: ServiceClient) -> Callable[[], None]:
    """Has the model answer nothing until the returned function is called, then one call after the other."""
    go = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await go.wait()

    client.upstream.scenario = lambda seen: [wait, stall(0.3), normal()] if "chat" in seen.path else [normal()]
    return go.set


@row("F1", "F6")
async def test_tickets_and_restarts(tmp_path: Path) -> None:
    """Without a sound ticket the handshake is refused; a restart closes with 1012, and the client goes on."""
    async with service_gateway(tmp_path, server={"grace_s": 0.5}) as client:
        client.upstream.scenario = lambda seen: [never() if "chat" in seen.path else normal()]
        job_id = await client.job()
        await client.asked(1)
        stranger = await client.other(tenant=True)
        assert (await stranger.http.post(f"/v1/jobs/{job_id}/ticket")).status_code == 404
        refused = [f"/v1/jobs/{job_id}/ws", f"/v1/jobs/{job_id}/ws?ticket=stale.stale"]
        for path in refused:
            with pytest.raises(InvalidStatus) as answer:
                async with connect(client.gateway.url.replace("http", "ws") + path):
                    pass
            assert answer.value.response.status_code == 403
        seen: list[int] = []
        async with client.socket(await client.ticket(job_id)) as socket:
            seen.append(json.loads(await socket.recv())["seq"])
            await asyncio.to_thread(client.gateway.stop)
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    seen.append(json.loads(await socket.recv())["seq"])
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        client.upstream.scenario = lambda seen: [normal()]
        again = GatewayProcess(client.gateway.home, client.gateway.config)
        await asyncio.to_thread(again.start)
        try:
            client.move(again)
            async with client.socket(f"{await client.ticket(job_id)}&since={seen[-1]}") as socket:
                rest = [json.loads(message) async for message in socket]
            seen += [message["seq"] for message in rest]
            assert seen == list(range(1, len(seen) + 1))
            assert rest[-1]["type"] == "succeeded"
        finally:
            await asyncio.to_thread(again.stop)


@row("F5")
@pytest.mark.timeout(60 + SOCKETS // 10)
async def test_thousands_of_sockets_on_one_job(tmp_path: Path) -> None:
    """Each gets every event once and in order to the end, for some kilobytes of memory; three that read nothing until
    the end keep nobody waiting, and then get theirs.
    """
    count = min(SOCKETS, raise_descriptors(2 * SOCKETS + SPARE_DESCRIPTORS) - SPARE_DESCRIPTORS)
    async with service_gateway(tmp_path, services={"max_parallel_calls": 1}) as client:
        begin = held(client)
        job_id = await client.job(text=LONG)
        await client.asked()
        before = rss_bytes(client.gateway.pid)
        crowd, gate = Crowd(client.gateway.port), asyncio.Semaphore(32)

        async def join() -> None:
            async with gate:
                listener = await crowd.join(await client.ticket(job_id))
                assert listener.status == 101

        await asyncio.gather(*(join() for _ in range(count)))
        each = (rss_bytes(client.gateway.pid) - before) / count
        assert each < MOST_BYTES_A_SOCKET, each
        slow, others = crowd.listeners[:: count // 3][:3], [*crowd.listeners]
        for listener in slow:
            others.remove(listener)
            listener.pause()
        begin()
        await crowd.until(lambda: all(listener.closed or listener.gone for listener in others), 60 + count // 20)
        for listener in slow:
            listener.resume()
        await crowd.until(lambda: all(listener.closed or listener.gone for listener in slow))
        seen = {tuple(listener.seen) for listener in crowd.listeners}
        job = (await client.http.get(f"/v1/jobs/{job_id}")).json()
        assert job["status"] == "succeeded"
        assert seen == {tuple(range(1, job["last_event"] + 1))}
        assert job["last_event"] > 10
        assert {listener.closed for listener in crowd.listeners} == {1000}
        crowd.leave()


@row("F2")
async def test_a_slow_reader_of_a_chatty_job(tmp_path: Path) -> None:
    """While one reads nothing, others get a flood at once; what waits for it is bounded, and when it reads again it
    misses steps of progress at most.
    """
    async with service_gateway(tmp_path) as client:
        begin = held(client)
        job_id = await client.job()
        await client.asked()
        crowd = Crowd(client.gateway.port)
        slow = await crowd.join(await client.ticket(job_id), receive_bytes=4096)
        others = [await crowd.join(await client.ticket(job_id)) for _ in range(5)]
        slow.pause()
        before = rss_bytes(client.gateway.pid)
        database = open_database("sqlite", client.gateway.home)
        queue = JobQueue(database)
        for number in range(200):  # as another process that works on this attempt would
            steps = [("progress", json.dumps({"percent": 1, "current": number, "total": 0}))] * 20
            await queue.append(Append(job_id, 1, (*steps, ("note", json.dumps({"text": "x" * 20_000})))))
        await queue.aclose()
        async with database.read() as connection:
            query = select(job_events.c.seq).where(job_events.c.job_id == job_id, job_events.c.type == "note")
            notes = set((await connection.execute(query)).scalars())
        await database.aclose()
        assert len(notes) == 200
        begin()
        await crowd.until(lambda: all(listener.closed or listener.gone for listener in others))
        assert rss_bytes(client.gateway.pid) - before < 48 * 1024 * 1024
        held_back = len(slow.seen)
        slow.resume()
        await crowd.until(lambda: slow.closed is not None or slow.gone)
        job = (await client.http.get(f"/v1/jobs/{job_id}")).json()
        assert job["status"] == "succeeded"
        for listener in (slow, *others):
            assert (listener.closed, listener.seen[0], listener.seen[-1]) == (1000, 1, job["last_event"])
            assert listener.seen == sorted(set(listener.seen))
            assert notes <= set(listener.seen)
        assert held_back < len(slow.seen) < job["last_event"]
        crowd.leave()


@row("F4")
async def test_hostile_frames_on_a_jobs_socket(tmp_path: Path) -> None:
    """Each kind closes its socket with its code; other sockets, memory and the log do not notice."""
    async with service_gateway(tmp_path) as client:
        begin = held(client)
        job_id = await client.job()
        await client.asked()
        crowd = Crowd(client.gateway.port)
        good = await crowd.join(await client.ticket(job_id))
        before = rss_bytes(client.gateway.pid)
        for name, (data, code) in REFUSED.items():
            bad = await crowd.join(await client.ticket(job_id))
            bad.send(data)
            await crowd.until(lambda bad=bad: bad.closed is not None or bad.gone)
            assert (name, bad.closed) == (name, code)
            bad.leave()
        assert rss_bytes(client.gateway.pid) - before < 32 * 1024 * 1024
        begin()
        await crowd.until(lambda: good.closed is not None or good.gone)
        assert good.closed == 1000
        assert good.seen == list(range(1, len(good.seen) + 1))
        assert not [line for line in client.gateway.log if "Traceback" in line or "ERROR" in line]
        crowd.leave()


@row("E2", "E3")
@pytest.mark.parametrize(("failpoint", "survives"), [("after_commit:2", True), ("before_commit:2", False)])
async def test_a_gateway_killed_at_a_submission(tmp_path: Path, failpoint: str, survives: bool) -> None:
    """The same request with its key finds the job that was committed, and makes one where none was.

    The first commit is that of the runner, which looks for jobs when it starts. The one that accepts a job also claims
    it, so that its lease has to end before somebody else may go on.
    """
    settings = {"jobs": {"lease_s": 2.0}}
    async with service_gateway(tmp_path, environ={"PASSERELLE_FAILPOINT": failpoint}, **settings) as client:
        with pytest.raises(Exception, match=r"disconnected|reset|closed|EOF"):
            await client.submit(key="once")
        await asyncio.to_thread(client.gateway.wait)
        again = GatewayProcess(client.gateway.home, client.gateway.config)
        await asyncio.to_thread(again.start)
        try:
            client.move(again)
            before = (await client.http.get("/v1/jobs")).json()["data"]
            assert len(before) == survives
            answer = await client.submit(key="once")
            assert (answer.headers.get("idempotent-replayed") == "true") is survives
            jobs = (await client.http.get("/v1/jobs")).json()["data"]
            assert [job["id"] for job in jobs] == [answer.json()["id"]]
            assert (await client.ended(jobs[0]["id"]))["status"] == "succeeded"
        finally:
            await asyncio.to_thread(again.stop)
