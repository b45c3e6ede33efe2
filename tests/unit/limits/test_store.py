"""Limits and prices in the database: what may be made, who sees it, what is written down, and what was spent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from tests.harness.tenants import OPERATOR, make_key, make_user

from passerelle.accounting.ledger import Ledger
from passerelle.accounting.rollup import Rollup
from passerelle.domain.errors import BadRequest, Conflict, NotFound, PasserelleError, PreconditionFailed
from passerelle.domain.principal import Principal
from passerelle.domain.usage import Outcome, UsageRow, UsageSource
from passerelle.identity.audit import Actor, AuditLog
from passerelle.identity.projects import ProjectOptions, ProjectStore
from passerelle.limits.keeper import BookKeeper, open_limits
from passerelle.limits.limiter import Limiter
from passerelle.limits.price import Price, PriceTable, amount_text, parse_amount
from passerelle.limits.process import ProcessCounters
from passerelle.limits.rule import DAY_MS, LimitRule, Measure, Period, SubjectKind
from passerelle.limits.spent import read_spent, read_standing
from passerelle.limits.store import LimitStore, NewLimit, PriceStore
from passerelle.storage.engine import Database, StorageError

ACTOR = Actor("cli", "cli", "ada")
OF_ORGANISATION = NewLimit(SubjectKind.ORGANISATION, "default", Measure.REQUESTS, Period.DAY, 5)
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2  # 2024-10-04
CALL = UsageRow(
    id="call_0",
    at_ms=NOON_MS,
    request_id="req_1",
    organisation="default",
    project="p",
    user="u",
    key_id="key_1",
    model="m",
    requested_model="m",
    target="t",
    operation="chat",
    stream=False,
    status=200,
    outcome=Outcome.OK,
    error_code=None,
    prompt_tokens=10,
    cached_tokens=0,
    completion_tokens=5,
    token_source=UsageSource.ENGINE,
    attempts=1,
    fallback_from=None,
    queue_ms=0.0,
    first_byte_ms=1.0,
    total_ms=2.0,
    cost_nano=100,
)


@pytest.fixture
def store(database: Database) -> LimitStore:
    """The limits of the first organisation."""
    return LimitStore(database, "default")


async def test_a_limit_is_made_changed_and_removed(store: LimitStore, database: Database) -> None:
    """Each step raises the version and is in the audit log, with what was and what is."""
    made = await store.create(OF_ORGANISATION, ACTOR)
    assert (made.rule.value, made.rule.hard, made.version) == (5, True, 1)
    changed = await store.update(made.rule.id, ACTOR, value=9, hard=False, version=1)
    assert (changed.rule.value, changed.rule.hard, changed.version) == (9, False, 2)
    with pytest.raises(PreconditionFailed):
        await store.update(made.rule.id, ACTOR, value=1, version=1)
    await store.remove(made.rule.id, ACTOR, version=2)
    for attempt in (store.get(made.rule.id), store.remove(made.rule.id, ACTOR), store.update(made.rule.id, ACTOR)):
        with pytest.raises(NotFound):
            await attempt
    entries = [entry async for entry in AuditLog(database, "default").entries()]
    assert [entry.action for entry in entries] == ["limit.create", "limit.update", "limit.remove"]
    assert (entries[1].before["value"], entries[1].after["value"]) == (5, 9)
    assert (await AuditLog(database, None).verify()).whole


async def test_setting_makes_or_changes(store: LimitStore) -> None:
    """``set`` is for scripts that may run twice; ``create`` refuses a second one of the same kind."""
    first = await store.set(OF_ORGANISATION, ACTOR)
    second = await store.set(replace(OF_ORGANISATION, value=7), ACTOR)
    assert (second.rule.id, second.rule.value) == (first.rule.id, 7)
    with pytest.raises(Conflict, match=first.rule.id):
        await store.create(OF_ORGANISATION, ACTOR)
    await store.create(replace(OF_ORGANISATION, model="m"), ACTOR)


NONSENSE: list[tuple[dict[str, Any], type[PasserelleError]]] = [
    ({"value": -1}, BadRequest),
    ({"value": 2**53 + 1}, BadRequest),
    ({"period": Period.NONE}, BadRequest),
    ({"measure": Measure.CONCURRENT}, BadRequest),
    ({"subject_id": ""}, BadRequest),
    ({"subject_id": "x\0"}, BadRequest),
    ({"model": "m" * 300}, BadRequest),
    ({"subject_kind": SubjectKind.MODEL, "subject_id": "m", "model": "m"}, BadRequest),
    ({"subject_id": "another"}, NotFound),
    ({"subject_kind": SubjectKind.KEY, "subject_id": "key_of_nobody"}, NotFound),
    ({"subject_kind": SubjectKind.PROJECT, "subject_id": "nowhere"}, NotFound),
    ({"subject_kind": SubjectKind.USER, "subject_id": "nobody"}, NotFound),
]


async def test_what_makes_no_sense_is_refused(store: LimitStore) -> None:
    """A bad value, measure without its period, or a subject of nobody: an error of the caller, and nothing is kept."""
    for changes, error in NONSENSE:
        with pytest.raises(error):
            await store.create(replace(OF_ORGANISATION, **changes), ACTOR)
    assert await store.page(10) == []


async def test_another_organisation_sees_nothing(store: LimitStore, database: Database) -> None:
    """A limit of one organisation is missing to another, and what all share belongs to nobody's list."""
    made = await store.create(OF_ORGANISATION, ACTOR)
    shared = LimitStore(database, "*")
    everybody = await shared.create(NewLimit(SubjectKind.MODEL, "m", Measure.REQUESTS, Period.DAY, 9), ACTOR)
    foreign = LimitStore(database, "another")
    for limit_id in (made.rule.id, everybody.rule.id):
        with pytest.raises(NotFound):
            await foreign.get(limit_id)
        with pytest.raises(NotFound):
            await foreign.update(limit_id, ACTOR, value=1)
        with pytest.raises(NotFound):
            await foreign.remove(limit_id, ACTOR)
    assert await foreign.page(10) == []
    assert [limit.rule.id for limit in await store.page(10)] == [made.rule.id]
    with pytest.raises(BadRequest):
        await shared.create(OF_ORGANISATION, ACTOR)


