"""Files in the database: whole or not there, one tenant's and nobody else's, bounded, and gone in time."""

from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import func, select, update

from passerelle.domain.errors import NotFound, PayloadTooLarge, QuotaExhausted
from passerelle.files.expiry import GIVEN_UP_MS, Expiry
from passerelle.files.store import PIECE_BYTES, FileRules, FileStore, StoredFile, now_ms
from passerelle.storage.engine import Database
from passerelle.storage.tables import file_chunks, files

RULES = FileRules(max_file_bytes=4 * PIECE_BYTES, quota_bytes=6 * PIECE_BYTES)


def store(database: Database, organisation: str = "acme", project: str = "docs") -> FileStore:
    """The files of one tenant."""
    return FileStore(database, RULES, organisation=organisation, project=project, key_id="key_a")


async def made(files_of: FileStore, data: bytes = b"text", *, expires_at_ms: int | None = None) -> StoredFile:
    """Writes a file."""
    writing = await files_of.begin()
    for start in range(0, len(data), 100_000):
        await writing.write(data[start : start + 100_000])
    return await writing.finish(purpose="user_data", filename="a.txt", expires_at_ms=expires_at_ms)


async def read(files_of: FileStore, file_id: str) -> bytes:
    """Reads a file."""
    return b"".join([piece async for piece in files_of.pieces(file_id)])


async def chunks(database: Database) -> int:
    """Counts the pieces of all files."""
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(file_chunks))).scalar_one())


async def test_a_file_comes_back_as_it_went_in(database: Database) -> None:
    """Bytes, size and digest of a file of several pieces are those that were written; an empty file is a file."""
    mine = store(database)
    data = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"
    found = await made(mine, data)
    assert (found.bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert await read(mine, found.id) == data
    assert await chunks(database) == 4
    empty = await made(mine, b"")
    assert (empty.bytes, await read(mine, empty.id)) == (0, b"")


async def test_another_tenant_finds_nothing(database: Database) -> None:
    """For another organisation, or project, a file is not there: not shown, not read, not deleted, not listed."""
    found = await made(store(database))
    for other in (store(database, "other"), store(database, "acme", "else")):
        for attempt in (other.get(found.id), other.delete(found.id), read(other, found.id), other.get("file-none")):
            with pytest.raises(NotFound, match="no file of that id"):
                await attempt
        assert await other.list(limit=10) == []
        await other.discard(found.id)
    assert await read(store(database), found.id) == b"text"


async def test_nothing_is_shown_before_it_is_whole(database: Database) -> None:
    """A file that is being written is not there; given up, it leaves no piece."""
    mine = store(database)
    writing = await mine.begin()
    await writing.write(bytes(PIECE_BYTES + 1))
    with pytest.raises(NotFound):
        await mine.get(writing.id)
    assert await mine.list(limit=10) == []
    await writing.discard()
    assert await chunks(database) == 0
    assert await mine.used_bytes() == 0


async def test_sizes_are_bounded(database: Database) -> None:
    """A file beyond its bound is 413, one beyond the organisation's quota is 429, projects of it together."""
    mine = store(database)
    writing = await mine.begin()
    with pytest.raises(PayloadTooLarge):
        await writing.write(bytes(RULES.max_file_bytes + 1))
    await writing.discard()
    await made(mine, bytes(4 * PIECE_BYTES))
    second = await store(database, "acme", "else").begin()
    with pytest.raises(QuotaExhausted, match="delete some"):
        await second.write(bytes(2 * PIECE_BYTES + 1))
    await second.discard()
    await made(mine, bytes(2 * PIECE_BYTES))
    with pytest.raises(QuotaExhausted):
        await mine.begin()
    assert (await made(store(database, "other"))).bytes == 4


async def test_pages_go_through_all_files_once(database: Database) -> None:
    """Both orders, a page at a time, whatever has the same time."""
    mine = store(database)
    there = [(await made(mine)).id for _ in range(5)]
    for ascending in (True, False):
        seen: list[str] = []
        after = None
        while page := await mine.list(after=after, limit=2, ascending=ascending):
            seen += [each.id for each in page]
            after = seen[-1]
        assert sorted(seen) == sorted(there)
        assert len(seen) == 5
    with pytest.raises(NotFound):
        await mine.list(after="file-none", limit=2)


async def test_what_is_due_goes(database: Database) -> None:
    """An expired file is not there any more, and later gone; an upload of yesterday is given up; others stay."""
    mine = store(database)
    expired = await made(mine)
    kept = [await made(mine), await made(mine, expires_at_ms=now_ms() + 60_000)]
    writing, fresh = await mine.begin(), await mine.begin()
    async with database.write() as connection:
        long_ago = now_ms() - GIVEN_UP_MS - 1
        await connection.execute(update(files).where(files.c.id == writing.id).values(created_at_ms=long_ago))
        await connection.execute(update(files).where(files.c.id == expired.id).values(expires_at_ms=now_ms() - 1))
    with pytest.raises(NotFound):
        await read(mine, expired.id)
    await Expiry(database).sweep()
    async with database.read() as connection:
        left = (await connection.execute(select(files.c.id))).scalars().all()
    assert set(left) == {fresh.id, *(each.id for each in kept)}
