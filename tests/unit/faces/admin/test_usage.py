"""``GET /admin/usage``: who sees what, lines and calls in pages, files that are sent as they are read."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import msgspec
import pyarrow.parquet
import pytest
import pytest_asyncio
from msgspec.structs import replace
from sqlalchemy import event
from tests.unit.accounting.calls import CALL, MIDNIGHT_MS, NOON_MS, record

import passerelle.accounting.export as export
from passerelle.domain.errors import BadRequest, NotFound, PasserelleError, Unavailable
from passerelle.domain.principal import ROLE_SCOPES, Principal, Role, Scope
from passerelle.edge.asgi import AsgiExchange, Message
from passerelle.edge.dispatch import Context
from passerelle.faces.admin.resource import Listed
from passerelle.faces.admin.usage import UsageCall, UsageFace, UsageGroup
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade

Answer = Listed[UsageGroup | UsageCall]
ADMIN = Principal("key_admin", "admin", scopes=frozenset({Scope.ADMIN}))
OWNER = Principal("key_o", "o", user="usr_o", scopes=ROLE_SCOPES[Role.OWNER], role=Role.OWNER)
MEMBER = Principal("key_a", "a", user="ann", scopes=ROLE_SCOPES[Role.MEMBER], role=Role.MEMBER)
ALL = {"from": "2020-01-01"}


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """Five calls: of ann, bob and nobody, one in another organisation."""
    opened = open_database("sqlite", tmp_path)
    await upgrade(opened)
    await record(
        opened,
        replace(CALL, user="ann", key_id="key_a", cost_nano=1_500_000_001),
        replace(CALL, user="bob", key_id="key_b", at_ms=NOON_MS + 1, service="summary"),
        replace(CALL, user="ann", key_id="key_a2", at_ms=NOON_MS + 2, model="big"),
        replace(CALL, at_ms=MIDNIGHT_MS - 1),
        replace(CALL, organisation="acme", user="eve"),
    )
    yield opened
    await opened.aclose()


class Asked:
    """One request and its answer; ``slow`` takes the body only when told."""

    def __init__(self, caller: Principal, parameters: dict[str, str]) -> None:
        query = urlencode(parameters).encode()
        scope = {"method": "GET", "path": "/admin/usage", "query_string": query, "headers": [], "client": None}
        self.status, self.headers, self.body, self.whole = 0, {}, b"", False
        self.context = Context(AsgiExchange(scope, self._receive, self._send, max_body_bytes=10), "req_1", caller)

    async def _receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nothing is sent")

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message["body"]
            self.whole = not message.get("more_body", False)


async def get(database: Database, caller: Principal = OWNER, **parameters: str) -> Asked:
    """Asks and returns the answer."""
    asked = Asked(caller, parameters)
    await UsageFace(database).show(asked.context)
    assert asked.status == 200 and asked.whole
    return asked


async def objects(database: Database, caller: Principal = OWNER, **parameters: str) -> list[UsageGroup | UsageCall]:
    """Returns what is listed."""
    return msgspec.json.decode((await get(database, caller, **parameters)).body, type=Answer).data


async def test_calls_are_listed_the_newest_first(database: Database) -> None:
    """Each call with its names, times and cost as people write them."""
    calls = [one for one in await objects(database, **ALL) if isinstance(one, UsageCall)]
    assert [call.id for call in calls] == ["000002", "000001", "000000", "000003"]
    assert (calls[2].at, calls[2].cost, calls[2].user, calls[2].key) == (
        "2027-01-15T12:00:00Z",
        "1.500000001",
        "ann",
        "key_a",
    )
    assert calls[1].at == "2027-01-15T12:00:00.001Z" and calls[1].service == "summary"


async def test_calls_are_added_up(database: Database) -> None:
    """Lines by several groupings, with times in UTC."""
    lines = await objects(database, group_by="day,model", **ALL)
    assert [(line.group, line.calls) for line in lines if isinstance(line, UsageGroup)] == [
        ({"day": "2027-01-14T00:00:00Z", "model": "small"}, 1),
        ({"day": "2027-01-15T00:00:00Z", "model": "big"}, 1),
        ({"day": "2027-01-15T00:00:00Z", "model": "small"}, 2),
    ]


@pytest.mark.parametrize(
    ("parameters", "ids"),
    [
        ({"model": "big"}, {"000002"}),
        ({"key": "key_a,key_b"}, {"000000", "000001"}),
        ({"user": ""}, {"000003"}),
        ({"service": "summary"}, {"000001"}),
        ({"outcome": "failed"}, set()),
        ({"from": "2027-01-15T12:00:00.001Z"}, {"000001", "000002"}),
        ({"to": "2027-01-15"}, {"000003"}),
        ({"from": "2027-01-15T13:00:00+01:00", "to": "2027-01-15T12:00:00.001"}, {"000000"}),
    ],
)
async def test_filters(database: Database, parameters: dict[str, str], ids: set[str]) -> None:
    """Each filter leaves what it names."""
    found = await objects(database, **(ALL | parameters))
    assert {one.id for one in found if isinstance(one, UsageCall)} == ids


async def test_a_member_sees_their_own_keys_only(database: Database) -> None:
    """Whatever a member asks for, by line, by call or as a file, is what their own keys used."""
    for caller, ids in ((MEMBER, {"000000", "000002"}), (OWNER, {"000000", "000001", "000002", "000003"})):
        assert {one.id for one in await objects(database, caller, **ALL) if isinstance(one, UsageCall)} == ids
        lines = await objects(database, caller, group_by="organisation", **ALL)
        assert [line.calls for line in lines] == [len(ids)]  # type: ignore[union-attr]
        file = await get(database, caller, format="csv", **ALL)
        assert {line["id"] for line in csv.DictReader(io.StringIO(file.body.decode()))} == ids
    for parameters in ({"user": "bob"}, {"user": "bob", "key": "key_b"}, {"user": ""}):
        assert await objects(database, MEMBER, **(ALL | parameters)) == []
    nobody = Principal("key_b", "b", scopes=ROLE_SCOPES[Role.MEMBER], role=Role.MEMBER)
    assert [one.id for one in await objects(database, nobody, **ALL) if isinstance(one, UsageCall)] == ["000001"]


async def test_who_is_confined_to_a_project_sees_that_project(database: Database) -> None:
    """Whatever is asked, other projects of the organisation are not there."""
    await record(database, replace(CALL, project="secret"), first=10)
    confined = Principal(
        "key_v", "v", project="secret", scopes=ROLE_SCOPES[Role.VIEWER], role=Role.VIEWER, confined=True
    )
    for parameters, count in (({}, 1), ({"project": "secret"}, 1), ({"project": "default"}, 0)):
        assert len(await objects(database, confined, **(ALL | parameters))) == count
        lines = await objects(database, confined, group_by="project", **(ALL | parameters))
        assert [line.group for line in lines] == [{"project": "secret"}] * count  # type: ignore[union-attr]


async def test_another_organisation_is_for_administrators(database: Database) -> None:
    """An owner asking for another organisation hears that there is none; an administrator sees it, or all."""
    for organisation in ("acme", "*", "none"):
        with pytest.raises(NotFound):
            await get(database, organisation=organisation)
    assert len(await objects(database, ADMIN, organisation="acme", **ALL)) == 1
    lines = await objects(database, ADMIN, organisation="*", group_by="organisation", **ALL)
    assert [line.group for line in lines] == [{"organisation": "acme"}, {"organisation": "default"}]  # type: ignore[union-attr]


@pytest.mark.parametrize("parameters", [{}, {"group_by": "hour,key"}, {"group_by": "model"}])
async def test_pages(database: Database, parameters: dict[str, str]) -> None:
    """Following ``next`` gives everything once, and the last page says so."""
    whole = await objects(database, **parameters, **ALL)
    paged: list[UsageGroup | UsageCall] = []
    after: dict[str, str] = {}
    while True:
        answer = msgspec.json.decode((await get(database, limit="1", **parameters, **after, **ALL)).body, type=Answer)
        paged += answer.data
        assert answer.has_more == (answer.next is not None)
        if answer.next is None:
            break
        after = {"after": answer.next}
    assert paged == whole and len(whole) > 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"group_by": "colour"},
        {"group_by": "model,model"},
        {"group_by": ""},
        {"group_by": "hour,day,model,key,user"},
        {"group_by": "model", "format": "csv"},
        {"format": "xml"},
        {"from": "yesterday"},
        {"from": "20270115"},
        {"to": "0001-01-01T00:00:00+23:00", "from": "2027-01-01"},
        {"from": "2027-01-02", "to": "2027-01-01"},
        {"outcome": "good"},
        {"limit": "0"},
        {"after": "x"},
        {"group_by": "day", "after": "WyJhIl0"},
        {"colour": "red"},
        {"key": ",".join("abcdefghij" for _ in range(11)) + "," + ",".join(map(str, range(120)))},
    ],
)
async def test_questions_that_make_no_sense_are_refused(database: Database, parameters: dict[str, str]) -> None:
    """400, with the name of the parameter."""
    with pytest.raises(BadRequest) as raised:
        await get(database, **parameters)
    assert raised.value.param in parameters


async def test_files(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV and Parquet come as attachments, the oldest call first, page by page."""
    monkeypatch.setattr(export, "PAGE_ROWS", 2)
    file = await get(database, format="csv", **ALL)
    assert file.headers[b"content-type"].startswith(b"text/csv")
    assert b'attachment; filename="usage-' in file.headers[b"content-disposition"]
    ids = [line["id"] for line in csv.DictReader(io.StringIO(file.body.decode()))]
    assert ids == ["000003", "000000", "000001", "000002"]
    table = pyarrow.parquet.read_table(io.BytesIO((await get(database, format="parquet", **ALL)).body))
    assert table.column("id").to_pylist() == ids


