"""People: signing in, registration, new passwords, and who an identity provider names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
import pytest_asyncio
from sqlalchemy import insert, select, update
from tests.harness.tenants import make_key, make_organisation

from passerelle.domain.errors import BadRequest, Conflict, Forbidden, NotFound, Unauthenticated
from passerelle.domain.principal import ROLE_SCOPES, Role
from passerelle.identity.accounts import RESET_S, Account, Accounts
from passerelle.identity.audit import Actor, AuditLog
from passerelle.identity.keys import KeyStore
from passerelle.identity.passwords import Passwords
from passerelle.identity.secrets import Secrets
from passerelle.storage.engine import Database
from passerelle.storage.tables import organisations, projects, sessions, users

GOOD, BETTER = "correct horse", "battery staple"
ADMIN = Actor("cli", "cli", "root")


class Clock:
    """A clock that is moved by hand."""

    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """A database with accounts."""

    database: Database
    accounts: Accounts
    secrets: Secrets
    clock: Clock

    async def register(self, name: str = "ada", *, confirmed: bool = True, **values: Any) -> Account:
        """Makes a person with the password GOOD."""
        account = await self.accounts.register(
            name, f"{name}@example.org", GOOD, organisation="default", address=None, request_id=None
        )
        values |= {"confirmed_at_ms": 1} if confirmed else {}
        if values:
            await self.change(account.id, **values)
        found = await self.accounts.get(account.id)
        assert found is not None
        return found

    async def change(self, user_id: str, **values: Any) -> None:
        """Changes a row as an administrator would."""
        async with self.database.write() as connection:
            await connection.execute(update(users).where(users.c.id == user_id).values(**values))

    async def actions(self) -> list[str]:
        """What the audit log says was done, oldest first."""
        return [entry.action async for entry in AuditLog(self.database, None).entries()]


@pytest_asyncio.fixture
async def world(database: Database) -> AsyncIterator[World]:
    """An empty world, with hashes that cost little."""
    passwords = Passwords(memory_kib=64, passes=1)
    clock, secrets = Clock(), Secrets(database)
    yield World(database, Accounts(database, passwords, secrets, clock=clock), secrets, clock)
    passwords.close()


async def test_who_registered_needs_an_administrator(world: World) -> None:
    """A new account signs on only after it was confirmed, and only who knows its password learns why not."""
    made = await world.register(confirmed=False)
    assert (made.role, made.confirmed) == (Role.MEMBER, False)
    with pytest.raises(Forbidden) as caught:
        await world.accounts.sign_in("ada", GOOD)
    assert caught.value.error_code == "user_not_confirmed"
    with pytest.raises(Unauthenticated):
        await world.accounts.sign_in("ada", BETTER)
    await world.change(made.id, confirmed_at_ms=1)
    assert (await world.accounts.sign_in("ada", GOOD)).id == made.id
    assert await world.actions() == ["user.register"]


@pytest.mark.parametrize("login", ["ada", "ada@example.org", "ADA@Example.ORG", " ada "])
async def test_people_sign_on_by_name_or_address(world: World, login: str) -> None:
    """Either works, and capitals in an address do not matter."""
    made = await world.register()
    assert (await world.accounts.sign_in(login, GOOD)).id == made.id


@pytest.mark.parametrize("login", ["", "bob", "ad", "ada%", "' or 1=1 --", "ada\0", "x" * 1000, "a@b@c"])
async def test_unknown_people_and_wrong_passwords_are_one_answer(world: World, login: str) -> None:
    """Whether a name exists cannot be told from the error."""
    await world.register()
    with pytest.raises(Unauthenticated) as unknown:
        await world.accounts.sign_in(login, GOOD)
    with pytest.raises(Unauthenticated) as wrong:
        await world.accounts.sign_in("ada", "wrong horse")
    assert unknown.value.message == wrong.value.message
    assert unknown.value.error_code == wrong.value.error_code == "invalid_credentials"


async def test_a_name_that_two_organisations_have_is_nobody(world: World) -> None:
    """A name signs on only while it means one person; the address always does."""
    await world.register()
    async with world.database.write() as connection:
        row = {"id": "org_2", "name": "two", "created_at_ms": 1, "created_by": "test", "changed": 0, "version": 1}
        await connection.execute(insert(organisations).values(**row))
    other = await world.accounts.register(
        "ada", "ada@two.example.org", GOOD, organisation="org_2", address=None, request_id=None
    )
    await world.change(other.id, confirmed_at_ms=1)
    with pytest.raises(Unauthenticated):
        await world.accounts.sign_in("ada", GOOD)
    assert (await world.accounts.sign_in("ada@example.org", GOOD)).organisation == "default"


async def test_who_registers_takes_nobodys_name_away(world: World) -> None:
    """Somebody waiting for an administrator in another organisation does not keep its owner from signing on by it."""
    made = await world.register()
    for name in ("two", "three", "four"):
        elsewhere = (await make_organisation(world.database, name)).id
        await world.accounts.register(
            "ada", f"ada@{name}.example", GOOD, organisation=elsewhere, address=None, request_id=None
        )
    assert (await world.accounts.sign_in("ada", GOOD)).id == made.id


async def test_an_address_means_who_has_it(world: World) -> None:
    """However many people in other organisations have it as their name, it signs on its owner."""
    made = await world.register()
    async with world.database.write() as connection:
        for number in range(5):
            row = {"id": f"org_{number}", "name": f"o{number}", "created_at_ms": 1, "created_by": "test"}
            await connection.execute(insert(organisations).values(**row, changed=0, version=1))
            person = {"id": f"a{number}", "organisation": f"org_{number}", "kind": "person", "role": "owner"}
            person |= {"name": "ada@example.org", "created_at_ms": 1, "created_by": "test", "changed": 0, "version": 1}
            await connection.execute(insert(users).values(**person))
    assert (await world.accounts.sign_in("ada@example.org", GOOD)).id == made.id


async def test_what_was_typed_for_a_name_is_not_kept(world: World) -> None:
    """A password in the field of the name does not get into the audit log."""
    ada = await world.register()
    await world.accounts.record_failure(GOOD, "invalid_credentials", "10.0.0.1", "req_1")
    await world.accounts.record_failure("ada", "invalid_credentials", "10.0.0.1", "req_1")
    known, unknown, *_ = await AuditLog(world.database, None).page()
    assert (known.actor.id, known.organisation) == (ada.id, "default")
    assert (unknown.actor.id, unknown.organisation) == ("unknown", "*")
    assert GOOD not in repr(unknown)


@pytest.mark.parametrize("values", [{"disabled_at_ms": 1}, {"kind": "service"}])
async def test_disabled_people_and_services_do_not_sign_on(world: World, values: dict[str, Any]) -> None:
    """Who was disabled is told so after the right password; a service account has no password to sign on with."""
    await world.register(**values)
    with pytest.raises((Forbidden, Unauthenticated)):
        await world.accounts.sign_in("ada", GOOD)


async def test_people_of_an_archived_organisation_do_not_sign_on(world: World) -> None:
    """Archiving an organisation ends the sign-on of everybody in it."""
    await world.register()
    async with world.database.write() as connection:
        await connection.execute(update(organisations).values(archived_at_ms=1))
    with pytest.raises(Forbidden):
        await world.accounts.sign_in("ada", GOOD)


async def test_names_and_addresses_are_taken_once(world: World) -> None:
    """A second account with the name or the address of another is a conflict."""
    await world.register()
    for name, email in (("ada", "other@example.org"), ("other", "ADA@example.org")):
        with pytest.raises(Conflict):
            await world.accounts.register(name, email, GOOD, organisation="default", address=None, request_id=None)


async def test_what_a_person_may_do_is_their_role_within_their_organisation_and_project(world: World) -> None:
    """Scopes come from the role; models are those that organisation and project both allow."""
    made = await world.register(role="viewer")
    async with world.database.write() as connection:
        await connection.execute(update(organisations).values(models=["a", "b"]))
        await connection.execute(update(projects).values(models=["b", "c"], services=["s"]))
        await connection.execute(update(users).values(project="default"))
    account = await world.accounts.get(made.id)
    assert account is not None
    principal = account.principal(5.0)
    assert principal.key_id == f"session:{made.id}"
    assert principal.scopes == ROLE_SCOPES[Role.VIEWER]
    assert (principal.models, principal.services) == (frozenset({"b"}), frozenset({"s"}))
    assert (principal.user, principal.organisation, principal.expires_at) == (made.id, "default", 5.0)


async def test_a_new_password_ends_the_old_one_and_every_session(world: World) -> None:
    """After a change the old password is nobody's, and no session is left."""
    made = await world.register()
    async with world.database.write() as connection:
        row = {"digest": b"\1" * 32, "user_id": made.id, "organisation": "default", "csrf_digest": b"\2" * 32}
        row |= {"created_at_ms": 1, "expires_at_ms": 2, "last_seen_at_ms": 1}
        await connection.execute(insert(sessions).values(**row))
    with pytest.raises(Forbidden):
        await world.accounts.change_password(made.id, "wrong horse", BETTER, ADMIN)
    with pytest.raises(BadRequest):
        await world.accounts.change_password(made.id, GOOD, "12345678", ADMIN)
    await world.accounts.change_password(made.id, GOOD, BETTER, ADMIN)
    with pytest.raises(Unauthenticated):
        await world.accounts.sign_in("ada", GOOD)
    await world.accounts.sign_in("ada", BETTER)
    async with world.database.read() as connection:
        assert (await connection.execute(select(sessions))).all() == []
    assert await world.actions() == ["user.register", "user.change_password"]


