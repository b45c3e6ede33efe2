"""``passerelle serve``: the gateway and its embedded models."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from passerelle.catalog.problem import ConfigurationError
from passerelle.edge.server import PortInUse
from passerelle.models.fetched import ModelError, Progress
from passerelle.models.gguf import NotGguf
from passerelle.models.store import open_store
from passerelle.settings import load_configuration
from passerelle.storage.engine import StorageError
from passerelle.telemetry import logs


def serve(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file.")] = None,
    opea_config: Annotated[
        Path | None, typer.Option(help="OPEA's config.ini, in place of a configuration file.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve requests.")] = None,
    home: Annotated[Path | None, typer.Option(help="The folder that holds everything.")] = None,
) -> None:
    """Runs the gateway until Ctrl-C or SIGTERM; running answers finish first."""
    from passerelle.launch import HomeUnusable, Launch

    flags: dict[str, str | int | None] = {
        "server.host": host,
        "server.port": port,
        "server.workers": workers,
        "home": None if home is None else str(home),
    }
    environ = dict(os.environ)
    try:
        configuration = load_configuration(opea_config or config, environ, flags)
        settings = configuration.settings
        if settings.logging.file is not None:
            _log_to(Path(settings.logging.file))
        logs.configure(settings.logging.level, settings.logging.format)
        cache_home = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
        store = open_store(settings.home, cache_home)
        Launch(configuration, environ, flags, store, _progress).serve()
    except ConfigurationError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(2) from None
    except (HomeUnusable, PortInUse, StorageError, ModelError, NotGguf) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _log_to(path: Path) -> None:
    try:
        logs.send_to(path)
    except OSError as error:
        print(
            f"The log file {path} cannot be written ({error.strerror}): set logging.file to another.", file=sys.stderr
        )
        raise typer.Exit(2) from None


def _progress() -> Progress:
    from passerelle.cli.progress import progress_on  # a start that fetches nothing does without a progress bar

    return progress_on(sys.stderr.isatty())
