"""``passerelle project``: what usage and limits are counted for within an organisation."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from passerelle.cli.records import (
    DEFAULT_ORGANISATION,
    ConfigOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    OrganisationOption,
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
from passerelle.identity.organisations import OrganisationStore
from passerelle.identity.projects import Project, ProjectOptions, ProjectStore
from passerelle.storage.engine import Database

app = typer.Typer(help="Create, list, change and archive projects.", no_args_is_help=True)

ProjectArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="Its id or its name.")]


@app.command()
def create(
    name: NameOption,
    model: ModelOption = None,
    service: ServiceOption = None,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Create a project."""
    options = ProjectOptions(name, *new_bounds((config, home, database), model, service))

    async def work(opened: Database) -> Project:
        return await (await _store(opened, organisation)).create(operator(), options)

    print_space(on_database(config, home, database, work), as_json)


@app.command("list")
def list_projects(
    everything: ArchivedOption = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List the projects of an organisation."""
    print_spaces(on_database(config, home, database, lambda opened: _list(opened, organisation, everything)), as_json)


@app.command()
def show(
    project: ProjectArgument,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show one project."""

    async def work(opened: Database) -> Project:
        return await (await _store(opened, organisation)).find(project)

    print_space(on_database(config, home, database, work), as_json)


@app.command()
def update(
    project: ProjectArgument,
    name: NewNameOption = None,
    model: ModelOption = None,
    all_models: AllModelsOption = False,
    service: ServiceOption = None,
    all_services: AllServicesOption = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Change a project; what is not named stays as it is. Running servers follow within 5 seconds."""
    bounds = changed_bounds((config, home, database), model, all_models, service, all_services)
    options = ProjectOptions(SAME if name is None else name, **bounds)

    async def work(opened: Database) -> Project:
        store = await _store(opened, organisation)
        return await store.update(operator(), (await store.find(project)).id, options)

    print_space(on_database(config, home, database, work), as_json)


@app.command()
def archive(
    project: ProjectArgument,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """End a project: its keys are refused, its records stay."""

    async def work(opened: Database) -> Project:
        store = await _store(opened, organisation)
        return await store.archive(operator(), (await store.find(project)).id)

    ended = on_database(config, home, database, work)
    print(f"Archived {ended.name!r} ({ended.id}); running servers refuse its keys within 5 seconds.", file=sys.stderr)


@app.command()
def restore(
    project: ProjectArgument,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Take a project out of the archive; its keys work again."""

    async def work(opened: Database) -> Project:
        store = await _store(opened, organisation)
        return await store.restore(operator(), (await store.find(project)).id)

    back = on_database(config, home, database, work)
    print(f"Restored {back.name!r} ({back.id}).", file=sys.stderr)


async def _store(database: Database, organisation: str) -> ProjectStore:
    return ProjectStore(database, (await OrganisationStore(database, None).find(organisation)).id)


async def _list(database: Database, organisation: str, everything: bool) -> list[Project]:
    store = await _store(database, organisation)
    return await every(lambda after: store.page(limit=500, after=after, archived=everything))