async def test_a_reset_link_works_once(world: World) -> None:
    """The token sets a password; a second time, also at the same moment, it is refused."""
    made = await world.register()
    token = await world.accounts.reset_token(made)
    results = await asyncio.gather(
        *(world.accounts.reset_password(token, f"{BETTER} {n}", None, None) for n in range(4)), return_exceptions=True
    )
    assert sum(isinstance(result, Account) for result in results) == 1
    assert all(isinstance(result, (Account, BadRequest)) for result in results)
    with pytest.raises(BadRequest) as caught:
        await world.accounts.reset_password(token, BETTER, None, None)
    assert caught.value.error_code == "invalid_link"


async def test_a_reset_link_ends(world: World) -> None:
    """It ends after an hour, with a change of the password, and with the account."""
    made = await world.register()
    token = await world.accounts.reset_token(made)
    world.clock.now_s += RESET_S
    with pytest.raises(BadRequest):
        await world.accounts.reset_password(token, BETTER, None, None)
    token = await world.accounts.reset_token(made)
    await world.accounts.change_password(made.id, GOOD, BETTER, ADMIN)
    with pytest.raises(BadRequest):
        await world.accounts.reset_password(token, "another one 1", None, None)
    token = await world.accounts.reset_token(await world.accounts.find("ada"))
    await world.change(made.id, disabled_at_ms=1)
    with pytest.raises(BadRequest):
        await world.accounts.reset_password(token, "another one 1", None, None)


