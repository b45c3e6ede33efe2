"""Organisations, projects and users: made, found, paged, changed, ended, each within its tenant, and each audited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from tests.harness.tenants import OPERATOR, make_key, make_organisation, make_user

from passerelle.domain.errors import BadRequest, Conflict, Forbidden, NotFound, PreconditionFailed
from passerelle.domain.principal import Role, Scope
from passerelle.identity.audit import Actor, AuditLog
from passerelle.identity.credentials import Credentials
from passerelle.identity.keys import KeyOptions, KeyStore, all_keys
from passerelle.identity.organisations import OrganisationOptions, OrganisationStore
from passerelle.identity.projects import ProjectOptions, ProjectStore
from passerelle.identity.rights import Maker
from passerelle.identity.token import mint, parse
from passerelle.identity.users import UserOptions, UserStore
from passerelle.storage import migrations
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade


async def valid(database: Database, token: str) -> bool:
    """Whether a key would be let in, by the database."""
    parsed = parse(token)
    assert parsed is not None
    found = await Credentials(database).look_up(parsed[0])
    return found is not None and not found.revoked


async def actions(database: Database, organisation: str | None = None) -> list[str]:
    """Returns what the audit log says was done, oldest first."""
    return [entry.action async for entry in AuditLog(database, organisation).entries()]


async def test_an_organisation_begins_with_a_project(database: Database) -> None:
    """A key can be made in it at once, without naming a project."""
    acme = await make_organisation(database, "  acme ", models=frozenset({"m"}))
    assert (acme.name, acme.models, acme.version) == ("acme", {"m"}, 1)
    project = (await ProjectStore(database, acme.id).page(limit=10))[0]
    made = await make_key(database, organisation=acme.id)
    assert (project.name, made.key.project) == ("default", project.id)


async def test_names_are_used_once(database: Database) -> None:
    """Organisations among themselves, projects and users within theirs, addresses everywhere."""
    acme, other = await make_organisation(database, "acme"), await make_organisation(database, "other")
    with pytest.raises(Conflict, match="'acme' already"):
        await make_organisation(database, "acme")
    for organisation in (acme.id, other.id):
        projects = ProjectStore(database, organisation)
        await projects.create(OPERATOR, ProjectOptions(name="p"))
        with pytest.raises(Conflict, match="'p' already"):
            await projects.create(OPERATOR, ProjectOptions(name="p"))
        ann = await make_user(database, "ann", organisation=organisation)
        with pytest.raises(Conflict, match="'ann' already"):
            await make_user(database, "ann", organisation=organisation)
    await UserStore(database, other.id).update(OPERATOR, ann.id, UserOptions(email="Ann@Acme.example"))
    with pytest.raises(Conflict, match="in use"):
        await make_user(database, "bob", organisation=acme.id, email="ann@acme.EXAMPLE")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\0", "x" * 201])
async def test_a_name_is_printable_and_short(database: Database, name: str) -> None:
    """Anything else is refused, wherever a name is."""
    for attempt in (make_organisation(database, name), make_user(database, name), make_key(database, name)):
        with pytest.raises(BadRequest, match="1 to 200"):
            await attempt


async def test_pages_follow_one_another(database: Database) -> None:
    """Every object once, oldest first, whatever the size of a page."""
    made = [await make_user(database, f"u{number}") for number in range(7)]
    store, found, after = UserStore(database, "default"), [], None
    while page := await store.page(limit=3, after=after):
        found += [user.id for user in page]
        after = (page[-1].created_at_ms, page[-1].id)
    assert sorted(found) == sorted(user.id for user in made)
    assert len(found) == 7


async def test_an_update_may_ask_for_a_version(database: Database) -> None:
    """The version grows with each change; a change of an older one is refused, and does nothing."""
    acme = await make_organisation(database, "acme")
    store = OrganisationStore(database, None)
    second = await store.update(OPERATOR, acme.id, OrganisationOptions(services=frozenset()), expected=1)
    assert (second.version, second.services, second.name) == (2, frozenset(), "acme")
    for attempt in (
        store.update(OPERATOR, acme.id, OrganisationOptions(name="x"), expected=1),
        store.archive(OPERATOR, acme.id, expected=1),
    ):
        with pytest.raises(PreconditionFailed):
            await attempt
    assert (await store.get(acme.id)).name == "acme"


async def test_what_is_anothers_is_not_there(database: Database) -> None:
    """By id or by name, to read or to change."""
    acme = await make_organisation(database, "acme")
    ann = await make_user(database, "ann", organisation=acme.id)
    project = (await ProjectStore(database, acme.id).page(limit=1))[0]
    key = await make_key(database, organisation=acme.id)
    projects, users, keys = (each(database, "default") for each in (ProjectStore, UserStore, KeyStore))
    attempts: list[Any] = [
        OrganisationStore(database, "default").get(acme.id),
        OrganisationStore(database, "default").find("acme"),
        projects.get(project.id),
        projects.update(OPERATOR, project.id, ProjectOptions(name="x")),
        projects.archive(OPERATOR, project.id),
        users.get(ann.id),
        users.find("ann"),
        users.update(OPERATOR, ann.id, UserOptions(name="x")),
        keys.get(key.key.id),
        keys.revoke(OPERATOR, key.key.id),
        keys.update(OPERATOR, key.key.id, KeyOptions(name="x")),
        ProjectStore(database, "org_nowhere").create(OPERATOR, ProjectOptions(name="x")),
        UserStore(database, "org_nowhere").create(OPERATOR, UserOptions(name="x")),
        KeyStore(database, "org_nowhere").create(OPERATOR, KeyOptions(name="x")),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            await attempt
    assert await valid(database, key.token)


async def test_only_the_operator_changes_organisations(database: Database) -> None:
    """All other scopes together are not enough."""
    made = await make_key(database, scopes=frozenset(Scope) - {Scope.ADMIN})
    parsed = parse(made.token)
    found = None if parsed is None else await Credentials(database).look_up(parsed[0])
    assert found is not None
    by = Maker(Actor("key", made.key.id, "k"), found.principal)
    store = OrganisationStore(database, None)
    for attempt in (
        store.create(by, OrganisationOptions(name="x")),
        store.update(by, "default", OrganisationOptions(models=None)),
        store.archive(by, "default"),
    ):
        with pytest.raises((Forbidden, Conflict)):
            await attempt


async def test_the_first_of_each_is_never_archived(database: Database) -> None:
    """They hold the administrator's key: nobody locks themselves out."""
    with pytest.raises(Conflict):
        await OrganisationStore(database, None).archive(OPERATOR, "default")
    with pytest.raises(Conflict):
        await ProjectStore(database, "default").archive(OPERATOR, "default")


