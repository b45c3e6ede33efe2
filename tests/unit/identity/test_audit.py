"""The audit log: the chain over its entries, what breaks it, and what never gets in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, update

from passerelle.domain.principal import Principal, Scope
from passerelle.identity.audit import (
    EVERYWHERE,
    MAX_STATE_BYTES,
    REMOVED,
    Actor,
    AuditLog,
    Head,
    append,
    shown,
)
from passerelle.storage.engine import Database
from passerelle.storage.tables import audit, organisations, sequences

ADMIN = Actor("key", "key_1", "admin", "10.0.0.7", "req_1")


async def write(database: Database, count: int, **given: Any) -> None:
    """Adds ``count`` entries, each in a transaction of its own."""
    for index in range(count):
        fields = {"action": "key.create", "subject_kind": "key", "subject_id": f"key_{index}", "after": {"n": index}}
        await AuditLog(database, "default").record(ADMIN, **(fields | given))


async def test_an_entry_holds_what_was_done(database: Database) -> None:
    """Who, what, when, from where, before and after come back as they were given."""
    log = AuditLog(database, "default", clock=lambda: 1_700_000_000.5)
    before, after = {"name": "équipe", "models": None}, {"name": "équipe 2", "models": ["phi"]}
    await log.record(
        ADMIN, action="project.update", subject_kind="project", subject_id="p1", before=before, after=after
    )
    (entry,) = await log.page()
    assert (entry.number, entry.at_ms, entry.organisation) == (1, 1_700_000_000_500, "default")
    assert entry.actor == ADMIN
    assert (entry.action, entry.subject_kind, entry.subject_id) == ("project.update", "project", "p1")
    assert (entry.before, entry.after) == (before, after)


async def test_a_change_and_its_entry_are_there_together_or_neither(database: Database) -> None:
    """An entry whose transaction is rolled back leaves nothing, and no gap."""
    with pytest.raises(LookupError):
        async with database.write() as connection:
            await connection.execute(update(organisations).values(name="changed"))
            await append(
                connection, ADMIN, action="a.b", organisation="default", subject_kind="organisation", subject_id="x"
            )
            raise LookupError
    await write(database, 1)
    log = AuditLog(database, None)
    assert [entry.number for entry in await log.page()] == [1]
    async with database.read() as connection:
        assert (await connection.execute(select(organisations.c.name))).scalar_one() == "default"


async def test_writers_at_the_same_time_make_one_chain(database: Database) -> None:
    """Forty writers at once get dense numbers and a whole chain: the lock on the sequence orders them."""
    await asyncio.gather(*(write(database, 4) for _ in range(10)))
    verdict = await AuditLog(database, None).verify()
    assert verdict.whole
    assert verdict.checked == verdict.head.number == 40


async def test_tenants_behind_their_fence_write_one_chain(database: Database) -> None:
    """Row-level security hides the entry before from a tenant, and still the chain holds; the fence stays."""
    await write(database, 1, organisation="zeta")
    for organisation in ("default", "other", "default"):
        async with database.of(organisation).write() as connection:
            for _ in range(2):
                await append(
                    connection, ADMIN, action="a.b", organisation=organisation, subject_kind="s", subject_id="x"
                )
            if not database.is_sqlite:
                seen = (await connection.execute(select(audit.c.organisation))).scalars()
                assert set(seen) == {organisation}
    verdict = await AuditLog(database, None).verify()
    assert verdict.whole
    assert verdict.checked == 7
    assert {entry.organisation for entry in await AuditLog(database.of("other"), "other").page()} == {"other"}


async def test_an_empty_log_is_whole(database: Database) -> None:
    """Nothing happened yet, and nothing is broken."""
    verdict = await AuditLog(database, None).verify()
    assert verdict.whole
    assert verdict.head == Head(0, "00" * 32)


Damage = Callable[[Any], Awaitable[None]]


async def _change(connection: Any) -> None:
    await connection.execute(update(audit).where(audit.c.number == 5).values(after='{"n":99}'))


async def _rename_the_actor(connection: Any) -> None:
    await connection.execute(update(audit).where(audit.c.number == 5).values(actor_id="somebody-else"))


async def _remove(connection: Any) -> None:
    await connection.execute(delete(audit).where(audit.c.number == 5))


async def _remove_and_close_the_gap(connection: Any) -> None:
    await connection.execute(delete(audit).where(audit.c.number == 5))
    for number in range(6, 11):
        await connection.execute(update(audit).where(audit.c.number == number).values(number=number - 1))


async def _swap(connection: Any) -> None:
    for old, new in ((5, 99), (6, 5), (99, 6)):
        await connection.execute(update(audit).where(audit.c.number == old).values(number=new))


async def _forge(connection: Any) -> None:
    row = dict((await connection.execute(select(audit).where(audit.c.number == 5))).mappings().one())
    await connection.execute(delete(audit).where(audit.c.number == 5))
    await connection.execute(insert(audit).values(**(row | {"digest": b"\x01" * 32})))


@pytest.mark.parametrize(
    "damage", [_change, _rename_the_actor, _remove, _remove_and_close_the_gap, _swap, _forge], ids=lambda d: d.__name__
)
async def test_what_was_tampered_with_is_named(database: Database, damage: Damage) -> None:
    """A row that was changed, removed, moved or forged is the first number that does not fit."""
    await write(database, 10)
    async with database.write() as connection:
        await damage(connection)
    verdict = await AuditLog(database, None).verify()
    assert verdict.broken == 5
    assert verdict.checked == 4
    assert verdict.why


async def test_a_cut_tail_is_found_by_the_sequence(database: Database) -> None:
    """Entries removed at the end are missed, because their numbers were given out."""
    await write(database, 6)
    async with database.write() as connection:
        await connection.execute(delete(audit).where(audit.c.number > 4))
    verdict = await AuditLog(database, None).verify()
    assert (verdict.broken, verdict.head.number) == (5, 4)


async def test_a_cut_tail_is_found_even_when_the_log_went_on(database: Database) -> None:
    """Entries written after the cut do not hide it."""
    await write(database, 6)
    async with database.write() as connection:
        await connection.execute(delete(audit).where(audit.c.number > 4))
    await write(database, 3)
    assert (await AuditLog(database, None).verify()).broken == 5


async def test_a_remembered_head_tells_a_careful_forger(database: Database) -> None:
    """Who cuts the tail and turns back the sequence, or computes the chain anew, is told by a head noted before."""
    await write(database, 6)
    log = AuditLog(database, None)
    head = (await log.verify()).head
    async with database.write() as connection:
        await connection.execute(delete(audit).where(audit.c.number > 4))
        await connection.execute(update(sequences).where(sequences.c.name == "audit").values(value=4))
    assert (await log.verify()).whole
    assert (await log.verify(head)).broken == 5
    await write(database, 2, action="key.revoke")
    assert (await log.verify()).whole
    verdict = await log.verify(head)
    assert verdict.broken == 6
    assert "remembered" in str(verdict.why)


async def test_the_walk_holds_a_page_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log longer than a page is walked over and exported whole."""
    monkeypatch.setattr("passerelle.identity.audit.PAGE_MAX", 7)
    await write(database, 21)
    log = AuditLog(database, None)
    assert (await log.verify()).checked == 21
    assert [entry.number async for entry in log.entries()] == list(range(1, 22))
    assert [entry.subject_id async for entry in log.entries(subject="key_20")] == ["key_20"]


