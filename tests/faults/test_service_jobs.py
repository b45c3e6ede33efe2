"""Rows E1 to E4 through the whole product: service jobs, while gateways, workers, broker and database are killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from tests.faults.table import row
from tests.harness.gateway import GatewayProcess
from tests.harness.oracles import becomes
from tests.harness.postgres import running_postgres
from tests.harness.rabbitmq import RabbitProcess, unavailable
from tests.harness.upstreamd import Seen, Step, Upstream, normal, stall, status
from tests.harness.valkey import ValkeyProcess

from passerelle.jobs.job import JobState
from passerelle.storage.engine import open_database
from passerelle.storage.tables import job_events, job_steps, jobs

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("PASSERELLE_TEST_KILLS", "6"))
"""How often a gateway or a worker is killed at random; 200 for a night's run."""
PLACES = ("before_commit:2", "after_commit:2", "after_claim", "after_step:2", "before_settle", "after_settle")
PARTS = 4
MANIFEST = {
    "name": "notes",
    "fields": 1,
    "limits": {"max_parallel": 2},
    "flavor": [{"name": "f", "modelName": "m", "maxGenerationLength": 40, "maxNewTurns": 3}],
}


def text_of(name: str) -> str:
    """A text that is read in `PARTS` calls; every line names its job."""
    return "\n".join(f"{'AB'[n % 2]} : job-{name} said number {n}" for n in range(3 * PARTS))


def answer_of(prompt: str) -> str:
    """What the model says to a prompt."""
    return f"noted {hashlib.sha256(prompt.encode()).hexdigest()[:16]}"


def prompt_of(seen: Seen) -> str:
    return str(seen.json["messages"][0]["content"])


def answers(seen: Seen) -> list[Step]:
    """The model: a rule of the prompt, after a moment."""
    if "chat" not in seen.path:
        return [normal()]
    message = {"role": "assistant", "content": answer_of(prompt_of(seen))}
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return [stall(0.05), status(200, content=json.dumps(document).encode())]


