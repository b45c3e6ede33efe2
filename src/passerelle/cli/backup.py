"""``passerelle backup``: a copy of the SQLite database, made while it is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, sqlite_file
from passerelle.storage.backup import back_up

_ELSEWHERE = (
    "This is for SQLite. For PostgreSQL: pg_dump --format=custom --enable-row-security --file=FILE URL, "
    "as the user who owns the tables."
)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")],
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Copy the SQLite database into a new file, while the gateway runs or not."""
    with sqlite_file(config, home, database, _ELSEWHERE) as source:
        size = back_up(source, file)
    typer.echo(f"{file}: {size:,} bytes")
