"""Load generators. Each prints one JSON object with what it saw.

``load.py requests``: keep-alive connections that post one chat completion after the other, for a time. `wrk` does it
when it is installed (it takes the least CPU from a small machine), else an asyncio client.

``load.py streams``: many streams at once against `upstream.py` behind a gateway. In a window in which every stream is
open, it counts chunks, reads the relay delay off each, and samples CPU and memory of the processes named by
``--pid``; afterwards it waits for the end of every stream and counts those that are not whole.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from benchmarks.processes import cpu_s, rss_kib

TIMES = re.compile(rb"@(\d{19})@")
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
QUESTION = "What does a gateway in front of language models do, and what should it never do? Two sentences, please."


def chat_body(model: str, *, chunks: int = 0, rate: int = 0) -> bytes:
    """A small chat request; with ``chunks`` it asks `upstream.py` for a stream."""
    body: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": QUESTION},
        ],
        "max_tokens": 128,
        "temperature": 0.7,
    }
    if chunks:
        body["stream"] = True
        body["max_tokens"] = chunks + 1
        body["messages"][1]["content"] = f"{QUESTION} chunks={chunks} rate={rate}"
    return json.dumps(body).encode()


def post(port: int, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """The bytes of one POST."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def quantile(ordered: list[float], share: float) -> float | None:
    """The value below which ``share`` of an ordered list lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


# --- requests -------------------------------------------------------------------------------------------------------

WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = %s
%s
local keys = {%s}
local messages, turn = {}, 0
if #keys > 0 then
  init = function()
    for index, key in ipairs(keys) do
      wrk.headers["authorization"] = "Bearer " .. key
      messages[index] = wrk.format()
    end
  end
  request = function()
    turn = turn %% #messages + 1
    return messages[turn]
  end
end
done = function(summary, latency, requests)
  io.write(string.format('{"requests":%%d,"seconds":%%.6f,"bad":%%d,"p50_us":%%d,"p99_us":%%d}\\n',
    summary.requests, summary.duration / 1e6,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
      + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


def requests_by_wrk(given: argparse.Namespace, headers: dict[str, str], keys: list[str]) -> dict:
    """Runs wrk with one thread; ``bad`` counts answers that are not 2xx or 3xx, and broken connections."""
    headers = {"Content-Type": "application/json", **headers}
    body = chat_body(given.model).decode()
    quoted = ",".join(map(json.dumps, keys))
    lines = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items())
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT % (json.dumps(body), lines, quoted))
        script.flush()
        address = f"http://127.0.0.1:{given.port}{given.path}"
        shape = ["-t1", f"-c{given.connections}", f"-d{given.seconds}s", "--timeout", "30s"]
        command = ["wrk", *shape, "-s", script.name, address]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"by": "wrk", **json.loads(output.strip().splitlines()[-1])}


class Poster(asyncio.Protocol):
    """One keep-alive connection that posts again whenever an answer is complete."""

    def __init__(self, client: RequestsClient) -> None:
        self.client = client
        self.held = b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.asked_ns = time.monotonic_ns()
        self.transport.write(next(self.client.messages))

    def data_received(self, data: bytes) -> None:
        data = self.held + data
        end = data.find(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(data, 0, end + 2) if end >= 0 else None
        done = len(data) >= end + 4 + int(length[1]) if length else end >= 0 and data.endswith(b"0\r\n\r\n")
        if not done:
            self.held = data
            return
        self.held = b""
        client = self.client
        client.took_us.append((time.monotonic_ns() - self.asked_ns) // 1000)
        client.bad += not data.startswith(b"HTTP/1.1 200")
        if client.open:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.bad += self.client.open


class RequestsClient:
    """``connections`` posters for ``seconds``, which send the messages in turn."""

    def __init__(self, messages: list[bytes]) -> None:
        self.messages = itertools.cycle(messages)
        self.took_us = array.array("q")
        self.bad = 0
        self.open = True

    async def run(self, port: int, connections: int, seconds: int) -> dict:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        for _ in range(connections):
            await loop.create_connection(lambda: Poster(self), "127.0.0.1", port)
        await asyncio.sleep(seconds)
        self.open = False
        ordered = sorted(self.took_us)
        return {
            "by": "asyncio",
            "requests": len(ordered),
            "seconds": loop.time() - started_s,
            "bad": self.bad,
            "p50_us": quantile(ordered, 0.5),
            "p99_us": quantile(ordered, 0.99),
        }


# --- streams --------------------------------------------------------------------------------------------------------


class Reader(asyncio.Protocol):
    """One stream: counts its chunks and their delays."""

    def __init__(self, client: StreamsClient, wanted: int) -> None:
        self.client = client
        self.wanted = wanted
        self.tail = b""
        self.chunks = 0
        self.last_ns = 0
        self.in_order = True
        self.status = b""
        self.ended = False

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.write(self.client.message)

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        client = self.client
        if not self.status:
            self.status = data[9:12]
        if self.tail:
            data = self.tail + data
        stop = 0
        delays = client.delays_us if client.measuring else None
        for found in TIMES.finditer(data):
            sent_ns = int(found[1])
            self.chunks += 1
            client.chunks += 1
            self.in_order &= sent_ns > self.last_ns
            self.last_ns = sent_ns
            if delays is not None:
                delays.append((now_ns - sent_ns) // 1000)
            stop = found.end()
        if data.find(b"[DONE]", stop) >= 0:
            self.ended = True
            self.transport.close()
        self.tail = data[max(stop, len(data) - 32) :]

    def whole(self) -> bool:
        """Whether all of the stream came, once and in order."""
        return self.ended and self.in_order and self.chunks == self.wanted and self.status == b"200"

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.open -= 1
        if not self.client.open:
            self.client.over.set()


class StreamsClient:
    """``streams`` readers, opened over ``ramp_s``, each of ``seconds`` x ``rate`` chunks."""

    def __init__(self, message: bytes, pids: list[int]) -> None:
        self.message = message
        self.pids = pids
        self.delays_us = array.array("q")
        self.measuring = False
        self.chunks = 0
        self.open = 0
        self.over = asyncio.Event()

    async def run(self, port: int, streams: int, rate: int, seconds: int, ramp_s: float) -> dict:
        loop = asyncio.get_running_loop()
        rss_before_kib = rss_kib(self.pids)
        readers: list[Reader] = []
        unconnected = 0
        started_s = loop.time()
        for index in range(streams):
            await asyncio.sleep(max(0.0, started_s + ramp_s * index / streams - loop.time()))
            try:
                _, reader = await loop.create_connection(lambda: Reader(self, seconds * rate), "127.0.0.1", port)
            except OSError:
                unconnected += 1
                continue
            self.open += 1
            readers.append(reader)
        await asyncio.sleep(0.5)
        window = await self.window(max(0.5, started_s + seconds - 0.3 - loop.time()))
        try:
            async with asyncio.timeout(ramp_s + seconds + 10):
                await self.over.wait()
        except TimeoutError:
            for reader in readers:
                reader.transport.abort()
        whole = sum(reader.whole() for reader in readers)
        return {
            "streams": streams,
            "rate": rate,
            "whole": whole,
            "lost": streams - whole,
            "unconnected": unconnected,
            "refused": sum(reader.status not in (b"", b"200") for reader in readers),
            "chunks_missing": streams * seconds * rate - sum(reader.chunks for reader in readers),
            "rss_before_kib": rss_before_kib,
            **window,
        }

    async def window(self, seconds: float) -> dict:
        """Measures while every stream is open."""
        loop = asyncio.get_running_loop()
        clock_s, cpu_before_s, chunks_before = loop.time(), cpu_s(self.pids), self.chunks
        own_before_s = time.process_time()
        self.measuring = True
        peak_kib = 0
        until_s = clock_s + seconds
        while (left_s := until_s - loop.time()) > 0:
            peak_kib = max(peak_kib, rss_kib(self.pids))
            await asyncio.sleep(min(0.5, left_s))
        self.measuring = False
        took_s = loop.time() - clock_s
        chunks = self.chunks - chunks_before
        cpu = cpu_s(self.pids) - cpu_before_s
        ordered = sorted(self.delays_us)
        return {
            "window_s": took_s,
            "chunks": chunks,
            "chunks_per_s": chunks / took_s,
            "cpu_us_per_chunk": cpu * 1e6 / chunks if self.pids and chunks else None,
            "cpu_share": cpu / took_s,
            "client_cpu_share": (time.process_time() - own_before_s) / took_s,
            "delay_p50_us": quantile(ordered, 0.5),
            "delay_p99_us": quantile(ordered, 0.99),
            "delay_max_us": ordered[-1] if ordered else None,
            "rss_peak_kib": peak_kib,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Load generators for the benchmarks; one JSON object on stdout.")
    parser.add_argument("kind", choices=["requests", "streams"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--model", default="bench")
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--header-file", type=Path, help="JSON object of headers; keeps keys off the command line")
    parser.add_argument("--keys-file", type=Path, help="requests: one API key a line, used in turn")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--rate", type=int, default=50, help="chunks per second of each stream")
    parser.add_argument("--ramp", type=float, default=1.0, help="seconds over which the streams are opened")
    parser.add_argument("--pid", type=int, action="append", default=[], help="process to measure")
    parser.add_argument("--no-wrk", action="store_true")
    given = parser.parse_args()
    headers = dict(item.split("=", 1) for item in given.header)
    if given.header_file:
        headers |= json.loads(given.header_file.read_text())
    if given.kind == "streams":
        body = chat_body(given.model, chunks=given.seconds * given.rate, rate=given.rate)
        message = post(given.port, given.path, headers, body)
        result = uvloop.run(streams(message, given))
    else:
        keys = given.keys_file.read_text().split() if given.keys_file else []
        if shutil.which("wrk") and not given.no_wrk:
            result = requests_by_wrk(given, headers, keys)
        else:
            each = [{**headers, "authorization": f"Bearer {key}"} for key in keys] or [headers]
            messages = [post(given.port, given.path, header, chat_body(given.model)) for header in each]
            result = uvloop.run(RequestsClient(messages).run(given.port, given.connections, given.seconds))
    json.dump(result, sys.stdout)
    print()


async def streams(message: bytes, given: argparse.Namespace) -> dict:
    """Runs a `StreamsClient` as the command line asked."""
    client = StreamsClient(message, given.pid)
    return await client.run(given.port, given.streams, given.rate, given.seconds, given.ramp)


if __name__ == "__main__":
    main()
