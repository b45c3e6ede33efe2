"""``passerelle restore``: puts a copy of the SQLite database back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, sqlite_file
from passerelle.storage.backup import restore as put_back
from passerelle.storage.backup import schema_of
from passerelle.storage.migrations import HEAD

_ELSEWHERE = (
    "This is for SQLite. For PostgreSQL: stop Passerelle, then pg_restore --clean --if-exists --no-owner "
    "--dbname=URL FILE, as the user who owns the tables."
)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `passerelle backup` wrote.")],
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Put a copy in the place of the SQLite database, while no gateway runs; the old one is kept aside."""
    with sqlite_file(config, home, database, _ELSEWHERE) as target:
        kept = put_back(file, target)
        version = schema_of(target)
    typer.echo(f"{target} is restored from {file}." + ("" if kept is None else f" The one before is {kept}."))
    if version != HEAD:
        typer.echo(f"Its schema is {version}, this Passerelle's is {HEAD}: the next start migrates it.")