async def test_a_weak_password_does_not_use_up_the_link(world: World) -> None:
    """Who chooses badly may choose again."""
    token = await world.accounts.reset_token(await world.register())
    with pytest.raises(BadRequest) as caught:
        await world.accounts.reset_password(token, "12345678", None, None)
    assert caught.value.error_code == "weak_password"
    await world.accounts.reset_password(token, BETTER, None, None)


async def test_forged_reset_links(world: World) -> None:
    """Other keys, other algorithms, other purposes and other people are refused."""
    made = await world.register()
    other = await world.register("bob")
    good = await world.accounts.reset_token(made)
    key = await world.secrets.get("password-reset")
    claims = jwt.decode(
        good, key, algorithms=["HS256"], audience="password-reset", options={"verify_exp": False, "verify_iat": False}
    )
    forged = [
        "",
        "x",
        "\ud800",
        good[:-2],
        good + "A",
        jwt.encode(claims, "0" * 32, algorithm="HS256"),
        jwt.encode(claims, None, algorithm="none"),
        jwt.encode(claims | {"aud": "session"}, key, algorithm="HS256"),
        jwt.encode(claims | {"sub": other.id}, key, algorithm="HS256"),
        jwt.encode({name: claims[name] for name in claims if name != "exp"}, key, algorithm="HS256"),
    ]
    for token in forged:
        with pytest.raises(BadRequest):
            await world.accounts.reset_password(token, BETTER, None, None)
    await world.accounts.sign_in("ada", GOOD)


