"""``passerelle prompt``: prompts that are kept, their versions and labels, and the folders of a prompt studio."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from passerelle.cli.duration import show_moment
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
from passerelle.cli.table import print_fields, print_json, print_table
from passerelle.domain.errors import BadRequest, NotFound, PasserelleError
from passerelle.identity.organisations import OrganisationStore
from passerelle.identity.projects import ProjectStore
from passerelle.prompts.files import read_folder
from passerelle.prompts.store import LATEST, PRODUCTION, Prompt, PromptStore, Version
from passerelle.prompts.template import Content, Syntax, prepare, sampling
from passerelle.storage.engine import Database

app = typer.Typer(help="Keep, label and import prompts.", no_args_is_help=True)
T = TypeVar("T")

ProjectOption = Annotated[
    str | None,
    typer.Option("--project", metavar="PROJECT", help="The project: its id or name; the first one when left out."),
]
PromptArgument = Annotated[str, typer.Argument(metavar="PROMPT", help="Its id or its name.")]


@app.command("list")
def list_prompts(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also archived ones.")] = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    project: ProjectOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List the prompts of a project."""
    found = _run(config, home, database, organisation, project, lambda store: _all(store, everything))
    if as_json:
        print_json([_fields(each) for each in found])
        return
    rows = [
        (each.name, each.id, str(each.latest), _labels(each), show_moment(each.created_at_ms), each.created_by)
        for each in found
    ]
    print_table(("name", "id", "newest", "labels", "created", "by"), rows)


@app.command()
def show(
    prompt: PromptArgument,
    version: Annotated[str, typer.Option("--version", "-v", help="A number, a label, or latest.")] = PRODUCTION,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    project: ProjectOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show one version of a prompt."""

    async def work(store: PromptStore) -> tuple[Prompt, Version]:
        return await store.get(prompt), await store.version(prompt, version)

    found, shown = _run(config, home, database, organisation, project, work)
    fields = {**_fields(found), "version": shown.number, **msgspec.to_builtins(shown.content)}
    if not as_json:
        fields["labels"] = _labels(found)
    print_fields(fields, as_json)


@app.command()
def add(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A new name, or a prompt that gets a new version.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The template; - for standard input.")],
    jinja: Annotated[bool, typer.Option("--jinja", help="It is Jinja; as for files that end in .j2.")] = False,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="A label to point at it.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="For requests that name none.")] = None,
    sample: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Sampling, such as temperature=0.2.")
    ] = None,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    project: ProjectOption = None,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Keep a template as a new prompt, or as a new version of one."""
    syntax: Syntax = "jinja" if jinja or file.suffix in (".j2", ".jinja") else "text"

    async def work(store: PromptStore) -> tuple[str, int]:
        pairs = dict(each.partition("=")[::2] for each in sample or ())
        content = Content(template=_text(file), syntax=syntax, model=model, config=sampling(pairs))
        prepare(content)
        return await _keep(store, prompt, content, label or [])

    name, number = _run(config, home, database, organisation, project, work)
    print(f"Kept {name!r}, version {number}.", file=sys.stderr)


@app.command()
def label(
    prompt: PromptArgument,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="Such as production.")],
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", help="Its number.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the label.")] = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    project: ProjectOption = None,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Point a label at a version, or remove it. Running servers follow within 2 seconds."""

    async def work(store: PromptStore) -> Prompt:
        if remove:
            return await store.unlabel(operator().actor, prompt, label)
        if version is None:
            raise BadRequest("Name the version that the label is to point at.")
        return await store.label(operator().actor, prompt, label, version)

    found = _run(config, home, database, organisation, project, work)
    print(f"{found.name!r}: {_labels(found)}", file=sys.stderr)


@app.command()
def rm(
    prompt: PromptArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Take it out of the archive again.")] = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    project: ProjectOption = None,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Put a prompt into the archive: nobody can use it, its versions stay."""

    async def work(store: PromptStore) -> Prompt:
        act = store.restore if undo else store.archive
        return await act(operator().actor, prompt)

    found = _run(config, home, database, organisation, project, work)
    print(f"{'Restored' if undo else 'Archived'} {found.name!r} ({found.id}).", file=sys.stderr)


@app.command("import")
def import_folder(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Holds NAME.json: config, template and values.")],
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    project: ProjectOption = None,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Keep the prompts of a studio's folder. What changed gets a new version, in use at once; all of them, or none."""

    async def work(store: PromptStore) -> list[str]:
        contents, problems = read_folder(folder)
        if problems:
            raise BadRequest("\n".join(problems))
        if not contents:
            raise BadRequest(f"{folder}: there is no file in it whose name ends in .json.")
        return [await _take(store, name, content) for name, content in contents.items()]

    for line in _run(config, home, database, organisation, project, work):
        print(line)


async def _take(store: PromptStore, name: str, content: Content) -> str:
    try:
        if (await store.version(name, LATEST)).content == content:
            return f"{name}: unchanged"
    except NotFound:
        pass
    _, number = await _keep(store, name, content, [PRODUCTION])
    return f"{name}: version {number}"


async def _keep(store: PromptStore, name: str, content: Content, labels: list[str]) -> tuple[str, int]:
    try:
        made = await store.add(operator().actor, name, content, labels)
    except NotFound:
        return (await store.create(operator().actor, name, content, labels)).name, 1
    return made.name, made.number


def _run(
    config: Path | None,
    home: Path | None,
    database: str | None,
    organisation: str,
    project: str | None,
    work: Callable[[PromptStore], Awaitable[T]],
) -> T:
    async def run(opened: Database) -> T:
        owner = (await OrganisationStore(opened, None).find(organisation)).id
        projects = ProjectStore(opened, owner)
        if project is not None:
            place = (await projects.find(project)).id
        else:
            first = await projects.page(limit=1)
            if not first:
                raise PasserelleError("The organisation has no project: make one with `passerelle project create`.")
            place = first[0].id
        return await work(PromptStore(opened, organisation=owner, project=place))

    return on_database(config, home, database, run)


async def _all(store: PromptStore, everything: bool) -> list[Prompt]:
    found: list[Prompt] = []
    after = None
    while page := await store.page(limit=500, after=after, archived=everything):
        found += page
        after = (page[-1].created_at_ms, page[-1].id)
    return found


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"{file}: it cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise BadRequest(f"{file}: it is not UTF-8.") from None


def _labels(prompt: Prompt) -> str:
    return " ".join(f"{label}={number}" for label, number in prompt.labels.items())


def _fields(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "name": prompt.name,
        "latest": prompt.latest,
        "labels": prompt.labels,
        "created_by": prompt.created_by,
        "created_at_ms": prompt.created_at_ms,
        "archived_at_ms": prompt.archived_at_ms,
    }
