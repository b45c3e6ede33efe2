"""Batches in the database: results and counts together, older attempts fenced off, tenants apart."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from passerelle.batches.store import BatchLog, BatchStore, InputError, lines_of
from passerelle.domain.errors import Conflict, NotFound
from passerelle.files.expiry import BATCH_KEPT_MS, GIVEN_UP_MS, Expiry
from passerelle.files.store import FileRules, FileStore, now_ms
from passerelle.jobs.writes import LeaseLost
from passerelle.storage.engine import Database
from passerelle.storage.tables import batches, files

WHO: dict[str, Any] = {"organisation": "acme", "project": "docs", "key_id": "key_a"}


async def running(database: Database) -> tuple[BatchStore, FileStore, str]:
    """A batch of three lines whose first attempt has begun."""
    store, files = BatchStore(database, **WHO), FileStore(database, FileRules(), **WHO)
    batch = await store.add("/v1/completions", "file-in", {"a": "b"})
    log = BatchLog(database.of("acme"), batch.id, 1)
    await log.begin()
    await log.start(3, files)
    return store, files, batch.id


async def content(files: FileStore, file_id: str | None) -> bytes:
    """What is in a file."""
    assert file_id is not None
    return b"".join([piece async for piece in files.pieces(file_id)])


async def test_an_older_attempt_writes_nothing_more(database: Database) -> None:
    """Once a newer attempt has begun, no line and no end of the older one arrives."""
    store, files, batch_id = await running(database)
    older, newer = (BatchLog(database.of("acme"), batch_id, attempt) for attempt in (1, 2))
    batch = await store.get(batch_id)
    await older.append(batch, [b"one\n"], [])
    assert await newer.begin() is not None
    for late in (older.append(batch, [b"late\n"], [b"late\n"]), older.finalize(), older.end("completed", [], None)):
        with pytest.raises(LeaseLost):
            await late
    assert await older.begin() is None
    await newer.append(batch, [b"two\n"], [b"bad\n"])
    ended = await newer.end("completed", [], None)
    assert (ended.completed, ended.failed, ended.total) == (2, 1, 3)
    assert await content(files, ended.output_file_id) == b"one\ntwo\n"
    assert await content(files, ended.error_file_id) == b"bad\n"
    assert await newer.begin() is None


async def test_files_are_shown_at_the_end_and_empty_ones_are_not_there(database: Database) -> None:
    """Before, they are not found; a batch without errors has no file of them, and leaves none behind."""
    store, files, batch_id = await running(database)
    log = BatchLog(database.of("acme"), batch_id, 1)
    batch = await log.append(await store.get(batch_id), [b"one\n"], [])
    assert batch.output_file_id is not None
    with pytest.raises(NotFound):
        await files.get(batch.output_file_id)
    ended = await log.end("completed", [], None)
    assert ended.error_file_id is None
    (shown,) = await files.list(limit=10)
    assert (shown.id, shown.purpose, shown.bytes) == (batch.output_file_id, "batch_output", 4)


async def test_another_tenant_finds_no_batch(database: Database) -> None:
    """Not shown, not listed, not cancelled: as if it were not there."""
    store, _, batch_id = await running(database)
    for other in ({"organisation": "other"}, {"project": "else"}):
        theirs = BatchStore(database, **WHO | other)
        for attempt in (theirs.get(batch_id), theirs.cancel(batch_id), theirs.list(after=batch_id, limit=5)):
            with pytest.raises(NotFound):
                await attempt
        assert await theirs.list(after=None, limit=5) == []
    assert (await store.get(batch_id)).cancelling_at_ms is None


async def test_giving_up_keeps_what_was_written(database: Database) -> None:
    """A batch whose job is gone ends once, with its lines; what is over is neither given up nor cancelled."""
    store, files, batch_id = await running(database)
    await BatchLog(database.of("acme"), batch_id, 1).append(await store.get(batch_id), [b"one\n"], [])
    failed = await store.give_up(batch_id, "failed", [InputError("job_lost", "gone")])
    assert (failed.status, failed.errors[0].code) == ("failed", "job_lost")
    assert await content(files, failed.output_file_id) == b"one\n"
    assert await store.give_up(batch_id, "cancelled") == failed
    with pytest.raises(Conflict):
        await store.cancel(batch_id)


async def test_pages_of_batches(database: Database) -> None:
    """Newest first, each once."""
    store = BatchStore(database, **WHO)
    made = [(await store.add("/v1/completions", "file-in", None)).id for _ in range(5)]
    seen: list[str] = []
    while page := await store.list(after=seen[-1] if seen else None, limit=2):
        seen += [each.id for each in page]
    assert sorted(seen) == sorted(made)
    assert len(seen) == 5


async def test_files_of_a_running_batch_are_not_given_up(database: Database) -> None:
    """However long it runs, what it writes to stays; a batch is listed for long after its end, then it is gone."""
    store, files_of, batch_id = await running(database)
    long_ago = now_ms() - max(GIVEN_UP_MS, BATCH_KEPT_MS) - 1
    async with database.write() as connection:
        await connection.execute(update(files).values(created_at_ms=long_ago))
    await Expiry(database).sweep()
    log = BatchLog(database.of("acme"), batch_id, 1)
    await log.append(await store.get(batch_id), [b"one\n"], [])
    ended = await log.end("completed", [], None)
    assert await content(files_of, ended.output_file_id) == b"one\n"
    async with database.write() as connection:
        await connection.execute(update(batches).values(ended_at_ms=long_ago))
    await Expiry(database).sweep()
    with pytest.raises(NotFound):
        await store.get(batch_id)


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_lines_wherever_they_are_cut(size: int) -> None:
    """Numbers count blank lines too; the last needs no line break; a long one comes cut."""
    data = b'{"a":1}\r\n\n  \n{"b":2}\n' + b"x" * 40 + b"\nlast"

    async def pieces() -> Any:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    found = [each async for each in lines_of(pieces(), 20)]
    assert [(number, text.strip()) for number, text in found] == [
        (1, b'{"a":1}'),
        (4, b'{"b":2}'),
        (5, b"x" * 21),
        (6, b"last"),
    ]
