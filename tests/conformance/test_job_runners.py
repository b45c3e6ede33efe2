"""One suite for both runners: worker processes of our own, and Celery's on either broker, run jobs submitted here."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from amqp.exceptions import ChannelError
from tests.harness.jobworker import PRINCIPAL, RULES, JobProcess, calls
from tests.harness.oracles import becomes
from tests.harness.rabbitmq import RabbitProcess, unavailable
from tests.harness.valkey import ValkeyProcess

from passerelle.jobs.celery import QUEUE, CeleryRunner, celery_application
from passerelle.jobs.job import JobState, NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade

pytestmark = pytest.mark.slow


def rabbit(folder: Path) -> RabbitProcess:
    """Returns a RabbitMQ that is not started yet; the test is skipped where there is none."""
    if (why := unavailable()) is not None:
        pytest.skip(why)
    return RabbitProcess(folder)


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitProcess]:
    """A RabbitMQ for the module."""
    with rabbit(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A Valkey for the module."""
    with ValkeyProcess(tmp_path_factory.mktemp("broker")) as server:
        yield server


class Workplace:
    """Jobs here, and worker processes of one kind."""

    def __init__(self, home: Path, broker: str | None) -> None:
        self.home = home
        self.broker = broker
        self.database = open_database("sqlite", home)
        self.queue = JobQueue(self.database, rules=RULES)
        self.store = self.queue.store(PRINCIPAL)
        self.announcer = None if broker is None else CeleryRunner(self.queue, celery_application(broker))
        self.workers: list[JobProcess] = []

    async def start(self) -> None:
        """Prepares the database, and announces jobs."""
        await upgrade(self.database)
        if self.announcer is not None:
            await self.announcer.start()

    async def worker(self, grace_s: float = 1.0) -> JobProcess:
        """Starts a worker with four places."""
        options = () if self.broker is None else ("--broker", self.broker)
        made = JobProcess("sqlite", self.home, "--grace", str(grace_s), *options)
        self.workers.append(made)
        await asyncio.to_thread(made.wait_ready)
        return made

    async def submit(self, count: int, kind: str = "steps", step_s: float = 0.0) -> list[str]:
        """Submits jobs of three steps; returns their ids."""
        job = NewJob(kind=kind, payload={"steps": 3, "log": str(self.home / "calls"), "step_s": step_s})
        return [accepted.id for accepted in await asyncio.gather(*(self.store.submit(job) for _ in range(count)))]

    async def ended(self, ids: list[str], within_s: float = 60.0) -> list[JobState]:
        """Waits until all have ended, and returns how."""
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(self.queue.events.last(job_id) for job_id in ids))
        return [(await self.store.get(job_id)).state for job_id in ids]

    async def running(self) -> bool:
        """Whether some job runs."""
        return JobState.RUNNING in await self.queue.counts()

    async def aclose(self) -> None:
        """Ends everything."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
            for stream in (worker.process.stdout, worker.process.stderr):
                if stream is not None:
                    stream.close()
        if self.announcer is not None:
            await self.announcer.stop(0)
        await self.queue.aclose()
        await self.database.aclose()


BROKERS = ("valkey", "rabbitmq")


def depth(broker: str) -> int:
    """Returns how many messages wait in a broker."""
    with celery_application(broker).connection() as connection:
        try:
            return int(connection.default_channel.queue_declare(QUEUE, passive=True).message_count)
        except ChannelError:  # there is no queue before the first message
            return 0


@pytest_asyncio.fixture(params=["local", *BROKERS])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Workplace]:
    """A workplace of either kind."""
    broker = None if request.param == "local" else request.getfixturevalue(request.param).url
    made = Workplace(tmp_path, broker)
    await made.start()
    yield made
    await made.aclose()


async def test_jobs_are_run_and_stop_when_told(place: Workplace) -> None:
    """Forty jobs end; a running one is cancelled within two seconds; a worker that is told to stop gives back its jobs.

    What was given back, and what was cancelled, is as the queue promises; the worker ends with status 0.
    """
    worker = await place.worker(grace_s=0.2)
    ids = await place.submit(40)
    assert set(await place.ended(ids)) == {JobState.SUCCEEDED}
    assert {(await place.store.get(job_id)).attempt for job_id in ids} == {1}
    hanging = await place.submit(2, kind="hang")
    log = place.home / "calls"
    assert await becomes(lambda: log.read_text().count("hangs") == 2, 20)
    async with asyncio.timeout(20):
        await place.store.cancel(hanging[0])
        await place.queue.events.last(hanging[0])
    assert (await place.store.get(hanging[0])).state is JobState.CANCELLED
    worker.process.send_signal(signal.SIGTERM)
    _, said = await asyncio.to_thread(worker.wait)
    assert worker.process.returncode == 0, said
    given_back = await place.store.get(hanging[1])
    assert (given_back.state, given_back.tries) == (JobState.QUEUED, 0)


async def test_a_killed_worker_loses_nothing(place: Workplace) -> None:
    """SIGKILL in the middle of work: the next worker finishes every job, and repeats no finished step."""
    first = await place.worker()
    ids = await place.submit(12, step_s=0.1)
    assert await becomes(place.running, 20)
    assert await becomes(lambda: len(calls(place.home / "calls")) >= 6, 20)
    await asyncio.to_thread(first.kill)
    await place.worker()
    assert set(await place.ended(ids)) == {JobState.SUCCEEDED}
    repeated = len(calls(place.home / "calls")) - 36
    assert 0 <= repeated <= 4  # at most the step that each of the four places was at


@pytest.mark.parametrize("kind", BROKERS)
async def test_a_broker_that_lost_its_messages(tmp_path: Path, kind: str) -> None:
    """Jobs accepted while the broker is down, and messages that it lost, are announced again when it is back."""
    folder = tmp_path / "broker"
    broker = (ValkeyProcess(folder) if kind == "valkey" else rabbit(folder)).start()
    place = Workplace(tmp_path, broker.url)
    await place.start()
    try:
        lost = await place.submit(3)
        assert await becomes(lambda: depth(broker.url) == 3, 20)
        await asyncio.to_thread(broker.kill)
        shutil.rmtree(folder)
        unannounced = await place.submit(3)
        await asyncio.to_thread(broker.start)
        await place.worker()
        assert set(await place.ended([*lost, *unannounced])) == {JobState.SUCCEEDED}
    finally:
        await place.aclose()
        await asyncio.to_thread(broker.kill)
