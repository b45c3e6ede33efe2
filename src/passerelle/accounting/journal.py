"""The journal of ``accounting.durability: strict``: a usage row is on disk before its caller sees the answer's end.

The ledger writes rows to the database in batches, after the answers; a process that is killed loses the last batch. In
strict mode each row also goes to a file in the home folder, and the end of the answer waits until the file was synced:
one sync for all who wait at that moment. When the ledger has committed the rows of a file, the file is deleted. A
process that is killed leaves its file, and the next start reads it; a row that the database has is ignored there.

A file belongs to the process that holds its lock. Each line is one row as JSON; a line that was cut by the end of its
process was never waited for.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from pathlib import Path
from typing import Protocol

import msgspec

from passerelle.domain.errors import Unavailable
from passerelle.domain.usage import UsageRow
from passerelle.storage.engine import StorageError

SWEEP_S = 5.0
REPLAY_ROWS = 2000
_SUFFIX = ".rows"
_log = logging.getLogger("passerelle.accounting")
_decode = msgspec.json.Decoder(UsageRow).decode
_encode = msgspec.json.Encoder().encode


class Writer(Protocol):
    """What brings rows into the database: the ledger."""

    def record(self, row: UsageRow) -> None:
        """Takes one row."""

    async def flush(self) -> None:
        """Commits all rows recorded so far. Raises StorageError."""


class Journal:
    """Keeps rows in files of ``folder`` until ``ledger`` has committed them.

    ``await start()`` before use, ``await aclose()`` after, and after the ledger's.
    """

    def __init__(self, folder: Path, ledger: Writer, *, sweep_s: float = SWEEP_S) -> None:
        self._folder = folder
        self._ledger = ledger
        self._sweep_s = sweep_s
        self._pending: list[UsageRow] = []
        self._recorded = 0
        self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._file: _File | None = None
        self._full: list[_File] = []
        """Files that are not written any more, and whose rows the database may not have yet."""
        self._numbers = 0
        self._in_doubt = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Brings the rows that processes before left behind into the database. Raises StorageError."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            left = sorted(self._folder.glob(f"*{_SUFFIX}"))
        except OSError as error:
            raise StorageError(
                f"The folder {self._folder} cannot be used ({error.strerror}): make it writable."
            ) from error
        for path in left:
            file = _File.take_over(path)
            if file is not None:
                await self._replay(file)
        self._task = asyncio.create_task(self._follow(), name="usage-journal")

    def record(self, row: UsageRow) -> None:
        """Takes one row, at once; the ledger takes it too."""
        self._pending.append(row)
        self._recorded += 1

    async def durable(self) -> None:
        """Returns when all rows recorded so far are on disk. Raises Unavailable when they cannot be written."""
        wanted = self._recorded
        while self._synced < wanted:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.create_task(self._sync(), name="usage-journal-sync")
            try:
                await asyncio.shield(self._syncing)
            except OSError as error:
                raise Unavailable(
                    "The call cannot be accounted for right now, so its answer is not given; retry later.",
                    retry_after_s=5,
                ) from error

    def doubt(self) -> None:
        """Hears that the ledger gave rows up: files are read again before they are deleted."""
        self._in_doubt = True

    async def aclose(self) -> None:
        """Deletes the files whose rows are in the database; the next start reads the others."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await asyncio.gather(*(() if self._syncing is None else (self._syncing,)), return_exceptions=True)
        if self._file is not None:
            self._full.append(self._file)
            self._file = None
        try:
            await self._sweep()
        except StorageError as error:
            _log.warning("usage rows wait in %s for the next start: %s", self._folder, error.message)
        for file in self._full:
            file.close()

    async def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), self._sweep_s)
                return
            except TimeoutError:
                pass
            if self._file is not None and (self._syncing is None or self._syncing.done()):
                self._full.append(self._file)
                self._file = None
            try:
                await self._sweep()
            except StorageError as error:
                _log.warning("usage rows wait in %s: %s", self._folder, error.message)

    async def _sweep(self) -> None:
        """Deletes the full files, once the database has their rows."""
        if not self._full:
            return
        await self._ledger.flush()
        while self._full:
            file = self._full[0]
            if self._in_doubt:
                await self._replay(file)
            else:
                file.delete()
            del self._full[0]
        self._in_doubt = False

    async def _replay(self, file: _File) -> None:
        rows = await asyncio.to_thread(file.rows)
        for first in range(0, len(rows), REPLAY_ROWS):
            for row in rows[first : first + REPLAY_ROWS]:
                self._ledger.record(row)
            await self._ledger.flush()
        if rows:
            _log.info("%d usage rows were read from %s", len(rows), file.path)
        file.delete()

    async def _sync(self) -> None:
        """Writes and syncs what is pending. Raises OSError; the rows stay pending."""
        rows, count = self._pending, self._recorded
        self._pending = []
        try:
            await asyncio.to_thread(self._write, rows)
        except OSError as error:
            self._pending = rows + self._pending
            _log.error("usage rows cannot be written to %s: %s", self._folder, error.strerror)
            raise
        self._synced = count

    def _write(self, rows: list[UsageRow]) -> None:
        if self._file is None:
            self._numbers += 1
            self._file = _File.create(self._folder / f"{os.getpid()}-{self._numbers}-{os.urandom(4).hex()}{_SUFFIX}")
        self._file.append(b"".join(_encode(row) + b"\n" for row in rows))


class _File:
    """One file of rows, whose lock this process holds."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._length = os.fstat(descriptor).st_size

    @classmethod
    def create(cls, path: Path) -> _File:
        """Makes a new file, in a folder that remembers it. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return cls(path, descriptor)

    @classmethod
    def take_over(cls, path: Path) -> _File | None:
        """Returns the file of a process that has ended; None for one that runs, or when somebody else was first."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def append(self, data: bytes) -> None:
        """Adds to the file and syncs it. Raises OSError; what was written of it then is taken back."""
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._length + written)
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._length)
            raise
        self._length += len(data)

    def rows(self) -> list[UsageRow]:
        """Returns the rows; lines that are none are told and left out."""
        rows, lost = [], 0
        for line in self.path.read_bytes().split(b"\n")[:-1]:  # what follows the last line's end was cut
            try:
                rows.append(_decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                lost += 1
        if lost:
            _log.error("%d lines of %s are damaged", lost, self.path)
        return rows

    def delete(self) -> None:
        """Deletes it, and gives up its lock."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def close(self) -> None:
        """Gives up its lock."""
        os.close(self._descriptor)
