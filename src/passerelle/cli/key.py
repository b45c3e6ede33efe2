"""``passerelle key``: who may call. What a running server must see of it, it sees within five seconds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from passerelle.cli.duration import parse_duration_s, parse_moment_s, show_moment
from passerelle.cli.records import ConfigOption, DatabaseOption, HomeOption, JsonOption, on_database
from passerelle.domain.principal import Scope
from passerelle.identity.keys import Key, KeyStore, NewKey

app = typer.Typer(help="Create, list, rotate and revoke API keys.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Its id, its public part, or its name.")]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", "-n", help="What to call it.")],
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", "-s", help="A right; several times for several.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A model it may call; all when left out.")
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="When it ends: 30d, 12h, or 2026-12-31.")] = None,
    organisation: Annotated[str, typer.Option(help="Whose key it is.")] = "default",
    project: Annotated[str, typer.Option(help="The project its calls count for.")] = "default",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Create a key and print it. It is shown this once, alone on standard output."""
    now_s = time.time()
    expires_at_s = None if expires is None else parse_moment_s(expires, now_s, past=False)
    if expires_at_s is not None and expires_at_s <= now_s:
        raise typer.BadParameter(f"{expires!r} is over already.")
    if not name.strip():
        raise typer.BadParameter("a key needs a name.")
    made = on_database(
        config,
        home,
        database,
        lambda opened: KeyStore(opened).create(
            name,
            scopes=scope or [Scope.INFERENCE],
            models=model or None,
            expires_at_s=expires_at_s,
            organisation=organisation,
            project=project,
            created_by="cli",
        ),
    )
    _print_new(made, as_json, f"Created the key {made.key.name!r} ({made.key.id}).")


@app.command("list")
def list_keys(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those revoked or expired.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List keys, without their secrets."""
    found = on_database(config, home, database, lambda opened: KeyStore(opened).all(ended=everything))
    if as_json:
        print(json.dumps([_fields(key) for key in found], indent=2))
    else:
        _print_table(found)


@app.command()
def show(
    key: KeyArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show one key, without its secret."""
    found = on_database(config, home, database, lambda opened: KeyStore(opened).find(key))
    if as_json:
        print(json.dumps(_fields(found), indent=2))
        return
    for name, value in _fields(found).items():
        shown = show_moment(value) if name.endswith("_ms") else _words(value)
        print(f"{name.removesuffix('_ms').replace('_', ' '):<14}{shown}")


@app.command()
def revoke(
    key: KeyArgument,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """End a key for good."""
    ended = on_database(config, home, database, lambda opened: _revoke(KeyStore(opened), key))
    print(f"Revoked the key {ended.name!r} ({ended.id}); running servers refuse it within 5 seconds.", file=sys.stderr)


@app.command()
def rotate(
    key: KeyArgument,
    overlap: Annotated[str, typer.Option(help="How long the old secret stays valid.")] = "0s",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Give a key a new secret and print it. It is shown this once, alone on standard output."""
    overlap_s = parse_duration_s(overlap)
    made = on_database(config, home, database, lambda opened: _rotate(KeyStore(opened), key, overlap_s))
    until = f"stays valid for {overlap}" if overlap_s else "is refused from now on"
    _print_new(made, as_json, f"Rotated the key {made.key.name!r} ({made.key.id}); the old secret {until}.")


async def _revoke(keys: KeyStore, reference: str) -> Key:
    return await keys.revoke((await keys.find(reference)).id)


async def _rotate(keys: KeyStore, reference: str, overlap_s: float) -> NewKey:
    return await keys.rotate((await keys.find(reference)).id, overlap_s=overlap_s)


def _print_new(made: NewKey, as_json: bool, message: str) -> None:
    if as_json:
        print(json.dumps(_fields(made.key) | {"key": made.token}, indent=2))
        return
    print(f"{message} Keep it: it is not shown again.", file=sys.stderr)
    print(made.token)


def _print_table(found: Sequence[Key]) -> None:
    table = Table("name", "id", "public", "scopes", "models", "state", "expires", "last used", box=None)
    now_ms = int(time.time() * 1000)
    for key in found:
        cells = (
            key.name,
            key.id,
            " ".join(key.public_ids),
            " ".join(sorted(key.scopes)),
            "all" if key.models is None else " ".join(sorted(key.models)),
            key.state(now_ms),
            show_moment(key.expires_at_ms),
            show_moment(key.last_used_at_ms),
        )
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _fields(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "public_ids": list(key.public_ids),
        "state": key.state(int(time.time() * 1000)),
        "organisation": key.organisation,
        "project": key.project,
        "user": key.user,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "weight": key.weight,
        "created_by": key.created_by,
        "created_at_ms": key.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "last_used_at_ms": key.last_used_at_ms,
    }


def _words(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or "-"
    return "-" if value is None else str(value)
