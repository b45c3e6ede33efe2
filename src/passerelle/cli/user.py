"""``passerelle user``: people and service accounts, and what they may do by their role."""

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
    on_database,
    operator,
    public_address,
)
from passerelle.cli.spaces import every
from passerelle.cli.table import print_fields, print_json, print_table
from passerelle.domain.errors import Conflict
from passerelle.domain.principal import Role
from passerelle.identity.accounts import Accounts, password_link
from passerelle.identity.options import SAME
from passerelle.identity.organisations import OrganisationStore
from passerelle.identity.passwords import Passwords
from passerelle.identity.projects import ProjectStore
from passerelle.identity.secrets import Secrets
from passerelle.identity.users import Kind, User, UserOptions, UserStore
from passerelle.storage.engine import Database

app = typer.Typer(help="Create, list, change, confirm and disable users.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="An id, a name or an e-mail address.")]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", "-n", help="The name, as in lists and to sign on.")],
    role: Annotated[Role, typer.Option("--role", "-r", help="What the user may do.")] = Role.MEMBER,
    email: Annotated[str | None, typer.Option("--email", help="An e-mail address, to sign on.")] = None,
    service_account: Annotated[
        bool, typer.Option("--service-account", help="An account that only holds keys, and is nobody's.")
    ] = False,
    project: Annotated[str | None, typer.Option(help="The one project the user is confined to.")] = None,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Create a user."""

    async def work(opened: Database) -> User:
        tenant = await _tenant(opened, organisation)
        confined = None if project is None else (await ProjectStore(opened, tenant).find(project)).id
        options = UserOptions(name=name, email=email, role=role, project=confined)
        kind: Kind = "service" if service_account else "person"
        return await UserStore(opened, tenant).create(operator(), options, kind)

    print_fields(_fields(on_database(config, home, database, work)), as_json)


@app.command("list")
def list_users(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also disabled ones.")] = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """List the users of an organisation."""
    found = on_database(config, home, database, lambda opened: _list(opened, organisation, everything))
    if as_json:
        print_json([_fields(each) for each in found])
        return
    print_table(
        ("name", "id", "kind", "role", "e-mail", "project", "state", "last seen"),
        [
            (
                each.name,
                each.id,
                each.kind,
                each.role.value,
                each.email or "-",
                each.project or "all",
                each.state,
                show_moment(each.last_seen_at_ms),
            )
            for each in found
        ],
    )


@app.command()
def show(
    user: UserArgument,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Show one user."""

    async def work(opened: Database) -> User:
        return await UserStore(opened, await _tenant(opened, organisation)).find(user)

    print_fields(_fields(on_database(config, home, database, work)), as_json)


@app.command()
def update(
    user: UserArgument,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The name.")] = None,
    role: Annotated[Role | None, typer.Option("--role", "-r", help="Keys that may do more are revoked.")] = None,
    email: Annotated[str | None, typer.Option("--email", help="The e-mail address.")] = None,
    project: Annotated[str | None, typer.Option(help="The one project; keys in others are revoked.")] = None,
    all_projects: Annotated[bool, typer.Option("--all-projects", help="Every project again.")] = False,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Change a user; what is not named stays as it is. Running servers follow within 5 seconds."""

    async def work(opened: Database) -> User:
        tenant = await _tenant(opened, organisation)
        confined = SAME if project is None else (await ProjectStore(opened, tenant).find(project)).id
        options = UserOptions(
            name=SAME if name is None else name,
            email=SAME if email is None else email,
            role=SAME if role is None else role,
            project=None if all_projects else confined,
        )
        return await _change(opened, organisation, user, options)

    print_fields(_fields(on_database(config, home, database, work)), as_json)


@app.command()
def confirm(
    user: UserArgument,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Let in somebody who registered and waits."""
    options = UserOptions(confirmed=True)
    changed = on_database(config, home, database, lambda opened: _change(opened, organisation, user, options))
    print(f"Confirmed {changed.name!r} ({changed.id}).", file=sys.stderr)


@app.command()
def disable(
    user: UserArgument,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Keep a user out: sessions end, and all keys for good."""
    options = UserOptions(disabled=True)
    changed = on_database(config, home, database, lambda opened: _change(opened, organisation, user, options))
    print(f"Disabled {changed.name!r} ({changed.id}) and revoked the keys.", file=sys.stderr)


@app.command()
def enable(
    user: UserArgument,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Let a disabled user in again; the keys stay revoked."""
    options = UserOptions(disabled=False)
    changed = on_database(config, home, database, lambda opened: _change(opened, organisation, user, options))
    print(f"Enabled {changed.name!r} ({changed.id}).", file=sys.stderr)


@app.command("reset-link")
def reset_link(
    user: UserArgument,
    organisation: OrganisationOption = DEFAULT_ORGANISATION,
    config: ConfigOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
) -> None:
    """Print a link with which a person sets a new password, once, within an hour."""
    address = public_address(config, home, database)
    link = on_database(config, home, database, lambda opened: _reset_link(opened, organisation, user, address))
    print("Whoever has this link can sign in as that person: hand it to them alone.", file=sys.stderr)
    print(link)


async def _reset_link(database: Database, organisation: str, user: str, address: str) -> str:
    store = UserStore(database, await _tenant(database, organisation))
    passwords = Passwords()
    try:
        accounts = Accounts(database, passwords, Secrets(database))
        account = await accounts.get((await store.find(user)).id)
        if account is None or account.disabled:
            raise Conflict(f"{user!r} does not sign on: the user is disabled, or a service account.")
        token = await accounts.reset_token(account)
        await accounts.record_link(account, operator().actor)
    finally:
        passwords.close()
    return password_link(address, token)


async def _tenant(database: Database, organisation: str) -> str:
    return (await OrganisationStore(database, None).find(organisation)).id


async def _change(database: Database, organisation: str, user: str, options: UserOptions) -> User:
    store = UserStore(database, await _tenant(database, organisation))
    return await store.update(operator(), (await store.find(user)).id, options)


async def _list(database: Database, organisation: str, everything: bool) -> list[User]:
    store = UserStore(database, await _tenant(database, organisation))
    return await every(lambda after: store.page(limit=500, after=after, disabled=everything))


def _fields(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "organisation": user.organisation,
        "project": user.project,
        "kind": user.kind,
        "name": user.name,
        "email": user.email,
        "role": user.role.value,
        "state": user.state,
        "created_by": user.created_by,
        "created_at_ms": user.created_at_ms,
        "last_seen_at_ms": user.last_seen_at_ms,
    }