async def test_a_provider_names_people(world: World) -> None:
    """The first time makes the account, later ones find it; role and project follow what the provider says."""
    named = {"name": "Ada", "email": "ada@idp.example.org", "organisation": "default", "create": True}
    first = await world.accounts.adopt("https://idp|1", role=Role.MEMBER, project=None, **named)
    again = await world.accounts.adopt("https://idp|1", role=Role.ADMIN, project="default", **named)
    assert first.id == again.id
    assert (first.role, again.role, again.project) == (Role.MEMBER, Role.ADMIN, "default")
    assert await world.actions() == ["user.create", "user.update"]
    await world.change(first.id, disabled_at_ms=1)
    with pytest.raises(Forbidden):
        await world.accounts.adopt("https://idp|1", role=Role.ADMIN, project="default", **named)


async def test_a_provider_that_lowers_a_role_ends_keys_beyond_it(world: World) -> None:
    """As when an administrator does it: for good, and only those; another organisation ends all of them."""
    named = {"name": "Ada", "email": None, "project": None, "create": True}
    ada = await world.accounts.adopt("https://idp|1", role=Role.ADMIN, organisation="default", **named)
    wide = await make_key(world.database, user=ada.id, scopes=ROLE_SCOPES[Role.ADMIN])
    plain = await make_key(world.database, user=ada.id)
    store = KeyStore(world.database, "default")

    async def alive() -> list[bool]:
        return [(await store.get(key.key.id)).revoked_at_ms is None for key in (wide, plain)]

    await world.accounts.adopt("https://idp|1", role=Role.MEMBER, organisation="default", **named)
    assert await alive() == [False, True]
    await world.accounts.adopt("https://idp|1", role=Role.ADMIN, organisation="default", **named)
    assert await alive() == [False, True]
    other = (await make_organisation(world.database, "acme")).id
    await world.accounts.adopt("https://idp|1", role=Role.ADMIN, organisation=other, **named)
    assert await alive() == [False, False]


async def test_a_provider_takes_over_no_account(world: World) -> None:
    """A provider's name or address that a local person has makes another account: it proves nothing about that one."""
    local = await world.register()
    adopted = await world.accounts.adopt(
        "https://idp|1",
        name="ada",
        email="ada@example.org",
        role=Role.OWNER,
        organisation="default",
        project=None,
        create=True,
    )
    assert adopted.id != local.id
    assert adopted.email is None
    assert (await world.accounts.find("ada@example.org")).id == local.id


async def test_a_provider_makes_nobody_where_it_may_not(world: World) -> None:
    """Without the right to create, with an unknown organisation or project, nobody is made."""
    named = {"name": "Ada", "email": None, "role": Role.MEMBER}
    for changed in (
        {"create": False, "organisation": "default", "project": None},
        {"create": True, "organisation": "nowhere", "project": None},
        {"create": True, "organisation": "default", "project": "nowhere"},
    ):
        with pytest.raises(Forbidden):
            await world.accounts.adopt("https://idp|1", **(named | changed))
    with pytest.raises(NotFound):
        await world.accounts.find("Ada")


async def test_two_workers_make_one_person(world: World) -> None:
    """Two first sign-ons at the same moment are one account."""
    named = {"name": "Ada", "email": None, "role": Role.MEMBER, "organisation": "default", "project": None}
    made = await asyncio.gather(*(world.accounts.adopt("https://idp|1", create=True, **named) for _ in range(4)))
    assert len({account.id for account in made}) == 1


async def test_replicas_sign_with_the_same_keys(world: World) -> None:
    """Several processes that need a key for the first time get one and the same."""
    found = await asyncio.gather(*(Secrets(world.database).get("fresh") for _ in range(4)))
    assert len(set(found)) == 1
    assert len(found[0]) == 32


async def test_nothing_secret_is_shown(world: World) -> None:
    """Neither an account's repr nor the audit log holds a password or its hash."""
    made = await world.register()
    await world.accounts.change_password(made.id, GOOD, BETTER, ADMIN)
    shown = repr(await world.accounts.get(made.id)) + repr(await AuditLog(world.database, None).page())
    for secret in (GOOD, BETTER, "$argon2"):
        assert secret not in shown
