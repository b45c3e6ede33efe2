"""Jobs followed over websockets, and submitted over HTTP, while their gateway stops or is killed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.conformance.services_gateway import service_gateway
from tests.faults.table import row
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import never, normal
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.slow


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


@row("E2", "E3")
@pytest.mark.parametrize(("failpoint", "survives"), [("after_commit:2", True), ("before_commit:2", False)])
async def test_a_gateway_killed_at_a_submission(tmp_path: Path, failpoint: str, survives: bool) -> None:
    """The same request with its key finds the job that was committed, and makes one where none was.

    The first commit is that of the runner, which looks for jobs when it starts.
    """
    async with service_gateway(tmp_path, environ={"PASSERELLE_FAILPOINT": failpoint}) as client:
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
