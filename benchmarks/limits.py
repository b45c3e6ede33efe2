"""What keys, limits, budgets and the ledger cost a request: ``python -m benchmarks.limits``.

Gateways of this tree stand in front of one static upstream, each a process of its own, started by ``passerelle serve``
with a database of its own, all pinned to one core; upstream and load share another. They are asked in turn for a
second, forwards and backwards (A B B A), by 32 connections that post again as soon as they are answered.

    unrecorded   one key, no limits, no prices, no usage rows: not a product, only the bare path without its ledger
    bare         one key, no limits, no prices; usage rows, metrics and request logs as always
    keys         100,000 keys in the database, of which 2,000 (`--callers`) call in turn; no limits, no prices
    full         the same, four limits for each key, calls at once and a budget in money of their organisation, prices

The figure is processor time of the gateway's process over requests: the median of the ratios of turns that follow each
other, as what else the machine does meets both. Requests/s are shown beside it and mean something on a quiet machine
only. ``--own-code`` measures the same without sockets, in one process each, as
`hotpath` does: fewer things disturb it, and it has no kernel, event loop or load.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from benchmarks.hotpath import Bench
from benchmarks.load import CONTENT_LENGTH, chat_body, post
from benchmarks.peers import CHAT, SOURCE, passerelle_config, start, start_direct
from benchmarks.processes import Server, free_port
from sqlalchemy import event, insert

from passerelle.__main__ import main as passerelle_main
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
WRITTEN_S = 0.7
"""After a turn, until the last of its usage rows are in the database: they belong to its costs."""
BATCHES = 400
OWN_CODE_ROUNDS = 3
MODEL = "bench"
ROOT = Path(__file__).resolve().parent.parent
OVER_SOCKETS = ("unrecorded", "bare", "keys", "full")
OWN_CODE = ("bare", "keys", "full", "board")
LIMITED = ("full", "board")


async def prepare(home: Path, variant: str, limits_a_key: int) -> None:
    """Makes a home with its database."""
    home.mkdir(parents=True)
    database = open_database("sqlite", home)
    await upgrade(database)
    await ensure_admin_key(database, home)
    tokens = [(home / "admin.key").read_text().strip()]
    if variant in ("keys", *LIMITED):
        tokens = await fill_keys(database)
    if variant in LIMITED:
        await fill_limits(database, limits_a_key)
    write_tokens(home, tokens[:: max(1, len(tokens) // CALLERS)][:CALLERS])
    await database.aclose()


def write_tokens(home: Path, tokens: list[str]) -> None:
    """Writes the keys that call, one a line, readable by us only."""
    file = home / "tokens"
    file.touch(mode=0o600)
    file.write_text("\n".join(tokens))


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


EACH_KEY = (
    ("requests", "minute", 1_000_000),
    ("tokens", "day", 1_000_000_000),
    ("tokens", "minute", 100_000_000),
    ("requests", "day", 100_000_000),
)
"""The limits of each key; the first two with ``--limits-a-key 2``."""


async def fill_limits(database: Database, limits_a_key: int) -> None:
    """Gives every key limits, the organisation a budget and a number of calls at once, and the model a price."""
    common = {"organisation": "default", "model": "", "hard": True, "created_by": "bench", "changed": 1, "version": 1}

    def row(number: int, kind: str, subject: str, measure: str, period: str, value: int) -> dict[str, Any]:
        what = {"measure": measure, "period": period, "value": value, "created_at_ms": 1}
        return {"id": f"limit_{number}", "subject_kind": kind, "subject_id": subject, **what, **common}

    price = {"input_micro": 150_000, "cached_micro": 75_000, "output_micro": 600_000, "from_ms": 0}
    record = {"created_at_ms": 1, "created_by": "bench", "changed": 1, "version": 1}
    async with database.write() as connection:
        for at, each in enumerate(EACH_KEY[:limits_a_key]):
            rows = [row(at * KEYS + number, "key", f"key_{number:06d}", *each) for number in range(KEYS)]
            await connection.execute(insert(limits), rows)
        of_all = [("cost", "month", 10**15), ("concurrent", "", 1_000_000)]
        rows = [row(-1 - at, "organisation", "default", *each) for at, each in enumerate(of_all)]
        await connection.execute(insert(limits), rows)
        await connection.execute(insert(prices), [{"id": "price_1", "model": MODEL, **price, **record}])


# --- over sockets ---------------------------------------------------------------------------------------------------


class Caller(asyncio.Protocol):
    """One keep-alive connection, which posts again whenever an answer is complete, while its gateway's turn lasts."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.held = b""

    def connection_made(self, transport) -> None:
        self.write = transport.write

    def data_received(self, data: bytes) -> None:
        data = self.held + data
        end = data.find(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if length is None or len(data) < end + 4 + int(length[1]):
            self.held = data
            return
        self.held = b""
        if not data.startswith(b"HTTP/1.1 200") or (b"\r\nx-ratelimit" in data) != self.gateway.limited:
            self.gateway.wrong = data[:600]
        self.gateway.answered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.wrong = self.gateway.wrong or b"the connection was closed"


class Gateway:
    """One running gateway, the connections to it, and how often it was asked."""

    def __init__(self, server: Server, tokens: list[str], *, limited: bool) -> None:
        self.server = server
        self.limited = limited
        self.requests = 0
        self.wrong = b""
        self.callers: list[Caller] = []
        headers = [{"authorization": f"Bearer {token}"} for token in tokens]
        self.keys = len(headers)
        self._messages = itertools.cycle([post(server.port, CHAT, header, chat_body(MODEL)) for header in headers])
        self._open = False
        self._busy = 0
        self._idle = asyncio.Event()

    async def connect(self, connections: int) -> None:
        """Opens the connections."""
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, caller = await loop.create_connection(lambda: Caller(self), "127.0.0.1", self.server.port)
            self.callers.append(caller)

    async def turn(self, seconds: float) -> float:
        """Is asked for a time by all connections; returns the requests/s."""
        before, began_s = self.requests, time.monotonic()
        self._open, self._busy = True, len(self.callers)
        self._idle.clear()
        for caller in self.callers:
            caller.write(next(self._messages))
        await asyncio.sleep(seconds)
        self._open = False
        await asyncio.wait_for(self._idle.wait(), 30)
        if self.wrong:
            raise SystemExit(f"not answered as it should be: {self.wrong!r}")
        return (self.requests - before) / (time.monotonic() - began_s)

    def answered(self, caller: Caller) -> None:
        """Hears that an answer is complete."""
        self.requests += 1
        if self._open:
            caller.write(next(self._messages))
            return
        self._busy -= 1
        if not self._busy:
            self._idle.set()

    def cpu_ns(self) -> int:
        """Processor time its process has used so far, of all threads, in nanoseconds."""
        # The clock of another process, as clock_getcpuclockid(3) makes its number: /proc counts in steps of 10 ms.
        return time.clock_gettime_ns((~self.server.process.pid << 3) | 2)


@dataclass
class Seen:
    """What a gateway's turns gave, in their order: microseconds of processor time a request, and requests/s."""

    cpu_us: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def serve_unrecorded(arguments: list[str]) -> None:
    """Runs ``passerelle`` with these arguments, and keeps no usage rows: nothing that the product can be told."""
    Passerelle._recorders = lambda self: (self.call_log,)  # type: ignore[method-assign]
    sys.argv[1:] = arguments
    passerelle_main()


def start_gateway(work: Path, variant: str, upstream: int, home: Path, core: int | None) -> Server:
    """Starts a gateway of a prepared home, on one core."""
    file = work / variant / "config" / "passerelle.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(passerelle_config(upstream)))
    port = free_port()
    module = ["benchmarks.limits", "--serve-unrecorded"] if variant == "unrecorded" else ["passerelle"]
    command = [sys.executable, "-m", *module, "serve", "--port", str(port), "--config", str(file)]
    environment = {"PASSERELLE_HOME": str(home), "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}"}
    server, _ = start(variant, command, port, work / variant, ready="/ready", timeout_s=60, environment=environment)
    pin(server, core)
    return server


def pin(server: Server, core: int | None) -> None:
    """Lets a started process and all of its threads run on one core only."""
    if core is not None:
        for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def in_turn(names: Sequence[str], rounds: int) -> Iterator[str]:
    """The names, ``rounds`` times, every second time backwards."""
    for index in range(rounds):
        yield from names if index % 2 == 0 else reversed(names)


@contextmanager
def standing(work: Path, names: Sequence[str], homes: dict[str, Path], callers: int) -> Iterator[dict[str, Gateway]]:
    """Starts an upstream and the gateways, and stops them all."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])  # the load's, and the upstream's
    upstream = start_direct(work, work / "upstream", 0)
    started: dict[str, Gateway] = {}
    try:
        for name in names:
            core = cores[0] if len(cores) > 1 else None
            server = start_gateway(work, name, upstream.server.port, homes[name], core)
            tokens = (homes[name] / "tokens").read_text().split()[:callers]
            started[name] = Gateway(server, tokens, limited=name in LIMITED)
        yield started
    finally:
        for gateway in started.values():
            gateway.server.stop()
        upstream.server.stop()


async def compare(given: argparse.Namespace, folder: Path) -> None:
    """Asks the gateways in turn, and prints what each costs and the ratios within rounds."""
    names = given.only.split(",") if given.only else list(OVER_SOCKETS)
    homes = {name: folder / "homes" / name for name in names}
    for name in names:
        await prepare(homes[name], name, given.limits_a_key)
    seen = {name: Seen() for name in names}
    with standing(folder, names, homes, given.callers) as gateways:
        for gateway in gateways.values():
            await gateway.connect(given.connections)
            while gateway.requests < 2 * gateway.keys:  # each is looked up once in the database, and then known
                await gateway.turn(given.seconds)
            await asyncio.sleep(WRITTEN_S)
        for name in in_turn(names, given.rounds):
            gateway = gateways[name]
            before_ns, before = gateway.cpu_ns(), gateway.requests
            seen[name].rates.append(await gateway.turn(given.seconds))
            await asyncio.sleep(WRITTEN_S)
            seen[name].cpu_us.append((gateway.cpu_ns() - before_ns) / 1000 / (gateway.requests - before))
    base = "bare" if "bare" in names else names[0]
    for name in names:
        report(name, seen[name], base, seen[base])


def report(name: str, seen: Seen, base: str, of: Seen) -> None:
    """Prints medians, and the median and the quartiles of the ratios within rounds."""
    cpu_us, rate = statistics.median(seen.cpu_us), statistics.median(seen.rates)
    line = f"{name:<11}{cpu_us:7.1f} us a request, {rate:6.0f} requests/s"
    if name != base:
        ratios = [one / other for one, other in zip(seen.cpu_us, of.cpu_us, strict=True)]
        rates = statistics.median(one / other for one, other in zip(seen.rates, of.rates, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        line += f"; of {base}: {middle:.3f} (quartiles {low:.3f} to {high:.3f}), requests/s {rates:.3f}"
    print(line, flush=True)


# --- without sockets ------------------------------------------------------------------------------------------------


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
        post(1, CHAT, {"authorization": f"Bearer {token}"}, body) for token in (home / "tokens").read_text().split()
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
    if not first.startswith(b"HTTP/1.1 200") or (b"x-ratelimit" in first) != (variant in LIMITED):
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


def own_code(given: argparse.Namespace, folder: Path) -> None:
    """Prints what our code takes a request: of each variant the lowest tenth of the batches of all rounds."""
    found: dict[str, list[float]] = {variant: [] for variant in OWN_CODE}
    for variant in OWN_CODE:
        asyncio.run(prepare(folder / variant, variant, given.limits_a_key))
    for _ in range(OWN_CODE_ROUNDS):
        for variant in OWN_CODE:
            command = [sys.executable, "-m", "benchmarks.limits", "--measure", variant, "--home", str(folder / variant)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
            answer = json.loads(done.stdout)
            if answer["statements"]:
                raise SystemExit("a request asked the database")
            found[variant] += answer["spent_us"]
    lowest = {variant: sorted(times)[len(times) // 10] for variant, times in found.items()}
    for variant, spent_us in lowest.items():
        more = spent_us / lowest["bare"] - 1
        print(f"{variant:<7}{spent_us:7.1f} us a request{'' if variant == 'bare' else f', {more:+.1%} of bare'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--own-code", action="store_true", help="without sockets, in one process each")
    parser.add_argument("--only", help=f"comma-separated gateways of {', '.join(OVER_SOCKETS)}")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--callers", type=int, default=CALLERS, help="keys that call, of the 100,000")
    parser.add_argument("--limits-a-key", type=int, default=len(EACH_KEY), choices=range(1, len(EACH_KEY) + 1))
    parser.add_argument("--measure", choices=OWN_CODE, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    if sys.argv[1:2] == ["--serve-unrecorded"]:
        serve_unrecorded(sys.argv[2:])
        return
    given = parser.parse_args()
    if given.measure:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - request logs go there until the end
        uvloop.run(measure(given.home, given.measure))
        return
    with TemporaryDirectory(prefix="passerelle-bench-") as folder:
        if given.own_code:
            own_code(given, Path(folder))
        else:
            uvloop.run(compare(given, Path(folder)))


if __name__ == "__main__":
    main()
