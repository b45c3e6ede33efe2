"""Services as jobs over HTTP, at a real gateway process in front of a scripted model server."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from tests.conformance.services_gateway import TEXT, ServiceClient, service_gateway
from tests.faults.table import row
from tests.harness.upstreamd import never, normal
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.slow


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[ServiceClient]:
    """The operator's client."""
    async with service_gateway(tmp_path) as made:
        yield made


def stalled(client: ServiceClient) -> None:
    """The model answers no chat from now on."""
    client.upstream.scenario = lambda seen: [never() if "chat" in seen.path else normal()]


async def test_a_job_from_text_to_versions_of_its_result(client: ServiceClient) -> None:
    """A job is accepted with its place, listed, and its result is edited and restored as versions."""
    (service,) = (await client.http.get("/v1/services")).json()["data"]
    assert (service["id"], service["model"]) == ("summarize/en", "service/summarize-en")
    answer = await client.submit(metadata={"meeting": 7}, priority=-5)
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    ended = await client.ended(job["id"])
    assert (ended["status"], ended["metadata"], ended["priority"]) == ("succeeded", {"meeting": 7}, -5)
    assert ended["progress"]["percentage"] == 100
    path = f"/v1/jobs/{job['id']}"
    first = (await client.http.get(f"{path}/result")).json()
    assert first["details"]["calls"] == 4
    edited = (await client.http.patch(f"{path}/result", json={"content": "Mine é"})).json()
    assert (edited["version"], edited["content"]) == (2, "Mine é")
    restored = (await client.http.post(f"{path}/results/1/restore")).json()
    assert (restored["version"], restored["content"], restored["restored_from"]) == (3, first["content"], 1)
    assert (await client.http.get(f"{path}/result?version=2")).json()["content"] == "Mine é"
    assert [each["version"] for each in (await client.http.get(f"{path}/results")).json()["data"]] == [1, 2, 3]
    for form, begins in (("docx", b"PK"), ("pdf", b"%PDF-"), ("txt", "Mine é".encode())):
        document = await client.http.get(f"{path}/export?format={form}&version=2")
        assert document.content.startswith(begins)
        assert document.headers["content-disposition"] == f'attachment; filename="{job["id"]}-2.{form}"'
    assert (await client.http.get(f"{path}/export?format=exe")).status_code == 400
    assert (await client.http.delete(path)).status_code == 204
    assert (await client.http.get(path)).status_code == 404


async def test_lists_go_page_by_page(client: ServiceClient) -> None:
    """Pages hold each job once, newest first, and can be asked for by state and service."""
    made = [await client.job(text=f"A : {n}") for n in range(5)]
    for job_id in made:
        await client.ended(job_id)
    seen: list[str] = []
    after = ""
    while True:
        page = (await client.http.get(f"/v1/jobs?limit=2{after}")).json()
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['next']}"
    assert seen == made[::-1]
    assert len((await client.http.get("/v1/jobs?status=succeeded,failed&service=summarize-en")).json()["data"]) == 5
    assert (await client.http.get("/v1/jobs?status=queued")).json()["data"] == []
    assert (await client.http.get("/v1/jobs?status=odd")).json()["error"]["param"] == "status"


async def test_one_idempotency_key_is_one_job(client: ServiceClient) -> None:
    """The same request again finds the job of the first time; another one under its key is refused."""
    one, two = await client.submit(key="k-1"), await client.submit(key="k-1")
    assert one.json()["id"] == two.json()["id"]
    assert (two.status_code, two.headers["idempotent-replayed"]) == (202, "true")
    other = await client.submit("A : something else", key="k-1")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len((await client.http.get("/v1/jobs")).json()["data"]) == 1


async def test_a_form_with_a_document(client: ServiceClient) -> None:
    """A document in a form is a job too; its name is kept for people, and never a path."""
    name = '../../etc/<script>"\u202egpj.srt'
    srt = "1\n00:00:01,000 --> 00:00:02,000\nHello there\n".encode("utf-16")
    form = {"flavor": "llama", "metadata": '{"a": 1}', "priority": "-1"}
    answer = await client.http.post("/v1/services/summarize/en/jobs", files={"file": (name, srt)}, data=form)
    job = answer.json()
    assert answer.status_code == 202, job
    assert (job["file"]["kind"], job["metadata"], job["priority"]) == ("srt", {"a": 1}, -1)
    assert "/" not in job["file"]["name"]
    assert "\u202e" not in job["file"]["name"]
    assert (await client.ended(job["id"]))["status"] == "succeeded"
    assert "Hello there" in client.chats[0]["messages"][0]["content"]
    assert "00:00" not in client.chats[0]["messages"][0]["content"]