class Shop:
    """A gateway and a worker on one database, and the jobs that were accepted. Both can be killed at any time."""

    def __init__(self, folder: Path, upstream: Upstream, **settings: Any) -> None:
        (folder / "services").mkdir()
        (folder / "prompts").mkdir()
        (folder / "services" / "notes.yaml").write_text(json.dumps(MANIFEST))
        (folder / "prompts" / "notes.txt").write_text("Note:\n{}\n")
        jobs_section = {"lease_s": 3.0, **settings.pop("jobs", {})}
        models = [{"name": "m", "targets": [{"url": upstream.url, "model": "m"}]}]
        self.config: dict[str, Any] = {"models": models, "jobs": jobs_section, **settings}
        self.home = folder / "home"
        self.upstream = upstream
        self.gateway: GatewayProcess | None = None
        self.worker: subprocess.Popen[str] | None = None
        self.accepted: dict[str, str] = {}
        self._folder = folder
        self._offset_s = time.time() - time.monotonic()

    async def open(self, failpoint: str | None = None) -> GatewayProcess:
        """Starts the gateway."""
        environ = {} if failpoint is None else {"PASSERELLE_FAILPOINT": failpoint}
        self.gateway = GatewayProcess(self.home, self.config, environ=environ)
        await asyncio.to_thread(self.gateway.start)
        return self.gateway

    async def hire(self, failpoint: str | None = None) -> subprocess.Popen[str]:
        """Starts a worker; returns when it runs jobs."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PASSERELLE_")}
        if failpoint is not None:
            environ["PASSERELLE_FAILPOINT"] = failpoint
        config = self._folder / "home.yaml"
        command = [sys.executable, "-m", "passerelle", "worker", "--config", str(config), "--home", str(self.home)]
        with (self._folder / "worker.log").open("a") as log:
            self.worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environ)
        assert self.worker.stdout is not None
        line = await asyncio.to_thread(self.worker.stdout.readline)
        assert "runs jobs" in line or failpoint is not None
        return self.worker

    async def submit(self, *names: str) -> None:
        """Submits jobs until they are accepted, or the gateway is gone; asked again, the same key finds the job."""
        assert self.gateway is not None
        headers = {"authorization": f"Bearer {self.gateway.key}"}
        async with httpx.AsyncClient(base_url=self.gateway.url, headers=headers, timeout=30) as client:
            for name in names:
                body = {"input": text_of(name), "max_attempts": 100}
                try:
                    answer = await client.post(
                        "/v1/services/notes/jobs", json=body, headers={"idempotency-key": f"key-{name}"}
                    )
                except httpx.HTTPError:
                    return
                if answer.status_code == 503:
                    continue
                assert answer.status_code == 202, answer.text
                assert self.accepted.setdefault(name, answer.json()["id"]) == answer.json()["id"]

    async def insist(self, *names: str) -> None:
        """Submits jobs until all are accepted."""
        async with asyncio.timeout(30):
            while missing := [name for name in names if name not in self.accepted]:
                await self.submit(*missing)
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL for whatever runs."""
        self.shut()
        self.dismiss()

    def shut(self) -> None:
        """SIGKILL for the gateway."""
        gateway, self.gateway = self.gateway, None
        if gateway is not None:
            gateway.signal(signal.SIGKILL)
            gateway.wait(20)

    def dismiss(self) -> None:
        """SIGKILL for the worker."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait(20)
            assert self.worker.stdout is not None
            self.worker.stdout.close()
            self.worker = None

    async def check(self, within_s: float = 60.0) -> None:
        """All accepted jobs end once, with the result of an undisturbed run, and nothing finished was asked again."""
        database = open_database(self.config.get("database", "sqlite"), self.home)
        try:

            async def ended() -> bool:
                async with database.read() as connection:
                    states = [state for (state,) in await connection.execute(select(jobs.c.state))]
                return not {"queued", "running"} & set(states)

            assert await becomes(ended, within_s)
            async with database.read() as connection:
                rows = (await connection.execute(select(jobs))).all()
                events = (await connection.execute(select(job_events).order_by("job_id", "seq"))).all()
                steps = (await connection.execute(select(job_steps))).all()
        finally:
            await database.aclose()
        by_key = {job.idempotency_key: job for job in rows}
        assert len(by_key) == len(rows), "one key made two jobs"
        assert {name: by_key[f"key-{name}"].id for name in self.accepted} == self.accepted
        assert Counter(job.state for job in rows) == {"succeeded": len(rows)}
        terminal = set(JobState) - {JobState.QUEUED, JobState.RUNNING}
        for job in rows:
            mine = [event for event in events if event.job_id == job.id]
            assert [event.seq for event in mine] == list(range(1, len(mine) + 1))
            assert [event.type for event in mine if event.type in terminal] == ["succeeded"] == [mine[-1].type]
        self._check_calls({job.id: job for job in rows}, steps)

    def _check_calls(self, by_id: dict[str, Any], steps: list[Any]) -> None:
        """Of each prompt: one kept step, no call after that was kept, and no more calls than attempts."""
        calls: dict[str, list[float]] = {}
        for seen in self.upstream.requests:
            if "chat" in seen.path:
                calls.setdefault(prompt_of(seen), []).append((seen.at + self._offset_s) * 1000)
        names = {job.id: job.idempotency_key.removeprefix("key-") for job in by_id.values()}
        kept = {json.loads(step.output)["text"]: step for step in steps}
        assert len(kept) == len(steps) == PARTS * len(by_id)
        for prompt, at_ms in calls.items():
            step = kept[answer_of(prompt)]
            assert f"job-{names[step.job_id]} " in prompt
            assert [at for at in at_ms if at > step.at_ms + 20] == [], "a finished step was asked again"
            assert len(at_ms) <= by_id[step.job_id].attempt
        assert len(calls) == len(steps)

    async def results(self) -> dict[str, str]:
        """Returns the results of the accepted jobs."""
        assert self.gateway is not None
        headers = {"authorization": f"Bearer {self.gateway.key}"}
        async with httpx.AsyncClient(base_url=self.gateway.url, headers=headers, timeout=30) as client:
            return {
                name: (await client.get(f"/v1/jobs/{job_id}/result")).json()["content"]
                for name, job_id in self.accepted.items()
            }


@asynccontextmanager
async def shop(folder: Path, **settings: Any) -> AsyncIterator[Shop]:
    """A shop whose first job, ``0000``, ran undisturbed."""
    async with Upstream(kind="vllm", scenario=answers) as upstream:
        made = Shop(folder, upstream, **settings)
        try:
            yield made
        finally:
            await asyncio.to_thread(made.kill)


async def undisturbed(made: Shop) -> list[str]:
    """Runs the job ``0000``; returns its prompts in the order of the text."""
    await made.insist("0000")
    await made.check()
    found = {prompt_of(seen) for seen in made.upstream.requests if "chat" in seen.path}
    return sorted(found, key=lambda prompt: int(prompt.split("number ", 1)[1].split()[0]))


async def as_undisturbed(made: Shop, prompts: list[str]) -> None:
    """Each result is what an undisturbed run makes of that text."""
    for name, content in (await made.results()).items():
        assert content == "\n".join(answer_of(prompt.replace("job-0000 ", f"job-{name} ")) for prompt in prompts)


@row("E1", "E2", "E3")
@pytest.mark.timeout(120 + 6 * KILLS)
async def test_gateways_and_workers_killed_at_random(tmp_path: Path) -> None:
    """Now one and now the other dies at its work: each job ends once, as if nothing had been, no answer asked twice."""
    rng = random.Random(11)
    async with shop(tmp_path) as made:
        await made.open()
        prompts = await undisturbed(made)
        asked = []
        for number in range(1, KILLS + 1):
            names = [f"{number:04}", f"{number + 5000:04}"]
            asked += names
            if number % 2:
                await made.hire()
            submitting = asyncio.create_task(made.submit(*names))
            await asyncio.sleep(rng.uniform(0.005, 0.35))  # the moment is the point
            if number % 2:
                await asyncio.to_thread(made.dismiss)
            else:
                await asyncio.to_thread(made.kill)
                await made.open()
            await submitting
        await made.insist(*asked)
        await made.check(120)
        await as_undisturbed(made, prompts)


@row("E1", "E2", "E3", "E4")
@pytest.mark.timeout(120 + 10 * KILLS)
async def test_whatever_there_is_killed_at_random(tmp_path: Path) -> None:
    """Gateway, Celery's worker, its broker with all messages, PostgreSQL: each dies in its turn, at any moment."""
    rng = random.Random(12)
    folder = tmp_path / "broker"
    with running_postgres() as server, ValkeyProcess(folder) as broker:
        jobs = {"engine": "celery", "broker": broker.url}
        async with shop(tmp_path, database=await server.new_database(), jobs=jobs) as made:
            await made.open()
            await made.hire()
            prompts = await undisturbed(made)
            deaths: list[tuple[Callable[[], None], Callable[[], Awaitable[object]]]] = [
                (made.shut, made.open),
                (made.dismiss, made.hire),
                (broker.kill, partial(asyncio.to_thread, broker.start)),
                (server.kill, partial(asyncio.to_thread, server.restart)),
            ]
            asked: list[str] = []
            for number in range(KILLS):
                names = [f"{2 * number + 1:04}", f"{2 * number + 2:04}"]
                asked += names
                if number % len(deaths) == 0:
                    rng.shuffle(deaths)
                kill, again = deaths[number % len(deaths)]
                submitting = asyncio.create_task(made.submit(*names))
                await asyncio.sleep(rng.uniform(0.005, 0.6))  # the moment is the point
                await asyncio.to_thread(kill)
                await asyncio.sleep(rng.uniform(0, 0.3))
                await again()
                await submitting
            await made.insist(*asked)
            await made.check(120)
            await as_undisturbed(made, prompts)
            assert made.worker is not None and made.worker.poll() is None
            assert made.gateway is not None and made.gateway.get("/health")[0] == 200


