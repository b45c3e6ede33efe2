"""What the workers of one start know of each other: counts, health hints and switches, in one mapped file.

    Board       the file: a directory of names, a head for each worker, and for each worker one record per name
      Seat      one worker's place at it: finds cells, hears whether others have news
        ModelCell     leases and waiting requests of a model
        TargetCell    outstanding requests of a target, and what requests and operators found out about it

Every worker writes only its own records and reads everybody's, so there are no locks; only the directory, which changes
at reloads, is written under a file lock. A whole number or a time is eight aligned bytes and is read as it was written;
the hint, of several, has a sequence number that is odd while it is written.

A limit over all workers is kept by *claim, then look*: a worker writes its count with one more, adds up everybody's,
and takes the one back when the sum is too large. Two that claim the last slot in the same instant may both step back,
and try again after `POLL_S`; they cannot both pass, unless the processor shows neither the other's write yet. So at
most ``workers - 1`` requests, each for the instant of such a race, are above the limit; docs/workers.md says the rest.

Turns: while requests wait at several workers, each counts *rounds*, one round being a request of every organisation
that waits there (of weight 1). Who is more than `AHEAD_ROUNDS` rounds ahead of another that waits leaves the free slot
to it, for `PATIENCE_S` at most. A worker that begins to wait starts in the round of the hindmost.

Times are of ``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passerelle.gateway.targets import TargetState

logger = logging.getLogger(__name__)

POLL_S = 0.01
"""How often a worker where somebody waits looks whether another has freed a slot."""
SYNC_S = 0.1
"""How often a worker reads the others' hints."""
AHEAD_ROUNDS = 2.0
PATIENCE_S = 0.05
ENTRIES = 4096
"""Names (models and targets together) that a board holds."""

_MAGIC = 0x50415353_00000001
_HEADER_BYTES = 64
_NAMED = 3
"""The word of the header that counts the entries with a name."""
_DIGEST_BYTES = 32
_HEAD_WORDS = 8
_RECORD_WORDS = 32
_PID, _VERSION, _WAS_READY, _ACCEPTS, _CONNECTIONS = range(5)
_USED = 0
_ACTIVE, _WAITING, _TURN = 1, 2, 3
_OUTSTANDING, _STARTED, _COMPLETED, _BROKEN, _SEEN_READY = 1, 2, 3, 4, 5
_SEQUENCE, _EJECTED_UNTIL, _EJECTED_AT, _EJECTIONS, _BUSY_UNTIL, _SWITCHED_AT, _DRAINED = range(6, 13)
_EJECT_WHY, _DRAIN_WHY, _TEXT_BYTES = 16 * 8, 24 * 8, 64