async def test_pages_follow_each_other(database: Database) -> None:
    """The pages have every entry once, newest first, also when new ones come in between."""
    await write(database, 7)
    log = AuditLog(database, "default")
    first = await log.page(limit=3)
    await write(database, 2)
    second = await log.page(limit=3, older_than=first[-1].number)
    third = await log.page(limit=3, older_than=second[-1].number)
    assert [entry.number for entry in (*first, *second, *third)] == [7, 6, 5, 4, 3, 2, 1]


async def test_an_organisation_sees_its_own_entries_only(database: Database) -> None:
    """Another organisation's entries, and those of none, are in no page, filter or export."""
    await write(database, 2)
    await write(database, 3, organisation="other")
    await write(database, 1, organisation=EVERYWHERE)
    mine = AuditLog(database, "default")
    assert {entry.organisation for entry in await mine.page()} == {"default"}
    assert await mine.page(subject="key_2") == []
    assert len([entry async for entry in mine.entries()]) == 2
    assert len(await AuditLog(database, None).page()) == 6


async def test_filters(database: Database) -> None:
    """Entries are found by action or its noun, actor, subject and time."""
    log = AuditLog(database, "default", clock=lambda: 100.0)
    await log.record(ADMIN, action="key.create", subject_kind="key", subject_id="k1")
    later = AuditLog(database, "default", clock=lambda: 200.0)
    await later.record(ADMIN, action="key.revoke", subject_kind="key", subject_id="k1")
    await later.record(Actor("cli", "cli", "root"), action="keyring.open", subject_kind="keyring", subject_id="r1")

    async def numbers(**given: Any) -> list[int]:
        return [entry.number for entry in await log.page(**given)]

    assert await numbers(action="key") == [2, 1]
    assert await numbers(action="key.revoke") == [2]
    assert await numbers(actor="key_1") == [2, 1]
    assert await numbers(actor="root") == [3]
    assert await numbers(subject="k1") == [2, 1]
    assert await numbers(subject="keyring") == [3]
    assert await numbers(since_ms=150_000) == [3, 2]
    assert await numbers(action="nothing") == []


