"""Limits and prices in the database, and who changed them: made, listed, updated, removed, and read for the book.

Every change raises the sequence ``keys`` in its own transaction, as changes of keys do: `passerelle.limits.keeper`
polls it. A removed limit leaves its row, so that every process learns of the removal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import BadRequest, Conflict, NotFound, PreconditionFailed
from passerelle.domain.ids import new_id
from passerelle.identity.audit import EVERYWHERE, Actor, append
from passerelle.identity.options import LAST_MS
from passerelle.identity.sequence import advance, position
from passerelle.limits.price import Price
from passerelle.limits.rule import MAX_VALUE, LimitRule, Measure, Period, SubjectKind, fits
from passerelle.storage.engine import Database
from passerelle.storage.tables import keys, limits, prices, projects, users

MAX_PRICE_MICRO = 10**12
"""A million currency units for a million tokens: beyond reason, and small enough that no sum overflows."""
_MAX_NAME = 256
_WITHOUT_ROW = ("static", "nobody")
"""The key of the settings, and who needs none: callers that are in no table."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit with its record. ``version`` is raised by every update."""

    rule: LimitRule
    created_at_ms: int
    created_by: str
    version: int


@dataclass(frozen=True, slots=True)
class NewLimit:
    """What a limit is made from; see `passerelle.limits.rule.LimitRule`."""

    subject_kind: SubjectKind
    subject_id: str
    measure: Measure
    period: Period
    value: int
    model: str = ""
    hard: bool = True


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reader of the book has missed. ``prices`` None when they are as before."""

    position: int
    rules: tuple[LimitRule, ...] = ()
    removed: tuple[str, ...] = ()
    prices: Mapping[str, Price] | None = None


class LimitStore:
    """The limits of one organisation; of ``EVERYWHERE``: those on models that all share.

    Another organisation's limit does not exist here. With ``project``, the id of the one project somebody belongs to,
    neither do those of other projects, their keys and users. ``clock`` gives seconds since the epoch. Every method may
    raise StorageError.
    """

    def __init__(
        self,
        database: Database,
        organisation: str,
        *,
        project: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database.of(organisation)
        self._organisation = organisation
        self._project = project
        self._clock = clock

    async def create(self, new: NewLimit, actor: Actor) -> Limit:
        """Makes a limit. Raises BadRequest, NotFound for a subject of others, Conflict for one that is there."""
        self._check(new)
        row = self._row(new, actor)
        async with self._database.write() as connection:
            row["changed"] = await advance(connection)
            await self._check_subject(connection, new)
            there = (await connection.execute(self._same(new))).mappings().first()
            if there is not None:
                raise Conflict(f"There is such a limit already, {there['id']}: change its value instead.")
            await connection.execute(insert(limits).values(**row))
            await self._audit(connection, actor, "limit.create", row["id"], None, row)
        return await self.get(row["id"])

    async def set(self, new: NewLimit, actor: Actor) -> Limit:
        """Makes a limit, or gives the one that is there this value. Raises BadRequest, and NotFound as ``create``."""
        self._check(new)
        async with self._database.read() as connection:
            there = (await connection.execute(self._same(new))).mappings().first()
        if there is None:
            return await self.create(new, actor)
        return await self.update(there["id"], actor, value=new.value, hard=new.hard)

    async def update(
        self,
        limit_id: str,
        actor: Actor,
        *,
        value: int | None = None,
        hard: bool | None = None,
        version: int | None = None,
    ) -> Limit:
        """Changes a limit's value or kind; what was used of it goes on counting.

        ``version`` is the one the caller has seen, None for any. Raises BadRequest, NotFound and PreconditionFailed.
        """
        if value is not None:
            _check_value(value)
        async with self._database.write() as connection:
            changed = await advance(connection)
            before = await self._one(connection, limit_id)
            if version is not None and before["version"] != version:
                raise PreconditionFailed("The limit changed since it was read: read it again, and decide anew.")
            values = {
                "value": before["value"] if value is None else value,
                "hard": before["hard"] if hard is None else hard,
                "changed": changed,
                "version": before["version"] + 1,
            }
            await connection.execute(update(limits).where(limits.c.id == limit_id).values(**values))
            await self._audit(connection, actor, "limit.update", limit_id, before, before | values)
        return await self.get(limit_id)

    async def remove(self, limit_id: str, actor: Actor, *, version: int | None = None) -> None:
        """Ends a limit. Raises NotFound and PreconditionFailed."""
        async with self._database.write() as connection:
            changed = await advance(connection)
            before = await self._one(connection, limit_id)
            if version is not None and before["version"] != version:
                raise PreconditionFailed("The limit changed since it was read: read it again, and decide anew.")
            values = {"removed_at_ms": self._now_ms(), "changed": changed, "version": before["version"] + 1}
            await connection.execute(update(limits).where(limits.c.id == limit_id).values(**values))
            await self._audit(connection, actor, "limit.remove", limit_id, before, None)

    async def get(self, limit_id: str) -> Limit:
        """Returns one limit. Raises NotFound."""
        async with self._database.read() as connection:
            return _limit(await self._one(connection, limit_id))

    async def page(
        self,
        count: int,
        after: tuple[int, str] | None = None,
        *,
        subject_kind: SubjectKind | None = None,
        subject_id: str | None = None,
    ) -> list[Limit]:
        """Returns at most ``count`` limits, oldest first, those after the (created_at_ms, id) given."""
        query = self._query().order_by(limits.c.created_at_ms, limits.c.id).limit(count)
        if after is not None:
            query = query.where(tuple_(limits.c.created_at_ms, limits.c.id) > after)
        if subject_kind is not None:
            query = query.where(limits.c.subject_kind == subject_kind.value)
        if subject_id is not None:
            query = query.where(limits.c.subject_id == subject_id)
        async with self._database.read() as connection:
            return [_limit(row) for row in (await connection.execute(query)).mappings()]

    def _query(self) -> Select[Any]:
        query = select(limits).where(limits.c.organisation == self._organisation, limits.c.removed_at_ms.is_(None))
        if self._project is None:
            return query
        kind, subject = limits.c.subject_kind, limits.c.subject_id
        return query.where(
            or_(
                kind.in_((SubjectKind.ORGANISATION.value, SubjectKind.MODEL.value)),
                and_(kind == SubjectKind.PROJECT.value, subject == self._project),
                and_(kind == SubjectKind.USER.value, subject.in_(self._inside(users, users.c.project))),
                and_(kind == SubjectKind.KEY.value, subject.in_(self._inside(keys, keys.c.project))),
            )
        )

    def _inside(self, table: Any, project: Any) -> Select[Any]:
        """The ids of the organisation's projects, users or keys; those of the one project where there is one."""
        query = select(table.c.id).where(table.c.organisation == self._organisation)
        return query if self._project is None else query.where(project == self._project)

    def _same(self, new: NewLimit) -> Select[Any]:
        return self._query().where(
            limits.c.subject_kind == new.subject_kind.value,
            limits.c.subject_id == new.subject_id,
            limits.c.model == new.model,
            limits.c.measure == new.measure.value,
            limits.c.period == new.period.value,
        )

    async def _one(self, connection: AsyncConnection, limit_id: str) -> dict[str, Any]:
        row = (await connection.execute(self._query().where(limits.c.id == limit_id))).mappings().first()
        if row is None:
            raise NotFound(f"There is no limit {limit_id[:64]!r}.")
        return dict(row)

    def _check(self, new: NewLimit) -> None:
        _check_value(new.value)
        if not fits(new.measure, new.period):
            raise BadRequest(
                "A limit on calls under way ('concurrent') has no period, every other one has: minute, day, month or "
                "total.",
                param="period",
            )
        if new.subject_kind is SubjectKind.MODEL and new.model:
            raise BadRequest("A limit of a model names it as its subject; leave `model` out.", param="model")
        if self._organisation == EVERYWHERE and new.subject_kind is not SubjectKind.MODEL:
            raise BadRequest("Only a limit on a model can hold for all organisations.", param="subject_kind")
        for param, name in (("subject_id", new.subject_id), ("model", new.model)):
            if len(name) > _MAX_NAME or "\0" in name:
                raise BadRequest(f"`{param}` has at most {_MAX_NAME} characters and no NUL.", param=param)
        if not new.subject_id:
            raise BadRequest("`subject_id` says whose calls are counted; it is empty.", param="subject_id")

    async def _check_subject(self, connection: AsyncConnection, new: NewLimit) -> None:
        """Whether the subject is this organisation's; a model may be limited before it is served."""
        kind, subject, own = new.subject_kind, new.subject_id, self._organisation
        if kind is SubjectKind.MODEL:
            return
        queries = {
            SubjectKind.PROJECT: self._inside(projects, projects.c.id).where(projects.c.id == subject),
            SubjectKind.USER: self._inside(users, users.c.project).where(users.c.id == subject),
            SubjectKind.KEY: self._inside(keys, keys.c.project).where(keys.c.id == subject),
        }
        if kind is SubjectKind.ORGANISATION:
            there = subject == own
        else:
            there = (await connection.execute(queries[kind])).first() is not None
            there = there or (
                kind is SubjectKind.KEY and own == "default" and self._project is None and subject in _WITHOUT_ROW
            )
        if not there:
            raise NotFound(f"There is no {kind} {subject[:64]!r} in this organisation.")

    def _row(self, new: NewLimit, actor: Actor) -> dict[str, Any]:
        return {
            "id": new_id("limit"),
            "organisation": self._organisation,
            "subject_kind": new.subject_kind.value,
            "subject_id": new.subject_id,
            "model": new.model,
            "measure": new.measure.value,
            "period": new.period.value,
            "value": new.value,
            "hard": new.hard,
            "created_at_ms": self._now_ms(),
            "created_by": actor.id,
            "version": 1,
        }

    async def _audit(
        self,
        connection: AsyncConnection,
        actor: Actor,
        action: str,
        limit_id: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        await append(
            connection,
            actor,
            action=action,
            organisation=self._organisation,
            subject_kind="limit",
            subject_id=limit_id,
            before=None if before is None else _shown(before),
            after=None if after is None else _shown(after),
        )

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


class PriceStore:
    """The prices of an installation: the same for all organisations. Every method may raise StorageError."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def set(
        self,
        model: str,
        *,
        input_micro: int,
        cached_micro: int,
        output_micro: int,
        actor: Actor,
        from_ms: int | None = None,
    ) -> Price:
        """Gives a model a price from a moment on (now when None); one of the same moment is replaced.

        The past keeps its price: calls that are settled are not counted anew. Raises BadRequest.
        """
        if not model or len(model) > _MAX_NAME or "\0" in model:
            raise BadRequest(f"`model` has 1 to {_MAX_NAME} characters and no NUL.", param="model")
        costs = {"input_micro": input_micro, "cached_micro": cached_micro, "output_micro": output_micro}
        for name, value in costs.items():
            if not 0 <= value <= MAX_PRICE_MICRO:
                raise BadRequest(f"`{name}` is a whole number from 0 to {MAX_PRICE_MICRO}.", param=name)
        now_ms = int(self._clock() * 1000)
        begins_ms = now_ms if from_ms is None else from_ms
        if not 0 <= begins_ms <= LAST_MS:
            raise BadRequest(
                "`from_ms` is a time in milliseconds since the epoch, before the year 10000.", param="from_ms"
            )
        async with self._database.write() as connection:
            changed = await advance(connection)
            same = select(prices).where(prices.c.model == model, prices.c.from_ms == begins_ms)
            found = (await connection.execute(same)).mappings().first()
            before = None if found is None else dict(found)
            if before is None:
                row: dict[str, Any] = {"id": new_id("price"), "model": model, "from_ms": begins_ms, **costs}
                record = {"created_at_ms": now_ms, "created_by": actor.id, "version": 1}
                await connection.execute(insert(prices).values(**row, **record, changed=changed))
            else:
                row = {**before, **costs}
                values = {**costs, "changed": changed, "version": before["version"] + 1}
                await connection.execute(update(prices).where(prices.c.id == before["id"]).values(**values))
            await self._audit(connection, actor, "price.set", row["id"], before, row)
        return await self.get(row["id"])

    async def remove(self, price_id: str, actor: Actor) -> None:
        """Removes a price; the one before it is in force again. Raises NotFound."""
        async with self._database.write() as connection:
            await advance(connection)
            found = (await connection.execute(select(prices).where(prices.c.id == price_id))).mappings().first()
            if found is None:
                raise NotFound(f"There is no price {price_id[:64]!r}.")
            await connection.execute(prices.delete().where(prices.c.id == price_id))
            await self._audit(connection, actor, "price.remove", price_id, dict(found), None)

    async def get(self, price_id: str) -> Price:
        """Returns one price. Raises NotFound."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(prices).where(prices.c.id == price_id))).mappings().first()
        if row is None:
            raise NotFound(f"There is no price {price_id[:64]!r}.")
        return _price(row)

    async def page(
        self,
        count: int,
        after: tuple[str, int] | None = None,
        *,
        model: str | None = None,
        among: Collection[str] | None = None,
    ) -> list[Price]:
        """Returns at most ``count`` prices by model and beginning, those after the (model, from_ms) given.

        ``model`` is the one model wanted, ``among`` those that the caller may know of; None is all.
        """
        query = select(prices).order_by(prices.c.model, prices.c.from_ms).limit(count)
        if after is not None:
            later = and_(prices.c.model == after[0], prices.c.from_ms > after[1])
            query = query.where(or_(prices.c.model > after[0], later))
        if model is not None:
            query = query.where(prices.c.model == model)
        if among is not None:
            query = query.where(prices.c.model.in_(sorted(among)))
        async with self._database.read() as connection:
            return [_price(row) for row in (await connection.execute(query)).mappings()]

    async def _audit(
        self,
        connection: AsyncConnection,
        actor: Actor,
        action: str,
        price_id: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        names = ("model", "input_micro", "cached_micro", "output_micro", "from_ms")
        await append(
            connection,
            actor,
            action=action,
            organisation=EVERYWHERE,
            subject_kind="price",
            subject_id=price_id,
            before=None if before is None else {name: before[name] for name in names},
            after=None if after is None else {name: after[name] for name in names},
        )


async def read_changes(database: Database, after: int, known_prices: int) -> Changes:
    """Returns what changed since the sequence stood at ``after``, all of it when negative; one query when nothing did.

    ``known_prices`` is how many prices the reader has: one that was removed leaves no row. Raises StorageError.
    """
    async with database.read() as connection:
        now = await position(connection)
        if now == after:
            return Changes(now)
        query = select(limits)
        query = query.where(limits.c.removed_at_ms.is_(None)) if after < 0 else query.where(limits.c.changed > after)
        rows = (await connection.execute(query)).mappings().all()
        found = (await connection.execute(select(prices))).mappings().all()
    changed = after < 0 or len(found) != known_prices or any(row["changed"] > after for row in found)
    rules = tuple(_rule(row) for row in rows if row["removed_at_ms"] is None)
    removed = tuple(row["id"] for row in rows if row["removed_at_ms"] is not None)
    return Changes(now, rules, removed, {row["id"]: _price(row) for row in found} if changed else None)


def _check_value(value: int) -> None:
    if not 0 <= value <= MAX_VALUE:
        raise BadRequest(f"`value` is a whole number from 0 to {MAX_VALUE}.", param="value")


def _rule(row: Mapping[Any, Any]) -> LimitRule:
    return LimitRule(
        id=row["id"],
        organisation=row["organisation"],
        subject_kind=SubjectKind(row["subject_kind"]),
        subject_id=row["subject_id"],
        model=row["model"],
        measure=Measure(row["measure"]),
        period=Period(row["period"]),
        value=row["value"],
        hard=row["hard"],
    )


def _limit(row: Mapping[Any, Any]) -> Limit:
    return Limit(_rule(row), row["created_at_ms"], row["created_by"], row["version"])


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("subject_kind", "subject_id", "model", "measure", "period", "value", "hard")
    return {name: row[name] for name in names}


def _price(row: Mapping[Any, Any]) -> Price:
    names = ("id", "model", "input_micro", "cached_micro", "output_micro", "from_ms")
    return Price(**{name: row[name] for name in names})