async def test_pages_follow_each_other(store: LimitStore) -> None:
    """A page goes on where the one before ended, and subjects can be asked for."""
    for model in ("a", "b", "c"):
        await store.create(replace(OF_ORGANISATION, model=model), ACTOR)
    await store.create(NewLimit(SubjectKind.KEY, "static", Measure.CONCURRENT, Period.NONE, 2), ACTOR)
    first = await store.page(2)
    rest = await store.page(10, (first[-1].created_at_ms, first[-1].rule.id))
    assert len({limit.rule.id for limit in (*first, *rest)}) == 4
    (found,) = await store.page(10, subject_kind=SubjectKind.KEY, subject_id="static")
    assert found.rule.measure is Measure.CONCURRENT


async def test_prices_begin_at_their_time(database: Database) -> None:
    """A price replaces the one before from its moment on; one of the same moment is corrected in place."""
    prices = PriceStore(database, clock=lambda: NOON_MS / 1000)
    first = await prices.set("m", input_micro=10, cached_micro=5, output_micro=20, actor=ACTOR, from_ms=0)
    later = await prices.set("m", input_micro=11, cached_micro=5, output_micro=20, actor=ACTOR)
    corrected = await prices.set("m", input_micro=12, cached_micro=5, output_micro=20, actor=ACTOR, from_ms=NOON_MS)
    assert later.id == corrected.id
    table = PriceTable(await prices.page(10))
    assert table.at("m", NOON_MS - 1) == first
    assert table.at("m", NOON_MS) == corrected
    assert table.at("x", NOON_MS) is None
    await prices.remove(corrected.id, ACTOR)
    assert [price.id for price in await prices.page(10)] == [first.id]
    for bad in ({"input_micro": -1}, {"output_micro": 10**13}, {"model": ""}, {"from_ms": -1}, {"from_ms": 2**52}):
        given = {"model": "m", "input_micro": 1, "cached_micro": 1, "output_micro": 1, "actor": ACTOR, **bad}
        with pytest.raises(BadRequest):
            await prices.set(**given)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await prices.remove(corrected.id, ACTOR)


def test_money_is_counted_in_whole_numbers() -> None:
    """Costs are rounded up to a billionth, cached tokens never exceed the prompt's, and amounts print exactly."""
    price = Price("p", "m", 150_000, 75_000, 600_000, 0)
    assert price.cost_nano(1, 0, 0) == 150
    assert price.cost_nano(3, 2, 1) == 150 + 150 + 600
    assert price.cost_nano(1, 9, 0) == 75
    assert Price("p", "m", 1, 1, 1, 0).cost_nano(1, 0, 0) == 1
    assert price.bound_nano(3, 1) >= price.cost_nano(3, 2, 1)
    assert amount_text(1_250_000_000) == "1.25"
    assert amount_text(0) == "0"
    assert amount_text(300 * 10**9) == "300"
    assert parse_amount("1.25", 10**9) == 1_250_000_000
    for bad in ("x", "-1", "nan", "inf", "0.0000000001"):
        with pytest.raises(ValueError, match="number"):
            parse_amount(bad, 10**9)


