"""The journal: what it called durable is in the database in the end, whatever ended the process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from tests.unit.accounting.calls import CALL

import passerelle.accounting.journal as module
from passerelle.accounting.journal import Journal
from passerelle.domain.errors import Unavailable
from passerelle.domain.usage import UsageRow
from passerelle.storage.engine import StorageUnavailable


class Rows:
    """A ledger whose database may be away: what was flushed is kept."""

    def __init__(self) -> None:
        self.waiting: list[UsageRow] = []
        self.kept: set[str] = set()
        self.away = False

    def record(self, row: UsageRow) -> None:
        self.waiting.append(row)

    async def flush(self) -> None:
        if self.away:
            raise StorageUnavailable("away")
        self.kept |= {row.id for row in self.waiting}
        self.waiting.clear()


def files(folder: Path) -> list[Path]:
    """The journal's files."""
    return sorted(folder.iterdir())


def abandon(journal: Journal) -> None:
    """Ends a journal as kill -9 does: its locks are gone, its files are not."""
    for file in [*journal._full, *([journal._file] if journal._file else [])]:
        os.close(file._descriptor)
    if journal._task is not None:
        journal._task.cancel()


async def test_what_is_durable_survives_a_kill(tmp_path: Path) -> None:
    """The rows of a process that was killed are in the database after the next start, and its file is gone."""
    first, ledger = Journal(tmp_path / "journal", Rows()), Rows()
    await first.start()
    for number in range(5):
        first.record(replace(CALL, id=f"row{number}"))
    await first.durable()
    abandon(first)
    with files(tmp_path / "journal")[0].open("ab") as file:
        file.write(b'{"id": "cut')
    second = Journal(tmp_path / "journal", ledger)
    await second.start()
    assert ledger.kept == {f"row{number}" for number in range(5)}
    assert files(tmp_path / "journal") == []
    await second.aclose()


async def test_a_running_process_keeps_its_file(tmp_path: Path) -> None:
    """Another process that starts beside it reads nothing of it."""
    first, ledger = Journal(tmp_path, Rows()), Rows()
    await first.start()
    first.record(CALL)
    await first.durable()
    second = Journal(tmp_path, ledger)
    await second.start()
    assert ledger.kept == set() and len(files(tmp_path)) == 1
    await second.aclose()
    await first.aclose()


async def test_files_go_when_the_database_has_their_rows(tmp_path: Path) -> None:
    """While it is away they stay; once it is back they are deleted, and a stop leaves nothing."""
    ledger = Rows()
    journal = Journal(tmp_path, ledger, sweep_s=0.01)
    await journal.start()
    ledger.away = True
    for number in range(3):
        row = replace(CALL, id=str(number))
        ledger.record(row)
        journal.record(row)
        await journal.durable()
        await asyncio.sleep(0.03)  # a sweep comes between
    assert len(files(tmp_path)) >= 1 and ledger.kept == set()
    ledger.away = False
    async with asyncio.timeout(30):
        while files(tmp_path):
            await asyncio.sleep(0.01)
    assert ledger.kept == {"0", "1", "2"}
    await journal.aclose()


async def test_rows_the_ledger_gave_up_are_read_again(tmp_path: Path) -> None:
    """What the ledger dropped in a long outage is taken from the file."""
    ledger = Rows()
    journal = Journal(tmp_path, ledger)
    await journal.start()
    journal.record(CALL)  # the ledger has lost it
    await journal.durable()
    journal.doubt()
    await journal.aclose()
    assert ledger.kept == {CALL.id} and files(tmp_path) == []


async def test_a_stop_while_the_database_is_away_leaves_the_file(tmp_path: Path) -> None:
    """The next start brings its rows in."""
    ledger = Rows()
    journal = Journal(tmp_path, ledger)
    await journal.start()
    ledger.record(CALL)
    journal.record(CALL)
    await journal.durable()
    ledger.away = True
    await journal.aclose()
    again = Rows()
    second = Journal(tmp_path, again)
    await second.start()
    assert again.kept == {CALL.id}
    await second.aclose()


async def test_one_sync_serves_all_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred answers that end at once cost few syncs, and each waits for a sync that held its row."""
    syncs, sync = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (syncs.append(1), sync(descriptor)))
    journal = Journal(tmp_path, Rows())
    await journal.start()

    async def one(number: int) -> None:
        journal.record(replace(CALL, id=f"row{number:03}"))
        await journal.durable()
        assert f'"row{number:03}"'.encode() in files(tmp_path)[0].read_bytes()

    await asyncio.gather(*(one(number) for number in range(100)))
    assert len(syncs) <= 3
    await journal.aclose()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A disk that takes some bytes and no more, while the list is not empty."""
    left: list[int] = []
    pwrite = os.pwrite

    def write(descriptor: int, data: bytes, offset: int) -> int:
        if not left:
            return pwrite(descriptor, data, offset)
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        part = pwrite(descriptor, data[: left[0]], offset)
        left[0] -= part
        return part

    monkeypatch.setattr(module.os, "pwrite", write)
    yield left


async def test_a_full_disk_is_told_and_recovered_from(tmp_path: Path, full_disk: list[int]) -> None:
    """Nothing is durable while the disk is full, half a row is taken back, and all is written once there is room."""
    journal = Journal(tmp_path, Rows())
    await journal.start()
    rows = [replace(CALL, id=f"row{number}") for number in range(3)]
    journal.record(rows[0])
    await journal.durable()
    full_disk.append(20)
    for row in rows[1:]:
        journal.record(row)
        with pytest.raises(Unavailable, match="accounted for"):
            await journal.durable()
    full_disk.clear()
    await journal.durable()
    lines = files(tmp_path)[0].read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=UsageRow) for line in lines] == rows
    await journal.aclose()
