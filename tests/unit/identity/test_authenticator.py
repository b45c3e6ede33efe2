"""Callers by their keys: from memory without SQL, and never wrongly (promises 10 to 14, faults D1, D3, D10)."""

from __future__ import annotations

import asyncio
import hmac
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from tests.harness.tenants import OPERATOR, make_key, make_organisation, make_user

from passerelle.domain.errors import BadRequest, PasserelleError, Unauthenticated, Unavailable
from passerelle.domain.principal import Principal, Scope
from passerelle.identity.authenticator import Authenticator, credential
from passerelle.identity.credentials import Credentials
from passerelle.identity.keys import KeyOptions, KeyStore, NewKey
from passerelle.identity.token import mint, parse
from passerelle.storage.engine import Database, StorageUnavailable, open_database

STATIC = "a-static-key-of-ours"


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    """The clock of store and authenticator."""
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> KeyStore:
    """The keys."""
    return KeyStore(database, "default", clock=clock)


@pytest.fixture
def credentials(database: Database, clock: Clock) -> Credentials:
    """The keys as credentials."""
    return Credentials(database, clock=clock)


@pytest_asyncio.fixture
async def authenticator(credentials: Credentials, clock: Clock) -> AsyncIterator[Authenticator]:
    """The one under test, following changes quickly."""
    made = Authenticator(credentials, static_key=STATIC, poll_s=0.05, clock=clock)
    await made.start()
    yield made
    await made.aclose()


@pytest.fixture
def statements(database: Database) -> list[str]:
    """Every SQL statement from here on, with its parameters."""
    seen: list[str] = []
    event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda *args: (
            None if args[2].startswith(("BEGIN", "SELECT set_config")) else seen.append(f"{args[2]} {args[3]}")
        ),
        named=False,
    )
    return seen


async def make(store: KeyStore, **options: Any) -> NewKey:
    """Makes a key that may call models."""
    return await store.create(OPERATOR, KeyOptions(name="k", **options))


def bearer(token: str) -> bytes:
    """The header's value for a key."""
    return b"Bearer " + token.encode()


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Waits until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.01)


async def refused(authenticator: Authenticator, token: str) -> bool:
    """Whether a key gets 401."""
    try:
        await authenticator.authenticate(bearer(token))
    except Unauthenticated:
        return True
    return False


async def test_a_known_key_costs_no_sql(authenticator: Authenticator, store: KeyStore, statements: list[str]) -> None:
    """The first call is one query; a thousand more are none."""
    made = await make(store)
    await authenticator.aclose()  # its polling would be counted too
    statements.clear()
    first = await authenticator.authenticate(bearer(made.token))
    assert len(statements) == 1
    statements.clear()
    for _ in range(500):
        assert await authenticator.authenticate(None, made.token.encode()) == first
        assert authenticator.cached(made.token.encode()) == first
    assert statements == []
    assert first.key_id == made.key.id


async def test_what_stands_above_a_key_costs_no_more(
    authenticator: Authenticator, database: Database, statements: list[str]
) -> None:
    """User, project, organisation and networks are read in the same one query, and never again."""
    acme = await make_organisation(database, "acme", models=frozenset({"a", "b"}))
    ann = await make_user(database, "ann", organisation=acme.id)
    bounds = {"models": frozenset({"b", "c"}), "networks": (ip_network("192.0.2.0/24"),)}
    made = await make_key(database, organisation=acme.id, user=ann.id, **bounds)
    await authenticator.aclose()  # its polling would be counted too
    statements.clear()
    for _ in range(100):
        principal = await authenticator.authenticate(bearer(made.token))
        assert not principal.may_come_from("198.51.100.1")
        assert principal.models == {"b"}
    assert len(statements) == 1


async def test_misses_at_the_same_moment_share_one_query(
    authenticator: Authenticator, store: KeyStore, statements: list[str]
) -> None:
    """Fifty first calls with one key ask once, also when the first of them goes away."""
    made = await make(store)
    await authenticator.aclose()  # a change seen meanwhile would ask again
    statements.clear()
    calls = [asyncio.create_task(authenticator.authenticate(bearer(made.token))) for _ in range(50)]
    await asyncio.sleep(0)
    calls[0].cancel()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {p.key_id for p in found[1:] if isinstance(p, Principal)} == {made.key.id}
    assert len([s for s in statements if "key_secrets" in s]) == 1


async def test_a_right_public_part_with_a_wrong_secret_is_refused_while_cached(
    authenticator: Authenticator, store: KeyStore
) -> None:
    """The memory answers for the whole secret only (CVE-2026-35030), and a secret for its own public part only."""
    made, other = await make(store), await make(store)
    await authenticator.authenticate(bearer(made.token))
    assert await refused(authenticator, with_checksum(made.token[:20] + mint()[20:63]))
    assert await refused(authenticator, with_checksum(other.token[:20] + made.token[20:63]))
    assert (await authenticator.authenticate(bearer(made.token))).key_id == made.key.id


