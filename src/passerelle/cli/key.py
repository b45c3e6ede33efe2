"""``passerelle key``: who may call. What a running server must see of it, it sees within five seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from passerelle.cli.duration import parse_duration_s, parse_moment_s, show_moment
from passerelle.cli.records import (
    DEFAULT_ORGANISATION,
    ConfigOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    OrganisationOption,
    known_models,
    on_database,
    operator,
)
from passerelle.cli.table import all_or, print_fields, print_json, print_table
from passerelle.domain.principal import Network, Scope
from passerelle.identity.keys import Key, KeyOptions, KeyStore, NewKey, all_keys, find_key
from passerelle.identity.options import SAME
from passerelle.identity.organisations import OrganisationStore
from passerelle.identity.projects import ProjectStore
from passerelle.identity.rights import parse_networks
from passerelle.identity.users import UserStore
from passerelle.storage.engine import Database

app = typer.Typer(help="Create, list, change, rotate and revoke API keys.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Its id, its public part, or its name.")]
NameOption = Annotated[str | None, typer.Option("--name", "-n", help="What to call it.")]
ScopeOption = Annotated[list[Scope] | None, typer.Option("--scope", "-s", help="A right; several times for several.")]
ModelOption = Annotated[list[str] | None, typer.Option("--model", "-m", help="A model it may call; all when left out.")]
ServiceOption = Annotated[list[str] | None, typer.Option("--service", help="A service it may run; all when left out.")]
NetworkOption = Annotated[
    list[str] | None,
    typer.Option("--network", help="Where it may be used from: 192.0.2.0/24; anywhere when left out."),
]
ExpiresOption = Annotated[str | None, typer.Option("--expires", help="When it ends: 30d, 12h, or 2026-12-31.")]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", "-n", help="What to call it.")],
    scope: ScopeOption = None,
    model: ModelOption = None,
    service: ServiceOption = None,
    network: NetworkOption = None,
    expires: ExpiresOption = None,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    project: Annotated[
        str | None, typer.Option(help="The project its calls count for; the first when left out.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whose key it is; it ends with the user.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Create a key and print it. It is shown this once, alone on standard output."""
    if not name.strip():
        raise typer.BadParameter("a key needs a name.")
    options = KeyOptions(
        name=name,
        scopes=frozenset(scope) if scope else SAME,
        models=known_models(config, home, database, model),
        services=frozenset(service) if service else None,
        networks=_networks(network),
        expires_at_ms=_moment_ms(expires),
    )
    made = on_database(config, home, database, lambda opened: _create(opened, organisation, project, user, options))
    _print_new(made, as_json, f"Created the key {made.key.name!r} ({made.key.id}).")


