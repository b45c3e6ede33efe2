"""What must hold after every row, whatever the row was about.

O1  no 5xx but those the row allows; every error body is the OpenAI envelope with a request id
O2  /health answers all through
O3  memory, file descriptors and calls in flight are back where they were
O4  no upstream is busy one second after the last caller left
O5  no canary (keys, upstream error text, paths) in any answer, log line or metric
O6  one usage row for each call, and none besides
O7  a second tenant's p99 (`clients.good_load`; asserted by the rows about floods)
"""

from __future__ import annotations

import asyncio
import http.client
import re
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from tests.harness.clients import Tape
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Upstream

HEALTH_S = 0.1
"""What /health may take on a quiet machine; what this machine's own scheduling costs is measured and added."""
HEALTH_SLACK_S = 0.3
RSS_SLACK_BYTES = 24 * 1024 * 1024
FD_SLACK = 6
CANARIES = ("CANARY", "sk-upstream-CANARY", "/srv/canary", "Traceback (most recent call last)")


UNREAD = ("request_timeout", "uri_too_long", "headers_too_large", "malformed_request", "too_many_connections")
"""Refused before the caller's request id was read."""


class Health(threading.Thread):
    """Asks /health every 20 ms on one connection.

    Taken off each time is what the gateway's main thread waited for a processor, as the kernel counts it: that is the
    machine's doing. How late its own sleeps end tells the same about itself.
    """

    def __init__(self, port: int, pid: int) -> None:
        super().__init__(daemon=True)
        self._schedstat = Path(f"/proc/{pid}/schedstat")
        self._port = port
        self._stopped = threading.Event()
        self.took_s: list[float] = []
        self.late_s: list[float] = []
        self.failures: list[str] = []
        self.extra_s = 0.0
        """What the test at hand may add: it sends hundreds of megabytes at once, say."""

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._stopped.is_set():
            began, waited_s = time.monotonic(), self._waited_s()
            try:
                connection.request("GET", "/health")
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failures.append(f"status {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not self._stopped.is_set():
                    self.failures.append(type(error).__name__)
            ended = time.monotonic()
            self.took_s.append(ended - began - max(0.0, self._waited_s() - waited_s))
            self._stopped.wait(0.02)
            self.late_s.append(max(0.0, time.monotonic() - ended - 0.02))
        connection.close()

    def _waited_s(self) -> float:
        try:
            return int(self._schedstat.read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def rewind(self) -> None:
        self.took_s.clear()
        self.late_s.clear()
        self.failures.clear()
        self.extra_s = 0.0

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def check(self) -> None:
        """Raises AssertionError when /health failed, or took longer than the machine explains (p99)."""
        assert not self.failures, f"O2: /health failed: {self.failures[:3]}"
        if not self.took_s:
            return
        ordered = sorted(self.took_s)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        allowed_s = HEALTH_S + HEALTH_SLACK_S + self.extra_s + 5 * max(self.late_s, default=0.0)
        assert p99 <= allowed_s, f"O2: p99 of /health was {p99:.3f} s, {allowed_s:.3f} s allowed"


def rss_bytes(pid: int) -> int:
    """Returns the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def descriptors(pid: int) -> int:
    """Returns how many file descriptors a process holds."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def becomes(true: Callable[[], bool | Awaitable[bool]], within_s: float) -> bool:
    """Waits until ``true()``; returns whether it came about.

    A nap between two looks counts as 20 ms however late it ends: then the machine is at fault.
    """
    waited_s = 0.0
    while True:
        began = time.monotonic()
        found = true()
        if found if isinstance(found, bool) else await found:
            return True
        waited_s += time.monotonic() - began
        if waited_s > within_s:
            return False
        await asyncio.sleep(0.02)
        waited_s += 0.02


class Oracles:
    """Checks one gateway. ``begin`` before a row, ``check`` after it."""

    def __init__(self, gateway: GatewayProcess, upstreams: Iterable[Upstream], tape: Tape, *, health: Health) -> None:
        self._gateway = gateway
        self._upstreams = upstreams
        self._tape = tape
        self._health = health
        self._baseline: tuple[int, int] | None = None
        self._seen_requests: dict[int, int] = {}
        self._log_from = 0
        self._after_row = 0
        self.check_usage = self.check_health = True

    def begin(self) -> None:
        """Forgets what was, and notes where things stand."""
        self._tape.rewind()
        self._health.rewind()
        self._seen_requests = {id(u): len(u.requests) for u in self._upstreams}
        self._log_from = len(self._gateway.log)
        self._after_row = self._last_row()
        self.check_usage = self.check_health = True
        if self._baseline is None:
            self._baseline = (rss_bytes(self._gateway.pid), self._descriptors())

    def accept_memory(self) -> None:
        """Takes what is resident now as the baseline: the row has shown that it does not grow when repeated."""
        assert self._baseline is not None
        self._baseline = (max(self._baseline[0], rss_bytes(self._gateway.pid)), self._baseline[1])

    def let_health_wait(self, seconds: float) -> None:
        """Gives /health so much more time in this test."""
        self._health.extra_s = seconds

    async def check(self) -> None:
        """Raises AssertionError that names the oracle."""
        await self._nothing_busy()
        self._envelopes()
        if self.check_health:
            self._health.check()
        metrics = await self._calls_ended()
        self._no_canaries(metrics)
        if self.check_usage:
            await self._ledger()
        await self._resources()

    async def _nothing_busy(self) -> None:
        ended = await becomes(lambda: not any(u.busy for u in self._upstreams), 1.5)
        assert ended, "O4: an upstream was still busy 1.5 s after the last caller left"

    def _envelopes(self) -> None:
        for answer in self._tape.answers:
            if answer.status >= 500:
                assert answer.status in self._tape.allowed, f"O1: {answer.status}: {answer.body[:300]!r}"
            if answer.status >= 400 and answer.whole and answer.body:
                error = answer.error
                assert {"message", "type", "param", "code", "request_id"} <= error.keys(), f"O1: {error}"
                assert error["message"] and error["code"] and error["request_id"], f"O1: {error}"
                assert error["request_id"] == answer.headers.get("x-request-id"), f"O1: {answer.headers}"
                if answer.request_id is not None and error["code"] not in UNREAD:
                    assert error["request_id"] == answer.request_id, f"O1: not the caller's request id: {error}"

    async def _calls_ended(self) -> str:
        """Waits until no call is in flight or queued; returns the metrics."""
        text = ""

        async def idle() -> bool:
            nonlocal text
            status, body = await asyncio.to_thread(self._gateway.get, "/metrics", key=self._gateway.key)
            assert status == 200
            text = body.decode()
            waiting = sum(float(v) for v in re.findall(r"^passerelle_queue_waiting\{.*\} (\S+)$", text, re.M))
            in_flight = re.search(r"^passerelle_in_flight (\S+)$", text, re.M)
            return in_flight is not None and float(in_flight[1]) == 0 and waiting == 0

        assert await becomes(idle, 15), "O3: calls are still in flight or queued"
        return text

    def _no_canaries(self, metrics: str) -> None:
        texts = [answer.body.decode("utf-8", "replace") + str(answer.headers) for answer in self._tape.answers]
        logs = [*self._gateway.log[self._log_from :], *self._gateway.output[1:]]
        secrets = [self._gateway.key[:24], *CANARIES]
        for where, found in (("an answer", texts), ("a log line", logs), ("the metrics", [metrics])):
            for text in found:
                for secret in secrets:
                    assert secret not in text, f"O5: {secret!r} in {where}: {text[:400]!r}"

    async def _ledger(self) -> None:
        expected = {
            seen.headers["x-request-id"]
            for upstream in self._upstreams
            for seen in upstream.requests[self._seen_requests.get(id(upstream), 0) :]
            if seen.method == "POST" and "completions" in seen.path
        }
        expected |= {
            a.request_id
            for a in self._tape.answers
            if a.request_id and a.status == 200 and b'"chat.completion' in a.body
        }
        rows: dict[str, int] = {}

        def all_there() -> bool:
            rows.clear()
            for request_id in self._row_ids():
                rows[request_id] = rows.get(request_id, 0) + 1
            return expected <= rows.keys()

        assert await becomes(all_there, 15), f"O6: no usage row for {sorted(expected - rows.keys())[:3]}"
        twice = {request_id: count for request_id, count in rows.items() if count > 1}
        assert not twice, f"O6: more than one usage row: {twice}"

    async def _resources(self) -> None:
        assert self._baseline is not None
        rss, fds = self._baseline

        def back() -> bool:
            return self._descriptors() <= fds + FD_SLACK

        assert await becomes(back, 15), f"O3: {self._descriptors()} descriptors, {fds} before"
        now = rss_bytes(self._gateway.pid)
        assert now <= rss * 1.1 + RSS_SLACK_BYTES, f"O3: {now >> 20} MiB resident, {rss >> 20} before"

    def _descriptors(self) -> int:
        """Without the connections that wait for their next request at the upstreams."""
        return descriptors(self._gateway.pid) - sum(upstream.open_connections for upstream in self._upstreams)

    def _last_row(self) -> int:
        return int(self._query("select coalesce(max(rowid), 0) from usage")[0][0])

    def _row_ids(self) -> list[str]:
        return [row[0] for row in self._query("select request_id from usage where rowid > ?", self._after_row)]

    def _query(self, statement: str, *arguments: object) -> list[tuple[str, ...]]:
        connection = sqlite3.connect(f"file:{self._gateway.home / 'passerelle.db'}?mode=ro", uri=True)
        try:
            return connection.execute(statement, arguments).fetchall()
        finally:
            connection.close()
