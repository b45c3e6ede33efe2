"""A worker, or a submitter, of jobs in a process of its own, to be killed: ``python -m tests.harness.jobworker``.

Its jobs note each model call they make (each computed step) in a file, one line at a time, before its output is kept:
what `Calls` reads is what a scripted model server would have counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from passerelle.domain.principal import Principal
from passerelle.jobs.context import JobContext, Kind, Kinds
from passerelle.jobs.failpoint import Failpoint
from passerelle.jobs.job import NewJob, Result
from passerelle.jobs.queue import JobQueue, QueueRules
from passerelle.jobs.retry import BackOff
from passerelle.jobs.runner import LocalRunner
from passerelle.storage.engine import open_database

PRINCIPAL = Principal("key_test", "test", organisation="acme", project="docs")
RULES = QueueRules(
    lease_s=1.2, heartbeat_s=0.3, reap_s=0.1, cancel_s=0.2, retain_s=None, back_off=BackOff(base_s=0.05, most_s=0.2)
)
"""What both sides of a test use: a lost worker is noticed within a second or two."""


class Steps(msgspec.Struct):
    """The payload of a job of the kind ``steps``."""

    steps: int
    log: str
    step_s: float = 0.0


async def steps(context: JobContext) -> Result:
    """Computes so many steps, each of which is a model call that is noted."""
    wanted = context.payload(Steps)

    async def call(number: int) -> str:
        note(wanted.log, f"{context.job.id} {number} {context.job.attempt}")
        if wanted.step_s:
            await asyncio.sleep(wanted.step_s)
        return f"out-{number}"

    outputs = []
    for number in range(wanted.steps):
        outputs.append(await context.checkpoint("call", number, lambda number=number: call(number), str))
        context.progress(number + 1, wanted.steps, "calling")
    return Result(content=",".join(outputs))


async def crash(context: JobContext) -> None:
    """Takes its process along, as a fault in a native library does."""
    os.kill(os.getpid(), signal.SIGSEGV)


async def hang(context: JobContext) -> None:
    """Waits until it is stopped."""
    note(context.payload(Steps).log, f"{context.job.id} hangs {context.job.attempt}")
    await asyncio.Event().wait()


async def tiny(context: JobContext) -> None:
    """Does nothing."""


KINDS = (Kind("steps", steps), Kind("crash", crash), Kind("hang", hang), Kind("tiny", tiny))


def note(path: str, line: str) -> None:
    """Adds a line to a file, whole, whoever else does."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


@dataclass(frozen=True, slots=True)
class Call:
    """One noted model call."""

    job_id: str
    step: int
    attempt: int


def calls(path: Path) -> list[Call]:
    """Returns the noted calls, in order."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Call(job_id, int(step), int(attempt)) for job_id, step, attempt in lines if step != "hangs"]


class JobProcess:
    """A child process of this module."""

    def __init__(self, url: str, home: Path, *arguments: str, failpoint: str | None = None) -> None:
        environ = {key: value for key, value in os.environ.items() if key != "PASSERELLE_FAILPOINT"}
        if failpoint is not None:
            environ["PASSERELLE_FAILPOINT"] = failpoint
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.jobworker", "--database", url, "--home", str(home), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])},
        )

    def wait_ready(self, timeout_s: float = 30.0) -> JobProcess:
        """Returns when it works."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.strip() == "ready", self.kill()
        return self

    def kill(self) -> str:
        """SIGKILL; returns what it had said on standard error."""
        self.process.kill()
        return self.wait()[1]

    def wait(self, timeout_s: float = 30.0) -> tuple[str, str]:
        """Waits for its end; returns what it wrote."""
        return self.process.communicate(timeout=timeout_s)


async def _work(arguments: argparse.Namespace) -> None:
    database = open_database(arguments.database, arguments.home)
    queue = JobQueue(database, rules=RULES, failpoint=Failpoint(os.environ.get("PASSERELLE_FAILPOINT")))
    await queue.start()
    runner = LocalRunner(queue, Kinds(KINDS), concurrency=arguments.concurrency)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await runner.start()
    print("ready", flush=True)
    await stopped.wait()
    await runner.stop(arguments.grace)
    await queue.aclose()
    await database.aclose()


def _work_for_celery(arguments: argparse.Namespace) -> None:
    from passerelle.jobs.celery import CeleryRunner, celery_application, serve_celery

    announcers: list[CeleryRunner] = []

    async def opened() -> tuple[JobQueue, Kinds]:
        database = open_database(arguments.database, arguments.home)
        queue = JobQueue(database, rules=RULES, failpoint=Failpoint(os.environ.get("PASSERELLE_FAILPOINT")))
        await queue.start()
        announcers.append(CeleryRunner(queue, celery_application(arguments.broker)))
        await announcers[0].start()
        return queue, Kinds(KINDS)

    async def closed(queue: JobQueue) -> None:
        await announcers[0].stop(0)
        await queue.aclose()
        await queue.database.aclose()

    print("ready", flush=True)
    serve_celery(
        opened,
        closed,
        broker=arguments.broker,
        concurrency=arguments.concurrency,
        grace_s=arguments.grace,
    )


async def _submit(arguments: argparse.Namespace) -> None:
    database = open_database(arguments.database, arguments.home)
    queue = JobQueue(database, rules=RULES, failpoint=Failpoint(os.environ.get("PASSERELLE_FAILPOINT")))
    print("ready", flush=True)
    job = NewJob(kind="tiny", idempotency_key=arguments.idempotency_key)
    print((await queue.store(PRINCIPAL).submit(job)).id, flush=True)
    await queue.aclose()
    await database.aclose()


def main() -> None:
    """Works until SIGTERM, or submits one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--grace", type=float, default=1.0)
    parser.add_argument("--broker")
    parser.add_argument("--idempotency-key")
    arguments = parser.parse_args()
    if arguments.idempotency_key:
        asyncio.run(_submit(arguments))
    elif arguments.broker:
        _work_for_celery(arguments)
    else:
        asyncio.run(_work(arguments))


if __name__ == "__main__":
    main()
