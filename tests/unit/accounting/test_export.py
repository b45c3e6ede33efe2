"""Exports: every call once, in a file that others can read, harmless in a spreadsheet, in bounded memory."""

from __future__ import annotations

import csv
import io
import sys
import tracemalloc
from datetime import UTC, datetime

import pyarrow.parquet
import pytest
from msgspec.structs import replace
from tests.unit.accounting.calls import CALL, NOON_MS, record

import passerelle.accounting.export as module
from passerelle.accounting.export import COLUMNS, CsvWriter, Form, ParquetWriter, export, make_writer
from passerelle.accounting.report import Grouping, UsageFilter, UsageReport
from passerelle.domain.errors import BadRequest
from passerelle.storage.engine import Database

AWKWARD = [
    '=HYPERLINK("http://x")',
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\nx",
    "\uff1d1",
    "\uff20x",
    'a,"b"\nc',
    "日本語",
    "plain",
]


async def exported(database: Database, form: Form, where: UsageFilter | None = None) -> bytes:
    """Returns the whole file."""
    report = UsageReport(database, "default")
    return b"".join([piece async for piece in export(report, where or UsageFilter(), make_writer(form))])


async def test_csv_holds_every_call_and_no_formula(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are quoted as RFC 4180 says; what a spreadsheet would run begins with an apostrophe."""
    monkeypatch.setattr(module, "PAGE_ROWS", 2)
    await record(database, *(replace(CALL, requested_model=name) for name in AWKWARD))
    lines = list(csv.DictReader(io.StringIO((await exported(database, Form.CSV)).decode(), newline="")))
    assert tuple(lines[0]) == COLUMNS
    shown = [line["requested_model"] for line in lines]
    assert shown == [f"'{name}" if name[0] in "=+-@\t\r\n\uff1d\uff20" else name for name in AWKWARD]
    assert {(line["stream"], line["user_id"], line["total_ms"]) for line in lines} == {("0", "", "100.0")}


async def test_parquet_holds_every_call_as_it_is(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader finds all rows with their types, texts unchanged, times as times."""
    monkeypatch.setattr(module, "PAGE_ROWS", 4)
    await record(database, *(replace(CALL, requested_model=name) for name in AWKWARD))
    data = await exported(database, Form.PARQUET)
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    assert table.column("requested_model").to_pylist() == AWKWARD
    assert table.column("at_ms")[0].as_py() == datetime.fromtimestamp(NOON_MS / 1000, UTC)
    assert table.column("stream").to_pylist() == [False] * len(AWKWARD)
    assert pyarrow.parquet.ParquetFile(io.BytesIO(data)).num_row_groups == 3


@pytest.mark.parametrize("form", list(Form))
async def test_nothing_is_a_file_too(database: Database, form: Form) -> None:
    """No call gives a file that has its columns and no row; a filter is kept to."""
    await record(database, CALL, replace(CALL, model="big"), replace(CALL, organisation="acme"))
    empty = await exported(database, form, UsageFilter(0, 1))
    one = await exported(database, form, UsageFilter(among={Grouping.MODEL: frozenset({"big"})}))
    if form is Form.PARQUET:
        assert [pyarrow.parquet.read_table(io.BytesIO(data)).num_rows for data in (empty, one)] == [0, 1]
    else:
        assert (len(empty.splitlines()), len(one.splitlines())) == (1, 2)


@pytest.mark.parametrize("make", [CsvWriter, ParquetWriter])
def test_memory_does_not_grow_with_the_file(make: type[CsvWriter] | type[ParquetWriter]) -> None:
    """A hundred pages take no more memory than ten."""
    rows = [dict.fromkeys(COLUMNS) | {"id": str(n), "at_ms": n, "request_id": "r" * 50} for n in range(200)]
    for row in rows:
        row |= dict.fromkeys(("organisation", "project", "key_id", "model", "requested_model", "operation"), "x")
        row |= {"outcome": "ok", "token_source": "engine", "stream": True, "status": 200, "attempts": 1}
        row |= dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens", "cost_nano"), 1)
        row |= {"queue_ms": 0.0, "total_ms": 1.0}
    writer = make()
    writer.begin()
    for _ in range(10):
        writer.add(rows)
    tracemalloc.start()
    for _ in range(100):
        assert writer.add(rows)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.end()
    assert grown < 200_000


def test_parquet_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow one sentence says what to ask for or to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadRequest, match=r"install passerelle\[parquet\]"):
        make_writer(Form.PARQUET)
