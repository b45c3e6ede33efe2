"""The command line: one file per noun, imported when used."""

from __future__ import annotations

from typing import Annotated

import typer

from passerelle import __version__
from passerelle.cli import check, docs, key, model, router, serve, usage

app = typer.Typer(
    name="passerelle",
    help="One front door for an organisation's own language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"passerelle {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One front door for an organisation's own language models."""


app.command()(serve.serve)
app.command()(check.check)
app.command()(usage.usage)
app.add_typer(key.app, name="key")
app.add_typer(model.app, name="model")
app.add_typer(router.app, name="router")
app.add_typer(docs.app, name="docs")


def main() -> None:
    """Runs the command line."""
    app()
