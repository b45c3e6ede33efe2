"""``passerelle service``: what the folders of services and prompts say, without a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from passerelle.catalog.problem import ConfigurationError
from passerelle.cli.records import ConfigOption, JsonOption
from passerelle.services.folder import ServiceCatalog, ServiceLoader, find_folders, folders_for
from passerelle.services.manifest import ServiceManifest
from passerelle.settings import from_process, process_environ

app = typer.Typer(help="Check and list declarative services.", no_args_is_help=True)

Root = Annotated[
    Path | None,
    typer.Argument(
        metavar="FOLDER", help="What holds services/ and prompts/, or .hydra-conf/; that of the settings when left out."
    ),
]


@app.command()
def check(folder: Root = None, config: ConfigOption = None) -> None:
    """Check all services and prompts: each problem with file, line and key.

    Ends with 0 when all are sound, 2 when not.
    """
    catalog = _read(folder, config)
    for problem in catalog.problems:
        _print_line(str(problem))
    count = len(catalog.services)
    if catalog.problems:
        typer.echo(f"{count} services are sound; {len(catalog.problems)} problems", err=True)
        raise typer.Exit(2)
    typer.echo(f"{count} services, all sound")


@app.command("list")
def list_services(folder: Root = None, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the sound services: route, flavors, models, strategy. Problems go to standard error."""
    catalog = _read(folder, config)
    for problem in catalog.problems:
        _print_line(str(problem))
    if as_json:
        typer.echo(json.dumps([_facts(service) for service in catalog.services.values()], ensure_ascii=False, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("SERVICE", "ROUTE", "STRATEGY", "OUTPUT", "FLAVOR", "MODEL", "CONTEXT", "PROMPT"):
        table.add_column(heading, justify="right" if heading == "CONTEXT" else "left")
    for service in catalog.services.values():
        first: tuple[str, ...] = (
            service.name,
            f"/services/{service.route}",
            service.strategy.value,
            service.output.type,
        )
        for flavor in service.flavors:
            context = str(flavor.context_tokens) if flavor.context_tokens is not None else "the model's"
            models = ", ".join((flavor.model, *flavor.fallbacks))
            cells = (*first, flavor.name, models, context, service.prompt.name)
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
            first = ("", "", "", "")
    Console(highlight=False, width=None if sys.stdout.isatty() else 240).print(table)


def _facts(service: ServiceManifest) -> dict[str, object]:
    return {
        "id": service.id,
        "name": service.name,
        "route": service.route,
        "strategy": service.strategy.value,
        "output": service.output.type,
        "flavors": [{"name": flavor.name, "model": flavor.model} for flavor in service.flavors],
        "prompt": service.prompt.name,
        "file": str(service.mark),
    }


def _read(folder: Path | None, config: Path | None) -> ServiceCatalog:
    """Reads the folder that was named, or that of the settings. A folder that is not there ends the command."""
    try:
        if folder is not None:
            folders = find_folders(folder)
        else:
            configuration = from_process(config)
            where = configuration.settings.services
            folders = folders_for(where.folder, where.prompts, configuration.config, configuration.settings.home)
    except ConfigurationError as error:
        for problem in error.problems:
            _print_line(str(problem))
        raise typer.Exit(2) from None
    if not folders.services.is_dir():
        _print_line(f"{folders.services}: there is no such folder; give the one that holds services/ or .hydra-conf/")
        raise typer.Exit(2)
    return ServiceLoader(folders, process_environ()).prepare(ServiceCatalog())


def _print_line(line: str) -> None:
    """Prints one line on standard error, in whatever encoding that has."""
    encoding = sys.stderr.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)
