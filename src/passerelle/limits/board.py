"""Counters that the workers of one machine share, in one mapped file, under a file lock.

Each worker writes only its own column: what its calls hold and what they have spent. The sum over the columns counts.
Looking and taking happen under the lock, so a hard limit holds exactly over all workers. The kernel takes the lock back
from a worker that dies. One that is stopped while it holds the lock (a debugger, SIGSTOP) keeps the others waiting for
`LOCK_S` at each decision, after which they decide without it: then at most one call for each worker can pass above a
limit in the instant of such a race.

When a worker has ended, its parent moves what it had spent to the column of the departed, and what its calls held is
free again (`retire`): they ended with it.

There is room for ``ENTRIES`` limits that are in use. Beyond, each worker counts a limit alone, against its part of the
value: value / workers, at least 1.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from passerelle.limits.counters import Hold, Taken, Used, Windows
from passerelle.limits.rule import LimitRule

logger = logging.getLogger(__name__)

ENTRIES = 65_536
LOCK_S = 0.005
_MAGIC = 0x50415353_4C494D32
_HEADER_WORDS = 8
_NAME_WORDS = 2
_CELL_WORDS = 4
_START, _SETTLED, _HELD = range(3)  # of a cell at the board, and of one of our own
_TRIES = 64
"""Places that are looked at for a name, from the one its digest says on."""


class LimitBoard:
    """The mapped file: a table of names, and for each name one cell a worker and one for those that have ended."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.map = mmap.mmap(self._file, 0)
        self._view = memoryview(self.map)
        self.words = self._view.cast("q")
        magic, self.workers, self.entries = self.words[0:3]
        if magic != _MAGIC:
            raise ValueError(f"{path} holds no limits of this version")
        self._cells = _HEADER_WORDS + self.entries * _NAME_WORDS

    @classmethod
    def create(cls, path: Path, workers: int, entries: int = ENTRIES) -> LimitBoard:
        """Makes the file, readable by its owner only. Pages that nobody uses take no room."""
        size = (_HEADER_WORDS + entries * (_NAME_WORDS + (workers + 1) * _CELL_WORDS)) * 8
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, size)
            with mmap.mmap(file, size) as fresh, memoryview(fresh) as view, view.cast("q") as words:
                words[0], words[1], words[2] = _MAGIC, workers, entries
        finally:
            os.close(file)
        return cls(path)

    def row(self, entry: int) -> int:
        """Returns where the cells of an entry begin, in words: one for each worker, then that of the departed."""
        return self._cells + entry * (self.workers + 1) * _CELL_WORDS

    def find(self, name: str, *, enter: bool) -> int | None:
        """Returns the entry of a name, making it if asked; None when it is not there or there is no room.

        Call it under the lock.
        """
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        words = self.words
        first, second = memoryview(digest).cast("q")
        for step in range(_TRIES):
            entry = (first + step) % self.entries
            at = _HEADER_WORDS + entry * _NAME_WORDS
            if words[at] == first and words[at + 1] == second:
                return entry
            if not words[at] and not words[at + 1]:
                if not enter:
                    return None
                words[at], words[at + 1] = first, second
                return entry
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock, or gives up waiting for it after `LOCK_S`."""
        until_s = 0.0
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                now_s = time.monotonic()
                until_s = until_s or now_s + LOCK_S
                if now_s > until_s:
                    yield
                    return
                os.sched_yield()
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def retire(self, worker: int) -> None:
        """Keeps what a worker that has ended had spent, and frees what its calls held."""
        words = self.words
        for entry in range(self.entries):
            at = _HEADER_WORDS + entry * _NAME_WORDS
            if not words[at] and not words[at + 1]:
                continue
            mine = self.row(entry) + worker * _CELL_WORDS
            departed = self.row(entry) + self.workers * _CELL_WORDS
            if words[mine + _SETTLED]:
                if words[departed + _START] < words[mine + _START]:
                    words[departed + _START], words[departed + _SETTLED] = words[mine + _START], 0
                if words[departed + _START] == words[mine + _START]:
                    words[departed + _SETTLED] += words[mine + _SETTLED]
            words[mine + _SETTLED] = words[mine + _HELD] = 0

    def close(self) -> None:
        """Lets go of the file."""
        self.words.release()
        self._view.release()
        self.map.close()
        os.close(self._file)


class BoardCounters:
    """One worker's counters at the board."""

    def __init__(self, board: LimitBoard, worker: int) -> None:
        self._board = board
        self._worker = worker
        self._entries: dict[str, int | None] = {}
        self._alone: dict[str, list[int]] = {}
        self._full = False

    def look(self, rules: Sequence[LimitRule], windows: Windows) -> list[int]:
        """Returns what is used and held of each rule."""
        with self._board.locked():
            return [self._sum(rule, windows[rule.period].start_ms) for rule in rules]

    def take(self, rules: tuple[LimitRule, ...], windows: Windows, amounts: Sequence[int]) -> Taken:
        """Takes all amounts or, where a hard rule has no room, none."""
        starts = tuple([windows[rule.period].start_ms for rule in rules])
        with self._board.locked():
            before = [self._sum(rule, start) for rule, start in zip(rules, starts, strict=True)]
            for index, (rule, used, amount) in enumerate(zip(rules, before, amounts, strict=True)):
                if rule.hard and used + amount > self._value(rule):
                    return Taken(before, refused=index)
            for rule, start, amount in zip(rules, starts, amounts, strict=True):
                self._add(rule, start, amount)
        return Taken(
            [used + amount for used, amount in zip(before, amounts, strict=True)], Hold(rules, starts, amounts)
        )

    def settle(self, hold: Hold, spent: Sequence[int]) -> None:
        """Gives back what was held and counts what was spent; nothing, in a window that is over.

        It writes this worker's own cells only, so it takes no lock.
        """
        words = self._board.words
        for rule, start, amount, really in zip(hold.rules, hold.starts, hold.amounts, spent, strict=True):
            entry = self._entries.get(rule.id)
            if entry is not None:
                cell = self._board.row(entry) + self._worker * _CELL_WORDS
                if words[cell + _START] == start:
                    words[cell + _HELD] -= amount
                    words[cell + _SETTLED] += really
            elif (own := self._alone.get(rule.id)) is not None and own[_START] == start:
                own[_HELD] -= amount
                own[_SETTLED] += really

    def seed(self, rule: LimitRule, windows: Windows, spent: int) -> None:
        """Sets what was spent before this start, unless a worker counts the rule already."""
        board, start = self._board, windows[rule.period].start_ms
        with board.locked():
            if board.find(rule.id, enter=False) is not None or rule.id in self._alone:
                return
            entry = self._entry(rule)
            if entry is None:
                self._alone[rule.id] = [start, -(-spent // board.workers), 0]
                return
            departed = board.row(entry) + board.workers * _CELL_WORDS
            board.words[departed + _START] = start
            board.words[departed + _SETTLED] = spent

    def used(self, rule: LimitRule, windows: Windows) -> Used:
        """Returns how one limit stands."""
        board, start = self._board, windows[rule.period].start_ms
        with board.locked():
            entry = board.find(rule.id, enter=False)
        if entry is None:
            own = self._alone.get(rule.id)
            return Used() if own is None or own[_START] != start else Used(own[_SETTLED], own[_HELD])
        words, found = board.words, Used()
        for cell in self._cells_of(entry):
            if words[cell + _START] == start:
                found.settled += words[cell + _SETTLED]
                found.held += words[cell + _HELD]
        return found

    def forget(self, rule_id: str) -> None:
        """Drops a limit that was removed; its entry stays, as another worker may still count it."""
        self._entries.pop(rule_id, None)
        self._alone.pop(rule_id, None)

    def _value(self, rule: LimitRule) -> int:
        """The limit as far as it is this worker's to give."""
        shared = self._entries.get(rule.id) is not None
        return rule.value if shared else max(1, rule.value // self._board.workers)

    def _sum(self, rule: LimitRule, start: int) -> int:
        entry = self._entry(rule)
        if entry is None:
            own = self._own(rule, start)
            return own[_SETTLED] + own[_HELD]
        words, total = self._board.words, 0
        for cell in self._cells_of(entry):
            if words[cell + _START] == start:
                total += words[cell + _SETTLED] + words[cell + _HELD]
        return total

    def _add(self, rule: LimitRule, start: int, amount: int) -> None:
        entry = self._entry(rule)
        if entry is None:
            self._own(rule, start)[_HELD] += amount
            return
        words = self._board.words
        cell = self._board.row(entry) + self._worker * _CELL_WORDS
        if words[cell + _START] != start:
            words[cell + _SETTLED] = words[cell + _HELD] = 0
            words[cell + _START] = start
        words[cell + _HELD] += amount

    def _own(self, rule: LimitRule, start: int) -> list[int]:
        """Returns the cell of a rule that has no room at the board."""
        own = self._alone.get(rule.id)
        if own is None or own[_START] != start:
            own = self._alone[rule.id] = [start, 0, 0]
        return own

    def _cells_of(self, entry: int) -> range:
        row = self._board.row(entry)
        return range(row, row + (self._board.workers + 1) * _CELL_WORDS, _CELL_WORDS)

    def _entry(self, rule: LimitRule) -> int | None:
        """Returns the place of a rule, None when the board is full. Call it under the lock."""
        try:
            return self._entries[rule.id]
        except KeyError:
            pass
        entry = self._entries[rule.id] = self._board.find(rule.id, enter=True)
        if entry is None and not self._full:
            self._full = True
            logger.warning("more than %d limits are in use: each worker counts the others alone", self._board.entries)
        return entry
