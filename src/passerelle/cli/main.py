"""The command line: one file per noun, and only the one that is used is imported: `serve` has to start quickly."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated

import typer

from passerelle import __version__

NOUNS = (
    "serve",
    "check",
    "migrate",
    "backup",
    "restore",
    "usage",
    "org",
    "project",
    "user",
    "key",
    "limit",
    "price",
    "model",
    "triton",
    "router",
    "service",
    "prompt",
    "job",
    "worker",
    "audit",
    "docs",
)
"""The commands; each has a module of its name, with ``app`` for those that have verbs."""


def application(only: str | None = None) -> typer.Typer:
    """Returns the command line with all nouns, or with one."""
    app = typer.Typer(
        name="passerelle",
        help="One front door for an organisation's own language models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for noun in NOUNS if only is None else (only,):
        module = import_module(f"passerelle.cli.{noun}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=noun)
        else:
            app.command()(getattr(module, noun))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"passerelle {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One front door for an organisation's own language models."""


def main() -> None:
    """Runs the command line."""
    noun = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] in NOUNS else None
    application(noun)()
