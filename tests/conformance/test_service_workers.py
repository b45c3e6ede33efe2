"""Services and jobs of a gateway of several workers, with keys and without: whichever answers, it is one gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.conformance.services_gateway import MANIFEST, TEXT, ServiceClient, service_gateway
from tests.harness.upstreamd import never, normal
from websockets.exceptions import InvalidStatus

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
WORKERS = 3
LINES = 8
"""Connections: each is answered by one worker, and among so many all have some."""


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=[False, True], ids=["keys", "keyless"])
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServiceClient]:
    """A gateway of three workers; the client is the operator, or nobody."""
    settings = {"server": {"workers": WORKERS}, "services": {"ws_polling_interval_s": 0.1}}
    async with service_gateway(tmp_path_factory.mktemp("workers"), keyless=request.param, **settings) as made:
        await asyncio.to_thread(made.gateway.wait_ready)
        yield made
        assert not [line for line in made.gateway.log if "Traceback" in line]


@pytest_asyncio.fixture(loop_scope="module")
async def client(shared: ServiceClient) -> ServiceClient:
    """The same, with a well-behaved model that was asked nothing."""
    shared.upstream.scenario = None
    shared.upstream.requests.clear()
    return shared


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lines(shared: ServiceClient) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Connections that stay open, to all of the workers."""
    client = shared
    operator = {"authorization": f"Bearer {client.gateway.key}"}
    found: dict[int, httpx.AsyncClient] = {}
    spare: list[httpx.AsyncClient] = []
    one = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        while len(found) < WORKERS or len(found) + len(spare) < LINES:
            made = httpx.AsyncClient(base_url=client.gateway.url, headers=client.headers, timeout=30, limits=one)
            line = await stack.enter_async_context(made)
            pid = (await line.get("/admin/router", headers=operator)).json()["answered_by"]
            if found.setdefault(pid, line) is not line:
                spare.append(line)
        yield [*found.values(), *spare]


async def everywhere(lines: list[httpx.AsyncClient], path: str, wanted: Any) -> None:
    """Waits until every worker answers as wanted."""
    async with asyncio.timeout(20):
        for line in lines:
            while not wanted((await line.get(path)).json()):
                await asyncio.sleep(0.02)


async def test_the_originals_routes_at_any_worker(client: ServiceClient, lines: list[httpx.AsyncClient]) -> None:
    """What is uploaded at one worker is queued, told and finished at every other; both websockets know it, too."""
    files = {"file": ("a.txt", TEXT.encode())}
    answers = await asyncio.gather(
        *(line.post("/services/summarize/en/generate", files=files, data={"flavor": "llama"}) for line in lines)
    )
    assert {answer.status_code for answer in answers} == {200}
    ids = [answer.json()["jobId"] for answer in answers]
    for job_id in ids:
        assert (await client.done(job_id))["status"] == "complete"
    for line in lines:
        told = [(await line.get(f"/results/{job_id}")).json() for job_id in ids]
        assert {state["summarization"] for state in told} == {told[0]["summarization"]}
        assert (await line.get("/services")).json()[0]["route"] == "summarize/en"
        assert (await line.get("/healthcheck")).json() == "1"
        assert (await line.get("/results/nothing")).status_code == 404
    for _ in range(LINES):
        async with client.socket("/ws/results") as many, client.socket(f"/ws/results/{ids[0]}") as one:
            await many.send(json.dumps(ids))
            assert {each["status"] for each in json.loads(await many.recv())} == {"complete"}
            assert [json.loads(message)["status"] async for message in one] == ["complete"]


async def test_a_job_is_followed_and_cancelled_from_any_worker(
    client: ServiceClient, lines: list[httpx.AsyncClient]
) -> None:
    """Its events reach sockets at all workers, in order; a cancellation at any of them ends its call within 2 s."""
    client.upstream.scenario = lambda seen: [never() if "chat" in seen.path else normal()]
    job_id = await client.job()
    await client.asked()
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(client.socket(await client.ticket(job_id))) for _ in range(LINES)]
        assert {json.loads(await socket.recv())["seq"] for socket in sockets} == {1}
        async with asyncio.timeout(10):  # two seconds are promised, by machines that are not as busy
            answer = await lines[-1].post(f"/v1/jobs/{job_id}/cancel")
            assert answer.status_code == 200
            chat = next(seen for seen in client.upstream.requests if "chat" in seen.path)
            await client.upstream.until(lambda: chat.peer.closed_at is not None, 10)
        ends = [[json.loads(message) async for message in socket] for socket in sockets]
    assert {end[-1]["type"] for end in ends} == {"cancelled"}
    assert len({tuple(message["seq"] for message in end) for end in ends}) == 1
    for line in lines:
        events = (await line.get(f"/v1/jobs/{job_id}/events")).text.split("\n\n")
        numbers = [int(event.split("\n", 1)[0].removeprefix("id: ")) for event in events if event]
        assert numbers == list(range(1, len(numbers) + 1))
        assert (await line.get(f"/v1/jobs/{job_id}")).json()["status"] == "cancelled"


