"""What Passerelle's own code costs per request and per chunk: the whole path in this process, without sockets.

The client's and the server's transports are stand-ins that hand bytes over at once, so kernel, network and load
generator cost nothing and other programs disturb little: the lowest batches are stable to a few per cent even on a
busy machine. Compare two versions of the code with it; compare gateways with `compare.py`.

It needs a home that a ``passerelle serve`` has prepared (database and admin.key): ``--home``.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
import uvloop
from benchmarks.load import chat_body, post
from benchmarks.peers import CHAT, passerelle_config
from benchmarks.upstream import CHAT_ANSWER, FIRST_FRAME, GET_ANSWERS, NOT_FOUND, STREAM_HEAD, TIMED_FRAME
from uvicorn.server import ServerState

from passerelle.app import Passerelle
from passerelle.edge.protocol import EdgeProtocol
from passerelle.engines.transport import Connection, Pool
from passerelle.settings import load_configuration


class Wire(asyncio.Transport):
    """A transport whose writes go to a function."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.takes: Callable[[bytes], object] = lambda data: None

    def write(self, data: bytes) -> None:
        self.takes(data)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Nothing is read."""

    resume_reading = abort = close = pause_reading


class Bench:
    """The application, and what stands where its sockets would be."""

    def __init__(self, home: Path, stream: bool, targets: int = 1, models: int = 1) -> None:
        self.loop = asyncio.get_running_loop()
        self.stream = stream
        self.upstream: list[Connection] = []
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "passerelle.yaml"
            file.write_text(json.dumps(passerelle_config(9, targets, models)))
            environment = {"PASSERELLE_HOME": str(home)}
            self.app = Passerelle(load_configuration(file, environment), environment, {})
        self.headers = {"authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}

    async def connect(self, pool: Pool, _limit_s: float) -> Connection:
        """Takes the place of `Pool.connect`."""
        connection, wire = Connection(pool, self.loop), Wire()

        def answer(data: bytes) -> None:
            path = data.split(b" ", 2)[1]
            if not data.startswith(b"POST") or not path.endswith(b"/chat/completions"):
                found = GET_ANSWERS.get(path.rpartition(b"/")[2], NOT_FOUND)
            elif self.stream:
                found = STREAM_HEAD + FIRST_FRAME
                self.upstream.append(connection)
            else:
                found = CHAT_ANSWER
            self.loop.call_soon(connection.data_received, found)

        wire.takes = answer
        connection.connection_made(wire)
        return connection

    def client(self) -> tuple[EdgeProtocol, Wire]:
        """A new client's connection."""
        kind = type("BoundEdgeProtocol", (EdgeProtocol,), {"direct": self.app.direct})
        config = uvicorn.Config(self.app.application, http=kind, lifespan="off", log_config=None, access_log=False)
        config.load()
        protocol, wire = kind(config, ServerState(), {}, self.loop), Wire()
        protocol.connection_made(wire)
        return protocol, wire


async def requests(bench: Bench, batches: int, calls: bool) -> None:
    """Non-streaming requests, one after the other."""
    protocol, wire = bench.client()
    message = post(1, CHAT, bench.headers, chat_body("bench"))
    answered: asyncio.Future[bytes]

    async def one() -> bytes:
        nonlocal answered
        answered = bench.loop.create_future()
        protocol.data_received(message)
        return await answered

    wire.takes = lambda data: answered.set_result(data)
    first = await one()
    if not first.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"not answered: {first[:300]!r}")
    if calls:
        await count_calls(one)
        return
    spent_us = []
    for _ in range(batches):
        started_ns = time.thread_time_ns()
        for _ in range(20):
            await one()
        spent_us.append((time.thread_time_ns() - started_ns) / 20e3)
    report("request", spent_us)
    print(f"usage rows that wait: {bench.app.ledger.waiting}")


async def chunks(bench: Bench, batches: int, streams: int) -> None:
    """Chunks of many streams in turn."""
    message = post(1, CHAT, bench.headers, chat_body("bench", chunks=1_000_000, rate=50))
    seen = collections.Counter[str]()
    clients = [bench.client() for _ in range(streams)]
    for protocol, _ in clients:
        protocol.data_received(message)
    while len(bench.upstream) < streams:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    for _, wire in clients:
        wire.takes = lambda data: seen.update(chunks=1)
    frame = TIMED_FRAME % time.monotonic_ns()
    spent_us = []
    for _ in range(batches):
        started_ns = time.thread_time_ns()
        for connection in bench.upstream:
            connection.data_received(frame)
        spent_us.append((time.thread_time_ns() - started_ns) / 1e3 / streams)
        await asyncio.sleep(0)
    if seen["chunks"] != batches * streams:
        raise SystemExit(f"{seen['chunks']} of {batches * streams} chunks were relayed")
    report("chunk", spent_us)


def report(what: str, spent_us: list[float]) -> None:
    """Prints CPU time of the event loop's thread."""
    ordered = sorted(spent_us)
    low, middle = ordered[len(ordered) // 10], ordered[len(ordered) // 2]
    print(f"us a {what}: lowest tenth {low:.2f}, median {middle:.2f}, mean {sum(ordered) / len(ordered):.2f}")


async def count_calls(one: Callable[[], object]) -> None:
    """Prints how many Python and C calls a request makes, by file: a figure no noise moves."""
    seen = collections.Counter[tuple[str, str]]()

    def note(frame, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
            seen[("Python" if event == "call" else "C", file)] += 1

    rounds = 200
    sys.setprofile(note)
    for _ in range(rounds):
        await one()
    sys.setprofile(None)
    for kind in ("Python", "C"):
        print(f"{sum(count for key, count in seen.items() if key[0] == kind) / rounds:.0f} {kind} calls a request")
    for (kind, file), count in seen.most_common(25):
        print(f"{count / rounds:6.1f} {kind:<7} {file}")


async def run(given: argparse.Namespace) -> None:
    bench = Bench(given.home, given.what == "chunks", given.targets, given.models)
    Pool.connect = lambda pool, limit_s: bench.connect(pool, limit_s)
    await bench.app.start()
    await asyncio.sleep(1)
    if given.what == "chunks":
        await chunks(bench, given.batches, given.streams)
    else:
        await requests(bench, given.batches, given.what == "calls")
    sys.stdout.flush()
    os._exit(0)  # the streams would be waited for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["requests", "chunks", "calls"])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--targets", type=int, default=1, help="targets of each model")
    parser.add_argument("--models", type=int, default=1)
    given = parser.parse_args()
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - request logs go there until the end
    uvloop.run(run(given))


if __name__ == "__main__":
    main()
