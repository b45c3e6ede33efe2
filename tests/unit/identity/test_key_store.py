"""Keys in the database: made, found, rotated, revoked, on both databases."""

from __future__ import annotations

import hashlib
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import select
from tests.harness.tenants import OPERATOR, make_organisation, make_user

from passerelle.domain.errors import Conflict, NotFound
from passerelle.domain.principal import Role, Scope
from passerelle.identity.credentials import Change, Changes, Credentials
from passerelle.identity.keys import KeyOptions, KeyStore, NewKey, all_keys, find_key
from passerelle.identity.token import parse
from passerelle.storage.engine import Database
from passerelle.storage.tables import key_secrets, keys


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """The clock of the store."""
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> KeyStore:
    """The store under test."""
    return KeyStore(database, "default", clock=clock)


@pytest.fixture
def credentials(database: Database, clock: Clock) -> Credentials:
    """What the authenticator sees of the keys."""
    return Credentials(database, clock=clock)


async def make(store: KeyStore, name: str = "k", **options: Any) -> NewKey:
    """Makes a key that may call models."""
    return await store.create(OPERATOR, KeyOptions(name=name, **options))


async def test_everything_given_comes_back(database: Database, credentials: Credentials, clock: Clock) -> None:
    """A key keeps its tenant, scopes, bounds, weight and end; looking it up gives the same principal."""
    acme = await make_organisation(database, "acme")
    ann = await make_user(database, "ann", organisation=acme.id)
    store = KeyStore(database, acme.id, clock=clock)
    made = await store.create(
        OPERATOR,
        KeyOptions(
            name="app",
            scopes=frozenset({Scope.USAGE_READ, Scope.INFERENCE}),
            models=frozenset({"b", "a"}),
            services=frozenset({"s"}),
            networks=(ip_network("192.0.2.0/24"),),
            expires_at_ms=int(clock() * 1000) + 60_000,
            user=ann.id,
            weight=2.5,
        ),
    )
    parsed = parse(made.token)
    assert parsed is not None
    found = await credentials.look_up(parsed[0])
    assert found is not None and found.digest == parsed[1] and not found.revoked
    principal = found.principal
    assert (principal.key_id, principal.key_name) == (made.key.id, "app")
    assert (principal.organisation, principal.project, principal.user) == (acme.id, made.key.project, ann.id)
    assert (principal.role, principal.confined) == (Role.MEMBER, False)
    assert principal.scopes == {Scope.USAGE_READ, Scope.INFERENCE}
    assert (principal.models, principal.services, principal.weight) == ({"a", "b"}, {"s"}, 2.5)
    assert principal.networks == (ip_network("192.0.2.0/24"),)
    assert principal.expires_at == clock() + 60
    assert await store.get(made.key.id) == made.key
    assert made.key.public_ids == (parsed[0],)


async def test_only_the_digest_of_the_secret_is_stored(store: KeyStore, database: Database) -> None:
    """Neither table holds the secret, and the digest is SHA-256 of it; no repr shows it."""
    made = await make(store)
    secret = made.token[20:63]
    async with database.read() as connection:
        rows = [*(await connection.execute(select(keys))), *(await connection.execute(select(key_secrets)))]
    assert secret not in repr(rows)
    assert hashlib.sha256(secret.encode()).digest() in [bytes(value) for row in rows for value in row if _raw(value)]
    assert secret not in repr(made)


def _raw(value: object) -> bool:
    return isinstance(value, (bytes, memoryview))


async def test_a_key_is_found_by_id_public_part_and_name(store: KeyStore, database: Database) -> None:
    """A person may name a key in three ways; a name that two live keys have must be made clear."""
    made = await make(store, "one")
    for reference in (made.key.id, made.key.public_ids[0], "one"):
        assert (await find_key(database, reference)).id == made.key.id
    with pytest.raises(NotFound, match="no key 'two'"):
        await find_key(database, "two")
    other = await make(store, "one")
    with pytest.raises(Conflict, match="2 keys are named 'one'"):
        await find_key(database, "one")
    await store.revoke(OPERATOR, other.key.id)
    assert (await find_key(database, "one")).id == made.key.id


