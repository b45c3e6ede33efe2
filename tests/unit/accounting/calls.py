"""Calls for the ledger's tests, and how they come into it."""

from __future__ import annotations

from msgspec.structs import replace

from passerelle.accounting.ledger import Ledger
from passerelle.accounting.rollup import DAY_MS, HOUR_MS
from passerelle.domain.usage import Outcome, UsageRow, UsageSource
from passerelle.storage.engine import Database

MIDNIGHT_MS = 1_799_971_200_000 // DAY_MS * DAY_MS
NOON_MS = MIDNIGHT_MS + 12 * HOUR_MS
CALL = UsageRow(
    id="1",
    at_ms=NOON_MS,
    request_id="r",
    organisation="default",
    project="default",
    user=None,
    key_id="key_x",
    model="small",
    requested_model="small",
    target="t",
    operation="chat",
    stream=False,
    status=200,
    outcome=Outcome.OK,
    error_code=None,
    prompt_tokens=10,
    cached_tokens=4,
    completion_tokens=5,
    token_source=UsageSource.ENGINE,
    attempts=1,
    fallback_from=None,
    queue_ms=0.0,
    first_byte_ms=1.0,
    total_ms=100.0,
)


async def record(database: Database, *rows: UsageRow, first: int = 0) -> list[UsageRow]:
    """Writes rows, each under an id of its own, and returns them."""
    ledger = Ledger(database)
    written = [replace(row, id=f"{number:06}") for number, row in enumerate(rows, first)]
    for row in written:
        ledger.record(row)
    await ledger.aclose()
    return written
