"""What limits cost on the request path: ``python -m benchmarks.limits``.

Four gateways in this process's children, each the whole path without sockets, as `hotpath` measures it; 20 requests a
batch, the callers in turn:

    bare      one key, no limits, no prices
    keys      100,000 keys, no limits, no prices
    limits    100,000 keys with two limits each, a concurrent one and a budget of their organisation, and prices
    board     the same, counted on the board that workers share

Callers are 2,000 of the keys, so that all are known. Rounds alternate, so that whatever else the machine does meets
all; the figure is the lowest tenth of the batches of all rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from benchmarks.hotpath import Bench
from benchmarks.load import chat_body, post
from benchmarks.peers import CHAT
from sqlalchemy import event, insert

from passerelle.app import Passerelle
from passerelle.engines.transport import Pool
from passerelle.identity.bootstrap import ensure_admin_key
from passerelle.identity.token import mint, parse
from passerelle.limits.board import BoardCounters, LimitBoard
from passerelle.limits.limiter import Limiter
from passerelle.storage.engine import Database, open_database
from passerelle.storage.migrations import upgrade
from passerelle.storage.tables import key_secrets, keys, limits, prices

KEYS = 100_000
CALLERS = 2_000
BATCHES = 400
ROUNDS = 3
MODEL = "bench"
VARIANTS = ("bare", "keys", "limits", "board")


async def prepare(home: Path, variant: str) -> None:
    """Makes a home with its database."""
    home.mkdir(parents=True)
    database = open_database("sqlite", home)
    await upgrade(database)
    await ensure_admin_key(database, home)
    tokens = [(home / "admin.key").read_text().strip()]
    if variant != "bare":
        tokens = await fill_keys(database)
    if variant in ("limits", "board"):
        await fill_limits(database)
    (home / "tokens.json").write_text(json.dumps(tokens[:CALLERS]))
    await database.aclose()


async def fill_keys(database: Database) -> list[str]:
    """Makes the keys, and returns their tokens."""
    tokens = [mint() for _ in range(KEYS)]
    parsed = [parse(token) for token in tokens]
    made = {"organisation": "default", "project": "default", "scopes": ["inference"], "weight": 1.0}
    record = {"created_at_ms": 1, "created_by": "bench", "changed": 1, "version": 1}
    rows = [{"id": f"key_{number:06d}", "name": f"bench-{number}", **made, **record} for number in range(KEYS)]
    secrets = [
        {"public_id": each[0], "digest": each[1], "key_id": f"key_{number:06d}", "created_at_ms": 1}
        for number, each in enumerate(parsed)
        if each is not None
    ]
    async with database.write() as connection:
        await connection.execute(insert(keys), rows)
        await connection.execute(insert(key_secrets), secrets)
    return tokens


async def fill_limits(database: Database) -> None:
    """Gives every key limits, the organisation a budget, and the model a price."""
    common = {"organisation": "default", "model": "", "hard": True, "created_by": "bench", "changed": 1, "version": 1}
    rows: list[dict[str, Any]] = []

    def add(kind: str, subject: str, measure: str, period: str, value: int) -> None:
        subjects = {"subject_kind": kind, "subject_id": subject}
        what = {"measure": measure, "period": period, "value": value, "created_at_ms": 1}
        rows.append({"id": f"limit_{len(rows)}", **subjects, **what, **common})

    for number in range(KEYS):
        add("key", f"key_{number:06d}", "requests", "minute", 1_000_000)
        add("key", f"key_{number:06d}", "tokens", "day", 1_000_000_000)
    add("organisation", "default", "cost", "month", 10**15)
    add("organisation", "default", "concurrent", "", 1_000_000)
    price = {"input_micro": 150_000, "cached_micro": 75_000, "output_micro": 600_000, "from_ms": 0}
    record = {"created_at_ms": 1, "created_by": "bench", "changed": 1, "version": 1}
    async with database.write() as connection:
        await connection.execute(insert(limits), rows)
        await connection.execute(insert(prices), [{"id": "price_1", "model": MODEL, **price, **record}])


def count_on_a_board(app: Passerelle, folder: Path) -> None:
    """Lets the limiter count as that of one of two workers does."""
    path = folder / "limits"
    path.unlink(missing_ok=True)
    LimitBoard.create(path, 2)
    limiter: Limiter = app.limits.limiter
    limiter._local = BoardCounters(LimitBoard(path), 0)


async def measure(home: Path, variant: str) -> None:
    """Prints the microseconds a request of each batch, as JSON."""
    bench = Bench(home, stream=False)
    Pool.connect = lambda pool, limit_s: bench.connect(pool, limit_s)  # type: ignore[method-assign]
    if variant == "board":
        count_on_a_board(bench.app, home)
    await bench.app.start()
    await asyncio.sleep(1)
    protocol, wire = bench.client()
    body = chat_body(MODEL)
    messages = [
        post(1, CHAT, {"authorization": f"Bearer {token}"}, body)
        for token in json.loads((home / "tokens.json").read_text())
    ]
    answered: asyncio.Future[bytes]

    async def one(number: int) -> bytes:
        nonlocal answered
        answered = bench.loop.create_future()
        protocol.data_received(messages[number % len(messages)])
        return await answered

    wire.takes = lambda data: answered.set_result(data)
    first = b""
    for number in range(len(messages)):
        first = await one(number)
    if not first.startswith(b"HTTP/1.1 200") or (b"x-ratelimit" in first) != (variant in ("limits", "board")):
        raise SystemExit(f"not answered as it should be: {first[:400]!r}")
    statements: list[str] = []
    event.listen(
        bench.app.database.engine.sync_engine,
        "before_cursor_execute",
        lambda *given: statements.append(given[2]) if "keys" in given[2] or "limits" in given[2] else None,
    )
    spent_us = []
    for batch in range(BATCHES):
        started_ns = time.thread_time_ns()
        for number in range(20):
            await one(batch * 20 + number)
        spent_us.append((time.thread_time_ns() - started_ns) / 20e3)
    asked = [statement for statement in statements if "sequences" not in statement and "UPDATE keys" not in statement]
    print(json.dumps({"spent_us": spent_us, "statements": len(asked)}))
    sys.stdout.flush()
    os._exit(0)  # nothing here is worth an orderly end


def main() -> None:
    if len(sys.argv) > 1:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - request logs go there until the end
        uvloop.run(measure(Path(sys.argv[1]), sys.argv[2]))
        return
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with TemporaryDirectory() as folder:
        for variant in VARIANTS:
            asyncio.run(prepare(Path(folder, variant), variant))
        for _ in range(ROUNDS):
            for variant in VARIANTS:
                command = [sys.executable, "-m", "benchmarks.limits", str(Path(folder, variant)), variant]
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
                answer = json.loads(done.stdout)
                assert answer["statements"] == 0, "a request asked the database"
                found[variant] += answer["spent_us"]
    lowest = {variant: sorted(times)[len(times) // 10] for variant, times in found.items()}
    for variant, spent_us in lowest.items():
        more = spent_us / lowest["bare"] - 1
        print(f"{variant:<7}{spent_us:7.1f} us a request{'' if variant == 'bare' else f', {more:+.1%} of bare'}")


if __name__ == "__main__":
    main()