@row("E1", "E2", "E3")
async def test_gateways_killed_at_named_points(tmp_path: Path) -> None:
    """Around the commit of a job, after a claim, after a step, around the end: the next gateway makes it whole."""
    async with shop(tmp_path) as made:
        await made.open()
        prompts = await undisturbed(made)
        for number, place in enumerate(PLACES, 1):
            await asyncio.to_thread(made.kill)
            victim = await made.open(place)
            await made.submit(f"{number:04}")
            assert await asyncio.to_thread(victim.wait, 30) == -signal.SIGKILL, place
            made.gateway = None
            await made.open()
            await made.insist(f"{number:04}")
        await made.check()
        await as_undisturbed(made, prompts)


@row("E4")
async def test_postgres_killed_under_service_jobs(tmp_path: Path) -> None:
    """The database dies while jobs run and are submitted: 503 meanwhile, then every accepted job ends as it should."""
    with running_postgres() as server:
        async with shop(tmp_path, database=await server.new_database()) as made:
            gateway = await made.open()
            prompts = await undisturbed(made)
            for number in range(2):
                names = [f"{number + 1:02}{n:02}" for n in range(6)]
                await made.submit(*names[:3])
                await asyncio.to_thread(server.kill)
                await made.submit(*names[3:])
                await asyncio.to_thread(server.restart)
                await made.insist(*names)
            await made.check()
            await as_undisturbed(made, prompts)
            assert made.gateway is gateway and gateway.get("/health")[0] == 200


@row("E1")
@pytest.mark.parametrize("kind", ["valkey", "rabbitmq"])
async def test_broker_and_celery_worker_killed_under_service_jobs(tmp_path: Path, kind: str) -> None:
    """Celery's broker loses everything, then its worker dies: the database knows what is left to do."""
    if kind == "rabbitmq" and (why := unavailable()) is not None:
        pytest.skip(why)
    folder = tmp_path / "broker"
    with ValkeyProcess(folder) if kind == "valkey" else RabbitProcess(folder) as broker:
        async with shop(tmp_path, jobs={"engine": "celery", "broker": broker.url}) as made:
            await made.open()
            await made.hire()
            prompts = await undisturbed(made)
            await made.submit("0101", "0102", "0103")
            await asyncio.to_thread(broker.kill)
            shutil.rmtree(folder)
            await made.submit("0104", "0105")
            await asyncio.to_thread(broker.start)
            await made.submit("0106", "0107")
            await asyncio.to_thread(made.dismiss)
            await made.hire()
            await made.insist(*(f"01{n:02}" for n in range(1, 8)))
            await made.check()
            await as_undisturbed(made, prompts)
