"""Sessions: their ends, their secrets, and how other workers hear of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from sqlalchemy import event, select, update

from passerelle.domain.errors import Unauthenticated, Unavailable
from passerelle.identity.accounts import Account, Accounts, next_change
from passerelle.identity.audit import Actor
from passerelle.identity.changes import PeopleChanges
from passerelle.identity.passwords import Passwords
from passerelle.identity.secrets import Secrets
from passerelle.identity.sessions import IDLE_S, LIFETIME_S, Sessions, csrf_token
from passerelle.storage.engine import Database, open_database
from passerelle.storage.tables import organisations, sessions, users

GOOD, BETTER = "correct horse", "battery staple"
ADMIN = Actor("cli", "cli", "root")


class Clock:
    """A clock that is moved by hand."""

    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Worker:
    """One process's part."""

    accounts: Accounts
    changes: PeopleChanges
    sessions: Sessions


@dataclass
class World:
    """Two workers on one database, and a person."""

    database: Database
    clock: Clock
    here: Worker
    there: Worker
    ada: Account

    async def gone(self, worker: Worker, cookie: str) -> bool:
        """Whether the worker refuses the cookie, within 5 seconds."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                await worker.sessions.find(cookie)
            except Unauthenticated:
                return True
            await asyncio.sleep(0.01)
        return False


@pytest_asyncio.fixture
async def world(database: Database) -> AsyncIterator[World]:
    """Ada, confirmed, and two workers."""
    passwords, clock = Passwords(memory_kib=64, passes=1), Clock()
    workers = []
    for _ in range(2):
        accounts = Accounts(database, passwords, Secrets(database), clock=clock)
        changes = PeopleChanges(database, poll_s=0.05)
        changes.start()
        workers.append(Worker(accounts, changes, Sessions(database, accounts, changes, clock=clock)))
    made = await workers[0].accounts.register(
        "ada", "ada@example.org", GOOD, organisation="default", address=None, request_id=None
    )
    async with database.write() as connection:
        await connection.execute(update(users).values(confirmed_at_ms=1))
    ada = await workers[0].accounts.get(made.id)
    assert ada is not None
    yield World(database, clock, *workers, ada)
    for worker in workers:
        await worker.changes.aclose()
    passwords.close()


async def test_a_session_is_its_person(world: World) -> None:
    """The cookie leads to the person, in every worker; another one leads to nobody."""
    opened = await world.here.sessions.open(world.ada, address="10.0.0.1", agent="browser")
    for worker in (world.here, world.there):
        session = await worker.sessions.find(opened.cookie)
        assert session.principal.user == world.ada.id
        assert session.principal.key_id == f"session:{world.ada.id}"
    for wrong in ("", "x", opened.cookie[:-1], opened.cookie[:-1] + "!", "\ud800" * 43, csrf_token(opened.cookie)):
        with pytest.raises(Unauthenticated) as caught:
            await world.here.sessions.find(wrong)
        assert caught.value.error_code == "not_signed_in"


async def test_each_sign_in_has_a_new_cookie(world: World) -> None:
    """Nobody can give somebody else a session that both know: its value is made at sign-in."""
    first = await world.here.sessions.open(world.ada, address=None, agent=None)
    second = await world.here.sessions.open(world.ada, address=None, agent=None)
    assert first.cookie != second.cookie
    assert first.csrf != second.csrf


async def test_the_database_holds_no_cookie(world: World) -> None:
    """Who reads the database cannot sign on with what is in it."""
    opened = await world.here.sessions.open(world.ada, address=None, agent=None)
    async with world.database.read() as connection:
        row = (await connection.execute(select(sessions))).mappings().one()
    for value in row.values():
        assert opened.cookie.encode() not in (value if isinstance(value, bytes) else str(value).encode())
        assert opened.csrf.encode() not in (value if isinstance(value, bytes) else str(value).encode())
    assert opened.cookie not in repr(opened)


async def test_only_its_own_csrf_token_fits(world: World) -> None:
    """The token of another session, none, or a wrong one is refused."""
    mine = await world.here.sessions.open(world.ada, address=None, agent=None)
    other = await world.here.sessions.open(world.ada, address=None, agent=None)
    session = await world.there.sessions.find(mine.cookie)
    assert session.accepts(mine.csrf)
    assert session.accepts(csrf_token(mine.cookie))
    for wrong in (None, "", other.csrf, mine.csrf[:-1], mine.cookie):
        assert not session.accepts(wrong)


async def test_a_session_ends_when_idle(world: World) -> None:
    """Use prolongs it, in any worker; two hours without end it."""
    opened = await world.here.sessions.open(world.ada, address=None, agent=None)
    for worker in (world.here, world.there, world.here, world.there):
        world.clock.now_s += IDLE_S - 1
        await worker.sessions.find(opened.cookie)
    world.clock.now_s += IDLE_S
    for worker in (world.here, world.there):
        with pytest.raises(Unauthenticated):
            await worker.sessions.find(opened.cookie)


async def test_a_session_ends_after_a_day_however_busy(world: World) -> None:
    """The absolute end comes, whatever happens in between, and its row goes with the next sign-in."""
    opened = await world.here.sessions.open(world.ada, address=None, agent=None)
    end_s = world.clock.now_s + LIFETIME_S
    while world.clock.now_s < end_s - IDLE_S / 2:
        world.clock.now_s += IDLE_S / 2
        await world.here.sessions.find(opened.cookie)
    world.clock.now_s = end_s
    with pytest.raises(Unauthenticated):
        await world.here.sessions.find(opened.cookie)
    await world.here.sessions.open(world.ada, address=None, agent=None)
    async with world.database.read() as connection:
        assert len((await connection.execute(select(sessions))).all()) == 1


async def test_signing_out_ends_it_everywhere(world: World) -> None:
    """A cookie that was stolen before is worth nothing after the sign-out; other sessions go on."""
    opened = await world.here.sessions.open(world.ada, address=None, agent=None)
    other = await world.here.sessions.open(world.ada, address=None, agent=None)
    for worker in (world.here, world.there):
        await worker.sessions.find(opened.cookie)
    await world.here.sessions.close(await world.here.sessions.find(opened.cookie), ADMIN)
    with pytest.raises(Unauthenticated):
        await world.here.sessions.find(opened.cookie)
    assert await world.gone(world.there, opened.cookie)
    await world.there.sessions.find(other.cookie)


async def test_a_new_password_ends_it_everywhere(world: World) -> None:
    """Every session from before the change is refused by every worker."""
    opened = await world.there.sessions.open(world.ada, address=None, agent=None)
    await world.there.sessions.find(opened.cookie)
    world.clock.now_s += 1
    await world.here.accounts.set_password(world.ada, BETTER, ADMIN)
    assert await world.gone(world.there, opened.cookie)


@pytest.mark.parametrize("what", ["disabled", "signed out", "organisation archived", "unconfirmed"])
async def test_what_an_administrator_does_ends_it_everywhere(world: World, what: str) -> None:
    """Disabling a person, signing them out, or archiving their organisation is seen within five seconds."""
    opened = await world.there.sessions.open(world.ada, address=None, agent=None)
    await world.there.sessions.find(opened.cookie)
    later_ms = int(world.clock.now_s * 1000) + 1
    async with world.database.write() as connection:
        changed = await next_change(connection)
        if what == "organisation archived":
            await connection.execute(update(organisations).values(archived_at_ms=later_ms, changed=changed))
        else:
            column = {"disabled": "disabled_at_ms", "signed out": "signed_out_at_ms"}.get(what, "confirmed_at_ms")
            value = None if what == "unconfirmed" else later_ms
            await connection.execute(update(users).values(**{column: value, "changed": changed}))
    assert await world.gone(world.there, opened.cookie)


async def test_a_change_of_role_is_seen(world: World) -> None:
    """A running session has the rights of the role its person has now."""
    opened = await world.here.sessions.open(world.ada, address=None, agent=None)
    await world.here.sessions.find(opened.cookie)
    async with world.database.write() as connection:
        await connection.execute(update(users).values(role="viewer", changed=await next_change(connection)))
    until = time.monotonic() + 30
    while (await world.here.sessions.find(opened.cookie)).principal.role != "viewer":
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_a_session_in_memory_costs_no_statement(world: World) -> None:
    """A session seen before is answered without a look at the database."""
    opened = await world.here.sessions.open(world.ada, address=None, agent=None)
    await world.here.sessions.find(opened.cookie)
    assert world.here.sessions.cached(opened.cookie) is not None
    await world.here.changes.aclose()
    await world.there.changes.aclose()
    statements: list[str] = []
    event.listen(world.database.engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    for _ in range(10):
        assert (await world.here.sessions.find(opened.cookie)).principal.user == world.ada.id
    assert statements == []


async def test_without_a_database_nobody_is_called_unknown(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A session that cannot be checked gets 503, never 401: being unable to look says nothing about it."""
    opened = await world.here.sessions.open(world.ada, address=None, agent=None)
    empty = open_database("sqlite", tmp_path_factory.mktemp("empty"))
    broken = Sessions(empty, world.here.accounts, PeopleChanges(empty))
    with pytest.raises(Unavailable):
        await broken.find(opened.cookie)
    await empty.aclose()