def with_checksum(body: str) -> str:
    """Completes a key that somebody made up, as anyone can."""
    import zlib

    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[digit] + digits
    return body + digits


async def test_a_digest_is_never_a_credential(authenticator: Authenticator, store: KeyStore) -> None:
    """What the database stores does not authenticate, in any spelling (pass the hash)."""
    made = await make(store)
    parsed = parse(made.token)
    assert parsed is not None
    await authenticator.authenticate(bearer(made.token))
    for text in (parsed[1].hex(), f"sk-pas-{parsed[0]}-{parsed[1].hex()}"):
        assert await refused(authenticator, text)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(b"Bearer " + parsed[1])


@pytest.mark.parametrize("known", [True, False])
async def test_known_and_unknown_public_parts_do_the_same_work(
    authenticator: Authenticator, store: KeyStore, statements: list[str], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query and one constant-time comparison of a secret on both paths (CVE-2025-59425)."""
    made = await make(store)
    token = with_checksum((made.token if known else mint())[:20] + mint()[20:63])
    compared: list[bytes] = []
    real = hmac.compare_digest
    parsed = parse(token)
    assert parsed is not None

    def spy(left: bytes, right: bytes) -> bool:
        if left == parsed[1]:
            compared.append(right)
        return real(left, right)

    monkeypatch.setattr("passerelle.identity.authenticator.hmac.compare_digest", spy)
    await authenticator.aclose()  # a change seen meanwhile would ask again
    statements.clear()
    assert await refused(authenticator, token)
    assert len(compared) == 1
    assert len([s for s in statements if "key_secrets" in s]) == 1


async def test_refusals_are_all_alike(authenticator: Authenticator, store: KeyStore, clock: Clock) -> None:
    """Missing, malformed, unknown, revoked and expired keys get the same answer, with WWW-Authenticate."""
    revoked, brief = await make(store), await make(store, expires_at_ms=int(clock() * 1000) + 30_000)
    await store.revoke(OPERATOR, revoked.key.id)
    assert (await authenticator.authenticate(bearer(brief.token))).expires_at is not None
    clock.ahead_s = 31
    seen = set()
    headers = [None, b"", b"Bearer", b"Bearer ", b"Basic dTpw", b"Bearer sk-pas-x", bearer(mint())]
    for header in [*headers, bearer(revoked.token), bearer(brief.token), b"Bearer \xff\xfe", b"Bearer " + b"a" * 10**7]:
        with pytest.raises(Unauthenticated) as raised:
            await authenticator.authenticate(header)
        seen.add((raised.value.message, raised.value.error_code, raised.value.headers))
    assert len(seen) == 1
    assert (b"www-authenticate", b"Bearer") in seen.pop()[2]


async def test_malformed_keys_never_reach_the_database(authenticator: Authenticator, statements: list[str]) -> None:
    """Garbage and broken checksums are refused without a query; a well-formed unknown key is remembered as such."""
    token = mint()
    await authenticator.aclose()
    statements.clear()
    broken = token[:-1] + ("0" if token[-1] != "0" else "1")
    for text in (broken, "' OR 1=1 --", "sk-pas-" + "\0" * 62, "x" * 69, token[:-1]):
        assert await refused(authenticator, text)
    assert statements == []
    assert await refused(authenticator, token)
    assert await refused(authenticator, token)
    assert len(statements) == 1
    assert token[20:63] not in statements[0]  # the secret is no parameter either


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120), st.one_of(st.none(), st.binary(max_size=120)))
def test_headers_of_any_bytes_give_a_credential_or_a_bad_request(authorization: bytes, x_api_key: bytes | None) -> None:
    """The extractor takes any bytes; it returns one of the two, or refuses two that differ."""
    try:
        found = credential(authorization, x_api_key)
    except BadRequest as error:
        assert error.error_code == "conflicting_credentials"
        return
    assert found is None or found in authorization or found in (x_api_key or b"")


async def test_two_different_credentials_are_refused(authenticator: Authenticator, store: KeyStore) -> None:
    """One extractor for both headers: equal ones are fine, different ones 400, whichever is valid."""
    made, other = await make(store), await make(store)
    token = made.token.encode()
    assert (await authenticator.authenticate(b"bearer   " + token, token)).key_id == made.key.id
    assert (await authenticator.authenticate(b"Bearer ", token)).key_id == made.key.id
    for pair in [(bearer(made.token), other.token.encode()), (b"Basic abc", token), (bearer("junk"), token)]:
        with pytest.raises(BadRequest) as raised:
            await authenticator.authenticate(*pair)
        assert raised.value.error_code == "conflicting_credentials"


async def test_a_revocation_by_another_process_is_seen_and_told(authenticator: Authenticator, store: KeyStore) -> None:
    """Nobody invalidates here, as when the command line revokes: polling forgets the key and calls back."""
    made, other = await make(store), await make(store)
    ended: list[str] = []
    authenticator.on_revoked(ended.append)
    for key in (made, other):
        await authenticator.authenticate(bearer(key.token))
    await store.revoke(OPERATOR, made.key.id)
    await until(lambda: made.key.id in ended)
    assert await refused(authenticator, made.token)
    assert (await authenticator.authenticate(bearer(other.token))).key_id == other.key.id
    assert other.key.id not in ended


async def test_invalidating_is_immediate(store: KeyStore, credentials: Credentials) -> None:
    """In the process that revokes, the very next call is refused, without polling."""
    authenticator = Authenticator(credentials, poll_s=3600)
    await authenticator.start()
    made = await make(store)
    await authenticator.authenticate(bearer(made.token))
    await store.revoke(OPERATOR, made.key.id)
    authenticator.invalidate(made.key.id)
    assert await refused(authenticator, made.token)
    await authenticator.aclose()


async def test_a_revocation_during_the_look_up_is_not_cached_over(
    store: KeyStore, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer read before a revocation, and arriving after it, does not bring the key back."""
    authenticator = Authenticator(credentials, poll_s=3600)
    await authenticator.start()
    made = await make(store)
    real, read, go_on = credentials.look_up, asyncio.Event(), asyncio.Event()

    async def slow(public_id: str) -> object:
        found = await real(public_id)
        read.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(credentials, "look_up", slow)
    call = asyncio.create_task(authenticator.authenticate(bearer(made.token)))
    await read.wait()
    await store.revoke(OPERATOR, made.key.id)
    authenticator.invalidate(made.key.id)
    go_on.set()
    with pytest.raises(Unauthenticated):
        await call
    assert authenticator.cached(made.token) is None
    await authenticator.aclose()


async def test_expiry_needs_no_polling_and_ends_streams(
    authenticator: Authenticator, store: KeyStore, clock: Clock
) -> None:
    """A cached key is refused the moment its time is over, and its end is told."""
    made = await make(store, expires_at_ms=int(clock() * 1000) + 60_000)
    ended: list[str] = []
    authenticator.on_revoked(ended.append)
    await authenticator.authenticate(bearer(made.token))
    clock.ahead_s = 61
    assert authenticator.cached(made.token) is None
    assert await refused(authenticator, made.token)
    await until(lambda: made.key.id in ended)


async def test_an_end_that_is_moved_counts_from_then_on(
    authenticator: Authenticator, store: KeyStore, clock: Clock
) -> None:
    """A key that is to end earlier ends then, called since or not; one that is to end later goes on."""
    sooner, later = await make(store), await make(store, expires_at_ms=int(clock() * 1000) + 60_000)
    ended: list[str] = []
    authenticator.on_revoked(ended.append)
    for key in (sooner, later):
        await authenticator.authenticate(bearer(key.token))
    for key, end_s in ((sooner, 30), (later, 90)):
        options = KeyOptions(expires_at_ms=int(clock() * 1000) + end_s * 1000)
        await store.update(OPERATOR, key.key.id, options)
    await authenticator.catch_up()
    clock.ahead_s = 61
    await until(lambda: ended == [sooner.key.id])
    assert await refused(authenticator, sooner.token)
    assert (await authenticator.authenticate(bearer(later.token))).key_id == later.key.id
    clock.ahead_s = 91
    await until(lambda: ended == [sooner.key.id, later.key.id])


async def test_the_old_secret_of_a_rotated_key_ends_without_ending_the_key(
    authenticator: Authenticator, store: KeyStore, clock: Clock
) -> None:
    """During the overlap both secrets work; then the old one is refused, and no stream of the key is ended."""
    made = await make(store)
    ended: list[str] = []
    authenticator.on_revoked(ended.append)
    await authenticator.authenticate(bearer(made.token))
    rotated = await store.rotate(OPERATOR, made.key.id, overlap_s=60)
    authenticator.invalidate(made.key.id)
    for token in (made.token, rotated.token):
        assert (await authenticator.authenticate(bearer(token))).key_id == made.key.id
    clock.ahead_s = 61
    assert await refused(authenticator, made.token)
    await authenticator._poll()
    assert (await authenticator.authenticate(bearer(rotated.token))).key_id == made.key.id
    assert ended == []


async def test_the_static_key_calls_models_and_nothing_else(
    authenticator: Authenticator, store: KeyStore, credentials: Credentials
) -> None:
    """One configured key has the right to infer, from memory; anything near it is refused."""
    for header in (bearer(STATIC), None):
        principal = await authenticator.authenticate(header, STATIC.encode())
        assert (principal.key_id, principal.scopes) == ("static", {Scope.INFERENCE})
    assert authenticator.cached(STATIC) == principal
    for text in (STATIC[:-1], STATIC + "x", STATIC.upper(), ""):
        assert await refused(authenticator, text)
    with pytest.raises(ValueError, match="1 to"):
        Authenticator(credentials, static_key="")


async def test_without_a_database_known_keys_go_on_and_unknown_ones_get_503(tmp_path: Path) -> None:
    """Being unable to check a key is no 401 (faults row D10); after the grace the known ones get 503 too."""
    from passerelle.storage.migrations import upgrade

    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    store = KeyStore(database, "default")
    authenticator = Authenticator(Credentials(database), poll_s=3600, grace_s=3600)
    await authenticator.start()
    known, unknown = await make(store), await make(store)
    await authenticator.authenticate(bearer(known.token))
    await database.aclose()
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "passerelle.db").mkdir()  # what stands there now cannot be opened
    assert (await authenticator.authenticate(bearer(known.token))).key_id == known.key.id
    for _ in range(2):  # it is not remembered as unknown
        with pytest.raises(Unavailable) as raised:
            await authenticator.authenticate(bearer(unknown.token))
        assert raised.value.retry_after_s is not None
    authenticator._grace_s = 0.0
    with pytest.raises(Unavailable):
        await authenticator.authenticate(bearer(known.token))
    await authenticator.aclose()
    await database.aclose()


