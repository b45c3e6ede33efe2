"""Tiny jobs: accepted and run by the in-process runner on SQLite, beside Celery and Valkey alone, in the same run.

    python -m benchmarks.jobs [--jobs 3000] [--rounds 3]

Ours is durable (`synchronous=FULL`, a job is accepted after the commit); Celery's messages lie in a broker that writes
nothing to disk. Both run one worker: ours in this event loop, Celery's a process of its own. They take turns, every
second round backwards: the best of the rounds is shown for each, and the median of the ratios within the rounds.
Pick-up is the time from the accepted answer to the first line of the handler, one job at a time. How late a timer of
3 ms fires meanwhile is what the machine itself adds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import redis
from celery import Celery
from tests.harness.valkey import ValkeyProcess

from passerelle.domain.principal import Principal
from passerelle.jobs.context import JobContext, Kind, Kinds
from passerelle.jobs.job import NewJob
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.runner import LocalRunner
from passerelle.storage.engine import open_database
from passerelle.storage.migrations import upgrade

SUBMITTERS = 100
"""Requests that submit at the same time."""
PICKUPS = 300
RATIOS = ("accepted/s", "end to end/s")


async def nothing(context: JobContext) -> None:
    """A tiny job."""


async def ours(home: Path, jobs: int) -> dict[str, float]:
    """Returns accepted/s, ended/s from the first submission on, and pick-up times in milliseconds."""
    database = open_database("sqlite", home)
    await upgrade(database)
    queue = JobQueue(database)
    store = queue.store(Principal("key_bench", "bench"))
    kinds = Kinds([Kind("tiny", nothing)])

    async def submit(count: int) -> None:
        for number in range(count):
            await store.submit(NewJob(kind="tiny", payload={"n": number}))

    async def submit_all() -> None:
        await asyncio.gather(*(submit(jobs // SUBMITTERS) for _ in range(SUBMITTERS)))

    began = time.perf_counter()
    await submit_all()
    figures = {"accepted/s": jobs / (time.perf_counter() - began)}
    runner = LocalRunner(queue, kinds, concurrency=16)
    await runner.start()
    await _empty(queue)
    began = time.perf_counter()
    await submit_all()
    await _empty(queue)
    figures["end to end/s"] = jobs / (time.perf_counter() - began)
    figures |= await _pickup_ms(queue, kinds)
    await runner.stop(0)
    await queue.aclose()
    await database.aclose()
    return figures


async def _empty(queue: JobQueue) -> None:
    while await queue.counts():
        await asyncio.sleep(0.01)


async def _pickup_ms(queue: JobQueue, kinds: Kinds) -> dict[str, float]:
    store = queue.store(Principal("key_bench", "bench"))
    begun_s = 0.0
    begun = asyncio.Event()

    async def note(context: JobContext) -> None:
        nonlocal begun_s
        begun_s = time.perf_counter()
        begun.set()

    kinds.add(Kind("note", note))
    took_ms, late_ms = [], []
    for _ in range(PICKUPS):
        begun.clear()
        await store.submit(NewJob(kind="note"))
        accepted_s = time.perf_counter()
        await begun.wait()
        took_ms.append(1000 * max(0.0, begun_s - accepted_s))
        asleep_s = time.perf_counter()
        await asyncio.sleep(0.003)
        late_ms.append(1000 * (time.perf_counter() - asleep_s) - 3)
    took_ms.sort()
    late_ms.sort()
    return {
        "pick-up p50 ms": took_ms[PICKUPS // 2],
        "pick-up p99 ms": took_ms[PICKUPS * 99 // 100],
        "timer late p99 ms": late_ms[PICKUPS * 99 // 100],
    }


def celery(folder: Path, jobs: int) -> dict[str, float]:
    """Returns enqueued/s and ended/s from the first message on, of Celery with one worker process."""
    with ValkeyProcess(folder / "broker") as broker:
        app = Celery("bench", broker=broker.url, set_as_current=False)
        app.conf.task_ignore_result = True
        command = [sys.executable, "-m", "benchmarks.jobs", "--celery-worker", broker.url]
        worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with redis.Redis.from_url(broker.url) as client:
            try:
                _send(app, 1)
                _ended(client, 1)
                client.delete("ended")
                began = time.perf_counter()
                _send(app, jobs)
                sent_s = time.perf_counter() - began
                _ended(client, jobs)
                ended_s = time.perf_counter() - began
            finally:
                worker.terminate()
                worker.wait()
        return {"accepted/s": jobs / sent_s, "end to end/s": jobs / ended_s}


def _send(app: Celery, count: int) -> None:
    for number in range(count):
        app.send_task("bench.tiny", args=[number])


def _ended(client: redis.Redis, count: int) -> None:
    while int(client.get("ended") or 0) < count:  # type: ignore[arg-type]
        time.sleep(0.005)


def celery_worker(broker: str) -> None:
    """A Celery worker whose task counts itself."""
    app = Celery("bench", broker=broker, set_as_current=False)
    app.conf.task_ignore_result = True
    client = redis.Redis.from_url(broker)

    @app.task(name="bench.tiny")
    def tiny(number: int) -> None:
        client.incr("ended")

    app.worker_main(["worker", "--concurrency=1", "--loglevel=ERROR"])


def main() -> None:
    """Prints the figures of each as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--celery-worker")
    arguments = parser.parse_args()
    if arguments.celery_worker:
        celery_worker(arguments.celery_worker)
        return
    jobs = arguments.jobs
    rounds: dict[str, list[dict[str, float]]] = {"passerelle": [], "celery": []}
    for number in range(arguments.rounds):
        for name in list(rounds) if number % 2 == 0 else reversed(rounds):
            with TemporaryDirectory() as folder:
                home = Path(folder)
                ran = celery(home, jobs) if name == "celery" else asyncio.run(ours(home, jobs))
                rounds[name].append(ran)
    pairs = list(zip(rounds["passerelle"], rounds["celery"], strict=True))
    ratios = {name: round(median(one[name] / other[name] for one, other in pairs), 1) for name in RATIOS}
    print(json.dumps({name: _best(figures) for name, figures in rounds.items()} | {"ratios": ratios}, indent=2))


def _best(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: round((min if name.endswith("ms") else max)(figures[name] for figures in rounds), 1) for name in rounds[0]
    }


if __name__ == "__main__":
    main()