async def test_listing_hides_what_has_ended_when_asked(store: KeyStore, database: Database, clock: Clock) -> None:
    """Revoked and expired keys are listed only on demand, and organisations apart."""
    live, gone, brief = await make(store, "live"), await make(store, "gone"), None
    brief = await make(store, "brief", expires_at_ms=int(clock() * 1000) + 5000)
    await make(KeyStore(database, (await make_organisation(database, "acme")).id), "foreign")
    await store.revoke(OPERATOR, gone.key.id)
    clock.now_s += 10
    assert [key.name for key in await store.page(limit=10, ended=False)] == ["live"]
    states = {key.name: key.state(int(clock() * 1000)) for key in await all_keys(database)}
    assert states == {"live": "active", "gone": "revoked", "brief": "expired", "foreign": "active"}
    assert live.key.id != brief.key.id


async def test_revoking_is_for_good_and_harmless_twice(store: KeyStore, clock: Clock) -> None:
    """The time of the first revocation stays; a revoked key cannot be rotated."""
    made = await make(store)
    first = await store.revoke(OPERATOR, made.key.id)
    clock.now_s += 10
    assert await store.revoke(OPERATOR, made.key.id) == first
    with pytest.raises(Conflict, match="is revoked: create a new one"):
        await store.rotate(OPERATOR, made.key.id)
    with pytest.raises(NotFound):
        await store.revoke(OPERATOR, "key_unknown")


async def test_rotation_overlaps_and_keeps_the_key(store: KeyStore, credentials: Credentials, clock: Clock) -> None:
    """The old secret ends after the overlap, the new one stays, and both are the same key."""
    made = await make(store)
    rotated = await store.rotate(OPERATOR, made.key.id, overlap_s=60)
    old, new = parse(made.token), parse(rotated.token)
    assert old is not None and new is not None and old != new
    before, after = await credentials.look_up(old[0]), await credentials.look_up(new[0])
    assert before is not None and after is not None
    assert before.principal.key_id == after.principal.key_id == made.key.id
    assert (before.principal.expires_at, after.principal.expires_at) == (clock() + 60, None)
    assert before.key_expires_at_s is None
    assert rotated.key.public_ids == (new[0], old[0])
    # A second rotation without overlap ends the first secret too, and never lengthens its time.
    await store.rotate(OPERATOR, made.key.id)
    before = await credentials.look_up(old[0])
    assert before is not None and before.principal.expires_at == clock()


async def test_changes_are_numbered_in_order(store: KeyStore, credentials: Credentials) -> None:
    """Whoever asks for changes after a position gets exactly the keys that changed, and whether they ended."""
    start = await credentials.position()
    made, other = await make(store), await make(store)
    assert {change.key_id for change in (await credentials.changes_after(start)).keys} == {made.key.id, other.key.id}
    middle = await credentials.position()
    await store.revoke(OPERATOR, made.key.id)
    await store.rotate(OPERATOR, other.key.id)
    changes = (await credentials.changes_after(middle)).keys
    assert sorted(changes, key=lambda change: change.ended) == [Change(other.key.id, False), Change(made.key.id, True)]
    assert await credentials.changes_after(await credentials.position()) == Changes()


async def test_last_use_never_goes_back_and_is_no_change(store: KeyStore, credentials: Credentials) -> None:
    """Times from several processes may arrive in any order; writing them does not disturb caches."""
    made = await make(store)
    position = await credentials.position()
    await credentials.touch({made.key.id: 2000, "key_gone": 1})
    await credentials.touch({made.key.id: 1000})
    await credentials.touch({})
    assert (await store.get(made.key.id)).last_used_at_ms == 2000
    assert await credentials.position() == position
