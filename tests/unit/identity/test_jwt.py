"""Bearer tokens of people: ours and the provider's, how they are told apart, and how they end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy import event, select, update

from passerelle.domain.errors import Forbidden, Unauthenticated, Unavailable
from passerelle.domain.principal import ROLE_SCOPES, Role
from passerelle.identity.accounts import Account, Accounts, next_change
from passerelle.identity.audit import Actor
from passerelle.identity.authenticator import Authenticator
from passerelle.identity.changes import PeopleChanges
from passerelle.identity.credentials import Credentials
from passerelle.identity.jwt import LIFETIME_S, Tokens
from passerelle.identity.oidc import Mapped, Provider, Relation
from passerelle.identity.passwords import Passwords
from passerelle.identity.secrets import Secrets
from passerelle.storage.engine import Database, open_database
from passerelle.storage.tables import revoked_tokens, users

ISSUER = "https://sso.example.org"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ADMIN = Actor("cli", "cli", "root")


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = float(int(time.time()))

    def __call__(self) -> float:
        return self.now_s


async def fetch(
    _method: str, url: str, _headers: Mapping[str, str] | None = None, _body: bytes = b""
) -> tuple[int, bytes]:
    """A provider that publishes one key."""
    if url.endswith("/keys"):
        key = jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
        return 200, json.dumps({"keys": [key | {"kid": "one"}]}).encode()
    ends = dict.fromkeys(("authorization_endpoint", "token_endpoint"), f"{ISSUER}/x")
    return 200, json.dumps(ends | {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}).encode()


def provided(**changes: Any) -> bytes:
    """A token of the provider."""
    now_s = int(time.time())
    claims = {"iss": ISSUER, "aud": "api", "sub": "grace", "iat": now_s, "exp": now_s + 300, "name": "Grace"} | changes
    return jwt.encode(claims, KEY, algorithm="RS256", headers={"kid": "one"}).encode()


@dataclass
class World:
    """A database with a person, and what turns tokens into people."""

    database: Database
    accounts: Accounts
    secrets: Secrets
    changes: PeopleChanges
    tokens: Tokens
    clock: Clock
    ada: Account

    async def change(self, **values: Any) -> None:
        """Changes everybody as an administrator would."""
        async with self.database.write() as connection:
            await connection.execute(update(users).values(**values, changed=await next_change(connection)))

    async def refused(self, token: bytes) -> bool:
        """Whether the token is refused in the end."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                await self.tokens.authenticate(token)
            except (Unauthenticated, Forbidden):
                return True
            await asyncio.sleep(0.01)
        return False


@pytest_asyncio.fixture
async def world(database: Database) -> AsyncIterator[World]:
    """Ada, confirmed, and a provider."""
    passwords, clock, secrets = Passwords(memory_kib=64, passes=1), Clock(), Secrets(database)
    accounts = Accounts(database, passwords, secrets, clock=clock)
    changes = PeopleChanges(database, poll_s=0.05)
    changes.start()
    relation = Relation(ISSUER, "passerelle", "https://x/cb", audience="api", mapped=Mapped(default_role=Role.MEMBER))
    tokens = Tokens(database, accounts, secrets, changes, Provider(relation, fetch), clock=clock)
    made = await accounts.register(
        "ada", "ada@example.org", "correct horse", organisation="default", address=None, request_id=None
    )
    async with database.write() as connection:
        await connection.execute(update(users).values(confirmed_at_ms=1))
    ada = await accounts.get(made.id)
    assert ada is not None
    yield World(database, accounts, secrets, changes, tokens, clock, ada)
    await changes.aclose()
    passwords.close()


async def test_a_token_of_ours_is_its_person_for_a_day(world: World) -> None:
    """It gives the rights of the role, and ends after 24 hours, also in memory."""
    token = (await world.tokens.issue(world.ada)).encode()
    principal = await world.tokens.authenticate(token)
    assert (principal.user, principal.key_id) == (world.ada.id, f"session:{world.ada.id}")
    assert principal.scopes == ROLE_SCOPES[Role.MEMBER]
    assert principal.expires_at == world.clock.now_s + LIFETIME_S
    world.clock.now_s += LIFETIME_S
    with pytest.raises(Unauthenticated):
        await world.tokens.authenticate(token)


