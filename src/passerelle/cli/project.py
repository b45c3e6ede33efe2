"""``passerelle project``: what usage and limits are counted for within an organisation."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from passerelle.cli.duration import show_moment
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
from passerelle.identity.options import SAME
from passerelle.identity.organisations import OrganisationStore
from passerelle.identity.projects import Project, ProjectOptions, ProjectStore
from passerelle.storage.engine import Database

app = typer.Typer(help="Create, list, change and archive projects.", no_args_is_help=True)

ProjectArgument = Annotated[str, typer.Argument(metavar="PROJECT", help="Its id or its name.")]
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
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Create a project."""
    options = ProjectOptions(name, known_models(config, home, database, model), frozenset(service) if service else None)

    async def work(opened: Database) -> Project:
        return await (await _store(opened, organisation)).create(operator(), options)

    print_fields(_fields(on_database(config, home, database, work)), as_json)


@app.command("list")
def list_projects(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also archived ones.")] = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List the projects of an organisation."""
    found = on_database(config, home, database, lambda opened: _list(opened, organisation, everything))
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

    print_fields(_fields(on_database(config, home, database, work)), as_json)


@app.command()
def update(
    project: ProjectArgument,
    name: Annotated[str | None, typer.Option("--name", "-n", help="What to call it.")] = None,
    model: ModelOption = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Every model again.")] = False,
    service: ServiceOption = None,
    all_services: Annotated[bool, typer.Option("--all-services", help="Every service again.")] = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Change a project; what is not named stays as it is. Running servers follow within 5 seconds."""
    options = ProjectOptions(
        name=SAME if name is None else name,
        models=None if all_models else (known_models(config, home, database, model) or SAME),
        services=None if all_services else (frozenset(service) if service else SAME),
    )

    async def work(opened: Database) -> Project:
        store = await _store(opened, organisation)
        return await store.update(operator(), (await store.find(project)).id, options)

    print_fields(_fields(on_database(config, home, database, work)), as_json)


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
    found: list[Project] = []
    after = None
    while page := await store.page(limit=500, after=after, archived=everything):
        found += page
        after = (page[-1].created_at_ms, page[-1].id)
    return found


def _fields(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "organisation": project.organisation,
        "name": project.name,
        "models": None if project.models is None else sorted(project.models),
        "services": None if project.services is None else sorted(project.services),
        "created_by": project.created_by,
        "created_at_ms": project.created_at_ms,
        "archived_at_ms": project.archived_at_ms,
    }