def test_secrets_are_removed_by_the_names_of_their_fields() -> None:
    """Whatever is called a password, token, digest or secret is gone, at any depth; counts of tokens are not."""
    state = {
        "password": "hunter2",
        "password_hash": "$argon2id$x",
        "newPassword": "x",
        "apiKey": "x",
        "list": [{"client_secret": "x"}],
        "access-token": "x",
        "CSRF": "x",
        "value": b"raw",
        "max_tokens": 12,
        "prompt_tokens": 3,
        "key_id": "key_1",
        "has_password": True,
        "password_changed": False,
        "subject": None,
        "scopes": frozenset({Scope.USAGE_READ, Scope.ADMIN}),
    }
    assert shown(state) == {
        "password": REMOVED,
        "password_hash": REMOVED,
        "newPassword": REMOVED,
        "apiKey": REMOVED,
        "list": [{"client_secret": REMOVED}],
        "access-token": REMOVED,
        "CSRF": REMOVED,
        "value": REMOVED,
        "max_tokens": 12,
        "prompt_tokens": 3,
        "key_id": "key_1",
        "has_password": True,
        "password_changed": False,
        "subject": None,
        "scopes": ["admin", "usage:read"],
    }


async def test_keys_and_tokens_are_removed_wherever_they_stand(database: Database) -> None:
    """A key in a name, a subject or a value is not kept: it has the form of one."""
    key = "sk-pas-0123456789AB-" + "a" * 49
    jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.c2lnbmF0dXJl"
    actor = Actor("user", "u1", f"named {key}")
    await AuditLog(database, "default").record(
        actor, action="x.y", subject_kind="key", subject_id=key, after={"note": f"see {jwt}"}
    )
    async with database.read() as connection:
        row = (await connection.execute(select(audit))).mappings().one()
    assert key not in str(dict(row))
    assert jwt not in str(dict(row))
    assert (await AuditLog(database, None).verify()).whole


async def test_what_no_database_takes_is_made_storable(database: Database) -> None:
    """NUL and halves of characters, which a caller may send in a name, break neither the entry nor the chain."""
    await AuditLog(database, "default").record(
        Actor("user", "u\0", "\ud800"), action="x.y", subject_kind="s", subject_id="\0", after={"n\0": "\ud800\0"}
    )
    assert (await AuditLog(database, None).verify()).whole
    assert (await AuditLog(database, None).page())[0].subject_id == "\ufffd"


async def test_a_huge_state_is_kept_as_its_digest(database: Database) -> None:
    """An entry has a largest size, whatever was changed."""
    await AuditLog(database, "default").record(
        ADMIN, action="x.y", subject_kind="s", subject_id="1", after={"text": "x" * (MAX_STATE_BYTES + 1)}
    )
    (entry,) = await AuditLog(database, None).page()
    assert set(entry.after) == {"bytes", "sha256"}


async def test_no_entry_of_an_unknown_organisation_is_lost(database: Database) -> None:
    """An event that belongs to no organisation is in the whole log."""
    await AuditLog(database, None).record(ADMIN, action="sign_in.failed", subject_kind="user", subject_id="nobody")
    assert [entry.organisation for entry in await AuditLog(database, None).page()] == [EVERYWHERE]
    async with database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(audit))).scalar_one() == 1


def test_a_person_is_the_user_and_a_key_is_the_key() -> None:
    """Who signed on is named by the user's id, a program by its key's."""
    person = Principal(key_id="session:user_1", key_name="ada", user="user_1")
    assert Actor.of(person, "::1", "req") == Actor("user", "user_1", "ada", "::1", "req")
    assert Actor.of(Principal(key_id="key_1", key_name="ci", user="user_1")) == Actor("key", "key_1", "ci")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_any_state_can_be_written(value: Any) -> None:
    """Whatever a caller gives as state becomes JSON text."""
    json.dumps(shown(value)).encode("ascii")
