"""The keys with which this installation signs, made when first needed and the same for all its replicas."""

from __future__ import annotations

import secrets
import time

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from passerelle.storage.engine import Database
from passerelle.storage.tables import secrets as table


class Secrets:
    """Signing keys by name, 32 random bytes each. They live in the database: who can read it could sign."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, bytes] = {}

    async def get(self, name: str) -> bytes:
        """Returns the key of that name; of several processes that make it at once, one wins. Raises StorageError."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = bytes.fromhex(await self._stored(name))
        return known

    async def _stored(self, name: str) -> str:
        query = select(table.c.value).where(table.c.name == name)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).scalar_one_or_none()
        if found is not None:
            return str(found)
        insert = (sqlite if self._database.is_sqlite else postgresql).insert(table)
        values = {"name": name, "value": secrets.token_hex(32), "created_at_ms": int(time.time() * 1000)}
        async with self._database.write() as connection:
            await connection.execute(insert.values(**values).on_conflict_do_nothing())
            return str((await connection.execute(query)).scalar_one())