async def test_what_may_happen_once_happens_once(client: ServiceClient, lines: list[httpx.AsyncClient]) -> None:
    """One Idempotency-Key at all workers at one moment is one job; one ticket opens one websocket."""
    body, once = {"input": TEXT}, {"idempotency-key": "once"}
    answers = await asyncio.gather(
        *(line.post("/v1/services/summarize-en/jobs", json=body, headers=once) for line in lines)
    )
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["id"] for answer in answers}
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count(None) == 1
    await client.ended(job_id)
    assert len(client.chats) == 4
    ticket = await client.ticket(job_id)

    async def opens() -> bool:
        try:
            async with client.socket(ticket) as socket:
                return [json.loads(message) async for message in socket][-1]["type"] == "succeeded"
        except InvalidStatus as error:
            assert error.response.status_code == 403
            return False

    assert sum(await asyncio.gather(*(opens() for _ in range(LINES)))) == 1


async def test_a_change_of_files_reaches_all_workers(client: ServiceClient, lines: list[httpx.AsyncClient]) -> None:
    """A new service, an edit and a file that wants a taken route: all workers say the same about each."""
    folder = client.gateway.home.parent / ".hydra-conf" / "services"
    (folder / "en.yaml").write_text(MANIFEST.replace("English summary", "Edited"))
    await everywhere(lines, "/services", lambda found: found[0]["description"] == {"fr": "Edited"})
    (folder / "aa.yaml").write_text(MANIFEST.replace("summarize/en:", "thief:\n  route: summarize/en", 1))
    await everywhere(
        lines, "/v1/services", lambda found: any("'summarize/en' is taken" in p for p in found["problems"])
    )
    for line in lines:
        found = (await line.get("/v1/services")).json()
        assert [service["id"] for service in found["data"]] == ["summarize/en"]
        assert "aa.yaml" in found["problems"][0]
    (folder / "aa.yaml").unlink()
    await everywhere(lines, "/v1/services", lambda found: not found["problems"])
    (folder / "en.yaml").unlink()
    await everywhere(lines, "/v1/services", lambda found: not found["data"])
    for line in lines:
        assert (await line.get("/services")).json() == {"detail": "No services available"}
    (folder / "en.yaml").write_text(MANIFEST)
    await everywhere(lines, "/v1/services", lambda found: found["data"])


async def test_without_keys_only_what_is_meant_to_be_open_is(tmp_path: Path) -> None:
    """Services, jobs and models need no key; administration does; a wrong key is refused; so is another's page."""
    async with service_gateway(tmp_path, keyless=True) as client:
        job_id = (await client.generate()).json()["jobId"]
        assert (await client.done(job_id))["status"] == "complete"
        assert [job["id"] for job in (await client.http.get("/v1/jobs")).json()["data"]] == [job_id]
        assert (await client.http.get(f"/v1/jobs/{job_id}/export?format=txt")).status_code == 200
        body = {"model": "service/summarize-en", "messages": [{"role": "user", "content": "A : hello"}]}
        assert (await client.http.post("/v1/chat/completions", json=body)).status_code == 200
        for path in ("/admin/keys", "/admin/users", "/admin/router"):
            assert (await client.http.get(path)).status_code in (401, 403), path
        wrong = {"authorization": "Bearer sk-wrong"}
        assert (await client.http.get("/services", headers=wrong)).status_code == 401
        operator = {"authorization": f"Bearer {client.gateway.key}"}
        theirs = await client.http.post("/v1/services/summarize-en/jobs", json={"input": TEXT}, headers=operator)
        assert (await client.http.get(f"/v1/jobs/{theirs.json()['id']}")).status_code == 404
        for path in ("/ws/results", f"/ws/results/{job_id}"):
            with pytest.raises(InvalidStatus) as refused:
                async with client.socket(path, origin="https://evil.example"):
                    pass
            assert refused.value.response.status_code == 403