async def test_a_database_that_is_away_is_503_before_the_answer_began(database: Database) -> None:
    """Lines, calls and files: nothing was sent, and the caller may retry."""

    def fail(*_: object) -> None:
        raise OSError("gone")

    event.listen(database.engine.sync_engine, "begin", fail)
    for parameters in ({}, {"group_by": "day"}):
        asked = Asked(OWNER, parameters)
        with pytest.raises(Unavailable):
            await UsageFace(database).show(asked.context)
        assert asked.status == 0


async def test_a_file_that_breaks_off_is_not_whole(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the database fails after the first page, the answer has no end."""
    monkeypatch.setattr(export, "PAGE_ROWS", 2)
    asked, pages = Asked(OWNER, ALL | {"format": "csv"}), 0

    def fail(*_: object) -> None:
        nonlocal pages
        pages += 1
        if pages == 2:
            raise OSError("gone")

    event.listen(database.engine.sync_engine, "begin", fail)
    with pytest.raises(PasserelleError):
        await UsageFace(database).show(asked.context)
    assert asked.body.count(b"\r\n") == 3 and not asked.whole


class Slow:
    """A caller whose connection is full after each piece, until they take it."""

    def __init__(self) -> None:
        self.gone, self.started, self.pieces, self.ended = False, False, 0, False
        self._pause: Callable[[], None] = lambda: None
        self.take: Callable[[], None] = lambda: None
        self.leave: Callable[[], object] = lambda: None

    def on_gone(self, callback: Callable[[], object]) -> None:
        self.leave = callback

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause, self.take = pause, resume

    def begin(self, status: int, headers: object) -> None:
        self.started = True

    def write(self, data: bytes) -> None:
        self.pieces += 1
        self._pause()

    async def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("leaves", [False, True])
async def test_reading_waits_for_a_slow_caller(
    database: Database, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """The next page is read when the one before was taken; a caller who leaves ends it."""
    monkeypatch.setattr(export, "PAGE_ROWS", 1)
    asked, slow = Asked(OWNER, ALL | {"format": "csv"}), Slow()
    asked.context.exchange = SimpleNamespace(query=asked.context.exchange.query, client=slow)  # type: ignore[assignment]
    sending = asyncio.create_task(UsageFace(database).show(asked.context))
    for pieces in (2, 3, 4, 5):  # the names come with the first page
        async with asyncio.timeout(30):
            while slow.pieces < pieces:
                await asyncio.sleep(0.005)
        for _ in range(5):
            await asyncio.sleep(0.005)
        assert slow.pieces == pieces and not sending.done()
        if leaves:
            slow.gone = True
            slow.leave()
            break
        slow.take()
    await asyncio.wait_for(sending, 30)
    assert slow.ended is not leaves
