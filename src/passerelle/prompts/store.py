"""The prompts of one organisation and project. A version never changes; a label points at one, and can be moved.

Each change and its entry in the audit log are made together, or neither.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.domain.errors import BadRequest, Conflict, NotFound
from passerelle.domain.ids import new_id
from passerelle.identity import audit
from passerelle.identity.audit import Actor
from passerelle.prompts.template import Content
from passerelle.storage.engine import Database
from passerelle.storage.tables import prompt_labels, prompt_versions, prompts

PRODUCTION: Final = "production"
"""The label that is meant when a caller names no version. It can be moved, and not removed."""
LATEST: Final = "latest"
"""In place of a label: the newest version."""
MAX_LABELS = 50
MAX_VERSIONS = 10_000
_PREFIX = "prm"
_NAME = re.compile(r"\w[\w .\-]{0,99}")
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,63}")
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_decode = msgspec.json.Decoder(Content).decode


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt without its templates. ``latest`` is the number of the newest version; times are milliseconds since
    the epoch."""

    id: str
    name: str
    latest: int
    created_at_ms: int
    created_by: str
    archived_at_ms: int | None
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a prompt."""

    prompt_id: str
    name: str
    number: int
    content: Content
    created_at_ms: int
    created_by: str


class PromptStore:
    """The prompts of one tenant; ``clock`` gives seconds since the epoch.

    Where a prompt is asked for, its id or its name is taken. All methods may raise StorageError, and NotFound for what
    is another tenant's exactly as for what is not there.
    """

    def __init__(
        self, database: Database, *, organisation: str, project: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database.of(organisation)
        self._organisation = organisation
        self._project = project
        self._clock = clock

    # Changing

    async def create(self, by: Actor, name: str, content: Content, labels: Sequence[str] = (PRODUCTION,)) -> Prompt:
        """Makes a prompt with its first version. Raises BadRequest, and Conflict for a name in use."""
        name = _checked_name(name)
        points = dict.fromkeys([PRODUCTION, *labels], 1)
        for label in points:
            check_label(label)
        prompt_id, now = new_id(_PREFIX), self._now()
        row: dict[str, Any] = {
            "id": prompt_id,
            "organisation": self._organisation,
            "project": self._project,
            "name": name,
        }
        row |= {"latest": 1, "created_at_ms": now, "created_by": by.name}
        taken = Conflict(f"There is a prompt {name!r} already, maybe in the archive.", param="name")
        async with self._database.write() as connection:
            same = select(prompts.c.id).where(self._mine(), prompts.c.name == name)
            if (await connection.execute(same)).first():
                raise taken
            try:
                await connection.execute(insert(prompts).values(**row))
            except IntegrityError:  # another transaction was quicker
                raise taken from None
            await self._add(connection, prompt_id, 1, content, by)
            for label in points:
                await connection.execute(insert(prompt_labels).values(prompt_id=prompt_id, label=label, number=1))
            after = {"name": name, "number": 1, "labels": points, "content": msgspec.to_builtins(content)}
            await self._note(connection, by, "prompt.create", prompt_id, None, after)
        return await self.get(prompt_id)

    async def add(self, by: Actor, reference: str, content: Content, labels: Sequence[str] = ()) -> Version:
        """Makes a new version and points ``labels`` at it.

        Raises NotFound, BadRequest, and Conflict for a prompt in the archive.
        """
        for label in labels:
            check_label(label)
        async with self._database.write() as connection:
            prompt = await self._changeable(connection, reference)
            raised = update(prompts).where(self._mine(), prompts.c.id == prompt.id, prompts.c.latest < MAX_VERSIONS)
            number = (
                await connection.execute(raised.values(latest=prompts.c.latest + 1).returning(prompts.c.latest))
            ).scalar()
            if number is None:
                raise Conflict(f"A prompt has at most {MAX_VERSIONS:,} versions: make another one.")
            await self._add(connection, prompt.id, number, content, by)
            for label in labels:
                await self._point(connection, prompt, label, number)
            after = {"number": number, "labels": list(labels), "content": msgspec.to_builtins(content)}
            await self._note(connection, by, "prompt.version", prompt.id, {"labels": prompt.labels}, after)
        return await self.version(prompt.id, str(number))

    async def label(self, by: Actor, reference: str, label: str, number: int) -> Prompt:
        """Points a label at a version. Raises as `add` does."""
        check_label(label)
        async with self._database.write() as connection:
            prompt = await self._changeable(connection, reference)
            if not 1 <= number <= prompt.latest:
                raise NotFound(f"The prompt has no version {number}; its newest is {prompt.latest}.", param="version")
            await self._point(connection, prompt, label, number)
            before, after = {label: prompt.labels.get(label)}, {label: number}
            await self._note(connection, by, "prompt.label", prompt.id, before, after)
        return await self.get(prompt.id)

    async def unlabel(self, by: Actor, reference: str, label: str) -> Prompt:
        """Removes a label. Raises NotFound, and Conflict for `PRODUCTION`."""
        async with self._database.write() as connection:
            prompt = await self._changeable(connection, reference)
            if label not in prompt.labels:
                raise NotFound(f"The prompt has no label {label[:64]!r}.")
            if label == PRODUCTION:
                raise Conflict(f"The label '{PRODUCTION}' can be moved, and not removed.")
            mine = and_(prompt_labels.c.prompt_id == prompt.id, prompt_labels.c.label == label)
            await connection.execute(delete(prompt_labels).where(mine))
            await self._note(connection, by, "prompt.unlabel", prompt.id, {label: prompt.labels[label]}, {label: None})
        return await self.get(prompt.id)

    async def archive(self, by: Actor, reference: str) -> Prompt:
        """Takes a prompt out of use; its versions and its name stay. Once more does nothing."""
        return await self._end(by, reference, self._now())

    async def restore(self, by: Actor, reference: str) -> Prompt:
        """Takes a prompt out of the archive."""
        return await self._end(by, reference, None)

    async def _end(self, by: Actor, reference: str, end_ms: int | None) -> Prompt:
        async with self._database.write() as connection:
            prompt = await self._get(connection, reference, lock=True)
            if (prompt.archived_at_ms is None) != (end_ms is None):
                found = update(prompts).where(self._mine(), prompts.c.id == prompt.id)
                await connection.execute(found.values(archived_at_ms=end_ms))
                action = "prompt.restore" if end_ms is None else "prompt.archive"
                before, after = {"archived_at_ms": prompt.archived_at_ms}, {"archived_at_ms": end_ms}
                await self._note(connection, by, action, prompt.id, before, after)
        return await self.get(prompt.id)

    # Reading

    async def get(self, reference: str) -> Prompt:
        """Returns a prompt, an archived one too. Raises NotFound."""
        async with self._database.read() as connection:
            return await self._get(connection, reference)

    async def page(
        self, *, limit: int, after: tuple[int | str, ...] | None = None, archived: bool = False
    ) -> list[Prompt]:
        """Returns up to ``limit`` prompts, oldest first, after the one with (created_at_ms, id) ``after``."""
        query = select(prompts).where(self._mine()).order_by(prompts.c.created_at_ms, prompts.c.id).limit(limit)
        if after is not None:
            query = query.where(tuple_(prompts.c.created_at_ms, prompts.c.id) > tuple_(*after))
        if not archived:
            query = query.where(prompts.c.archived_at_ms.is_(None))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            wanted = prompt_labels.c.prompt_id.in_([row.id for row in rows])
            labels: dict[str, dict[str, int]] = {}
            for row in await connection.execute(select(prompt_labels).where(wanted).order_by(prompt_labels.c.label)):
                labels.setdefault(row.prompt_id, {})[row.label] = row.number
        return [_prompt(row, labels.get(row.id, {})) for row in rows]

    async def version(self, reference: str, wanted: str = PRODUCTION, *, in_use: bool = False) -> Version:
        """Returns a version by its number, a label, or `LATEST`; ``in_use`` passes over archived prompts.

        Raises NotFound.
        """
        async with self._database.read() as connection:
            prompt = await self._get(connection, reference)
            if in_use and prompt.archived_at_ms is not None:
                raise unknown_prompt()
            if _NUMBER.fullmatch(wanted):
                number = int(wanted)
            elif wanted == LATEST:
                number = prompt.latest
            else:
                number = prompt.labels.get(wanted, 0)
            mine = and_(prompt_versions.c.prompt_id == prompt.id, prompt_versions.c.number == number)
            row = (await connection.execute(select(prompt_versions).where(mine))).first()
        if row is None:
            there = f"1 to {prompt.latest}, {', '.join(sorted({*prompt.labels, LATEST}))}"
            raise NotFound(f"The prompt has no version {wanted[:64]!r}; there are: {there}.", param="version")
        return _version(prompt, row)

    async def versions(self, reference: str, *, limit: int, below: int | None = None) -> list[Version]:
        """Returns up to ``limit`` versions, newest first, with numbers below ``below``. Raises NotFound."""
        async with self._database.read() as connection:
            prompt = await self._get(connection, reference)
            query = select(prompt_versions).where(prompt_versions.c.prompt_id == prompt.id)
            if below is not None:
                query = query.where(prompt_versions.c.number < below)
            rows = await connection.execute(query.order_by(prompt_versions.c.number.desc()).limit(limit))
            return [_version(prompt, row) for row in rows]

    async def _get(self, connection: AsyncConnection, reference: str, *, lock: bool = False) -> Prompt:
        query = select(prompts).where(self._mine(), or_(prompts.c.id == reference, prompts.c.name == reference))
        row = None
        if "\0" not in reference:
            row = (await connection.execute(query.with_for_update() if lock else query)).first()
        if row is None:
            raise unknown_prompt()
        labels = select(prompt_labels).where(prompt_labels.c.prompt_id == row.id).order_by(prompt_labels.c.label)
        return _prompt(row, {each.label: each.number for each in await connection.execute(labels)})

    async def _changeable(self, connection: AsyncConnection, reference: str) -> Prompt:
        prompt = await self._get(connection, reference, lock=True)
        if prompt.archived_at_ms is not None:
            raise Conflict("The prompt is in the archive: restore it first.")
        return prompt

    async def _add(self, connection: AsyncConnection, prompt_id: str, number: int, content: Content, by: Actor) -> None:
        row: dict[str, Any] = {
            "prompt_id": prompt_id,
            "number": number,
            "content": msgspec.json.encode(content).decode(),
        }
        row |= {"created_at_ms": self._now(), "created_by": by.name}
        await connection.execute(insert(prompt_versions).values(**row))

    async def _point(self, connection: AsyncConnection, prompt: Prompt, label: str, number: int) -> None:
        if label not in prompt.labels and len(prompt.labels) >= MAX_LABELS:
            raise Conflict(f"A prompt has at most {MAX_LABELS} labels: remove one.")
        mine = and_(prompt_labels.c.prompt_id == prompt.id, prompt_labels.c.label == label)
        await connection.execute(delete(prompt_labels).where(mine))
        await connection.execute(insert(prompt_labels).values(prompt_id=prompt.id, label=label, number=number))

    async def _note(
        self,
        connection: AsyncConnection,
        by: Actor,
        action: str,
        prompt_id: str,
        before: dict[str, Any] | None,
        after: dict[str, Any],
    ) -> None:
        await audit.append(
            connection,
            by,
            action=action,
            organisation=self._organisation,
            subject_kind="prompt",
            subject_id=prompt_id,
            before=before,
            after=after,
        )

    def _mine(self) -> ColumnElement[bool]:
        return and_(prompts.c.organisation == self._organisation, prompts.c.project == self._project)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def check_label(label: str) -> None:
    """Raises BadRequest for what is no label."""
    if _LABEL.fullmatch(label) is None or label == LATEST:
        raise BadRequest(
            f"A label has 1 to 64 letters, digits, '.', '_' or '-', begins with a letter, and is not '{LATEST}'.",
            param="label",
        )


def unknown_prompt() -> NotFound:
    """Returns the error for a prompt that is not there, or another tenant's."""
    return NotFound("There is no prompt of that id or name.", code="prompt_not_found")


def _checked_name(name: str) -> str:
    name = name.strip()
    if _NAME.fullmatch(name) is None or name.startswith(f"{_PREFIX}_"):
        raise BadRequest(
            f"A name has 1 to 100 letters, digits, spaces, '.', '_' or '-', and does not begin with '{_PREFIX}_'.",
            param="name",
        )
    return name


def _prompt(row: Any, labels: dict[str, int]) -> Prompt:
    return Prompt(row.id, row.name, row.latest, row.created_at_ms, row.created_by, row.archived_at_ms, labels)


def _version(prompt: Prompt, row: Any) -> Version:
    return Version(prompt.id, prompt.name, row.number, _decode(row.content), row.created_at_ms, row.created_by)
