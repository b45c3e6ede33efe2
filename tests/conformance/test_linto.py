"""The routes and messages of LinTO's LLM Gateway, at a real gateway process in front of a scripted model server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conformance.services_gateway import TEXT, ServiceClient, service_gateway
from tests.harness.upstreamd import Seen, Step, never, normal
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.slow


@pytest.fixture
async def linto(tmp_path: Path) -> AsyncIterator[ServiceClient]:
    """The gateway on a folder as LinTO's users have it, which sends states often."""
    async with service_gateway(tmp_path, services={"ws_polling_interval_s": 0.1}) as client:
        yield client


async def test_upload_to_result(linto: ServiceClient) -> None:
    """A document is uploaded, its job polled to the result, and the manifest listed as it was written."""
    assert (await linto.http.get("/healthcheck")).json() == "1"
    (service,) = (await linto.http.get("/services")).json()
    assert service["name"] == "summarize-en"
    assert service["flavor"][0]["modelName"] == "m"
    answer = await linto.generate(temperature="0.5", top_p="0.9")
    assert (answer.status_code, answer.json()["message"]) == (200, "Request successfully queued")
    state = await linto.done(answer.json()["jobId"])
    assert (state["http"], state["status"], state["message"]) == (200, "complete", "success")
    assert state["summarization"] == state["summarization"].strip() != ""
    assert len(linto.chats) == 4
    assert all((chat["temperature"], chat["top_p"]) == (0.5, 0.9) for chat in linto.chats)


async def test_states_and_messages(linto: ServiceClient) -> None:
    """A running job reads 202 with a percentage in a string; both websockets tell its states, and its end at once."""
    linto.upstream.scenario = lambda seen: [normal() if "chat" not in seen.path else never()]
    job_id = (await linto.generate()).json()["jobId"]
    await linto.asked()
    async with asyncio.timeout(10):  # progress is written some moments after the model was asked
        while (answer := await linto.http.get(f"/results/{job_id}")).json()["status"] != "processing":
            assert answer.status_code == 202
    assert answer.status_code == 202
    assert answer.json() == {"status": "processing", "message": "Task is in progress", "progress": "0"}
    async with linto.socket(f"/ws/results/{job_id}") as one, linto.socket("/ws/results") as many:
        for _ in range(3):  # unchanged states are sent again
            assert json.loads(await one.recv()) == answer.json()
        await many.send(json.dumps([job_id, "nothing"]))
        unknown = {"task_id": "nothing", "status": "unknown", "message": "Task does not exist"}
        assert json.loads(await many.recv()) == [{"task_id": job_id, **answer.json()}, unknown]
        assert json.loads(await many.recv()) == {"task_id": job_id, **answer.json()}
        assert json.loads(await many.recv()) == {"status": "alive"}
        assert json.loads(await many.recv()) == {"status": "alive"}
        assert (await linto.http.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200
        error = {"status": "error", "message": "Task failed", "details": "The job was cancelled."}
        with pytest.raises(ConnectionClosed) as closed:
            while (message := json.loads(await one.recv())) != error:
                assert message == answer.json()
            await one.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
        while (message := json.loads(await many.recv())) == {"status": "alive"}:
            pass
        assert message == {"task_id": job_id, **error}
    assert await linto.done(job_id) == {"http": 500, **error}


async def test_websocket_of_a_job_that_succeeds(linto: ServiceClient) -> None:
    """The last message has the result, and the socket is closed after it; a finished job sends it first."""
    job_id = (await linto.generate()).json()["jobId"]
    for _ in range(2):
        async with linto.socket(f"/ws/results/{job_id}") as socket:
            messages = [json.loads(message) async for message in socket]
        assert messages[-1] == {key: value for key, value in (await linto.done(job_id)).items() if key != "http"}
    async with linto.socket("/ws/results") as many:
        await many.send(json.dumps([job_id]))
        ((told,),) = [json.loads(await many.recv())]
        assert (told["task_id"], told["status"], told["progress"]) == (job_id, "complete", "100")
    async with linto.socket("/ws/results/nothing") as nothing:
        messages = [json.loads(message) async for message in nothing]
    assert messages == [{"status": "unknown", "message": "Task does not exist"}]


async def test_refusals_in_words(linto: ServiceClient) -> None:
    """What is wrong has the status of its cause, and a sentence in `detail`."""
    assert (await linto.http.get("/results/nothing")).json() == {"detail": "Unknown task status"}
    refused = [
        (await linto.generate(flavor="nothing"), 404, "Flavor not found"),
        (await linto.generate(b""), 400, "The file is empty"),
        (await linto.generate(b"\x7fELF\0\0\0\1\2\3" * 50), 415, None),
        (await linto.generate(temperature="hot"), 400, "Field `temperature` is not a number."),
        (await linto.generate(temperature="3"), 400, "`temperature` is a number from 0 to 2."),
        (await linto.http.post("/services/none/generate", files={"file": b"a"}), 404, "Service not found"),
        (await linto.http.post("/services/summarize/en/generate", json={}), 415, None),
        (await linto.http.post("/services/summarize/en/generate", files={"x": b"a"}), 400, None),
        (await linto.http.get("/results/nothing", headers={"authorization": "Bearer x"}), 401, None),
    ]
    for answer, status, detail in refused:
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"].startswith(detail or "")
    missing = await linto.http.post("/services/summarize/en/generate", files={"file": b"a"})
    assert (missing.status_code, missing.json()["detail"][0]["loc"]) == (422, ["body", "flavor"])
    utf16 = await linto.generate(TEXT.encode("utf-16"), "réunion.txt")
    assert (await linto.done(utf16.json()["jobId"]))["status"] == "complete"


async def test_the_originals_variables_are_obeyed(tmp_path: Path) -> None:
    """With nothing of ours configured, models are found at OPENAI_API_BASE, calls bounded, retried and timed out."""
    async with service_gateway(tmp_path, from_variables=True) as linto:
        hanging = [never(), never()]

        def scenario(seen: Seen) -> list[Step]:
            return [hanging.pop() if "chat" in seen.path and hanging else normal()]

        linto.upstream.scenario = scenario
        job_id = (await linto.generate()).json()["jobId"]
        await linto.asked(2)
        assert len(linto.chats) == 2  # no more at once
        state = await linto.done(job_id)
        assert state["status"] == "complete", state  # the two calls that hung were given up and made again
        assert len(linto.chats) == 6
        stalled = [seen for seen in linto.upstream.requests if "chat" in seen.path][:2]
        assert all(seen.headers.get("authorization") == "Bearer upstream-token" for seen in stalled)
        models = (await linto.http.get("/v1/models")).json()["data"]
        assert "m" in [model["id"] for model in models]
        moved = await linto.http.get("/api-docs")
        assert (moved.status_code, moved.headers["location"]) == (308, "/docs")
        assert (await linto.http.get("/openapi.json")).json()["info"]["title"] == "LLM_Gateway"
