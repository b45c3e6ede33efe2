"""Counters that several machines share, in Redis or Valkey: one atomic script decides about all limits of a call.

While the script is on its way, the calls that come meanwhile wait for the next one, which decides about all of them: so
a busy process asks once for many calls.

A store that does not answer decides nothing: each process then counts by itself, from what it last heard, and asks
again every `RETRY_S`. What was used meanwhile is added when the store is back; a store that comes back empty is filled
from the ledger, limit by limit, when a call asks for one.

What calls of a process hold is given up `LEASE_S` after it was last heard of.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as TimedOut

from passerelle.limits.counters import Hold, Taken, Used, Windows
from passerelle.limits.memory import MemoryCounters
from passerelle.limits.rule import LimitRule, Measure, Period
from passerelle.limits.scripts import BEAT, DECIDE

logger = logging.getLogger(__name__)

PREFIX = "passerelle:{limits}:"
TIMEOUT_S = 0.5
"""A store that takes longer is taken for down."""
RETRY_S = 0.5
LEASE_S = 30
BEAT_S = 10.0
BATCH = 128
"""Calls that one script decides about."""
_HERE = "here"
"""The holder of what was taken while the store was down."""
_LIVE_S = {Period.MINUTE: 180, Period.DAY: 2 * 86_400, Period.MONTH: 33 * 86_400, Period.NONE: 2 * 86_400}
"""How long a count is kept after it was last used; no call lasts longer than a day."""

SeedFrom = Callable[[Sequence[LimitRule]], Awaitable[Mapping[str, int]]]
"""What the ledger says was spent of some rules, by id. Raises an error of the database."""


class StoreDown(Exception):
    """The store did not answer. ``lost``: the connection ended, so that a new one may find it well."""

    def __init__(self, reason: str = "", *, lost: bool = False) -> None:
        super().__init__(reason)
        self.lost = lost


@dataclass(slots=True, eq=False)
class _Work:
    """What one call has to give back and to take. ``holder`` is who takes, once it is sent."""

    give_back: list[tuple[str, int, int, str]]
    take: list[tuple[str, int, int, int, bool]] = field(default_factory=list)
    answer: asyncio.Future[list[int]] | None = None
    left: Sequence[int] = ()
    """What of each is spent all the same by a caller who leaves before the answer: a request, as in the ledger."""
    holder: str = ""
    again: bool = False
    """It was sent before, and the connection ended."""


class RedisCounters:
    """Counters in the store at ``url``. ``await start()`` before use, ``await aclose()`` after.

    ``local`` counts while the store is down. ``seed_from`` asks the ledger; ``seed_errors`` are what it may raise.
    """

    def __init__(
        self,
        url: str,
        local: MemoryCounters,
        seed_from: SeedFrom,
        *,
        seed_errors: tuple[type[Exception], ...] = (),
        prefix: str = PREFIX,
    ) -> None:
        self._store = _Store(url, prefix)
        self._local = local
        self._seed_from = seed_from
        self._seed_errors = seed_errors
        self._holder = ""
        self._holding: dict[str, int] = {}
        self._epoch: str | None = None
        self._waiting: list[_Work] = []
        self._later: dict[tuple[str, str], list[int]] = {}
        self._awake = asyncio.Event()
        self._lost = asyncio.Event()
        self._seeding: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.up = False
        """Whether the store answered when it was last asked."""

    async def start(self) -> None:
        """Connects, and begins to work. A store that is down is no error: it is asked again."""
        await self._join()
        self._tasks = [
            asyncio.create_task(self._decide_on(), name="shared-limits"),
            asyncio.create_task(self._beat_on(), name="shared-limits-beat"),
        ]

    async def aclose(self) -> None:
        """Tells the store what is left to tell, frees what is held, and disconnects."""
        running = (*self._tasks, *self._seeding.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        try:
            while self.up and self._waiting:
                await self._decide()
            if self.up:
                await self._beat("leave")
        except StoreDown as error:
            logger.warning("what was used last is not told to the shared store: %s", error)
        self._waiting.clear()
        await self._store.aclose()

    def known(self, rules: Sequence[LimitRule], windows: Windows) -> list[int]:
        """Returns what was used and held of each rule when this process heard of it last."""
        return self._local.look(rules, windows)

    async def take(
        self, rules: tuple[LimitRule, ...], windows: Windows, amounts: Sequence[int], instead_of: Hold | None
    ) -> Taken:
        """Takes all amounts or none, and gives back ``instead_of`` in the same step."""
        starts = tuple([windows[rule.period].start_ms for rule in rules])
        work = _Work([] if instead_of is None else self._back(instead_of, (0,) * len(instead_of.rules)))
        work.left = [int(rule.measure is Measure.REQUESTS) for rule in rules]
        work.take = [
            (name_of(rule, start), amount, rule.value if rule.hard else -1, _LIVE_S.get(rule.period, 0), rule.lasts)
            for rule, start, amount in zip(rules, starts, amounts, strict=True)
        ]
        try:
            answer = await self._ask(work)
            while answer[0] < 0:
                await self._seed([rule for rule, used in zip(rules, answer[1:], strict=True) if used < 0], windows)
                work = _Work([], work.take, left=work.left)
                answer = await self._ask(work)
        except StoreDown:
            taken = self._local.take(rules, windows, amounts)
            if taken.hold is None:
                return taken
            here = msgspec.structs.replace(taken.hold, holder=_HERE)
            return msgspec.structs.replace(taken, hold=here)
        used = answer[1:]
        for rule, start, amount in zip(rules, starts, used, strict=True):
            self._local.know(rule, start, amount)
        if answer[0] > 0:
            return Taken(used, refused=answer[0] - 1)
        self._holding[work.holder] = self._holding.get(work.holder, 0) + 1
        return Taken(used, Hold(rules, starts, amounts, work.holder))

    def settle(self, hold: Hold, spent: Sequence[int]) -> None:
        """Gives back what was held and counts what was spent, soon."""
        self._send(_Work(self._back(hold, spent)))

    async def used(self, rules: Sequence[LimitRule], windows: Windows) -> list[Used]:
        """Returns how limits stand, asked all at once; by what is known here while the store is down."""
        names = [name_of(rule, windows[rule.period].start_ms) for rule in rules]
        try:
            if not self.up:
                raise StoreDown
            totals = await self._store.get(names)
            unknown = [rule for rule, total in zip(rules, totals, strict=True) if total is None and rule.lasts]
            if unknown:
                await self._seed(unknown, windows)
                totals = await self._store.get(names)
            held = await self._store.held(names)
        except StoreDown:
            return [self._local.used(rule, windows) for rule in rules]
        return [Used((total or 0) - part, part) for total, part in zip(totals, held, strict=True)]

    def _back(self, hold: Hold, spent: Sequence[int]) -> list[tuple[str, int, int, str]]:
        """Returns what the store is to be told of the end of a hold, and tells it to this process's own count."""
        self._local.settle(hold, spent)
        here = hold.holder == _HERE
        if not here:
            left = self._holding.get(hold.holder, 0) - 1
            self._holding[hold.holder] = left
            if left <= 0:
                del self._holding[hold.holder]
        return [
            (name_of(rule, start), 0 if here else amount, really, hold.holder)
            for rule, start, amount, really in zip(hold.rules, hold.starts, hold.amounts, spent, strict=True)
        ]

    def _send(self, work: _Work) -> None:
        if self.up:
            self._waiting.append(work)
            self._awake.set()
        else:
            self._put_off(work)

    def _put_off(self, work: _Work) -> None:
        for name, held, spent, holder in work.give_back:
            later = self._later.setdefault((name, holder), [0, 0])
            later[0] += held
            later[1] += spent

    async def _ask(self, work: _Work) -> list[int]:
        """Returns the store's answer. Raises StoreDown. Who is cancelled meanwhile holds nothing."""
        if not self.up:
            self._put_off(work)
            raise StoreDown
        work.answer = asyncio.get_running_loop().create_future()
        self._waiting.append(work)
        self._awake.set()
        try:
            return await work.answer
        except asyncio.CancelledError:
            if not work.answer.cancelled() and work.answer.exception() is None:
                self._undo(work, work.answer.result())
            raise

    def _undo(self, work: _Work, answer: Sequence[int]) -> None:
        """Gives back what was taken for a caller who has left meanwhile, but for what the ledger counts of them."""
        if answer[0] == 0:
            taken = zip(work.take, work.left, strict=True)
            self._send(_Work([(name, amount, left, work.holder) for (name, amount, *_), left in taken]))

    async def _decide_on(self) -> None:
        while True:
            await self._awake.wait()
            self._awake.clear()
            while self._waiting:
                try:
                    await self._decide()
                except StoreDown as error:
                    self._note_down(error)

    async def _decide(self) -> None:
        batch = self._waiting[:BATCH]
        del self._waiting[:BATCH]
        for work in batch:
            work.holder = self._holder
        try:
            answers = await self._store.decide(self._holder, [(work.give_back, work.take) for work in batch])
        except StoreDown as error:
            self._waiting[:0] = batch
            if not error.lost or any(work.again for work in batch):
                raise
            # An idle connection outlived its server: what was sent goes again, over a new one, under a new name.
            for work in batch:
                work.again = True
            self.up = False
            await self._join()
            if not self.up:
                raise
            return
        if answers is None:
            # We were not heard of for so long that what we held was given up: we go on under another name.
            self._waiting[:0] = batch
            self._holder = os.urandom(8).hex()
            await self._beat("join")
            return
        for work, answer in zip(batch, answers, strict=True):
            if work.answer is None:
                continue
            if work.answer.cancelled():
                self._undo(work, answer)
            else:
                work.answer.set_result(answer)

    def _give_up(self, work: _Work) -> None:
        self._put_off(work)
        if work.answer is not None and not work.answer.done():
            work.answer.set_exception(StoreDown())
            work.answer.exception()  # the caller may have left: nobody else would ask for it

    def _note_down(self, error: StoreDown) -> None:
        if self.up:
            logger.warning("the shared store of limits does not answer (%s): each process counts by itself", error)
        self.up = False
        self._lost.set()
        for work in self._waiting:
            self._give_up(work)
        self._waiting.clear()

    async def _beat_on(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._lost.wait(), BEAT_S)
            except TimeoutError:
                pass
            while self._lost.is_set():
                await asyncio.sleep(RETRY_S)
                await self._join()
            try:
                if not await self._beat("stay"):
                    self._holder = os.urandom(8).hex()
                    await self._beat("join")
            except StoreDown as error:
                self._note_down(error)

    async def _join(self) -> None:
        """Begins to work with the store, under a new name: what was sent and not answered belongs to the old one."""
        self._holder = os.urandom(8).hex()
        try:
            await self._store.drop_connections()
            before = self._epoch
            await self._beat("join")
        except StoreDown as error:
            if not self._lost.is_set():
                logger.warning("the shared store of limits does not answer (%s): each process counts by itself", error)
            self._lost.set()
            return
        if before is not None and before != self._epoch:
            # It has lost its data, and is filled from the ledger, where what was used meanwhile stands too.
            self._later.clear()
            for work in self._waiting:
                work.give_back.clear()
        self.up = True
        if self._lost.is_set():
            logger.warning("the shared store of limits answers again")
        self._lost.clear()
        later, self._later = list(self._later.items()), {}
        for at in range(0, len(later), BATCH):
            part = later[at : at + BATCH]
            self._send(_Work([(name, held, spent, holder) for (name, holder), (held, spent) in part]))

    async def _beat(self, how: str) -> bool:
        """Says that we live, or end, and returns whether the store knew us."""
        others = [holder for holder in self._holding if holder != self._holder]
        known, self._epoch = await self._store.beat(how, [self._holder, *others])
        return known

    async def _seed(self, rules: Sequence[LimitRule], windows: Windows) -> None:
        """Sets what the ledger says was spent; once for all who wait for the same. Raises StoreDown."""
        tasks = []
        for rule in rules:
            start = windows[rule.period].start_ms
            name = name_of(rule, start)
            task = self._seeding.get(name)
            if task is None:
                task = self._seeding[name] = asyncio.create_task(self._seed_one(rule, name, windows))
                task.add_done_callback(partial(self._seeded, name))
            tasks.append(task)
        await asyncio.gather(*(asyncio.shield(task) for task in tasks))

    def _seeded(self, name: str, _task: asyncio.Task[None]) -> None:
        del self._seeding[name]

    async def _seed_one(self, rule: LimitRule, name: str, windows: Windows) -> None:
        try:
            spent = (await self._seed_from([rule])).get(rule.id, 0)
        except self._seed_errors as error:
            logger.warning("what was spent of %s is taken from memory: the ledger does not tell (%s)", rule.id, error)
            spent = self._local.look((rule,), windows)[0]
        await self._store.set_new(name, spent, _LIVE_S.get(rule.period, 0))


