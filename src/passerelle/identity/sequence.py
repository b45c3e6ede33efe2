"""The sequence ``keys``: every change that callers must see raises it, so that whoever polls it learns of the change.

A transaction that changes something takes the sequence first. Its row stays locked until the transaction ends, which
keeps numbers in commit order, and makes changes of keys, users, projects and organisations happen one after another.
"""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from passerelle.storage.tables import sequences


async def advance(connection: AsyncConnection) -> int:
    """Raises the sequence and returns its new value. Raises StorageError."""
    await connection.execute(update(sequences).where(sequences.c.name == "keys").values(value=sequences.c.value + 1))
    return await position(connection)


async def position(connection: AsyncConnection) -> int:
    """Returns how many changes there have been. Raises StorageError."""
    return int((await connection.execute(select(sequences.c.value).where(sequences.c.name == "keys"))).scalar_one())