async def test_a_token_in_memory_costs_no_statement(world: World) -> None:
    """Tokens seen before, ours and the provider's, are answered without a look at the database."""
    tokens = [(await world.tokens.issue(world.ada)).encode(), provided()]
    for token in tokens:
        await world.tokens.authenticate(token)
    await world.changes.aclose()
    for token in tokens:  # the second one made a user, a change that makes tokens unknown again
        await world.tokens.authenticate(token)
    statements: list[str] = []
    event.listen(world.database.engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    for token in tokens * 5:
        assert (await world.tokens.authenticate(token)).user
    assert statements == []


async def test_the_issuer_alone_chooses_the_key(world: World) -> None:
    """Our issuer with the provider's key, the provider's with ours, and anybody else's: refused."""
    ours, now_s = await world.secrets.get("access-token"), int(time.time())
    claims = {"sub": world.ada.id, "iat": now_s, "exp": now_s + 300, "jti": "x"}
    forged = [
        jwt.encode(claims | {"iss": "passerelle", "aud": "passerelle"}, KEY, algorithm="RS256", headers={"kid": "one"}),
        jwt.encode(claims | {"iss": ISSUER, "aud": "api"}, ours, algorithm="HS256", headers={"kid": "one"}),
        jwt.encode(claims | {"iss": "passerelle", "aud": "passerelle"}, "0" * 32, algorithm="HS256"),
        jwt.encode(claims | {"iss": "passerelle", "aud": "passerelle"}, None, algorithm="none"),
        jwt.encode(claims | {"iss": "passerelle", "aud": "password-reset"}, ours, algorithm="HS256"),
        jwt.encode(claims | {"aud": "passerelle"}, ours, algorithm="HS256"),
        jwt.encode(claims | {"iss": "other", "aud": "passerelle"}, ours, algorithm="HS256"),
        jwt.encode({"iss": "passerelle", "aud": "passerelle", "sub": world.ada.id}, ours, algorithm="HS256"),
        await world.accounts.reset_token(world.ada),
    ]
    for token in forged:
        with pytest.raises(Unauthenticated):
            await world.tokens.authenticate(token.encode())


@pytest.mark.parametrize(
    "token", [b"", b"eyJ", b"eyJ..", b"eyJ.eyJ.x", b"eyJ\xff.a.b", b"eyJ" + b"a" * 20_000 + b"..", b"..."]
)
async def test_garbage(world: World, token: bytes) -> None:
    """Whatever begins like a token is refused, without a defect."""
    with pytest.raises(Unauthenticated):
        await world.tokens.authenticate(token)


async def test_the_provider_without_an_audience_brings_nobody(world: World) -> None:
    """Tokens of the provider are taken only when an audience was configured."""
    relation = Relation(ISSUER, "passerelle", "https://x/cb", mapped=Mapped(default_role=Role.MEMBER))
    tokens = Tokens(world.database, world.accounts, world.secrets, world.changes, Provider(relation, fetch))
    for token in (provided(), provided(aud="passerelle"), provided(aud=None)):
        with pytest.raises(Unauthenticated):
            await tokens.authenticate(token)
    without = Tokens(world.database, world.accounts, world.secrets, world.changes)
    with pytest.raises(Unauthenticated):
        await without.authenticate(provided())


async def test_a_person_of_the_provider_is_made_once(world: World) -> None:
    """Ten calls at once with the first token make one account."""
    found = await asyncio.gather(*(world.tokens.authenticate(provided()) for _ in range(10)))
    assert len({principal.user for principal in found}) == 1


async def test_a_revoked_token_is_refused_and_others_go_on(world: World) -> None:
    """A sign-out ends this token, in another worker too; the row goes with its end."""
    token, other = (await world.tokens.issue(world.ada)).encode(), (await world.tokens.issue(world.ada)).encode()
    elsewhere = PeopleChanges(world.database, poll_s=0.05)
    elsewhere.start()
    there = Tokens(world.database, world.accounts, world.secrets, elsewhere, clock=world.clock)
    await there.authenticate(token)
    await world.tokens.revoke(token, ADMIN)
    with pytest.raises(Unauthenticated):
        await world.tokens.authenticate(token)
    until = time.monotonic() + 30
    while there.cached(token) is not None:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    with pytest.raises(Unauthenticated):
        await there.authenticate(token)
    await there.authenticate(other)
    with pytest.raises(Unauthenticated):
        await world.tokens.revoke(token, ADMIN)
    world.clock.now_s += LIFETIME_S + 100
    await world.tokens.revoke((await world.tokens.issue(world.ada)).encode(), ADMIN)
    async with world.database.read() as connection:
        assert len((await connection.execute(select(revoked_tokens))).all()) == 1
    await elsewhere.aclose()


async def test_disabling_ends_tokens_and_what_runs_with_them(world: World) -> None:
    """A disabled person's tokens are refused, and their running calls are told to end, once or more."""
    ended: list[str] = []
    world.tokens.on_ended(ended.append)
    tokens = [(await world.tokens.issue(world.ada)).encode(), provided()]
    people = {(await world.tokens.authenticate(token)).key_id for token in tokens}
    await world.change(role="viewer")
    until = time.monotonic() + 30
    while any(world.tokens.cached(token) for token in tokens):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    await world.change(disabled_at_ms=1)  # while no token is in memory: what runs has to end all the same
    assert [await world.refused(token) for token in tokens] == [True, True]
    until = time.monotonic() + 30
    while set(ended) != people:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_signing_everybody_out_ends_older_tokens(world: World) -> None:
    """Tokens from before a new password or a sign-out everywhere are over, later ones are good."""
    token = (await world.tokens.issue(world.ada)).encode()
    await world.tokens.authenticate(token)
    world.clock.now_s += 2
    await world.accounts.set_password(world.ada, "battery staple", ADMIN)
    assert await world.refused(token)
    await world.tokens.authenticate((await world.tokens.issue(world.ada)).encode())


async def test_without_a_database_a_token_is_not_called_bad(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Being unable to look says nothing about a token: 503."""
    token = (await world.tokens.issue(world.ada)).encode()
    empty = open_database("sqlite", tmp_path_factory.mktemp("empty"))
    broken = Tokens(empty, world.accounts, world.secrets, PeopleChanges(empty))
    with pytest.raises(Unavailable):
        await broken.authenticate(token)
    await empty.aclose()


async def test_the_authenticator_takes_both(world: World) -> None:
    """A bearer token goes to tokens, a key to keys, and a static key that looks like a token stays a key."""
    static = "eyJ.static.key-of-the-operator"
    authenticator = Authenticator(Credentials(world.database), static_key=static)
    authenticator.take_tokens(world.tokens)
    token = (await world.tokens.issue(world.ada)).encode()
    assert (await authenticator.authenticate(b"Bearer " + token)).user == world.ada.id
    assert (await authenticator.authenticate(None, token)).user == world.ada.id
    assert (await authenticator.authenticate(b"Bearer " + static.encode())).key_id == "static"
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(b"Bearer eyJ.a.b")
    await authenticator.aclose()