@app.command("list")
def list_keys(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those revoked or expired.")] = False,
    organisation: Annotated[
        str | None, typer.Option("--organisation", "--org", metavar="ORG", help="Only those of this organisation.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List keys, without their secrets."""
    found = on_database(config, home, database, lambda opened: _list(opened, organisation, everything))
    if as_json:
        print_json([_fields(key) for key in found])
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
    print_fields(_fields(on_database(config, home, database, lambda opened: find_key(opened, key))), as_json)


@app.command()
def update(
    key: KeyArgument,
    name: NameOption = None,
    scope: ScopeOption = None,
    model: ModelOption = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Every model again.")] = False,
    service: ServiceOption = None,
    all_services: Annotated[bool, typer.Option("--all-services", help="Every service again.")] = False,
    network: NetworkOption = None,
    all_networks: Annotated[bool, typer.Option("--all-networks", help="From anywhere again.")] = False,
    expires: ExpiresOption = None,
    weight: Annotated[float | None, typer.Option(min=0.01, max=1000, help="Its share of the queue.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Change a key; what is not named stays as it is. Running servers follow within 5 seconds."""
    options = KeyOptions(
        name=SAME if name is None else name,
        scopes=frozenset(scope) if scope else SAME,
        models=None if all_models else (known_models(config, home, database, model) or SAME),
        services=None if all_services else (frozenset(service) if service else SAME),
        networks=None if all_networks else (_networks(network) or SAME),
        expires_at_ms=SAME if expires is None else _moment_ms(expires),
        weight=SAME if weight is None else weight,
    )
    changed = on_database(config, home, database, lambda opened: _update(opened, key, options))
    print_fields(_fields(changed), as_json)


@app.command()
def revoke(
    key: KeyArgument,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """End a key for good."""
    ended = on_database(config, home, database, lambda opened: _revoke(opened, key))
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
    made = on_database(config, home, database, lambda opened: _rotate(opened, key, overlap_s))
    until = f"stays valid for {overlap}" if overlap_s else "is refused from now on"
    _print_new(made, as_json, f"Rotated the key {made.key.name!r} ({made.key.id}); the old secret {until}.")


async def _create(
    database: Database, organisation: str, project: str | None, user: str | None, options: KeyOptions
) -> NewKey:
    tenant = (await OrganisationStore(database, None).find(organisation)).id
    if project is not None:
        options = replace(options, project=(await ProjectStore(database, tenant).find(project)).id)
    if user is not None:
        options = replace(options, user=(await UserStore(database, tenant).find(user)).id)
    return await KeyStore(database, tenant).create(operator(), options)


async def _list(database: Database, organisation: str | None, everything: bool) -> list[Key]:
    tenant = None if organisation is None else (await OrganisationStore(database, None).find(organisation)).id
    return await all_keys(database, tenant, ended=everything)


async def _update(database: Database, reference: str, options: KeyOptions) -> Key:
    key = await find_key(database, reference)
    return await KeyStore(database, key.organisation).update(operator(), key.id, options)


async def _revoke(database: Database, reference: str) -> Key:
    key = await find_key(database, reference)
    return await KeyStore(database, key.organisation).revoke(operator(), key.id)


async def _rotate(database: Database, reference: str, overlap_s: float) -> NewKey:
    key = await find_key(database, reference)
    return await KeyStore(database, key.organisation).rotate(operator(), key.id, overlap_s=overlap_s)


def _moment_ms(expires: str | None) -> int | None:
    if expires is None:
        return None
    now_s = time.time()
    moment_s = parse_moment_s(expires, now_s, past=False)
    if moment_s <= now_s:
        raise typer.BadParameter(f"{expires!r} is over already.")
    return int(moment_s * 1000)


def _networks(texts: list[str] | None) -> tuple[Network, ...] | None:
    try:
        return parse_networks(texts or None)
    except ValueError as error:
        raise typer.BadParameter(f"{error}: write 192.0.2.0/24 or 2001:db8::/32.") from None


def _print_new(made: NewKey, as_json: bool, message: str) -> None:
    if as_json:
        print_json(_fields(made.key) | {"key": made.token})
        return
    print(f"{message} Keep it: it is not shown again.", file=sys.stderr)
    print(made.token)


def _print_table(found: Sequence[Key]) -> None:
    now_ms = int(time.time() * 1000)
    print_table(
        ("name", "id", "public", "organisation", "scopes", "models", "state", "expires", "last used"),
        [
            (
                key.name,
                key.id,
                " ".join(key.public_ids),
                key.organisation,
                " ".join(sorted(key.scopes)),
                all_or(key.models),
                key.state(now_ms),
                show_moment(key.expires_at_ms),
                show_moment(key.last_used_at_ms),
            )
            for key in found
        ],
    )


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
        "services": None if key.services is None else sorted(key.services),
        "networks": None if key.networks is None else [str(network) for network in key.networks],
        "weight": key.weight,
        "created_by": key.created_by,
        "created_at_ms": key.created_at_ms,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "last_used_at_ms": key.last_used_at_ms,
    }
