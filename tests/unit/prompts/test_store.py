"""Prompts in the database: versions that never change, labels that move, one tenant's and nobody else's."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, func, select

from passerelle.domain.errors import BadRequest, Conflict, NotFound, PasserelleError
from passerelle.domain.principal import Principal
from passerelle.identity.audit import Actor, AuditLog
from passerelle.prompts.library import PromptLibrary
from passerelle.prompts.store import LATEST, MAX_LABELS, PRODUCTION, PromptStore
from passerelle.prompts.template import Content
from passerelle.storage.engine import Database
from passerelle.storage.tables import prompt_labels, prompt_versions, prompts

BY = Actor("cli", "ann", "ann")
HELLO = Content(template="Hello {name}", defaults={"name": "you"}, config={"temperature": 0.5}, model="far")


def store(database: Database, organisation: str = "acme", project: str = "docs") -> PromptStore:
    """The prompts of one tenant."""
    return PromptStore(database, organisation=organisation, project=project)


async def test_a_version_is_read_by_number_label_or_as_the_latest(database: Database) -> None:
    """A new prompt is its version 1 and production; a new version is neither until a label says so."""
    mine = store(database)
    made = await mine.create(BY, "greeting", HELLO)
    assert (made.latest, made.labels) == (1, {PRODUCTION: 1})
    second = await mine.add(BY, "greeting", Content(template="Hi {name}"), ["staging"])
    assert second.number == 2
    found = {wanted: (await mine.version(made.id, wanted)).number for wanted in ("1", "2", PRODUCTION, "staging")}
    assert found == {"1": 1, "2": 2, PRODUCTION: 1, "staging": 2}
    assert (await mine.version("greeting", LATEST)).content.template == "Hi {name}"
    assert (await mine.version("greeting", "1")).content == HELLO
    moved = await mine.label(BY, "greeting", PRODUCTION, 2)
    assert moved.labels == {PRODUCTION: 2, "staging": 2}
    assert (await mine.version(made.id)).number == 2
    assert [each.number for each in await mine.versions(made.id, limit=10)] == [2, 1]
    assert [each.number for each in await mine.versions(made.id, limit=10, below=2)] == [1]


async def test_a_version_that_is_not_there_is_named(database: Database) -> None:
    """A number or a label that points nowhere is an error that says what there is."""
    mine = store(database)
    await mine.create(BY, "greeting", HELLO)
    for wanted in ("3", "0", "gone", "999999999", "-1", "", "\u0661", "9" * 30):
        with pytest.raises(NotFound, match="1 to 1, latest, production"):
            await mine.version("greeting", wanted)


async def test_another_tenant_meets_nothing(database: Database) -> None:
    """Another organisation, and another project of the same one, see the error of what is not there, by any way."""
    made = await store(database).create(BY, "greeting", HELLO)
    for other in (store(database, "globex"), store(database, project="other")):
        assert await other.page(limit=10) == []
        ways = [
            other.get(made.id),
            other.version(made.id),
            other.versions(made.id, limit=1),
            other.add(BY, made.id, HELLO),
            other.label(BY, made.id, "x", 1),
            other.unlabel(BY, made.id, PRODUCTION),
            other.archive(BY, made.id),
            other.restore(BY, "greeting"),
        ]
        for way in ways:
            with pytest.raises(NotFound, match="There is no prompt of that id or name"):
                await way
        assert (await other.create(BY, "greeting", HELLO)).id != made.id
    assert (await store(database).get("greeting")).labels == {PRODUCTION: 1}


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
async def test_the_database_itself_keeps_tenants_apart(database: Database) -> None:
    """A statement that forgets its condition meets one tenant's prompts, versions and labels only."""
    await store(database).create(BY, "greeting", HELLO)
    for table in (prompts, prompt_versions, prompt_labels):
        count = select(func.count()).select_from(table)
        for organisation, there in (("acme", 1), ("globex", 0)):
            async with database.of(organisation).read() as connection:
                assert (await connection.execute(count)).scalar_one() == there
        async with database.of("globex").write() as connection:
            await connection.execute(delete(table))
    assert (await store(database).version("greeting")).content == HELLO


async def test_an_archived_prompt_is_out_of_use(database: Database) -> None:
    """It is listed on request, used and changed by nobody, and its name stays taken; restored, it is as before."""
    mine = store(database)
    made = await mine.create(BY, "greeting", HELLO)
    archived = await mine.archive(BY, "greeting")
    assert archived.archived_at_ms is not None
    assert await mine.archive(BY, made.id) == archived
    assert await mine.page(limit=10) == []
    assert await mine.page(limit=10, archived=True) == [archived]
    with pytest.raises(NotFound):
        await mine.version(made.id, in_use=True)
    with pytest.raises(Conflict, match="archive"):
        await mine.add(BY, made.id, HELLO)
    with pytest.raises(Conflict, match="already"):
        await mine.create(BY, "greeting", HELLO)
    assert await mine.restore(BY, made.id) == made
    assert (await mine.version(made.id, in_use=True)).number == 1