class _Store:
    """The commands that are sent. All raise StoreDown."""

    def __init__(self, url: str, prefix: str) -> None:
        self._redis = Redis.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._execute: Any = self._redis.execute_command
        self._prefix = prefix

    async def decide(self, holder: str, works: Sequence[Any]) -> list[list[int]] | None:
        """Returns the answers to works, None when the holder is not known."""
        code, *answers = await self._run(DECIDE, holder, msgspec.json.encode(works).decode())
        return None if code < 0 else answers[0]

    async def beat(self, how: str, holders: Sequence[str]) -> tuple[bool, str]:
        """Returns whether the first holder was known, and the epoch."""
        known, epoch = await self._run(BEAT, LEASE_S, how, *holders)
        return bool(known), epoch

    async def get(self, names: Sequence[str]) -> list[int | None]:
        """Returns counts, None for one that is not there."""
        found = await self._tell("MGET", *(self._prefix + name for name in names)) if names else []
        return [None if count is None else int(count) for count in found]

    async def held(self, names: Sequence[str]) -> list[int]:
        """Returns what calls under way hold of counts, everywhere."""
        totals = [0] * len(names)
        for holder in await self._tell("ZRANGE", self._prefix + "holders", 0, -1) if names else ():
            found = await self._tell("HMGET", f"{self._prefix}held:{holder}", *names)
            totals = [total + int(held or 0) for total, held in zip(totals, found, strict=True)]
        return totals

    async def set_new(self, name: str, count: int, live_s: int) -> None:
        """Sets a count that is not there; one that is stays."""
        live = ("EX", live_s) if live_s else ()
        await self._tell("SET", self._prefix + name, count, "NX", *live)

    async def drop_connections(self) -> None:
        """Connects anew: connections to a server that has ended are of no use."""
        await self._redis.connection_pool.disconnect()

    async def aclose(self) -> None:
        """Disconnects."""
        await self._redis.aclose()

    async def _run(self, script: str, *arguments: object) -> Any:
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self._tell("EVALSHA", digest, 1, self._prefix, *arguments)
        except NoScriptError:
            await self._tell("SCRIPT LOAD", script)
            return await self._tell("EVALSHA", digest, 1, self._prefix, *arguments)

    async def _tell(self, *command: Any) -> Any:
        try:
            return await self._execute(*command)
        except NoScriptError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            lost = isinstance(error, ConnectionLost) and not isinstance(error, TimedOut)
            raise StoreDown(str(error) or type(error).__name__, lost=lost) from error


def name_of(rule: LimitRule, start_ms: int) -> str:
    """Returns the name of the count of a rule in a window."""
    return f"used:{rule.id}:{start_ms}"