class Board:
    """The mapped file. The parent makes it (`create`) and clears the records of workers that died (`erase`)."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.map = mmap.mmap(self._file, 0)
        self._view = memoryview(self.map)
        self.words = self._view.cast("q")
        self.times = self._view.cast("d")
        magic, self.workers, self.entries = self.words[0:3]
        if magic != _MAGIC:
            raise ValueError(f"{path} is no board of this version")
        self._heads = (_HEADER_BYTES + self.entries * _DIGEST_BYTES) // 8
        self._records = self._heads + self.workers * _HEAD_WORDS

    @classmethod
    def create(cls, path: Path, workers: int, entries: int = ENTRIES) -> Board:
        """Makes the file, readable by its owner only. Pages that nobody uses take no room."""
        size = _HEADER_BYTES + entries * _DIGEST_BYTES + workers * (_HEAD_WORDS + entries * _RECORD_WORDS) * 8
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, size)
            with mmap.mmap(file, size) as fresh, memoryview(fresh) as view, view.cast("q") as words:
                words[0], words[1], words[2] = _MAGIC, workers, entries
        finally:
            os.close(file)
        return cls(path)

    def head(self, worker: int) -> int:
        """Returns where the head of a worker begins, in words."""
        return self._heads + worker * _HEAD_WORDS

    def record(self, worker: int, entry: int) -> int:
        """Returns where a record begins, in words."""
        return self._records + (worker * self.entries + entry) * _RECORD_WORDS

    def erase(self, worker: int) -> None:
        """Clears what a worker wrote; it must have ended."""
        for begin, words in ((self.head(worker), _HEAD_WORDS), (self.record(worker, 0), self.entries * _RECORD_WORDS)):
            self.map[begin * 8 : (begin + words) * 8] = bytes(words * 8)

    def enter(self, name: str, worker: int) -> int | None:
        """Returns the number of the entry ``name``, in use by ``worker`` from now on; None when there is no room."""
        digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
        with self._locked():
            entry = self._find(digest)
            if entry is None:
                entry = self._free()
                if entry is None:
                    return None
                begin = _HEADER_BYTES + entry * _DIGEST_BYTES
                self.map[begin : begin + _DIGEST_BYTES] = digest
                self.words[_NAMED] = max(self.words[_NAMED], entry + 1)
            self.words[self.record(worker, entry) + _USED] = 1
            return entry

    def _find(self, digest: bytes) -> int | None:
        end = _HEADER_BYTES + self.words[_NAMED] * _DIGEST_BYTES
        at = self.map.find(digest, _HEADER_BYTES, end)
        return None if at < 0 else (at - _HEADER_BYTES) // _DIGEST_BYTES

    def _free(self) -> int | None:
        """Returns an entry that was never named, else one whose name nobody uses any more."""
        named = self.words[_NAMED]
        if named < self.entries:
            return named
        return next((entry for entry in range(named) if not self._in_use(entry)), None)

    def _in_use(self, entry: int) -> bool:
        return any(self.words[self.record(worker, entry) + _USED] for worker in range(self.workers))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)  # the kernel lets go of it when its holder dies
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets go of the file; every cell that is left is unusable."""
        self.words.release()
        self.times.release()
        self._view.release()
        self.map.close()
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class Hint:
    """What one worker knows of a target that the others should know. ``*_at`` is when that changed last."""

    ejected_until: float | None = None
    """None when it is not put out by failures."""
    ejected_at: float = -inf
    ejections: int = 0
    eject_why: str = ""
    busy_until: float = -inf
    drain_why: str | None = None
    """Why an operator switched it off, None when it is on."""
    switched_at: float = -inf


