"""Ten-fold overload: one tenant asks ten times what the model can do, for a minute, beside one that behaves.

The model serves `SLOTS` calls at a time, each of `CALL_S` seconds, so its capacity is known. First the well-behaved
tenant asks for a tenth of it, alone; then for the same while the other floods. Arrivals follow the clock, whatever
happens to the calls before (an open loop: a slow gateway gets no rest by being slow). Every call is then looked for
in the usage table.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import sqlite3
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from benchmarks.grow import seed_keys
from benchmarks.load import CONTENT_LENGTH, chat_body, post, quantile
from benchmarks.peers import CHAT, default_cache, passerelle_config, start_direct, start_passerelle
from benchmarks.plot import FOLDER
from benchmarks.processes import cpu_s, rss_kib

SLOTS = 16
CHUNKS, RATE = 20, 100
CALL_S = CHUNKS / RATE
CAPACITY_PER_S = SLOTS / CALL_S
RESULTS = FOLDER / "overload.json"
_PATIENCE_S = 90


@dataclass
class Tenant:
    """What one tenant saw: seconds until each answer was whole, by status."""

    message: bytes
    took_s: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    running: int = 0

    def figures(self) -> dict:
        """Numbers of answers and quantiles of their times."""
        served = sorted(self.took_s.get("200", []))
        refused = sorted(took for status, all_took in self.took_s.items() if status != "200" for took in all_took)
        calls = len(served) + len(refused)
        return {
            "calls": calls,
            "served": len(served),
            "success": len(served) / calls if calls else None,
            "p50_ms": _ms(quantile(served, 0.5)),
            "p99_ms": _ms(quantile(served, 0.99)),
            "refused_p50_ms": _ms(quantile(refused, 0.5)),
            "refused_p99_ms": _ms(quantile(refused, 0.99)),
            "statuses": {status: len(took) for status, took in sorted(self.took_s.items())},
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


class Connection(asyncio.Protocol):
    """One keep-alive connection; one call at a time."""

    def __init__(self, idle: list[Connection]) -> None:
        self.idle = idle
        self.tenant: Tenant | None = None
        self.held = b""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def ask(self, tenant: Tenant) -> None:
        """Sends the tenant's message."""
        self.tenant, self.held, self.asked_s = tenant, b"", time.monotonic()
        tenant.running += 1
        self.transport.write(tenant.message)

    def data_received(self, data: bytes) -> None:
        data = self.held + data
        end = data.find(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(data, 0, end + 2) if end >= 0 else None
        done = len(data) >= end + 4 + int(length[1]) if length else end >= 0 and data.endswith(b"0\r\n\r\n")
        if not done:
            self.held = data
            return
        status = data[9:12].decode()
        self.finish(status if status != "200" or b"[DONE]" in data else "cut")
        self.idle.append(self)

    def finish(self, status: str) -> None:
        """The call is over."""
        if self.tenant is not None:
            self.tenant.took_s[status].append(time.monotonic() - self.asked_s)
            self.tenant.running -= 1
            self.tenant = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish("lost")
        if self in self.idle:
            self.idle.remove(self)


async def ask_on(port: int, tenant: Tenant, per_s: float, seconds: float) -> None:
    """Asks ``per_s`` times a second for so long, and returns when all have been answered."""
    loop = asyncio.get_running_loop()
    idle: list[Connection] = []
    begun_s = time.monotonic()
    for number in range(int(per_s * seconds)):
        due_s = begun_s + number / per_s
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if idle:
            idle.pop().ask(tenant)
        else:
            _, connection = await loop.create_connection(lambda: Connection(idle), "127.0.0.1", port)
            connection.ask(tenant)
    until_s = time.monotonic() + _PATIENCE_S
    while tenant.running and time.monotonic() < until_s:
        await asyncio.sleep(0.05)
    for connection in idle:
        connection.transport.close()


async def overload(port: int, keys: list[str], seconds: float, pids: list[int]) -> dict:
    """The calm, then the flood."""
    body = chat_body("bench", chunks=CHUNKS, rate=RATE)
    messages = [post(port, CHAT, {"authorization": f"Bearer {key}"}, body) for key in keys]
    polite, calm_s = CAPACITY_PER_S / 10, max(5.0, seconds / 4)
    alone = Tenant(messages[0])
    await ask_on(port, alone, polite, calm_s)
    beside, flood = Tenant(messages[0]), Tenant(messages[1])
    before_s, before_kib = cpu_s(pids), rss_kib(pids)
    flooding = asyncio.create_task(ask_on(port, flood, 10 * CAPACITY_PER_S, seconds))
    await asyncio.sleep(min(2.0, seconds / 4))  # the flood has filled the room
    await ask_on(port, beside, polite, seconds * 0.75)
    peak_kib = rss_kib(pids)
    await flooding
    return {
        "capacity_per_s": CAPACITY_PER_S,
        "seconds": seconds,
        "alone": alone.figures(),
        "beside": beside.figures(),
        "flood": flood.figures(),
        "gateway_cpu_s": round(cpu_s(pids) - before_s, 2),
        "gateway_kib": {"before": before_kib, "in the flood": peak_kib},
    }


def accounted(home: Path) -> int:
    """Usage rows in the database."""
    with sqlite3.connect(f"file:{home / 'passerelle.db'}?mode=ro", uri=True) as connection:
        (count,) = connection.execute("select count(*) from usage").fetchone()
    connection.close()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the flood lasts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="passerelle-bench-") as folder:
        work = Path(folder)
        home = work / "home"
        upstream = start_direct(default_cache(), work / "upstream", 0)
        config = passerelle_config(upstream.server.port)
        config["models"][0]["max_concurrent"] = SLOTS
        start_passerelle(default_cache(), work / "first", upstream.server.port, home=home).server.stop()
        keys = seed_keys(home, 2, 2)  # of two organisations
        gateway = start_passerelle(default_cache(), work / "second", upstream.server.port, config=config, home=home)
        try:
            seen = uvloop.run(overload(gateway.server.port, keys, given.seconds, gateway.server.pids()))
        finally:
            gateway.server.stop()
            upstream.server.stop()
        calls = sum(seen[who]["calls"] for who in ("alone", "beside", "flood"))
        seen["usage_rows_missing"] = calls - accounted(home)
    json.dump(seen, sys.stdout, indent=1)
    print()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(seen, indent=1) + "\n")


if __name__ == "__main__":
    main()
