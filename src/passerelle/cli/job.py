"""``passerelle job``: what runs, what waits, what failed; beside a running server or without one."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from passerelle.cli.duration import show_moment
from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, JsonOption, on_database
from passerelle.jobs.job import EventType, Job, JobEvent, JobState
from passerelle.jobs.queue import JobQueue
from passerelle.storage.engine import Database

app = typer.Typer(help="List, show, cancel, replay and follow jobs.", no_args_is_help=True)

T = TypeVar("T")
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id.")]
EXIT_NOT_SUCCEEDED = 1


@app.command("list")
def list_jobs(
    state: Annotated[
        list[JobState] | None,
        typer.Option("--state", "-s", help="Only those in this state; several times for several."),
    ] = None,
    organisation: Annotated[str | None, typer.Option(help="Only those of this organisation, by its id.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")] = 20,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show the newest jobs."""
    found = _on_queue(
        config, home, database, lambda q: q.overview(organisation=organisation, states=state or (), limit=limit)
    )
    if as_json:
        print(json.dumps([_fields(job) for job in found], indent=2))
    elif not found:
        print("No jobs.", file=sys.stderr)
    else:
        _print_table(found)


@app.command()
def show(
    job_id: JobArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show a job and its events."""

    async def read(queue: JobQueue) -> tuple[Job, Sequence[JobEvent]]:
        store = await queue.store_of(job_id)
        return await store.get(job_id), await store.events(job_id)

    job, events = _on_queue(config, home, database, read)
    if as_json:
        print(json.dumps({**_fields(job), "events": [_event_fields(event) for event in events]}, indent=2))
        return
    for name, value in _fields(job).items():
        if value is not None:
            print(f"{name:>24}  {_shown(name, value)}")
    for event in events:
        print(_line(event))


@app.command()
def cancel(
    job_id: JobArgument, config: ConfigOption = None, home: HomeOption = None, database: DatabaseOption = None
) -> None:
    """Stop a job: at once when it waits, within two seconds when it runs."""

    async def stop(queue: JobQueue) -> Job:
        return await (await queue.store_of(job_id)).cancel(job_id)

    job = _on_queue(config, home, database, stop)
    print("cancelled" if job.state is JobState.CANCELLED else "asked to stop")


@app.command()
def replay(
    job_id: JobArgument, config: ConfigOption = None, home: HomeOption = None, database: DatabaseOption = None
) -> None:
    """Try a failed, dead or cancelled job once more, as a new job; its finished steps are not repeated."""

    async def again(queue: JobQueue) -> str:
        return (await (await queue.store_of(job_id)).replay(job_id)).id

    print(_on_queue(config, home, database, again))


@app.command()
def tail(
    job_id: JobArgument,
    since: Annotated[int, typer.Option(help="Begin after the event of this number.")] = 0,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Follow a job to its end: a live bar on a terminal, else a line for each event. Exit 1 unless it succeeds."""
    view: Lines | Bar = Bar() if sys.stdout.isatty() else Lines()

    async def follow(queue: JobQueue) -> JobState:
        store = await queue.store_of(job_id)
        with view:
            async with aclosing(queue.events.follow(job_id, since)) as events:
                async for event in events:
                    view.show(event)
        return (await store.get(job_id)).state

    if _on_queue(config, home, database, follow) is not JobState.SUCCEEDED:
        raise typer.Exit(EXIT_NOT_SUCCEEDED)


class Lines:
    """A line for each event."""

    def show(self, event: JobEvent) -> None:
        """Takes one event."""
        print(_line(event), flush=True)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Bar:
    """A moving bar with the phase, and a line for each event that is no progress."""

    def __init__(self, console: Console | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console)
        self._task = self._bar.add_task(JobState.QUEUED.value, total=None)

    def show(self, event: JobEvent) -> None:
        """Takes one event."""
        if event.type == EventType.PROGRESS:
            facts = event.fields()
            total = facts.get("total") or None
            self._bar.update(
                self._task, description=facts.get("phase") or "running", completed=facts["current"], total=total
            )
            return
        self._bar.update(self._task, description=event.type)
        self._bar.console.print(Text(_line(event)))

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _on_queue(config: Any, home: Any, database: Any, work: Callable[[JobQueue], Awaitable[T]]) -> T:
    async def run(opened: Database) -> T:
        queue = JobQueue(opened)
        await queue.start()
        try:
            return await work(queue)
        finally:
            await queue.aclose()

    return on_database(config, home, database, run)


def _print_table(found: Sequence[Job]) -> None:
    table = Table(box=None)
    for heading in ("id", "kind", "subject", "state", "progress", "tries", "created", "error"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "id")
    for job in found:
        progress = "" if job.progress is None else f"{job.progress.percent} % {job.progress.phase}".strip()
        error = "" if job.error is None else job.error.message
        tries = f"{job.tries}/{job.max_attempts}"
        words = (job.id, job.kind, job.subject or "", job.state.value, progress, tries, show_moment(job.created_at_ms))
        table.add_row(*(Text(word) for word in (*words, error)))
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _fields(job: Job) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(asdict(job))
    return fields


def _shown(name: str, value: object) -> str:
    return show_moment(value) if name.endswith("_at_ms") and isinstance(value, int) else str(value)


def _event_fields(event: JobEvent) -> dict[str, Any]:
    return {"seq": event.seq, "at_ms": event.at_ms, "type": event.type, "data": event.fields()}


def _line(event: JobEvent) -> str:
    return (
        f"{event.seq:>6}  {show_moment(event.at_ms)}  {event.type}  {'' if event.data == '{}' else event.data}".rstrip()
    )
