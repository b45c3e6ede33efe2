"""Rows E: the database is away, locked, full or out of reach."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.faults.table import row
from tests.harness.clients import Answer, Caller, Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.oracles import becomes
from tests.harness.postgres import PostgresServer, running_postgres
from tests.harness.upstreamd import Upstream
from tests.harness.world import SETTINGS

from passerelle.identity.token import mint

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server of this module's own: it is killed."""
    with running_postgres() as server:
        yield server


def gateway(home: Path, upstream: Upstream, **settings: Any) -> GatewayProcess:
    """A gateway in front of one model server."""
    return GatewayProcess(home, {**SETTINGS, "models": [{"name": "m", "targets": [{"url": upstream.url}]}], **settings})


async def new_key(caller: Caller) -> str:
    """Makes a key that no call has used."""
    answer = await caller.ask("/admin/keys", {"name": f"k{caller.new_id()}", "scopes": ["inference"]})
    assert answer.status == 201, answer.body
    return str(answer.json["key"])


class Load:
    """Callers who ask without a pause until told to stop."""

    def __init__(self, caller: Caller, callers: int) -> None:
        self.answers: list[Answer] = []
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._ask(caller, number % 2 == 0)) for number in range(callers)]

    async def _ask(self, caller: Caller, stream: bool) -> None:
        while not self._stop.is_set():
            self.answers.append(await caller.chat("m", stream=stream))

    async def stop(self) -> list[str]:
        """Returns the request ids of all answers."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        return [str(answer.request_id) for answer in self.answers]

    async def more(self, count: int) -> None:
        """Returns when so many further answers came."""
        wanted = len(self.answers) + count
        async with asyncio.timeout(30):
            while len(self.answers) < wanted:
                await asyncio.sleep(0.01)


@row("E4")
async def test_postgres_killed_and_restarted_under_load(postgres: PostgresServer, tmp_path: Path) -> None:
    """Twice killed and started again: known keys go on, unknown ones get 503 and never 401, everything recovers by
    itself, and the ledger has each answer that callers saw, once."""
    url = await postgres.new_database()
    async with Upstream() as upstream:
        process = gateway(tmp_path / "home", upstream, database=url)
        await asyncio.to_thread(process.start)
        try:
            caller = Caller(process.port, process.key, Tape())
            strangers = [Caller(process.port, await new_key(caller), caller.tape) for _ in range(2)]
            caller.tape.allowed.add(503)
            load = Load(caller, 6)
            for stranger in strangers:
                await load.more(20)
                await asyncio.to_thread(postgres.kill)
                for _ in range(3):
                    refused = await stranger.chat("m")
                    assert (refused.status, refused.error["code"]) == (503, "service_unavailable")
                    assert int(refused.headers["retry-after"]) >= 1
                    unreadable = await caller.ask("/admin/usage", method="GET")
                    assert unreadable.status == 503
                    assert (await caller.ask("/health", method="GET")).status == 200
                    await load.more(10)
                await asyncio.to_thread(postgres.restart)

                async def known(stranger: Caller = stranger) -> bool:
                    return (await stranger.chat("m")).status == 200

                assert await becomes(known, 20)
            await load.more(20)
            asked = await load.stop()
            assert Counter(answer.status for answer in load.answers).keys() == {200}
            connection = await asyncpg.connect(url)

            async def complete() -> bool:
                rows = await connection.fetch("SELECT request_id FROM usage")
                return set(asked) <= {row["request_id"] for row in rows}

            assert await becomes(complete, 20)
            counts = Counter(row["request_id"] for row in await connection.fetch("SELECT request_id FROM usage"))
            assert max(counts.values()) == 1
            await connection.close()
        finally:
            assert await asyncio.to_thread(process.stop) == 0


@row("E14")
async def test_all_connections_busy(postgres: PostgresServer, tmp_path: Path) -> None:
    """While a lock holds every connection of the pool, questions wait for a while and then get 503; those that need no
    database go on, and afterwards all do."""
    url = await postgres.new_database()
    async with Upstream() as upstream:
        process = gateway(tmp_path / "home", upstream, database=url)
        await asyncio.to_thread(process.start)
        holder = await asyncpg.connect(url)
        try:
            caller = Caller(process.port, process.key, Tape())
            caller.tape.allowed.update({401, 503})
            assert (await caller.chat("m")).status == 200
            lock = holder.transaction()
            await lock.start()
            await holder.execute("LOCK TABLE key_secrets IN ACCESS EXCLUSIVE MODE")
            strangers = [Caller(process.port, mint(), caller.tape) for _ in range(25)]
            asking = [asyncio.create_task(stranger.chat("m", within_s=60)) for stranger in strangers]
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED, timeout=40)
            assert done and {task.result().status for task in done} == {503}
            for _ in range(3):
                assert (await caller.ask("/health", method="GET", within_s=10)).status == 200
                assert (await caller.chat("m", within_s=10)).status == 200
            await lock.rollback()
            statuses = Counter(answer.status for answer in await asyncio.gather(*asking))
            assert statuses.keys() == {401, 503}
            assert (await Caller(process.port, mint(), caller.tape).chat("m")).status == 401
        finally:
            await holder.close()
            assert await asyncio.to_thread(process.stop) == 0


@row("E13")
async def test_sqlite_locked_by_another_process(tmp_path: Path) -> None:
    """A lock held too long: calls go on, a change waits and then gets 503, and later all rows are there."""
    async with Upstream() as upstream:
        process = gateway(tmp_path / "home", upstream)
        await asyncio.to_thread(process.start)
        try:
            caller = Caller(process.port, process.key, Tape())
            caller.tape.allowed.add(503)
            load = Load(caller, 2)
            await load.more(5)
            with closing(sqlite3.connect(tmp_path / "home" / "passerelle.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                late = await caller.ask("/admin/keys", {"name": "late", "scopes": ["inference"]}, within_s=60)
                assert late.status == 503 and late.took_s > 1
                await load.more(5)
                other.execute("ROLLBACK")
            assert await new_key(caller)
            asked = await load.stop()
            assert {answer.status for answer in load.answers} == {200}

            async def complete() -> bool:
                return set(asked) <= {found["request_id"] for found in process.usage_rows()}

            assert await becomes(complete, 20)
        finally:
            assert await asyncio.to_thread(process.stop) == 0
        assert _integrity(tmp_path / "home") == "ok"


@row("E11")
@pytest.mark.parametrize("durability", ["batch", "strict"])
async def test_no_space_for_the_ledger(tmp_path: Path, durability: str) -> None:
    """No file may grow: calls go on, or in strict mode get 503; once there is room every row is there, none in half."""
    async with Upstream() as upstream:
        process = gateway(tmp_path / "home", upstream, accounting={"durability": durability, "flush_interval_s": 0.05})
        await asyncio.to_thread(process.start)
        try:
            caller = Caller(process.port, process.key, Tape())
            caller.tape.allowed.add(503)
            answers = [await caller.chat("m") for _ in range(3)]
            assert await asyncio.to_thread(process.wait_usage, 3)
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
            full = [await caller.chat("m", stream=stream) for stream in (True, False) * 5]
            statuses = {answer.status for answer in full if answer.whole}
            assert statuses <= ({200} if durability == "batch" else {200, 503})
            if durability == "strict":
                assert any(answer.status == 503 or not answer.whole or answer.stream_error for answer in full)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
            answers += full
            ended = [each for each in answers if each.status == 200 and each.whole and not each.stream_error]

            async def complete() -> bool:
                rows = {found["request_id"] for found in process.usage_rows()}
                return {each.request_id for each in ended} <= rows

            assert await becomes(complete, 20)
            assert (await caller.chat("m")).status == 200
        finally:
            assert await asyncio.to_thread(process.stop) == 0
        assert _integrity(tmp_path / "home") == "ok"


def _integrity(home: Path) -> str:
    with closing(sqlite3.connect(home / "passerelle.db")) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


@row("E12")
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("serve", "a file"),
        ("serve", "below a file"),
        ("serve", "cannot be made"),
        ("serve", "a database that is a folder"),
        ("usage", "a database that is a folder"),
        ("usage", "cannot be made"),
    ],
)
async def test_a_home_that_cannot_be_used(tmp_path: Path, command: str, kind: str) -> None:
    """A start, and a command, ends with exit code 2 and one line that names what is wrong; never a traceback."""
    (tmp_path / "file").write_text("")
    (tmp_path / "passerelle.yaml").write_text("models: [{name: m, targets: [{url: 'http://127.0.0.1:1'}]}]")
    (tmp_path / "odd" / "passerelle.db").mkdir(parents=True)
    homes = {"a file": "file", "below a file": "file/home", "a database that is a folder": "odd"}
    home = tmp_path / homes[kind] if kind in homes else Path("/proc/1/home")
    arguments = [sys.executable, "-m", "passerelle", command, "--home", str(home)]
    done = await asyncio.to_thread(
        subprocess.run, arguments, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and str(home) in lines[0]
