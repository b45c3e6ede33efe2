"""A service job through the whole product: submitted to the store, run by the runner, its calls made by the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.harness.upstreamd import Upstream, never, normal

from passerelle.app import Passerelle
from passerelle.domain.principal import Principal, Scope
from passerelle.jobs.job import Job, JobState, NewJob
from passerelle.services.job import KIND, ServiceRequest
from passerelle.settings import load_configuration
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade

MANIFEST = """
name: summarize-en
route: summarize-en
fields: 1
flavor:
  - {name: simple, modelName: m, totalContextLength: 200, maxGenerationLength: 40, maxNewTurns: 3}
"""
CALLER = Principal("static", "static", scopes=frozenset({Scope.INFERENCE, Scope.SERVICES}))
TEXT = "\n".join(f"{'AB'[n % 2]} : said number {n} and more" for n in range(12))


@asynccontextmanager
async def passerelle(folder: Path, upstream: Upstream) -> AsyncIterator[Passerelle]:
    """A whole process's gateway, without its HTTP server."""
    (folder / "services").mkdir()
    (folder / "prompts").mkdir()
    (folder / "services" / "en.yaml").write_text(MANIFEST)
    (folder / "prompts" / "summarize-en.txt").write_text("Summarize:\n{}\n")
    config = {
        "auth": {"api_key": "a-static-key-of-tests"},
        "models": [{"name": "m", "targets": [{"url": upstream.url, "model": "m"}]}],
    }
    (folder / "passerelle.yaml").write_text(json.dumps(config))
    environ = {"PASSERELLE_HOME": str(folder / "home"), "HOME": str(folder)}
    configuration = load_configuration(folder / "passerelle.yaml", environ)
    database = open_database("sqlite", folder / "home")
    await upgrade(database)
    await database.aclose()
    made = Passerelle(configuration, environ, {})
    await made.start()
    try:
        yield made
    finally:
        made.begin_draining()
        await made.stop()


async def ended(made: Passerelle, job_id: str, within_s: float = 30.0) -> Job:
    """Returns a job once it has ended."""
    store = made.jobs.store(CALLER)
    async with asyncio.timeout(within_s):
        while not (job := await store.get(job_id)).state.terminal:
            await asyncio.sleep(0.02)
    return job


async def submit(made: Passerelle, **fields: str) -> str:
    request = ServiceRequest(**{"service": "summarize-en", "text": TEXT, **fields})
    return (await made.jobs.store(CALLER).submit(NewJob(kind=KIND, payload=request))).id


async def test_a_text_becomes_a_result(tmp_path: Path) -> None:
    """Every part is asked of the model under the caller's key, and the result says what it covers."""
    async with Upstream(kind="vllm") as upstream, passerelle(tmp_path, upstream) as made:
        assert [service.name for service in made.workshop.holder.current.services.values()] == ["summarize-en"]
        job = await ended(made, await submit(made))
        assert job.state is JobState.SUCCEEDED
        result = await made.jobs.store(CALLER).result(job.id)
        assert result.content.count("tok") >= 4
        assert result.details is not None
        assert result.details["coverage"]["complete"] is True
        assert result.details["calls"] == len([seen for seen in upstream.requests if "chat" in seen.path]) == 4
        assert result.details["usage"]["completion_tokens"] > 0


async def test_an_ended_key_ends_its_jobs(tmp_path: Path) -> None:
    """A job of a key that does not exist any more fails in words, before any model is asked."""
    async with Upstream(kind="vllm") as upstream, passerelle(tmp_path, upstream) as made:
        stranger = Principal("key_gone", "gone", scopes=CALLER.scopes)
        request = ServiceRequest(service="summarize-en", text=TEXT)
        job_id = (await made.jobs.store(stranger).submit(NewJob(kind=KIND, payload=request))).id
        store = made.jobs.store(stranger)
        async with asyncio.timeout(30):
            while not (job := await store.get(job_id)).state.terminal:
                await asyncio.sleep(0.02)
        assert job.state is JobState.FAILED
        assert job.error is not None
        assert job.error.code == "key_ended"
        assert not [seen for seen in upstream.requests if "chat" in seen.path]


async def test_cancel_reaches_the_running_call(tmp_path: Path) -> None:
    """The model server sees its connection close within two seconds."""
    async with Upstream(kind="vllm") as upstream, passerelle(tmp_path, upstream) as made:
        upstream.scenario = lambda seen: [never()] if "chat" in seen.path else [normal()]
        job_id = await submit(made)
        await upstream.until(lambda: any("chat" in seen.path for seen in upstream.requests), 10)
        await made.jobs.store(CALLER).cancel(job_id)
        job = await ended(made, job_id, 20)
        assert job.state is JobState.CANCELLED
        chats = [seen for seen in upstream.requests if "chat" in seen.path]
        await upstream.until(lambda: all(seen.peer.closed_at is not None for seen in chats), 2.0)
