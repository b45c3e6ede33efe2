"""Usage, from outside: what callers used is what the API, the command line and a backup say."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from sqlite3 import connect

import pyarrow.parquet
import pytest
import pytest_asyncio
from tests.harness.clients import Caller, Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.oracles import becomes
from tests.harness.upstreamd import Upstream
from tests.harness.world import SETTINGS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
CALLS = 12


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """A running gateway of which a known number of calls was asked."""
    async with Upstream() as upstream:
        home = tmp_path_factory.mktemp("usage") / "home"
        config = {**SETTINGS, "models": [{"name": "m", "targets": [{"url": upstream.url}]}]}
        process = GatewayProcess(home, config)
        await asyncio.to_thread(process.start)
        caller = Caller(process.port, process.key, Tape())
        for number in range(CALLS):
            assert (await caller.chat("m", stream=number % 2 == 0)).status == 200
        assert (await caller.chat("unknown")).status == 404
        await asyncio.to_thread(process.wait_usage, CALLS + 1)
        yield process
        assert await asyncio.to_thread(process.stop) == 0


async def command(gateway: GatewayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command beside the gateway, on its home."""
    environ = {**os.environ, "PASSERELLE_HOME": str(gateway.home)}
    line = [sys.executable, "-m", "passerelle", *arguments]
    return await asyncio.to_thread(
        subprocess.run, line, env=environ, capture_output=True, text=True, timeout=60, cwd=gateway.home.parent
    )


async def test_the_api_says_what_was_used(gateway: GatewayProcess) -> None:
    """Lines, calls, CSV and Parquet agree with what was asked; without the right there is nothing."""
    caller = Caller(gateway.port, gateway.key, Tape())
    lines = (await caller.ask("/admin/usage?group_by=model,outcome", method="GET")).json["data"]
    assert {(one["group"]["model"], one["group"]["outcome"]): one["calls"] for one in lines} == {
        ("m", "ok"): CALLS,
        ("unknown", "rejected"): 1,
    }
    assert sum(one["completion_tokens"] for one in lines) == 8 * CALLS
    calls = (await caller.ask("/admin/usage?limit=500", method="GET")).json
    assert len(calls["data"]) == CALLS + 1 and calls["next"] is None
    file = await caller.ask("/admin/usage?format=csv", method="GET")
    assert file.whole and len(list(csv.DictReader(io.StringIO(file.body.decode())))) == CALLS + 1
    file = await caller.ask("/admin/usage?format=parquet", method="GET")
    assert pyarrow.parquet.read_table(io.BytesIO(file.body)).num_rows == CALLS + 1
    made = await caller.ask("/admin/keys", {"name": "plain", "scopes": ["inference"]})
    caller.tape.allowed.add(403)
    assert (await Caller(gateway.port, made.json["key"], caller.tape).ask("/admin/usage", method="GET")).status == 403


async def test_the_command_line_says_the_same(gateway: GatewayProcess) -> None:
    """Beside the running gateway, as a table, as JSON and as a file."""
    done = await command(gateway, "usage", "--group-by", "model", "--json")
    assert {line["group"]["model"]: line["calls"] for line in json.loads(done.stdout)} == {"m": CALLS, "unknown": 1}
    done = await command(gateway, "usage", "--group-by", "key", "--since", "1h")
    assert "admin" in done.stdout and "█" in done.stdout
    done = await command(gateway, "usage", "--export", "calls.csv")
    assert done.returncode == 0 and len((gateway.home.parent / "calls.csv").read_text().splitlines()) == CALLS + 2


async def test_a_backup_of_a_running_gateway(gateway: GatewayProcess) -> None:
    """It is made under load and holds every row that was there; a restore has to wait until the gateway ends."""
    caller = Caller(gateway.port, gateway.key, Tape())
    asking = asyncio.create_task(_ask(caller, 30))
    done = await command(gateway, "backup", "copy.db")
    assert done.returncode == 0, done.stderr
    await asking
    with closing(connect(gateway.home.parent / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM usage").fetchone()[0] >= CALLS + 1
    done = await command(gateway, "restore", "copy.db")
    assert done.returncode == 2 and "is in use: stop Passerelle" in done.stderr

    async def all_there() -> bool:
        return len(gateway.usage_rows()) >= CALLS + 31

    assert await becomes(all_there, 30)


async def _ask(caller: Caller, count: int) -> None:
    for _ in range(count):
        assert (await caller.chat("m")).status == 200
