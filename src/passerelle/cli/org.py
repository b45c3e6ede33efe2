"""``passerelle org``: the organisations, each with projects, users and keys of its own."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from passerelle.cli.duration import show_moment
from passerelle.cli.records import (
    ConfigOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    known_models,
    on_database,
    operator,
)
from passerelle.cli.table import all_or, print_fields, print_json, print_table
from passerelle.identity.options import SAME
from passerelle.identity.organisations import Organisation, OrganisationOptions, OrganisationStore
from passerelle.storage.engine import Database

app = typer.Typer(help="Create, list, change and archive organisations.", no_args_is_help=True)

OrganisationArgument = Annotated[str, typer.Argument(metavar="ORG", help="Its id or its name.")]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", "-m", help="A model its keys may call at most; all when left out.")
]
ServiceOption = Annotated[
    list[str] | None, typer.Option("--service", help="A service its keys may run at most; all when left out.")
]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", "-n", help="What to call it.")],
    model: ModelOption = None,
    service: ServiceOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Create an organisation, with a first project named "default"."""
    options = OrganisationOptions(
        name, known_models(config, home, database, model), frozenset(service) if service else None
    )
    made = on_database(
        config, home, database, lambda opened: OrganisationStore(opened, None).create(operator(), options)
    )
    print_fields(_fields(made), as_json)


@app.command("list")
def list_organisations(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also archived ones.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List the organisations."""
    found = on_database(config, home, database, lambda opened: _list(opened, everything))
    if as_json:
        print_json([_fields(each) for each in found])
        return
    print_table(
        ("name", "id", "models", "services", "created", "archived"),
        [
            (
                each.name,
                each.id,
                all_or(each.models),
                all_or(each.services),
                show_moment(each.created_at_ms),
                show_moment(each.archived_at_ms),
            )
            for each in found
        ],
    )


@app.command()
def show(
    organisation: OrganisationArgument,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show one organisation."""
    found = on_database(config, home, database, lambda opened: OrganisationStore(opened, None).find(organisation))
    print_fields(_fields(found), as_json)


@app.command()
def update(
    organisation: OrganisationArgument,
    name: Annotated[str | None, typer.Option("--name", "-n", help="What to call it.")] = None,
    model: ModelOption = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Every model again.")] = False,
    service: ServiceOption = None,
    all_services: Annotated[bool, typer.Option("--all-services", help="Every service again.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Change an organisation; what is not named stays as it is. Running servers follow within 5 seconds."""
    options = OrganisationOptions(
        name=SAME if name is None else name,
        models=None if all_models else (known_models(config, home, database, model) or SAME),
        services=None if all_services else (frozenset(service) if service else SAME),
    )

    async def work(opened: Database) -> Organisation:
        store = OrganisationStore(opened, None)
        return await store.update(operator(), (await store.find(organisation)).id, options)

    print_fields(_fields(on_database(config, home, database, work)), as_json)


@app.command()
def archive(
    organisation: OrganisationArgument,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """End an organisation: its keys and people are refused, its records stay."""

    async def work(opened: Database) -> Organisation:
        store = OrganisationStore(opened, None)
        return await store.archive(operator(), (await store.find(organisation)).id)

    ended = on_database(config, home, database, work)
    print(f"Archived {ended.name!r} ({ended.id}); running servers refuse its keys within 5 seconds.", file=sys.stderr)


@app.command()
def restore(
    organisation: OrganisationArgument,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Take an organisation out of the archive; its keys work again."""

    async def work(opened: Database) -> Organisation:
        store = OrganisationStore(opened, None)
        return await store.restore(operator(), (await store.find(organisation)).id)

    back = on_database(config, home, database, work)
    print(f"Restored {back.name!r} ({back.id}).", file=sys.stderr)


async def _list(database: Database, everything: bool) -> list[Organisation]:
    store = OrganisationStore(database, None)
    found: list[Organisation] = []
    after = None
    while page := await store.page(limit=500, after=after, archived=everything):
        found += page
        after = (page[-1].created_at_ms, page[-1].id)
    return found


def _fields(organisation: Organisation) -> dict[str, Any]:
    return {
        "id": organisation.id,
        "name": organisation.name,
        "models": None if organisation.models is None else sorted(organisation.models),
        "services": None if organisation.services is None else sorted(organisation.services),
        "created_by": organisation.created_by,
        "created_at_ms": organisation.created_at_ms,
        "archived_at_ms": organisation.archived_at_ms,
    }
