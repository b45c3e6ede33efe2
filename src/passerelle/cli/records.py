"""Runs a command on the database that the settings name, beside a running ``passerelle serve`` or without one."""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from passerelle.catalog.names import own_names
from passerelle.catalog.problem import ConfigurationError
from passerelle.domain.errors import PasserelleError
from passerelle.identity.audit import Actor
from passerelle.identity.organisations import FIRST
from passerelle.identity.rights import Maker
from passerelle.settings import from_process
from passerelle.storage.engine import Database, StorageError, open_database
from passerelle.storage.migrations import upgrade

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration file; looked for when left out."),
]
HomeOption = Annotated[Path | None, typer.Option("--home", metavar="FOLDER", help="The folder that holds everything.")]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="The database; that of the settings when left out.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OrganisationOption = Annotated[
    str, typer.Option("--organisation", "--org", metavar="ORG", help="The organisation: its id or name.")
]
DEFAULT_ORGANISATION = FIRST


def on_database(
    config: Path | None,
    home: Path | None,
    database: str | None,
    work: Callable[[Database], Awaitable[T]],
    *,
    migrate: bool = True,
) -> T:
    """Opens the database, brings its schema up to date if ``migrate``, and returns what ``work`` returns.

    Errors end the command: one line on standard error, exit code 2.
    """
    flags = {"home": None if home is None else str(home), "database": database}
    with _told():
        settings = from_process(config, flags).settings
        return asyncio.run(_run(settings.database, settings.home, work, migrate=migrate))


@contextmanager
def sqlite_file(config: Path | None, home: Path | None, database: str | None, elsewhere: str) -> Iterator[Path]:
    """Gives the path of the SQLite database; for another one ``elsewhere`` is said. Errors end the command."""
    flags = {"home": None if home is None else str(home), "database": database}
    with _told():
        settings = from_process(config, flags).settings
        opened = open_database(settings.database, settings.home)
        if not opened.is_sqlite:
            raise StorageError(elsewhere)
        yield Path(opened.where)


@contextmanager
def _told() -> Iterator[None]:
    """Ends the command when something fails: one line on standard error, exit code 2."""
    try:
        yield
        return
    except ConfigurationError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
    except StorageError as error:
        print(error.message, file=sys.stderr)
    except PasserelleError as error:
        print(error.message, file=sys.stderr)
    raise typer.Exit(2)


def public_address(config: Path | None, home: Path | None, database: str | None) -> str:
    """Returns the address that people's browsers use; bad settings end the command."""
    flags = {"home": None if home is None else str(home), "database": database}
    try:
        settings = from_process(config, flags).settings
    except ConfigurationError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(2) from None
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    return settings.auth.public_url or f"http://{host}:{settings.server.port}"


def operator() -> Maker:
    """Returns who works at this machine, for the audit log: the system's user. Nothing limits them."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return Maker(Actor("cli", name, name))


def known_models(
    config: Path | None, home: Path | None, database: str | None, names: list[str] | None
) -> frozenset[str] | None:
    """Returns the own names of models of the configuration, None for None; an unknown one ends the command."""
    if not names:
        return None
    flags = {"home": None if home is None else str(home), "database": database}
    try:
        return own_names(from_process(config, flags).snapshot, names)
    except ConfigurationError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
    except PasserelleError as error:
        print(f"{error.message} (Name the server's configuration with --config.)", file=sys.stderr)
    raise typer.Exit(2)


async def _run(url: str, home: Path, work: Callable[[Database], Awaitable[T]], *, migrate: bool) -> T:
    database = open_database(url, home)
    try:
        if migrate:
            await upgrade(database)
        return await work(database)
    finally:
        await database.aclose()
