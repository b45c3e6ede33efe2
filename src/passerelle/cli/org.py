"""``passerelle org``: the organisations, each with projects, users and keys of its own."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from passerelle.cli.records import (
    ConfigOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    on_database,
    operator,
)
from passerelle.cli.spaces import (
    AllModelsOption,
    AllServicesOption,
    ArchivedOption,
    ModelOption,
    NameOption,
    NewNameOption,
    ServiceOption,
    changed_bounds,
    every,
    new_bounds,
    print_space,
    print_spaces,
)
from passerelle.identity.options import SAME
from passerelle.identity.organisations import Organisation, OrganisationOptions, OrganisationStore
from passerelle.storage.engine import Database

app = typer.Typer(help="Create, list, change and archive organisations.", no_args_is_help=True)

OrganisationArgument = Annotated[str, typer.Argument(metavar="ORG", help="Its id or its name.")]


@app.command()
def create(
    name: NameOption,
    model: ModelOption = None,
    service: ServiceOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Create an organisation, with a first project named "default"."""
    options = OrganisationOptions(name, *new_bounds((config, home, database), model, service))
    made = on_database(
        config, home, database, lambda opened: OrganisationStore(opened, None).create(operator(), options)
    )
    print_space(made, as_json)


@app.command("list")
def list_organisations(
    everything: ArchivedOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List the organisations."""
    print_spaces(on_database(config, home, database, lambda opened: _list(opened, everything)), as_json)


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
    print_space(found, as_json)


@app.command()
def update(
    organisation: OrganisationArgument,
    name: NewNameOption = None,
    model: ModelOption = None,
    all_models: AllModelsOption = False,
    service: ServiceOption = None,
    all_services: AllServicesOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Change an organisation; what is not named stays as it is. Running servers follow within 5 seconds."""
    bounds = changed_bounds((config, home, database), model, all_models, service, all_services)
    options = OrganisationOptions(SAME if name is None else name, **bounds)

    async def work(opened: Database) -> Organisation:
        store = OrganisationStore(opened, None)
        return await store.update(operator(), (await store.find(organisation)).id, options)

    print_space(on_database(config, home, database, work), as_json)


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
    return await every(lambda after: store.page(limit=500, after=after, archived=everything))
