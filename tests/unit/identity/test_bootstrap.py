"""The first administrator's key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.harness.tenants import OPERATOR

from passerelle.domain.principal import Scope
from passerelle.identity.bootstrap import ensure_admin_key
from passerelle.identity.credentials import Credentials
from passerelle.identity.keys import KeyStore, all_keys, find_key
from passerelle.identity.token import mint, parse
from passerelle.storage.engine import Database, StorageError


async def test_the_first_start_writes_a_key_for_its_owner_alone(database: Database, tmp_path: Path) -> None:
    """The file holds a working administrator's key, mode 0600, and nothing else is left behind."""
    assert await ensure_admin_key(database, tmp_path) is True
    path = tmp_path / "admin.key"
    assert path.stat().st_mode & 0o777 == 0o600
    parsed = parse(path.read_text().strip())
    assert parsed is not None
    found = await Credentials(database).look_up(parsed[0])
    assert found is not None and found.digest == parsed[1]
    assert found.principal.scopes == {Scope.ADMIN}
    assert [p.name for p in tmp_path.iterdir() if "admin" in p.name] == ["admin.key"]


async def test_later_starts_leave_it_alone(database: Database, tmp_path: Path) -> None:
    """A key that is there stays, also one that was revoked: that was somebody's decision."""
    await ensure_admin_key(database, tmp_path)
    before = (tmp_path / "admin.key").read_bytes()
    assert await ensure_admin_key(database, tmp_path) is False
    await KeyStore(database, "default").revoke(OPERATOR, (await find_key(database, "admin")).id)
    assert await ensure_admin_key(database, tmp_path) is False
    assert (tmp_path / "admin.key").read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"garbage\n", mint().encode(), b"\xff\0" * 9000])
async def test_a_missing_or_foreign_file_is_replaced(database: Database, tmp_path: Path, content: bytes | None) -> None:
    """Without the file, or with one whose key this database never knew, a new key is made."""
    await ensure_admin_key(database, tmp_path)
    path = tmp_path / "admin.key"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert await ensure_admin_key(database, tmp_path) is True
    assert parse(path.read_text().strip()) is not None
    assert path.stat().st_mode & 0o777 == 0o600


async def test_starts_at_the_same_moment_leave_one_valid_key(database: Database, tmp_path: Path) -> None:
    """One of two wins; the file's key is valid, and the loser's is revoked."""
    made = await asyncio.gather(*(ensure_admin_key(database, tmp_path) for _ in range(2)))
    live = await all_keys(database, ended=False)
    assert made.count(True) == len(live) == 1
    parsed = parse((tmp_path / "admin.key").read_text().strip())
    assert parsed is not None and live[0].public_ids == (parsed[0],)


async def test_a_file_that_cannot_be_written_leaves_no_live_key(database: Database, tmp_path: Path) -> None:
    """The error names the file, and the key that nobody saw is revoked."""
    with pytest.raises(StorageError, match=r"missing/admin\.key"):
        await ensure_admin_key(database, tmp_path / "missing")
    assert await all_keys(database, ended=False) == []