class Seat:
    """One worker's place at the board."""

    def __init__(self, board: Board, worker: int) -> None:
        self.board = board
        self.worker = worker
        self.workers = board.workers
        self.peers = tuple(other for other in range(board.workers) if other != worker)
        self._heard: dict[int, int] = {}
        self._full = False
        head = board.head(worker)
        board.words[head + _PID] = os.getpid()
        board.words[head + _VERSION] = time.time_ns()  # never what an earlier worker in this place had

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run."""
        found = (self.board.words[self.board.head(worker) + _PID] for worker in range(self.workers))
        return [pid for pid in found if pid]

    @property
    def was_ready(self) -> bool:
        """Whether any worker has had every model ready once."""
        return any(self.board.words[self.board.head(worker) + _WAS_READY] for worker in range(self.workers))

    def note_ready(self) -> None:
        """Every model was ready once."""
        self.board.words[self.board.head(self.worker) + _WAS_READY] = 1

    def accept(self, accepts: bool) -> None:
        """This worker accepts connections from now on, or no more."""
        self.board.words[self.board.head(self.worker) + _ACCEPTS] = accepts

    def yields(self, connections: int) -> bool:
        """Takes note of the number of connections here. Returns whether another worker has fewer."""
        words, head = self.board.words, self.board.head
        words[head(self.worker) + _CONNECTIONS] = connections
        return any(
            words[head(peer) + _ACCEPTS] and words[head(peer) + _CONNECTIONS] < connections for peer in self.peers
        )

    def model(self, name: str) -> ModelCell | None:
        """Returns the cell of a model; None when the board has no room for it, and it is counted here only."""
        entry = self._enter(f"model {name}")
        return None if entry is None else ModelCell(self, entry)

    def target(self, target_id: str) -> TargetCell | None:
        """Returns the cell of a target; None when the board has no room for it, and it is counted here only."""
        entry = self._enter(f"target {target_id}")
        return None if entry is None else TargetCell(self, entry)

    def _enter(self, name: str) -> int | None:
        entry = self.board.enter(name, self.worker)
        if entry is None and not self._full:
            self._full = True
            logger.warning("more than %d models and targets: each worker counts the others alone", self.board.entries)
        return entry

    def announce(self) -> None:
        """A hint of ours changed."""
        self.board.words[self.board.head(self.worker) + _VERSION] += 1

    def news(self) -> dict[int, int]:
        """Returns the other workers whose hints have changed since `heard`, with a number to tell that."""
        versions = {peer: self.board.words[self.board.head(peer) + _VERSION] for peer in self.peers}
        return {peer: version for peer, version in versions.items() if version and version != self._heard.get(peer)}

    def heard(self, peer: int, version: int) -> None:
        """All that ``peer`` had to say at ``version`` was taken in."""
        self._heard[peer] = version

    def listen_again(self) -> None:
        """Hears everybody anew: there are new targets."""
        self._heard.clear()


class ModelCell:
    """A model's leases and waiting requests, at this worker and at the others."""

    __slots__ = ("_base", "_offered_at", "_passed_over", "_peers", "_times", "_words")

    def __init__(self, seat: Seat, entry: int) -> None:
        board = seat.board
        self._words, self._times = board.words, board.times
        self._base = board.record(seat.worker, entry)
        self._peers = tuple(board.record(peer, entry) for peer in seat.peers)
        self._offered_at: float | None = None
        self._passed_over: dict[int, float] = {}
        self.set_active(0)
        self.set_waiting(0)

    def set_active(self, active: int) -> None:
        """So many leases of ours are out."""
        self._words[self._base + _ACTIVE] = active

    def set_waiting(self, waiting: int) -> None:
        """So many requests wait here."""
        self._words[self._base + _WAITING] = waiting

    def others(self) -> tuple[int, int]:
        """Returns the leases that other workers have out, and how many wait there."""
        words = self._words
        return sum(words[p + _ACTIVE] for p in self._peers), sum(words[p + _WAITING] for p in self._peers)

    def take_free(self, active: int, limit: float) -> bool:
        """Takes a lease for a newcomer, the ``active``-th here: if one is free and nobody waits anywhere."""
        words = self._words
        if limit != inf:
            for peer in self._peers:
                if words[peer + _WAITING]:
                    return False
        return self._claim(active, limit)

    def take_turn(self, active: int, limit: float, rounds: float, now: float) -> bool:
        """Takes a lease for one who waits here, if one is free and it is this worker's turn.

        ``rounds`` is what the turn costs: 1 / the sum of the weights of those who wait here.
        """
        behind = self._behind()
        if behind and active + self.others()[0] <= limit:
            if self._offered_at is None:
                self._offered_at = now
            if now - self._offered_at < PATIENCE_S:
                return False
            self._passed_over.update(behind)  # they do not come for it: not asked again until they have had a turn
        self._offered_at = None
        if not self._claim(active, limit):
            return False
        self._times[self._base + _TURN] += rounds
        return True

    def begin_waiting(self) -> None:
        """The first begins to wait here: in the round of the hindmost elsewhere."""
        words, times = self._words, self._times
        rounds = [times[peer + _TURN] for peer in self._peers if words[peer + _WAITING]]
        if rounds:
            times[self._base + _TURN] = max(times[self._base + _TURN], min(rounds))

    def _behind(self) -> dict[int, float]:
        """Returns who waits elsewhere and is too far behind us."""
        words, times = self._words, self._times
        least = times[self._base + _TURN] - AHEAD_ROUNDS
        return {
            peer: turn
            for peer in self._peers
            if words[peer + _WAITING] and (turn := times[peer + _TURN]) < least and self._passed_over.get(peer) != turn
        }

    def _claim(self, active: int, limit: float) -> bool:
        words = self._words
        words[self._base + _ACTIVE] = active
        if limit == inf:
            return True
        total = active
        for peer in self._peers:
            total += words[peer + _ACTIVE]
        if total <= limit:
            return True
        words[self._base + _ACTIVE] = active - 1
        return False


