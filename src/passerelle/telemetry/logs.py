"""Logs: one line per event, as text for people or JSON for machines, with secrets taken out before they are written.

Ordinary records go through the standard library. The one line per call goes through `CallLog`, which collects lines
and writes them in batches, because it is on the request path.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import IO

import msgspec

from passerelle.domain.usage import UsageRow

_SECRETS = re.compile(r"(sk-pas-[0-9A-Za-z]{6})[0-9A-Za-z-]+|(?i:(bearer|api[_-]?key[\"'=:\s]+))\s*[^\s\"',}]{8,}")

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """Returns the text with keys and bearer tokens replaced by a mark; a Passerelle key keeps its first characters."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}…", text)


class TextFormatter(logging.Formatter):
    """``time level logger: message``, for a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: str(value) for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return redact(json.dumps(fields, ensure_ascii=False))


def configure(level: str, form: str) -> None:
    """Sends all logs to standard error. ``level`` is a name such as ``info``; ``form`` is ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # One line for each malformed request would let anybody fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for noisy in ("uvicorn.access", "alembic", "watchfiles", "sqlalchemy", "aiosqlite"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def send_to(path: Path) -> None:
    """Makes ``path`` this process's standard error, and so that of its children. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    os.dup2(file, sys.stderr.fileno())
    os.close(file)


class _CallLine(msgspec.Struct):
    level: str
    logger: str
    call: UsageRow


class CallLog:
    """Writes one line per call, in batches: appending is all that the request path pays for."""

    def __init__(self, stream: IO[str], form: str, *, slow_s: float, interval_s: float = 0.2) -> None:
        self._stream = stream
        self._json = form == "json"
        self._slow_ms = slow_s * 1e3
        self._interval_s = interval_s
        self._rows: list[UsageRow] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second = -1
        self._clock = ""

    def record(self, row: UsageRow) -> None:
        """Takes the line of one settled call."""
        self._rows.append(row)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self.flush)

    def flush(self) -> None:
        """Writes what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, self._rows = self._rows, []
        if rows:
            render = self._as_json if self._json else self._as_text
            self._stream.write("".join([render(row) for row in rows]))
            self._stream.flush()

    def _as_json(self, row: UsageRow) -> str:
        slow = row.total_ms > self._slow_ms
        return msgspec.json.encode(_CallLine("warning" if slow else "info", "passerelle.call", row)).decode() + "\n"

    def _as_text(self, row: UsageRow) -> str:
        second = row.at_ms // 1000
        if second != self._second:
            self._second = second
            self._clock = datetime.datetime.fromtimestamp(second).strftime("%H:%M:%S")
        slow = " SLOW" if row.total_ms > self._slow_ms else ""
        first = f" first={row.first_byte_ms:.0f}ms" if row.first_byte_ms is not None else ""
        code = f" {row.error_code}" if row.error_code else ""
        return (
            f"{self._clock} {row.status} {row.operation} {row.model} {row.outcome}{code}{slow} key={row.key_id}"
            f" tokens={row.prompt_tokens}+{row.completion_tokens}{first} total={row.total_ms:.0f}ms {row.request_id}\n"
        )