async def dry_run(client: ServiceClient, text: str = TEXT) -> Any:
    """Returns what a job would do."""
    answer = await client.http.post("/v1/services/summarize-en/validate", json={"input": text})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_dry_run_tells_what_the_job_does(client: ServiceClient) -> None:
    """The estimate has the calls that the job then makes, and the price book's cost; nothing is asked of the model."""
    prices = {"model": "m", "input": "2", "cached": "0", "output": "4"}
    assert (await client.http.post("/admin/prices", json=prices)).status_code == 201
    async with asyncio.timeout(10):
        while not (
            answer := (await client.http.post("/v1/services/summarize-en/validate", json={"input": TEXT})).json()
        )["cost"]:
            await asyncio.sleep(0.05)
    estimate = answer["estimate"]
    assert (estimate["valid"], estimate["strategy"], estimate["calls"]) == (True, "map_reduce", 4)
    assert estimate["input_tokens"] > 0
    assert answer["cost"] * 1e6 == pytest.approx(
        2 * estimate["total_prompt_tokens"] + 4 * estimate["total_completion_tokens"]
    )
    assert client.chats == []
    job = await client.ended(await client.job())
    result = (await client.http.get(f"/v1/jobs/{job['id']}/result")).json()
    assert result["details"]["calls"] == estimate["calls"]
    assert result["details"]["usage"]["prompt_tokens"] <= estimate["total_prompt_tokens"]


