"""`passerelle job`: what an operator sees and does, on a database without a server."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner
from typer.testing import Result as Ran

from passerelle.cli.job import Bar
from passerelle.cli.main import application
from passerelle.domain.principal import Principal
from passerelle.jobs.job import Job, JobError, JobEvent, JobState, NewJob, Result
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.writes import Append, Settlement
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade

PROGRESS = '{"percent":50,"current":1,"total":2,"phase":"reading"}'


def on(home: Path, work: Callable[[JobQueue], Awaitable[object]]) -> object:
    """Does something with the queue in that home."""

    async def run() -> object:
        database = open_database("sqlite", home)
        await upgrade(database)
        queue = JobQueue(database)
        try:
            return await work(queue)
        finally:
            await queue.aclose()
            await database.aclose()

    return asyncio.run(run())


def job_in(home: Path, state: JobState | None) -> str:
    """Makes a job in that state; None leaves it queued. Returns its id."""

    async def make(queue: JobQueue) -> str:
        store = queue.store(Principal("key_1", "k", organisation="acme"))
        job_id = (await store.submit(NewJob(kind="summary", subject="summarize-en"))).id
        if state is not None:
            (claim,) = await queue.claim("w", 1)
            await queue.append(Append(job_id, claim.attempt, (("progress", PROGRESS),), PROGRESS))
            error = None if state is JobState.SUCCEEDED else JobError("model_down", "No target answers.")
            result = Result(content="x") if state is JobState.SUCCEEDED else None
            await queue.settle(Settlement(job_id, claim.attempt, state, error=error, result=result))
        return job_id

    return str(on(home, make))


def job(home: Path, *words: str) -> Ran:
    """Runs `passerelle job` with these words."""
    return CliRunner().invoke(application("job"), ["job", *words, "--home", str(home)])


def state_of(home: Path, job_id: str) -> Job:
    """Returns a job."""

    async def get(queue: JobQueue) -> Job:
        return await (await queue.store_of(job_id)).get(job_id)

    found = on(home, get)
    assert isinstance(found, Job)
    return found


def test_list_and_show(tmp_path: Path) -> None:
    """The list shows state, progress and error, as a table or JSON, by state and organisation; show adds the events."""
    dead, queued = job_in(tmp_path, JobState.DEAD), job_in(tmp_path, None)
    table = job(tmp_path, "list").stdout
    assert dead in table and queued in table and "50 % reading" in table and "No target answers." in table
    listed = json.loads(job(tmp_path, "list", "--state", "dead", "--json").stdout)
    assert [(line["id"], line["state"], line["subject"]) for line in listed] == [(dead, "dead", "summarize-en")]
    assert json.loads(job(tmp_path, "list", "--organisation", "rival", "--json").stdout) == []
    assert "No jobs." in job(tmp_path, "list", "--state", "running").stderr
    shown = job(tmp_path, "show", dead).stdout
    assert "model_down" in shown and "     3  " in shown and "started" in shown
    events = json.loads(job(tmp_path, "show", dead, "--json").stdout)["events"]
    assert [event["type"] for event in events] == ["queued", "started", "progress", "dead"]


def test_cancel_and_replay(tmp_path: Path) -> None:
    """A queued job is cancelled, one that ended is not; a dead one is replayed as a new job of the same tenant."""
    queued, dead, done = (job_in(tmp_path, state) for state in (None, None, None))
    assert job(tmp_path, "cancel", queued).stdout == "cancelled\n"
    assert state_of(tmp_path, queued).state is JobState.CANCELLED
    assert job(tmp_path, "cancel", dead).exit_code == 0
    again = job(tmp_path, "replay", dead).stdout.strip()
    assert (state_of(tmp_path, again).replay_of, state_of(tmp_path, again).organisation) == (dead, "acme")
    refused = job(tmp_path, "replay", done)
    assert refused.exit_code == 2 and "only one that failed is replayed" in refused.stderr


@pytest.mark.parametrize("verb", ["show", "cancel", "replay", "tail"])
def test_a_job_that_is_not_there(tmp_path: Path, verb: str) -> None:
    """One clear line and exit code 2."""
    refused = job(tmp_path, verb, "job_nothing")
    assert refused.exit_code == 2
    assert refused.stderr == "There is no job 'job_nothing'; `passerelle job list` shows them.\n"


def test_tail_follows_to_the_end(tmp_path: Path) -> None:
    """Each event is a line; the exit code says whether the job succeeded; it can begin after a number."""
    done = job_in(tmp_path, JobState.SUCCEEDED)
    followed = job(tmp_path, "tail", done)
    assert followed.exit_code == 0
    assert [line.split()[3] for line in followed.stdout.splitlines()] == ["queued", "started", "progress", "succeeded"]
    assert len(job(tmp_path, "tail", done, "--since", "3").stdout.splitlines()) == 1
    assert job(tmp_path, "tail", job_in(tmp_path, JobState.DEAD)).exit_code == 1


def test_the_bar_shows_the_phase_and_how_far() -> None:
    """On a terminal progress moves a bar; other events are lines above it."""
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, width=100))
    with bar:
        bar.show(JobEvent("job_x", 1, 0, "queued"))
        bar.show(JobEvent("job_x", 2, 0, "progress", PROGRESS))
        bar.show(JobEvent("job_x", 3, 0, "retry", '{"delay_s":1.5}'))
        bar.show(JobEvent("job_x", 4, 0, "progress", PROGRESS))
    shown = screen.getvalue()
    assert "reading" in shown and "50%" in shown and "1/2" in shown and "delay_s" in shown
