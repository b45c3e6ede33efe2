"""What was used, added up."""

from __future__ import annotations

from msgspec.structs import replace

from passerelle.accounting.ledger import Ledger
from passerelle.accounting.report import DAY_MS, HOUR_MS, Grouping, usage_report
from passerelle.domain.principal import Scope
from passerelle.domain.usage import Outcome, UsageRow, UsageSource
from passerelle.identity.keys import KeyStore
from passerelle.storage.engine import Database

NOON_MS = 1_799_971_200_000 // DAY_MS * DAY_MS + 12 * HOUR_MS
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


async def record(database: Database, *rows: UsageRow) -> None:
    """Writes rows, each under an id of its own."""
    ledger = Ledger(database)
    for number, row in enumerate(rows):
        ledger.record(replace(row, id=str(number)))
    await ledger.aclose()


async def test_calls_are_added_up_by_model(database: Database) -> None:
    """Calls, failures, tokens and time; the model of most tokens first, a client that left is no failure."""
    await record(
        database,
        CALL,
        replace(CALL, outcome=Outcome.CANCELLED, total_ms=50.0),
        replace(CALL, outcome=Outcome.FAILED, prompt_tokens=0, cached_tokens=0, completion_tokens=0),
        replace(CALL, model="big", prompt_tokens=1000),
        replace(CALL, model="old", at_ms=NOON_MS - 9 * DAY_MS),
    )
    big, small = await usage_report(database, Grouping.MODEL, since_ms=NOON_MS - DAY_MS)
    assert (big.name, big.calls, big.tokens) == ("big", 1, 1005)
    assert (small.name, small.calls, small.failed, small.duration_ms) == ("small", 3, 1, 250.0)
    assert (small.prompt_tokens, small.cached_tokens, small.completion_tokens) == (20, 8, 10)


async def test_keys_have_their_names_and_tenants_are_apart(database: Database) -> None:
    """A key of the table shows its name, another its id; an organisation sees only its own calls."""
    made = await KeyStore(database).create("app", scopes=[Scope.INFERENCE], created_by="test")
    await record(database, replace(CALL, key_id=made.key.id), CALL, replace(CALL, organisation="acme", key_id="theirs"))
    lines = await usage_report(database, Grouping.KEY, since_ms=0, organisation="default")
    assert {line.id: line.name for line in lines} == {made.key.id: "app", "key_x": "key_x"}
    everyone = await usage_report(database, Grouping.KEY, since_ms=0)
    assert sum(line.calls for line in everyone) == 3


async def test_days_are_those_of_utc_and_in_order(database: Database) -> None:
    """The millisecond before midnight and midnight are two days; buckets hold the tokens of their hour."""
    midnight_ms = NOON_MS // DAY_MS * DAY_MS + DAY_MS
    await record(database, replace(CALL, at_ms=midnight_ms), replace(CALL, at_ms=midnight_ms - 1), CALL)
    first, second = await usage_report(database, Grouping.DAY, since_ms=0, bucket_ms=HOUR_MS)
    assert (first.calls, second.calls) == (2, 1)
    assert first.name < second.name and len(first.name) == len("2027-01-15")
    assert first.tokens_by_bucket == {NOON_MS: 15, midnight_ms - HOUR_MS: 15}
    assert second.tokens_by_bucket == {midnight_ms: 15}


async def test_nothing_used_is_no_line(database: Database) -> None:
    """An empty ledger gives an empty report in every grouping."""
    for grouping in Grouping:
        assert await usage_report(database, grouping, since_ms=0) == []