async def test_archiving_refuses_keys_and_restoring_lets_them_in(database: Database) -> None:
    """Project and organisation alike; nothing new is made in what is archived."""
    acme = await make_organisation(database, "acme")
    made = await make_key(database, organisation=acme.id)
    projects, organisations = ProjectStore(database, acme.id), OrganisationStore(database, None)
    for archive, restore, what in (
        (projects.archive, projects.restore, made.key.project),
        (organisations.archive, organisations.restore, acme.id),
    ):
        archived = await archive(OPERATOR, what)
        assert not await valid(database, made.token)
        assert await archive(OPERATOR, what) == archived  # once more does nothing
        with pytest.raises(Conflict, match="archived"):
            await make_key(database, organisation=acme.id, project=made.key.project)
        await restore(OPERATOR, what)
        assert await valid(database, made.token)


@pytest.mark.parametrize(
    ("change", "ended"),
    [
        (UserOptions(disabled=True), {"use", "see", "elsewhere"}),
        (UserOptions(confirmed=False), {"use", "see", "elsewhere"}),
        (UserOptions(role=Role.VIEWER), {"use"}),
        (UserOptions(project="default"), {"elsewhere"}),
        (UserOptions(role=Role.OWNER), set()),
        (UserOptions(name="b", email="b@c.example"), set()),
    ],
)
async def test_keys_end_with_what_their_user_may_not_do_any_more(
    database: Database, change: UserOptions, ended: set[str]
) -> None:
    """For good: taking the change back does not bring them back."""
    user = await make_user(database, "a", role=Role.ADMIN)
    project = await ProjectStore(database, "default").create(OPERATOR, ProjectOptions(name="p"))
    scopes = {"use": Scope.INFERENCE, "see": Scope.KEYS_READ, "elsewhere": Scope.KEYS_READ}
    for name, scope in scopes.items():
        where = project.id if name == "elsewhere" else "default"
        await make_key(database, name, user=user.id, scopes=frozenset({scope}), project=where)
    stranger = await make_key(database, "stranger")
    await UserStore(database, "default").update(OPERATOR, user.id, change)
    live = {key.name for key in await all_keys(database, ended=False)}
    assert live == (set(scopes) | {"stranger"}) - ended
    back = UserOptions(disabled=False, confirmed=True, role=Role.ADMIN, project=None)
    await UserStore(database, "default").update(OPERATOR, user.id, back)
    assert {key.name for key in await all_keys(database, ended=False)} == live
    assert await valid(database, stranger.token)


