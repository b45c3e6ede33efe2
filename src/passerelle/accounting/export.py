"""Usage rows as a file: CSV for spreadsheets, Parquet for data tools, in pieces, so that memory stays bounded.

A spreadsheet runs a cell that begins like a formula, and callers name models and requests as they like. So in CSV text
that begins with ``= + - @``, wide ones included, a tab or the end of a line gets an apostrophe before it
(https://owasp.org/www-community/attacks/CSV_Injection). Parquet holds every text as it is.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Iterable, Mapping
from enum import StrEnum
from typing import Any, Protocol

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer

from passerelle.accounting.report import UsageFilter, UsageReport
from passerelle.domain.errors import BadRequest
from passerelle.storage.tables import usage

COLUMNS = tuple(column.name for column in usage.c)
"""The columns of a file: those of the ledger, in its order."""
PAGE_ROWS = 5000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Form(StrEnum):
    """The form of an export."""

    CSV = "csv"
    PARQUET = "parquet"


CONTENT_TYPES = {Form.CSV: "text/csv; charset=utf-8; header=present", Form.PARQUET: "application/vnd.apache.parquet"}


class Writer(Protocol):
    """Turns rows into the bytes of a file, piece by piece."""

    def begin(self) -> bytes:
        """Returns the first bytes."""

    def add(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        """Returns the bytes of some more rows."""

    def end(self) -> bytes:
        """Returns the last bytes."""


def make_writer(form: Form) -> Writer:
    """Returns what writes a form. Raises BadRequest when its library is not installed."""
    return CsvWriter() if form is Form.CSV else ParquetWriter()


async def export(report: UsageReport, where: UsageFilter, writer: Writer) -> AsyncIterator[bytes]:
    """Gives the pieces of a file with all calls that are wanted, the oldest first. Raises StorageError."""
    yield writer.begin()
    async for page in report.stream(where, page_rows=PAGE_ROWS):
        yield await asyncio.to_thread(writer.add, page)  # some milliseconds of work: not on the event loop
    yield await asyncio.to_thread(writer.end)


class CsvWriter:
    """Writes RFC 4180: commas, CRLF, a line of names first. No value is an empty cell; true is 1."""

    def begin(self) -> bytes:
        """Returns the line of names."""
        return (",".join(COLUMNS) + "\r\n").encode()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        """Returns the lines of the rows."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([_cell(row[name]) for name in COLUMNS] for row in rows)
        return text.getvalue().encode()

    def end(self) -> bytes:
        """Returns nothing: a CSV file has no end of its own."""
        return b""


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


class ParquetWriter:
    """Writes Parquet by pyarrow: typed columns, compressed, a row group for each page."""

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise BadRequest(
                "Parquet is not installed here: ask for CSV, or have the operator install passerelle[parquet].",
                param="format",
            ) from error
        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            [pyarrow.field(column.name, _type(pyarrow, column), nullable=bool(column.nullable)) for column in usage.c]
        )
        self._sink = _Pieces()
        self._writer = pyarrow.parquet.ParquetWriter(self._sink, self._schema, compression="zstd")

    def begin(self) -> bytes:
        """Returns the magic number."""
        return self._sink.take()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        """Returns the bytes of a row group."""
        self._writer.write_table(self._arrow.Table.from_pylist(list(rows), schema=self._schema))
        return self._sink.take()

    def end(self) -> bytes:
        """Returns the footer."""
        self._writer.close()
        return self._sink.take()


def _type(pyarrow: Any, column: Column[Any]) -> Any:
    if isinstance(column.type, BigInteger):
        return pyarrow.timestamp("ms", tz="UTC") if column.name == "at_ms" else pyarrow.int64()
    if isinstance(column.type, Boolean):
        return pyarrow.bool_()
    if isinstance(column.type, Integer):
        return pyarrow.int32()
    return pyarrow.float64() if isinstance(column.type, Float) else pyarrow.string()


class _Pieces(io.RawIOBase):
    """A file that is only ever written to its end; what was written is taken away again."""

    def __init__(self) -> None:
        super().__init__()
        self._data = bytearray()
        self._length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self._data += piece
        self._length += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._length

    def take(self) -> bytes:
        """Returns what was written since the last time."""
        data, self._data = bytes(self._data), bytearray()
        return data
