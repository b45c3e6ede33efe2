"""``passerelle check``: is the configuration sound, and what does it say?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from passerelle.catalog.problem import ConfigurationError
from passerelle.catalog.snapshot import Snapshot
from passerelle.settings import Configuration, from_process


def check(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="The configuration file; looked for when left out."),
    ] = None,
) -> None:
    """Checks the configuration: lists each problem with file, line and column, or shows the models it serves.

    Ends with 0 when it is sound, 2 when it is not.
    """
    try:
        configuration = from_process(config)
    except ConfigurationError as error:
        for problem in error.problems:
            _print_line(str(problem))
        raise typer.Exit(2) from None
    where = str(configuration.config) if configuration.config is not None else "no file: defaults"
    _print_models(configuration.snapshot)
    print(_summary(configuration, where))


def _print_line(line: str) -> None:
    """Prints one problem on one line of standard error, in whatever encoding that has."""
    encoding = sys.stderr.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def _print_models(snapshot: Snapshot) -> None:
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table("model", "aliases", "kind", "policy", "engine", "target", "upstream model", "weight", box=None)
    for model in snapshot.models.values():
        first: tuple[str, ...] = (model.name, ", ".join(model.aliases), model.kind.value, model.policy)
        for target in model.targets:
            cells = (target.engine, target.url or "this machine", target.model, _weight(target.weight, target.shadow))
            table.add_row(*(Text(cell, overflow="fold") for cell in (*first, *cells)))
            first = ("", "", "", "")
    console.print(table)


def _weight(weight: int, shadow: bool) -> str:
    return "shadow" if shadow else str(weight)


def _summary(configuration: Configuration, where: str) -> str:
    models = configuration.snapshot.models.values()
    targets = sum(len(model.targets) for model in models)
    server = configuration.settings.server
    return f"\n{where}: sound; {len(models)} models, {targets} targets; listens on {server.host}:{server.port}"