@pytest_asyncio.fixture
async def keeper(database: Database) -> AsyncIterator[BookKeeper]:
    """A keeper of a process's book that polls only when told to."""
    limiter = Limiter(ProcessCounters(), clock=lambda: NOON_MS / 1000)
    made = BookKeeper(database, limiter, poll_s=3600)
    await made.start()
    yield made
    await made.aclose()


CALLER = Principal("key_1", "key", project="p", user="u")


async def test_the_book_follows_the_database(keeper: BookKeeper, store: LimitStore, database: Database) -> None:
    """What is made, changed and removed anywhere is in force here after a look; a removed price too."""
    limiter = keeper.limiter
    assert limiter.plan(CALLER, "m") is None
    made = await store.create(OF_ORGANISATION, ACTOR)
    price = await PriceStore(database).set(
        "m", input_micro=10**6, cached_micro=0, output_micro=0, actor=ACTOR, from_ms=0
    )
    await keeper.poll()
    plan = limiter.plan(CALLER, "m")
    assert plan is not None
    assert plan.rules[0].value == 5
    assert limiter.cost_nano("m", NOON_MS, 1, 0, 0) == 1000
    await store.update(made.rule.id, ACTOR, value=6)
    await keeper.poll()
    changed = limiter.plan(CALLER, "m")
    assert changed is not None
    assert changed.rules[0].value == 6
    await store.remove(made.rule.id, ACTOR)
    await PriceStore(database).remove(price.id, ACTOR)
    await keeper.poll()
    assert limiter.plan(CALLER, "m") is None
    assert limiter.cost_nano("m", NOON_MS, 1, 0, 0) == 0


async def test_no_query_but_one_while_nothing_changes(keeper: BookKeeper, database: Database) -> None:
    """A look that finds nothing new costs one statement."""
    from sqlalchemy import event

    await keeper.poll()
    seen: list[str] = []

    def note(*arguments: object) -> None:
        seen.append(str(arguments[2]))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    await keeper.poll()
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    asked = [statement for statement in seen if statement.startswith("SELECT") and "set_config" not in statement]
    assert len(asked) == 1
    assert "sequences" in asked[0]


def rule(kind: SubjectKind, subject: str, measure: Measure, period: Period, **fields: object) -> LimitRule:
    """A limit whose id says what it is."""
    made = LimitRule(f"{kind}-{subject}-{measure}-{period}", "default", kind, subject, "", measure, period, 10**9, True)
    return replace(made, **fields)  # type: ignore[arg-type]


async def write(database: Database, rows: list[UsageRow]) -> None:
    """Writes usage rows."""
    ledger = Ledger(database)
    for number, row in enumerate(rows):
        ledger.record(row_with(row, id=f"call_{number}_{row.at_ms}_{row.model}"))
    await ledger.flush()


def row_with(row: UsageRow, **fields: object) -> UsageRow:
    """Returns a row with some fields changed."""
    from msgspec.structs import replace as replaced

    return replaced(row, **fields)


@pytest.mark.parametrize("rolled_up", ["nothing", "everything", "the past"])
async def test_what_was_spent_is_what_the_ledger_says(database: Database, rolled_up: str) -> None:
    """Of each subject, model and window, tenants apart; whether rows are rolled up already makes no difference."""
    past = [
        CALL,
        row_with(CALL, at_ms=NOON_MS - DAY_MS),
        row_with(CALL, at_ms=NOON_MS - 40 * DAY_MS),
        row_with(CALL, outcome=Outcome.FAILED, prompt_tokens=0, completion_tokens=0, cost_nano=0),
    ]
    now = [
        row_with(CALL, model="other", outcome=Outcome.CANCELLED, completion_tokens=1),
        row_with(CALL, organisation="another"),
        row_with(CALL, key_id="key_2", user=None, project="q"),
    ]
    await write(database, past)
    if rolled_up == "the past":
        await Rollup(database).run()
    await write(database, now)
    if rolled_up == "everything":
        await Rollup(database).run()
    organisation, key = SubjectKind.ORGANISATION, SubjectKind.KEY
    expected = {
        rule(organisation, "default", Measure.REQUESTS, Period.DAY): 3,
        rule(organisation, "default", Measure.REQUESTS, Period.MONTH): 4,
        rule(organisation, "default", Measure.TOKENS, Period.TOTAL): 4 * 15 + 11,
        rule(organisation, "default", Measure.COST, Period.MONTH): 400,
        rule(organisation, "default", Measure.COST, Period.TOTAL, model="other"): 100,
        rule(key, "key_1", Measure.REQUESTS, Period.DAY): 2,
        rule(key, "key_2", Measure.REQUESTS, Period.DAY): 1,
        rule(key, "key_9", Measure.REQUESTS, Period.DAY): 0,
        rule(SubjectKind.PROJECT, "p", Measure.REQUESTS, Period.DAY): 2,
        rule(SubjectKind.USER, "u", Measure.REQUESTS, Period.DAY): 2,
        rule(SubjectKind.MODEL, "m", Measure.REQUESTS, Period.DAY): 2,
        rule(SubjectKind.MODEL, "m", Measure.REQUESTS, Period.MONTH, organisation="*"): 4,
        rule(key, "key_1", Measure.REQUESTS, Period.DAY, organisation="another", id="foreign"): 1,
    }
    found = await read_spent(database, expected, NOON_MS)
    assert {each.id: found[each.id] for each in expected} == {each.id: spent for each, spent in expected.items()}