class TargetCell:
    """A target's outstanding requests, at this worker and at the others, and what each has found out about it."""

    __slots__ = ("_base", "_board", "_of", "_peers", "_seat", "_words")

    def __init__(self, seat: Seat, entry: int) -> None:
        board = seat.board
        self._seat, self._board, self._words = seat, board, board.words
        self._base = board.record(seat.worker, entry)
        self._of = {peer: board.record(peer, entry) for peer in seat.peers}
        self._peers = tuple(self._of.values())

    def release(self) -> None:
        """The target is gone: the record is free for another."""
        self._board.map[self._base * 8 : (self._base + _RECORD_WORDS) * 8] = bytes(_RECORD_WORDS * 8)

    def count(self, state: TargetState) -> None:
        """Writes down how many requests run there, and how the earlier ones ended."""
        words, base = self._words, self._base
        words[base + _OUTSTANDING] = state.outstanding
        words[base + _STARTED] = state.started
        words[base + _COMPLETED] = state.completed
        words[base + _BROKEN] = state.broken

    def claim(self, outstanding: int, limit: int) -> int | None:
        """Takes a slot, the ``outstanding``-th here. Returns None, or how many others run there when all are taken."""
        words = self._words
        words[self._base + _OUTSTANDING] = outstanding
        others = 0
        for peer in self._peers:
            others += words[peer + _OUTSTANDING]
        if outstanding + others <= limit:
            return None
        words[self._base + _OUTSTANDING] = outstanding - 1
        return others

    def others(self) -> int:
        """Returns how many requests of other workers run there."""
        words = self._words
        return sum(words[peer + _OUTSTANDING] for peer in self._peers)

    def others_ended(self) -> tuple[int, int, int]:
        """Returns how many attempts other workers have started, completed and seen break."""
        words = self._words
        started, completed, broken = (
            sum(words[peer + field] for peer in self._peers) for field in (_STARTED, _COMPLETED, _BROKEN)
        )
        return started, completed, broken

    @property
    def seen_ready(self) -> bool:
        """Whether any worker's probe has found it ready."""
        words = self._words
        return bool(words[self._base + _SEEN_READY]) or any(words[peer + _SEEN_READY] for peer in self._peers)

    def note_ready(self) -> None:
        """A probe of ours found it ready."""
        self._words[self._base + _SEEN_READY] = 1

    def tell(self, hint: Hint) -> None:
        """Tells the others what we know of it."""
        words, times, base = self._words, self._board.times, self._base
        words[base + _SEQUENCE] += 1
        times[base + _EJECTED_UNTIL] = hint.ejected_until or 0.0
        times[base + _EJECTED_AT] = hint.ejected_at
        words[base + _EJECTIONS] = hint.ejections
        times[base + _BUSY_UNTIL] = hint.busy_until
        times[base + _SWITCHED_AT] = hint.switched_at
        words[base + _DRAINED] = hint.drain_why is not None
        self._write(_EJECT_WHY, hint.eject_why)
        self._write(_DRAIN_WHY, hint.drain_why or "")
        words[base + _SEQUENCE] += 1
        self._seat.announce()

    def ask(self, peer: int) -> Hint | None:
        """Returns what ``peer`` knows of it, `Hint` itself when that is nothing; None while it is being written."""
        words, times, base = self._words, self._board.times, self._of[peer]
        sequence = words[base + _SEQUENCE]
        if not sequence:
            return Hint()
        hint = Hint(
            times[base + _EJECTED_UNTIL] or None,
            times[base + _EJECTED_AT],
            words[base + _EJECTIONS],
            self._read(base, _EJECT_WHY),
            times[base + _BUSY_UNTIL],
            self._read(base, _DRAIN_WHY) if words[base + _DRAINED] else None,
            times[base + _SWITCHED_AT],
        )
        return hint if sequence % 2 == 0 and words[base + _SEQUENCE] == sequence else None

    def _write(self, at: int, text: str) -> None:
        begin = self._base * 8 + at
        self._board.map[begin : begin + _TEXT_BYTES] = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")

    def _read(self, base: int, at: int) -> str:
        begin = base * 8 + at
        return self._board.map[begin : begin + _TEXT_BYTES].rstrip(b"\0").decode(errors="ignore")
