"""Finished steps of a job: what a later attempt, or a replay, does not compute again."""

from __future__ import annotations

import hashlib

import msgspec
from sqlalchemy import select

from passerelle.storage.engine import Database
from passerelle.storage.tables import job_steps


def input_hash(given: object) -> str:
    """Returns the SHA-256, in hexadecimal, of a step's input: bytes as they are, else as JSON with sorted keys."""
    data = given if isinstance(given, bytes) else msgspec.json.encode(given, order="sorted")
    return hashlib.sha256(data).hexdigest()


async def finished_steps(database: Database, job_id: str) -> set[tuple[str, str]]:
    """Returns the name and input hash of each finished step. Raises StorageError."""
    query = select(job_steps.c.name, job_steps.c.input_hash).where(job_steps.c.job_id == job_id)
    async with database.read() as connection:
        return {(row.name, row.input_hash) for row in await connection.execute(query)}


async def step_output(database: Database, job_id: str, name: str, digest: str) -> str | None:
    """Returns the output of a finished step, as JSON; None when there is none. Raises StorageError."""
    query = select(job_steps.c.output).where(
        job_steps.c.job_id == job_id, job_steps.c.name == name, job_steps.c.input_hash == digest
    )
    async with database.read() as connection:
        found = (await connection.execute(query)).scalar()
    return None if found is None else str(found)
