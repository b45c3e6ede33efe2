"""``passerelle worker``: runs jobs without serving requests, on this machine or another one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from passerelle.catalog.problem import ConfigurationError
from passerelle.heap import return_large_blocks
from passerelle.settings import Configuration, load_configuration
from passerelle.storage.engine import StorageError, open_database
from passerelle.storage.migrations import upgrade
from passerelle.telemetry import logs


def worker(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Jobs that run at once.")] = None,
    home: Annotated[Path | None, typer.Option(help="The folder that holds everything.")] = None,
) -> None:
    """Runs jobs until Ctrl-C or SIGTERM: by Celery's messages when jobs.engine is celery, else as they come.

    What runs then may finish within server.grace_s; the rest is given back. Models that are children of a server on
    another machine are reached through that server: name it as a target.
    """
    return_large_blocks()
    environ = dict(os.environ)
    flags = {"jobs.concurrency": concurrency, "home": None if home is None else str(home)}
    try:
        configuration = load_configuration(config, environ, flags)
        settings = configuration.settings
        logs.configure(settings.logging.level, settings.logging.format)
        if settings.jobs.engine == "celery":
            _serve_celery(configuration, environ)
        else:
            asyncio.run(_serve(configuration, environ))
    except ConfigurationError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(2) from None
    except StorageError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


async def _migrate(configuration: Configuration) -> None:
    database = open_database(configuration.settings.database, configuration.settings.home)
    try:
        await upgrade(database)
    finally:
        await database.aclose()


async def _serve(configuration: Configuration, environ: Mapping[str, str]) -> None:
    from passerelle.app import Passerelle

    await _migrate(configuration)
    passerelle = Passerelle(configuration, environ, {})
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await passerelle.start()
    print("Passerelle runs jobs.", flush=True)
    await stopped.wait()
    passerelle.begin_draining()
    await passerelle.stop()


def _serve_celery(configuration: Configuration, environ: Mapping[str, str]) -> None:
    from passerelle.app import Passerelle
    from passerelle.jobs.celery import serve_celery
    from passerelle.jobs.context import Kinds
    from passerelle.jobs.queue import JobQueue

    started: list[Passerelle] = []

    async def opened() -> tuple[JobQueue, Kinds]:
        await _migrate(configuration)
        passerelle = Passerelle(configuration, environ, {})
        started.append(passerelle)
        await passerelle.start()
        print("Passerelle runs jobs by Celery.", flush=True)
        return passerelle.jobs, passerelle.kinds

    async def closed(_queue: JobQueue) -> None:
        await started[0].stop()

    settings = configuration.settings
    serve_celery(
        opened,
        closed,
        broker=settings.jobs.broker,
        concurrency=settings.jobs.concurrency,
        grace_s=settings.server.grace_s,
    )