async def test_a_service_account_holds_keys_and_has_no_address(database: Database) -> None:
    """It cannot sign on, so it has nothing to sign on with."""
    robot = await make_user(database, "robot", kind="service")
    assert await valid(database, (await make_key(database, user=robot.id)).token)
    with pytest.raises(BadRequest, match="no e-mail"):
        await UserStore(database, "default").update(OPERATOR, robot.id, UserOptions(email="a@b.example"))


async def test_every_change_is_in_the_audit_log_of_its_organisation(database: Database) -> None:
    """One entry for each, none for what did nothing or failed, and no secret in any."""
    acme = await make_organisation(database, "acme")
    project = await ProjectStore(database, acme.id).create(OPERATOR, ProjectOptions(name="p"))
    user = await make_user(database, "ann", organisation=acme.id)
    made = await make_key(database, organisation=acme.id, user=user.id)
    store = KeyStore(database, acme.id)
    rotated = await store.rotate(OPERATOR, made.key.id)
    await store.update(OPERATOR, made.key.id, KeyOptions(weight=2.0))
    await store.revoke(OPERATOR, made.key.id)
    await store.revoke(OPERATOR, made.key.id)
    await UserStore(database, acme.id).update(OPERATOR, user.id, UserOptions(role=Role.VIEWER))
    await ProjectStore(database, acme.id).archive(OPERATOR, project.id)
    with pytest.raises(Conflict):
        await make_organisation(database, "acme")
    await OrganisationStore(database, None).update(OPERATOR, acme.id, OrganisationOptions(models=frozenset()))
    assert await actions(database, acme.id) == [
        *("organisation.create", "project.create", "user.create", "key.create", "key.rotate", "key.update"),
        *("key.revoke", "user.update", "project.archive", "organisation.update"),
    ]
    log = AuditLog(database, acme.id)
    entries = [entry async for entry in log.entries()]
    assert (await AuditLog(database, None).verify()).whole
    for token in (made.token, rotated.token):
        assert token[20:63] not in repr(entries)
    role = next(entry for entry in entries if entry.action == "user.update")
    assert (role.before["role"], role.after["role"], role.actor.name) == ("member", "viewer", "test")


OLD_KEY = """INSERT INTO keys (id, name, organisation, project, user_id, scopes, models, weight, created_at_ms,
  created_by, expires_at_ms, revoked_at_ms, last_used_at_ms, changed) VALUES (:id, :id, :organisation, :project, NULL,
  '["inference"]', NULL, 1.0, 1, 'cli', NULL, NULL, NULL, 1)"""
OLD_SECRET = """INSERT INTO key_secrets (public_id, key_id, digest, created_at_ms, expires_at_ms)
  VALUES (:public_id, :id, :digest, 1, NULL)"""


def _first_release(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")


async def test_names_that_keys_used_before_there_were_organisations_become_ones(
    database_url: str, tmp_path: Path
) -> None:
    """Keys of the first release could name any organisation and project: they go on, and each name is one now."""
    database = open_database(database_url, tmp_path)
    async with database.write(as_owner=True) as connection:
        await connection.run_sync(_first_release)
    token = mint()
    parsed = parse(token)
    assert parsed is not None
    public_id, digest = parsed
    places = [("default", "default"), ("acme", "search"), ("acme", "default"), ("other", "search")]
    async with database.write(as_owner=True) as connection:
        for number, (organisation, project) in enumerate(places):
            row = {"id": f"key_{number}", "organisation": organisation, "project": project}
            await connection.execute(text(OLD_KEY), row)
        await connection.execute(text(OLD_SECRET), {"public_id": public_id, "id": "key_1", "digest": digest})
    await upgrade(database)
    found = await OrganisationStore(database, None).page(limit=10)
    assert {each.id for each in found} == {each.name for each in found} == {"default", "acme", "other"}
    assert await valid(database, token)
    assert [key.name for key in await KeyStore(database, "acme").page(limit=10)] == ["key_1", "key_2"]
    await OrganisationStore(database, None).archive(OPERATOR, "acme")
    assert not await valid(database, token)
    await database.aclose()