@row("E9")
async def test_cancel_in_every_state(client: ServiceClient) -> None:
    """A running job is cancelled within two seconds, twice does nothing, a finished one is told 409; then replayed.

    The best of three is looked at: a busy machine takes time of its own.
    """
    done = await client.job(text="A : short")
    await client.ended(done)
    refused = await client.http.post(f"/v1/jobs/{done}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_finished")
    assert (await client.http.post(f"/v1/jobs/{done}/replay")).json()["error"]["code"] == "job_not_failed"
    stalled(client)
    took = []
    for _ in range(3):
        client.upstream.requests.clear()
        job_id = await client.job()
        await client.asked(1)
        assert (await client.http.delete(f"/v1/jobs/{job_id}")).json()["error"]["code"] == "job_not_finished"
        began = time.monotonic()
        assert (await client.http.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200
        assert (await client.ended(job_id))["status"] == "cancelled"
        took.append(time.monotonic() - began)
        assert (await client.http.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200
    assert min(took) < 2.0, took
    client.upstream.scenario = lambda seen: [normal()]
    again = (await client.http.post(f"/v1/jobs/{job_id}/replay")).json()
    assert again["replay_of"] == job_id
    assert (await client.ended(again["id"]))["status"] == "succeeded"


async def test_other_peoples_jobs_are_not_there(client: ServiceClient) -> None:
    """To another tenant and to a member a job of somebody else looks exactly like one that never was."""
    job_id = await client.job()
    await client.ended(job_id)
    member, stranger = await client.other(), await client.other(tenant=True)
    routes = [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/replay"), ("GET", "/result")]
    routes += [("GET", "/results"), ("POST", "/results/1/restore"), ("GET", "/events"), ("POST", "/ticket")]
    for who in (member, stranger):
        for method, path in routes:
            got = await who.http.request(method, f"/v1/jobs/{job_id}{path}")
            absent = await who.http.request(method, f"/v1/jobs/job_0{path}")
            assert (got.status_code, absent.status_code) == (404, 404), path
            message = got.json()["error"]["message"].replace(job_id, "job_0")
            assert message == absent.json()["error"]["message"]
        assert (await who.http.patch(f"/v1/jobs/{job_id}/result", json={"content": "x"})).status_code == 404
        assert (await who.http.get(f"/results/{job_id}")).status_code == 404
        async with who.socket(f"/ws/results/{job_id}") as socket:
            assert json.loads(await socket.recv())["status"] == "unknown"
        assert (await who.http.get("/v1/jobs")).json()["data"] == []
    own = await member.job()
    assert [job["id"] for job in (await member.http.get("/v1/jobs")).json()["data"]] == [own]
    assert (await client.http.get(f"/v1/jobs/{job_id}")).status_code == 200


async def events_of(client: ServiceClient, job_id: str, **headers: str) -> list[tuple[int, str, Any]]:
    """Returns a job's server-sent events, to their end."""
    answer = await client.http.get(
        f"/v1/jobs/{job_id}/events", headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    assert answer.headers["content-type"] == "text/event-stream"
    found = []
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "id" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


async def test_server_sent_events_go_on_where_they_were_left(client: ServiceClient) -> None:
    """Events are numbered, the terminal one is last, and `Last-Event-ID` continues without gap or repeat."""
    job_id = await client.job()
    events = await events_of(client, job_id)
    assert events[0][1] == "queued"
    assert events[-1][1] == "succeeded"
    assert all(data["seq"] == number and data["job_id"] == job_id for number, _, data in events)
    whole = await events_of(client, job_id)
    assert [number for number, *_ in whole] == list(range(1, len(whole) + 1))
    for seen in (0, 1, len(whole) - 1, len(whole), 10**6):
        assert await events_of(client, job_id, last_event_id=str(seen)) == whole[seen:]
    refused = await client.http.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": "x"})
    assert refused.status_code == 400


async def test_a_ticket_opens_one_websocket(client: ServiceClient) -> None:
    """With a ticket events arrive as messages; without, used, for another job or from another page it is 403."""
    stalled(client)
    job_id, other_id = await client.job(), await client.job()
    await client.asked(1)
    path = await client.ticket(job_id)
    async with client.socket(path) as socket:
        first = json.loads(await socket.recv())
        assert (first["seq"], first["type"], first["job_id"]) == (1, "queued", job_id)
        for bad in (
            path,
            f"/v1/jobs/{job_id}/ws",
            f"/v1/jobs/{job_id}/ws?ticket=abc.def",
            (await client.ticket(job_id)).replace(job_id, other_id),
            (await client.ticket(job_id))[:-2] + "AA",
        ):
            with pytest.raises(InvalidStatus) as refused:
                async with client.socket(bad):
                    pass
            assert refused.value.response.status_code == 403
            assert json.loads(refused.value.response.body)["error"]["code"] == "ticket_refused"
        with pytest.raises(InvalidStatus) as refused:
            async with client.socket(await client.ticket(job_id), origin="https://evil.example"):
                pass
        assert json.loads(refused.value.response.body)["error"]["code"] == "origin_not_allowed"
        async with client.socket(await client.ticket(job_id), origin=client.gateway.url):
            pass
        await client.http.post(f"/v1/jobs/{job_id}/cancel")
        messages = [json.loads(message) async for message in socket]
    numbers = [message["seq"] for message in messages]
    assert numbers == sorted(set(numbers))
    assert messages[-1]["type"] == "cancelled"
    async with client.socket(f"{await client.ticket(job_id)}&since={numbers[-2]}") as socket:
        assert [json.loads(message)["seq"] async for message in socket] == numbers[-1:]


async def test_a_revoked_key_closes_what_it_holds_open(client: ServiceClient) -> None:
    """Websockets close with 4401 and event streams end within five seconds of the revocation."""
    member = await client.other()
    stalled(client)
    job_id = await member.job()
    await client.asked(1)
    stream = asyncio.create_task(events_of(member, job_id))
    async with (
        member.socket(await member.ticket(job_id)) as one,
        member.socket(f"/ws/results/{job_id}") as two,
        member.socket("/ws/results") as three,
    ):
        await three.send(json.dumps([job_id]))
        assert (await client.http.post(f"/admin/keys/{member.key_id}/revoke")).status_code == 200
        async with asyncio.timeout(5):
            for socket in (one, two, three):
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        await socket.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4401
            await stream
    assert (await client.ended(job_id))["status"] in ("failed", "cancelled")


async def test_a_service_is_a_model(client: ServiceClient) -> None:
    """It is listed as one, and openai-python gets its result whole and as a stream, with the usage of all calls."""
    openai = AsyncOpenAI(base_url=f"{client.gateway.url}/v1", api_key=client.key, max_retries=0)
    name = "service/summarize-en"
    assert name in [model.id async for model in openai.models.list()]
    assert (await openai.models.retrieve(name)).id == name
    messages: Any = [{"role": "system", "content": "not read"}, {"role": "user", "content": TEXT}]
    whole = await openai.chat.completions.create(model=name, messages=messages, temperature=0.3)
    text, usage = whole.choices[0].message.content, whole.usage
    assert text
    assert usage is not None
    assert usage.completion_tokens > 0
    assert [chat["temperature"] for chat in client.chats] == [0.3] * 4
    stream = await openai.chat.completions.create(
        model=name, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    pieces = [chunk async for chunk in stream]
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.total_tokens == usage.total_tokens
    raw = await client.http.post("/v1/chat/completions", json={"model": name, "messages": messages, "stream": True})
    assert ": job job_" in raw.text
    assert ": progress 100%" in raw.text
    assert raw.text.endswith("data: [DONE]\n\n")
    member = await client.other()
    status = [
        (await client.http.post("/v1/chat/completions", json={"model": each, "messages": asked})).status_code
        for each, asked in (("service/none", messages), (name, [{"role": "user", "content": " "}]))
    ]
    assert status == [404, 400]
    assert (await member.http.get("/v1/models/service/none")).status_code == 404
    await openai.close()


async def test_leaving_a_service_model_cancels_its_job(client: ServiceClient) -> None:
    """Who hangs up ends the job and its running call within two seconds."""
    stalled(client)
    body = {"model": "service/summarize-en", "messages": [{"role": "user", "content": TEXT}]}
    for stream in (False, True):
        asking = asyncio.create_task(client.http.post("/v1/chat/completions", json={**body, "stream": stream}))
        known = len(client.chats)
        await client.asked(known + 1)
        (job,) = (await client.http.get("/v1/jobs?status=running")).json()["data"]
        asking.cancel()
        assert (await client.ended(job["id"], 2.0))["status"] == "cancelled"


async def test_an_end_is_told_by_a_signed_webhook(tmp_path: Path) -> None:
    """The receiver gets each end once it answers, signed as Standard Webhooks has it; private addresses are refused."""
    secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
    received: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
    statuses = [500, 204, 204]

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        assert head == "POST /hook?x=1 HTTP/1.1"
        headers = dict(line.split(": ", 1) for line in lines)
        await received.put((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(b"HTTP/1.1 %d x\r\n\r\n" % statuses.pop(0))
        writer.close()

    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    webhook = {"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?x=1", "secret": secret}
    async with service_gateway(tmp_path, jobs={"webhook_networks": ["127.0.0.1"]}) as client:
        job_id = await client.job(webhook=webhook, metadata={"n": 1})
        async with asyncio.timeout(20):
            tellings = [await received.get(), await received.get()]
        assert {headers["webhook-id"] for headers, _ in tellings} == {f"msg_{job_id}"}
        headers, body = tellings[1]
        signed = f"msg_{job_id}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.digest(b"s" * 32, signed, "sha256")).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        told = json.loads(body)
        assert (told["type"], told["data"]["id"], told["data"]["metadata"]) == ("job.succeeded", job_id, {"n": 1})
        shown = await client.http.get(f"/v1/jobs/{job_id}")
        assert shown.json()["webhook"] == webhook["url"]
        assert secret not in shown.text
        assert [job["id"] for job in (await client.http.get("/v1/jobs")).json()["data"]] == [job_id]
        private = await client.job(webhook={"url": "http://169.254.169.254/", "secret": secret})
        async with asyncio.timeout(20):
            while not any(
                job["service"] == private and job["error"]
                for job in (await client.http.get("/v1/jobs?kind=webhook")).json()["data"]
            ):
                await asyncio.sleep(0.05)
        for wrong in ({"url": "ftp://x/", "secret": secret}, {"url": webhook["url"], "secret": "whsec_short"}):
            assert (await client.submit(webhook=wrong)).status_code == 400
    server.close()
    assert received.empty()