async def test_it_recovers_when_the_database_comes_back(
    store: KeyStore, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start without a database is no failure: keys are refused with 503 until it answers, then known."""
    made = await make(store)
    real, away = credentials.position, True

    async def position() -> int:
        if away:
            raise StorageUnavailable("away")
        return await real()

    monkeypatch.setattr(credentials, "position", position)
    authenticator = Authenticator(credentials, poll_s=0.02)
    await authenticator.start()
    assert (await authenticator.authenticate(bearer(made.token))).key_id == made.key.id
    assert authenticator.cached(made.token) is None  # nobody could say that it is still valid
    away = False
    await until(lambda: _is_cached(authenticator, made.token))
    await authenticator.aclose()


async def _is_cached(authenticator: Authenticator, token: str) -> bool:
    await authenticator.authenticate(bearer(token))
    return authenticator.cached(token) is not None


async def test_memory_is_bounded(store: KeyStore, credentials: Credentials) -> None:
    """More keys than fit push out the oldest, which are simply asked for again."""
    authenticator = Authenticator(credentials, cache_size=3, poll_s=3600)
    await authenticator.start()
    made = [await make(store) for _ in range(5)]
    for key in made:
        await authenticator.authenticate(bearer(key.token))
    assert [authenticator.cached(key.token) is not None for key in made] == [False, False, True, True, True]
    assert (await authenticator.authenticate(bearer(made[0].token))).key_id == made[0].key.id
    await authenticator.aclose()


async def test_times_of_last_use_are_written_at_the_end(store: KeyStore, credentials: Credentials) -> None:
    """Closing writes when each key was last used."""
    authenticator = Authenticator(credentials, poll_s=3600)
    await authenticator.start()
    made = await make(store)
    await authenticator.authenticate(bearer(made.token))
    await authenticator.aclose()
    used_at_ms = (await store.get(made.key.id)).last_used_at_ms
    assert used_at_ms is not None and abs(used_at_ms / 1000 - time.time()) < 60


async def test_no_secret_reaches_a_log_or_a_repr(
    authenticator: Authenticator, store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the objects that hold keys nor the errors about them show a secret."""
    made = await make(store)
    principal = await authenticator.authenticate(bearer(made.token))
    shown = [repr(authenticator), repr(principal), repr(made), caplog.text, repr(authenticator._memory)]
    for text in (made.token, mint()):
        try:
            await authenticator.authenticate(bearer(text + "x"))
        except PasserelleError as error:
            shown.append(repr(error) + error.message)
    assert not any(made.token[20:63] in text for text in shown)


async def test_a_locked_sqlite_does_not_stop_callers(tmp_path: Path) -> None:
    """Another process that holds the write lock keeps nobody from being known, cached or not."""
    from passerelle.storage.migrations import upgrade

    database = open_database("sqlite", tmp_path)
    await upgrade(database)
    store = KeyStore(database, "default")
    made = await make(store)
    authenticator = Authenticator(Credentials(database), poll_s=3600)
    await authenticator.start()
    other = sqlite3.connect(tmp_path / "passerelle.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert (await authenticator.authenticate(bearer(made.token))).key_id == made.key.id
    other.execute("ROLLBACK")
    other.close()
    await authenticator.aclose()
    await database.aclose()