async def test_labels_are_bounded(database: Database) -> None:
    """Production is moved and never removed; a label is a short word, points at what is there, and they are few."""
    mine = store(database)
    await mine.create(BY, "greeting", HELLO, ["staging"])
    assert (await mine.unlabel(BY, "greeting", "staging")).labels == {PRODUCTION: 1}
    with pytest.raises(Conflict, match="moved"):
        await mine.unlabel(BY, "greeting", PRODUCTION)
    with pytest.raises(NotFound):
        await mine.unlabel(BY, "greeting", "staging")
    for label in ("latest", "1", "a b", "", "x" * 65, "é", "../a"):
        with pytest.raises(BadRequest, match="A label has"):
            await mine.label(BY, "greeting", label, 1)
    with pytest.raises(NotFound, match="no version 2"):
        await mine.label(BY, "greeting", "next", 2)
    for number in range(MAX_LABELS - 1):
        await mine.label(BY, "greeting", f"l{number}", 1)
    with pytest.raises(Conflict, match="at most"):
        await mine.label(BY, "greeting", "one-more", 1)


async def test_a_name_is_a_plain_one(database: Database) -> None:
    """No name reads as a path, an id, or nothing; looking for such a name finds nothing."""
    for name in ("", "  ", "a/b", "../a", "a\0b", "prm_x", "x" * 101, ".hidden", "a\nb"):
        with pytest.raises(BadRequest, match="A name has"):
            await store(database).create(BY, name, HELLO)
        with pytest.raises(NotFound):
            await store(database).get(name)


async def test_versions_made_at_once_are_all_there(database: Database) -> None:
    """Ten writers at one time make ten versions with ten numbers, and one of two makers of a name is told."""
    mine = store(database)
    made = await mine.create(BY, "greeting", HELLO)
    added = [mine.add(BY, made.id, Content(template=f"t{number}"), ["newest"]) for number in range(10)]
    numbers = {each.number: each.content.template for each in await asyncio.gather(*added)}
    assert sorted(numbers) == list(range(2, 12))
    kept = {each.number: each.content.template for each in await mine.versions(made.id, limit=50)}
    assert {number: kept[number] for number in numbers} == numbers
    assert (await mine.get(made.id)).latest == 11
    makers = await asyncio.gather(*(mine.create(BY, "same", HELLO) for _ in range(4)), return_exceptions=True)
    failed = [each for each in makers if isinstance(each, BaseException)]
    assert len(failed) == 3
    assert all(isinstance(each, PasserelleError) and each.status == 409 for each in failed), failed


async def test_every_change_is_in_the_audit_log(database: Database) -> None:
    """Who made, changed, labelled or archived a prompt is told with what it was before and is after."""
    mine = store(database)
    made = await mine.create(BY, "greeting", HELLO)
    await mine.add(BY, made.id, Content(template="Hi"))
    await mine.label(BY, made.id, PRODUCTION, 2)
    await mine.archive(BY, made.id)
    await mine.restore(BY, made.id)
    log = AuditLog(database, "acme")
    entries = (await log.page(subject=made.id))[::-1]
    assert [each.action.removeprefix("prompt.") for each in entries] == [
        "create",
        "version",
        "label",
        "archive",
        "restore",
    ]
    assert {each.actor for each in entries} == {BY}
    assert entries[0].after["content"]["template"] == "Hello {name}"
    assert (entries[2].before, entries[2].after) == ({PRODUCTION: 1}, {PRODUCTION: 2})
    assert (await log.verify()).whole


async def test_a_remembered_prompt_is_asked_for_again_in_time(database: Database) -> None:
    """Within the time a request costs no query; after it, or at once where it was changed, the label's new version
    is used; another tenant never meets what was remembered for one."""
    now = 0.0
    caller = Principal("key_a", "a", organisation="acme", project="docs")
    library = PromptLibrary(database, fresh_s=2.0, clock=lambda: now)
    mine = library.store(caller)
    await mine.create(BY, "greeting", HELLO)
    first = await library.find(caller, "greeting")
    await mine.add(BY, "greeting", Content(template="Hi {name}"), [PRODUCTION])
    assert await library.find(caller, "greeting") is first
    now = 2.5
    assert (await library.find(caller, "greeting")).version.number == 2
    await mine.label(BY, "greeting", PRODUCTION, 1)
    library.forget(caller)
    assert await library.find(caller, "greeting") is first
    with pytest.raises(NotFound):
        await library.find(Principal("key_b", "b", organisation="globex", project="docs"), "greeting")