@pytest.mark.parametrize("rolled_up", [False, True])
async def test_how_limits_stand_is_told_by_the_rows(database: Database, rolled_up: bool) -> None:
    """Minutes too, which no roll-up knows: of the present one only, whether its rows are added up or not. What is under
    way is in no row: nothing is said of calls at once."""
    earlier = [row_with(CALL, at_ms=NOON_MS - 1), row_with(CALL, at_ms=NOON_MS - 60_000)]
    await write(database, [CALL, row_with(CALL, at_ms=NOON_MS + 59_000, cost_nano=7), *earlier])
    if rolled_up:
        await Rollup(database).run()
    expected = {
        rule(SubjectKind.KEY, "key_1", Measure.REQUESTS, Period.MINUTE): 2,
        rule(SubjectKind.USER, "u", Measure.COST, Period.MINUTE): 107,
        rule(SubjectKind.KEY, "key_2", Measure.TOKENS, Period.MINUTE): 0,
        rule(SubjectKind.KEY, "key_1", Measure.REQUESTS, Period.DAY): 4,
    }
    under_way = rule(SubjectKind.KEY, "key_1", Measure.CONCURRENT, Period.NONE)
    found = await read_standing(database, [*expected, under_way], NOON_MS + 59_500)
    assert found == {each.id: spent for each, spent in expected.items()}


async def test_a_budget_begins_with_what_was_spent(keeper: BookKeeper, store: LimitStore, database: Database) -> None:
    """A limit that is made in the middle of its window counts what the ledger has of it."""
    await write(database, [CALL, row_with(CALL, model="x")])
    made = await store.create(replace(OF_ORGANISATION, measure=Measure.COST, period=Period.MONTH, value=1000), ACTOR)
    await keeper.poll()
    used, window = await keeper.limiter.standing(keeper.limiter.book.rules[made.rule.id])
    assert (used.settled, used.held) == (200, 0)
    assert window.end_ms is not None


async def test_a_store_that_cannot_be_used_is_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its client installed, the setting ``redis`` ends the start with what to install."""
    import sys

    monkeypatch.setitem(sys.modules, "passerelle.limits.shared", None)
    with pytest.raises(StorageError, match=r"passerelle\[redis\]"):
        open_limits(database, redis="redis://127.0.0.1:1/0")


async def test_who_belongs_to_a_project_has_limits_of_its_keys_and_users(database: Database, store: LimitStore) -> None:
    """Those of other projects, their keys and users do not exist there; those of the whole are seen."""
    other = (await ProjectStore(database, "default").create(OPERATOR, ProjectOptions(name="other"))).id
    made = {}
    for project in ("default", other):
        user = await make_user(database, f"u-{project}", project=project)
        key = (await make_key(database, project=project, user=user.id)).key
        subjects = {SubjectKind.PROJECT: project, SubjectKind.USER: user.id, SubjectKind.KEY: key.id}
        for kind, subject in subjects.items():
            new = NewLimit(kind, subject, Measure.REQUESTS, Period.DAY, 5)
            made[project, kind] = (new, await store.create(new, ACTOR))
    await store.create(OF_ORGANISATION, ACTOR)
    inside = LimitStore(database, "default", project="default")
    seen = {limit.rule.subject_id for limit in await inside.page(50)}
    assert seen == {"default", *(new.subject_id for (project, _), (new, _) in made.items() if project == "default")}
    for (project, _), (new, limit) in made.items():
        again = replace(new, measure=Measure.TOKENS)
        if project == "default":
            assert (await inside.update(limit.rule.id, ACTOR, value=9)).rule.value == 9
            await inside.create(again, ACTOR)
            continue
        for attempt in (
            inside.get(limit.rule.id),
            inside.update(limit.rule.id, ACTOR, value=9),
            inside.remove(limit.rule.id, ACTOR),
            inside.create(again, ACTOR),
        ):
            with pytest.raises(NotFound):
                await attempt
