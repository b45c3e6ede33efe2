"""`passerelle worker`: a process that runs jobs and serves nothing, with both engines."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.harness.oracles import becomes
from tests.harness.valkey import ValkeyProcess

from passerelle.domain.principal import Principal
from passerelle.jobs.job import JobState, NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade

pytestmark = pytest.mark.slow


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A broker for Celery."""
    with ValkeyProcess(tmp_path / "broker") as server:
        yield server.url


@pytest.mark.timeout(240)  # what it waits for below comes to two minutes at most
@pytest.mark.parametrize("engine", ["local", "celery"])
async def test_it_runs_jobs_until_told_to_stop(tmp_path: Path, broker: str, engine: str) -> None:
    """A worker takes a job that was there before it, says why it cannot run its kind, and ends with 0 at SIGTERM."""
    home = tmp_path / "home"
    database = open_database("sqlite", home)
    await upgrade(database)
    queue = JobQueue(database)
    store = queue.store(Principal("k", "k"))
    job_id = (await store.submit(NewJob(kind="divination"))).id
    environ = os.environ | {"PASSERELLE_JOBS__ENGINE": engine, "PASSERELLE_JOBS__BROKER": broker}
    worker = subprocess.Popen(
        [sys.executable, "-m", "passerelle", "worker", "--home", str(home), "--concurrency", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )
    try:
        ending = asyncio.create_task(queue.events.last(job_id))
        assert await becomes(lambda: ending.done() or worker.poll() is not None, 90)
        assert worker.poll() is None, worker.communicate()
        job = await store.get(job_id)
        assert job.state is JobState.DEAD and job.error is not None and job.error.code == "unknown_kind"
        worker.send_signal(signal.SIGTERM)
        assert await becomes(lambda: worker.poll() is not None, 60)
    finally:
        worker.kill()
        out, said = await asyncio.to_thread(worker.communicate)
    assert worker.returncode == 0, said
    assert out.startswith("Passerelle runs jobs")
    assert "Traceback" not in said
    await queue.aclose()
    await database.aclose()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PASSERELLE_JOBS__ENGINE", "carrier-pigeon", "jobs.engine"),
        ("PASSERELLE_JOBS__BROKER", "ftp://x", "jobs.broker"),
        ("PASSERELLE_FAILPOINT", "After Claim", "jobs.failpoint"),
        ("PASSERELLE_DATABASE", "postgresql://u:p@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, variable: str, value: str, says: str) -> None:
    """One line that names the key, and exit code 2."""
    environ = os.environ | {variable: value}
    command = [sys.executable, "-m", "passerelle", "worker", "--home", str(tmp_path)]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert says in ran.stderr and "Traceback" not in ran.stderr
