"""Keeps the model servers of this machine running as child processes.

    starting ──ready──▶ ready
       ▲  │               │ dies, or passes its memory limit
       │  └──dies──▶ backoff ◀──┘
       └──after a pause──┘
    any ──the child says that it can never start──▶ failed          any ──stop()──▶ stopped

The rules:

* A child's port and API key are chosen once and kept over restarts, so that nobody has to be told about a restart. On
  Linux the port stays reserved by a bound socket that never listens: connections are refused while the child is
  away, and no program that asks the kernel for any free port can get it. Elsewhere, and against a program that asks
  for that very port, a restart can find the port taken: that is a crash like any other, and is retried.
* The pause before a restart grows from 0.2 s to 30 s, with jitter, and starts over once a child was ready for 30 s.
* The memory limit is compared every second with what the process itself has allocated (anonymous and shared memory,
  not file pages: the mapped weights are cache, which the kernel can drop). An address-space limit would count
  the mapping and every thread's stack, and would refuse models that fit. A child over its limit is killed and
  restarted.
* Children never outlive this process: see `passerelle.models.child`. They have their own session, so that Ctrl-C in a
  terminal reaches the gateway only, which drains and then calls `Supervisor.stop`.

The kernel's tie is to the thread that starts the children: run the supervisor in one that lives as long as it does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import secrets
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from passerelle.models.child import EXIT_BAD_ASSIGNMENT, HOST, REFUSAL

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 30.0
_STEADY_AFTER_S = 30.0
_MEMORY_CHECK_S = 1.0
_HEALTH_TIMEOUT_S = 5.0
_KEPT_LINES = 20
_LONGEST_LINE_BYTES = 4096
_INHERITED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_INHERITED_PREFIXES = ("LC_", "OMP_", "GGML_", "CUDA_", "HIP_", "VK_")


class ChildPhase(StrEnum):
    """Where a child is; the picture is in the module's docstring."""

    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One model server to run.

    ``module`` is run with ``python -m`` and gets ``settings`` as JSON. ``context_window`` is what one request may use,
    in tokens, for the catalog to publish. ``memory_limit_bytes`` is explained in the module's docstring, None for no
    limit. ``ready_timeout_s`` bounds the time from start to a loaded model. ``engine_options`` are what the engine that
    talks to it has to know (as `passerelle.domain.model.Target.options`) where the configuration does not say.

    ``port`` is 0 for any free one. ``stop_grace_s`` is what it needs at least between SIGTERM and SIGKILL.
    ``inherited_prefixes`` name further environment variables it gets. ``has_descendants`` says that it starts processes
    of its own: what is left of them is killed when it has ended.
    """

    name: str
    module: str
    settings: Mapping[str, object]
    context_window: int | None = None
    memory_limit_bytes: int | None = None
    ready_timeout_s: float = 300.0
    engine_options: Mapping[str, object] = field(default_factory=dict)
    port: int = 0
    stop_grace_s: float = 0.0
    inherited_prefixes: tuple[str, ...] = ()
    has_descendants: bool = False


@dataclass(frozen=True, slots=True)
class ChildState:
    """How a child is. ``since`` is seconds since the epoch; ``restarts`` counts starts after the first."""

    name: str
    phase: ChildPhase
    since: float
    why: str
    pid: int | None
    restarts: int
    address: str


class ChildFailed(Exception):
    """A child that will not become ready: it says why."""


class Supervisor:
    """Runs the given children until `stop`. ``on_change`` is told every new state, on the event loop.

    Raises OSError when a port that a child asks for is taken.
    """

    def __init__(self, children: Sequence[ChildSpec], *, on_change: Callable[[ChildState], None] | None = None) -> None:
        names = [spec.name for spec in children]
        if len(set(names)) != len(names):
            raise ValueError("two children have one name")
        self._children = {spec.name: ManagedChild(spec, on_change) for spec in children}

    async def start(self) -> None:
        """Starts every child, and returns when the processes exist; they are not ready yet."""
        for child in self._children.values():
            child.start()
        await asyncio.gather(*(child.spawned.wait() for child in self._children.values()))

    async def wait_ready(self, name: str) -> None:
        """Returns when the child is ready. Raises ChildFailed once it can no longer become so."""
        await self._children[name].wait_ready()

    async def wait_change(self, name: str) -> None:
        """Returns when the child enters another state."""
        await self._children[name].wait_change()

    def address(self, name: str) -> str:
        """Returns ``http://127.0.0.1:PORT`` of the child, the same for the supervisor's lifetime. Raises KeyError."""
        return self._children[name].address

    def api_key(self, name: str) -> str:
        """Returns the bearer token the child asks for, the same for the supervisor's lifetime. Raises KeyError."""
        return self._children[name].api_key

    def states(self) -> list[ChildState]:
        """Returns how each child is, in the order they were given."""
        return [child.state for child in self._children.values()]

    async def stop(self, grace_s: float, *, hurry: bool = False) -> None:
        """Ends every child: SIGTERM, then SIGKILL after ``grace_s`` seconds. May be called again.

        A child that asks for more has more, unless in a ``hurry``.
        """
        await asyncio.gather(*(child.stop(grace_s, hurry=hurry) for child in self._children.values()))


class ManagedChild:
    """One child over all its restarts."""

    def __init__(self, spec: ChildSpec, on_change: Callable[[ChildState], None] | None) -> None:
        self.spec = spec
        self.api_key = secrets.token_urlsafe(32)
        self.spawned = asyncio.Event()
        self._reserved, self._port = _reserve_port(spec.port)
        self.address = f"http://{HOST}:{self._port}"
        self.state = ChildState(spec.name, ChildPhase.STARTING, time.time(), "not started yet", None, 0, self.address)
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._grace_s = 0.0
        self._starts = 0
        self._log = logging.getLogger(f"passerelle.models.{spec.name}")
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._stdin: asyncio.StreamWriter | None = None

    def start(self) -> None:
        """Begins to run the child."""
        self._task = asyncio.create_task(self._run(), name=f"child {self.spec.name}")

    async def wait_ready(self) -> None:
        """Returns when the child is ready. Raises ChildFailed once it can no longer become so."""
        while self.state.phase is not ChildPhase.READY:
            if self.state.phase in (ChildPhase.FAILED, ChildPhase.STOPPED):
                raise ChildFailed(self.state.why)
            await self._changed.wait()

    async def wait_change(self) -> None:
        """Returns when the child enters another state."""
        await self._changed.wait()

    async def stop(self, grace_s: float, *, hurry: bool = False) -> None:
        """Ends the child for good, and gives its port back."""
        self._grace_s = grace_s if hurry else max(grace_s, self.spec.stop_grace_s)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._reserved is not None:
            self._reserved.close()
        self._enter(ChildPhase.STOPPED, "stopped", pid=None)

    def _enter(self, phase: ChildPhase, why: str, *, pid: int | None) -> None:
        restarts = max(0, self._starts - 1)
        self.state = ChildState(self.spec.name, phase, time.time(), why, pid, restarts, self.address)
        self._changed.set()
        self._changed = asyncio.Event()
        if self._on_change is not None:
            self._on_change(self.state)

    async def _run(self) -> None:
        crashes = 0
        while True:
            ready_s, status, why = await self._live()
            if status == EXIT_BAD_ASSIGNMENT:
                self._log.error("%s cannot start: %s", self.spec.name, why)
                self._enter(ChildPhase.FAILED, why, pid=None)
                return
            crashes = 1 if ready_s >= _STEADY_AFTER_S else crashes + 1
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(crashes - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
            self._log.warning("%s died, restarting in %.1f s: %s", self.spec.name, pause_s, why)
            self._enter(ChildPhase.BACKOFF, f"{why}; restarting in {pause_s:.1f} s", pid=None)
            await asyncio.sleep(pause_s)

    async def _live(self) -> tuple[float, int, str]:
        """One life of the process: returns how long it was ready (seconds), its exit status, and why it ended."""
        self._starts += 1
        self._last_lines.clear()
        try:
            process = await self._spawn()
        except OSError as error:
            self.spawned.set()
            return 0.0, 1, f"cannot start a process: {error.strerror}"
        self._enter(ChildPhase.STARTING, "loading its model", pid=process.pid)
        self.spawned.set()
        assert process.stderr is not None
        drain = asyncio.create_task(self._drain(process.stderr))
        ended = asyncio.create_task(process.wait())
        try:
            ready_at, killed_why = await self._watch(process, ended)
            ready_s = time.monotonic() - ready_at if ready_at is not None else 0.0
            await asyncio.wait([drain], timeout=1.0)  # the last lines are the reason
            return ready_s, ended.result(), killed_why or self._describe(ended.result())
        finally:
            await _end(process, ended, self._grace_s)
            if self.spec.has_descendants:
                _signal(process, signal.SIGKILL)
            drain.cancel()
            await asyncio.wait([drain])

    async def _spawn(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", self.spec.module),  # -P: the current folder is not a place to import from
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=PIPE,
            start_new_session=True,
            env=_child_environment(self.spec.inherited_prefixes),
        )
        assignment = {
            "name": self.spec.name,
            "port": self._port,
            "api_key": self.api_key,
            "parent_pid": os.getpid(),
            "settings": dict(self.spec.settings),
        }
        self._stdin = process.stdin  # held open: its end would end the child
        assert self._stdin is not None
        self._stdin.write(json.dumps(assignment).encode() + b"\n")
        return process

    async def _watch(self, process: Process, ended: asyncio.Task[int]) -> tuple[float | None, str]:
        """Follows a process until it ends. Returns when it was ready (monotonic seconds), and why we killed it."""
        deadline = time.monotonic() + self.spec.ready_timeout_s
        ready_at: float | None = None
        pause_s = 0.02
        while not ended.done():
            if ready_at is None and await _is_healthy(self._port) and not ended.done():
                ready_at = time.monotonic()
                self._enter(ChildPhase.READY, "model loaded", pid=process.pid)
            killed_why = self._over_limit(process.pid)
            if ready_at is None and time.monotonic() > deadline:
                killed_why = f"not ready after {self.spec.ready_timeout_s:g} s"
            if killed_why:
                _signal(process, signal.SIGKILL)
                await asyncio.wait([ended])
                return ready_at, killed_why
            pause_s = _MEMORY_CHECK_S if ready_at is not None else min(pause_s * 1.5, 0.2)
            await asyncio.wait([ended], timeout=pause_s)
        return ready_at, ""

    def _over_limit(self, pid: int) -> str:
        limit = self.spec.memory_limit_bytes
        if limit is None:
            return ""
        used = private_memory_bytes(pid)
        if used is None or used <= limit:
            return ""
        return f"used {used >> 20} MiB of memory, its limit is {limit >> 20} MiB"

    def _describe(self, status: int) -> str:
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        refusals = [line.removeprefix(REFUSAL) for line in self._last_lines if line.startswith(REFUSAL)]
        last = [*self._last_lines, *refusals][-1] if self._last_lines else "it said nothing"
        if status == EXIT_BAD_ASSIGNMENT:
            return last
        errors = [line.split(" E ", 1)[1] for line in self._last_lines if " E " in line]  # llama.cpp's own log
        return "; ".join([f"exited with status {status}", last, *errors[:1]])

    async def _drain(self, stderr: asyncio.StreamReader) -> None:
        rest = b""
        while piece := await stderr.read(65536):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-_LONGEST_LINE_BYTES:]
            for line in lines:
                self._heard(line)
        self._heard(rest)

    def _heard(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE_BYTES].decode("utf-8", "replace").strip()
        if text:
            self._last_lines.append(text)
            self._log.debug("%s", text)


def private_memory_bytes(pid: int) -> int | None:
    """Returns what a process has allocated for itself and holds in memory; None when it cannot be known.

    Known on Linux only, from ``/proc/PID/status``: RssAnon + RssShmem.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "RssAnon" not in fields:
        return None
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))


def default_memory_limit_bytes() -> int | None:
    """Returns 80 % of the memory of this machine, or of its control group if that is less; None when unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            total = min(total, int(file.read_text()))
        except (OSError, ValueError):
            continue
    return total * 8 // 10


def _reserve_port(wanted: int) -> tuple[socket.socket | None, int]:
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform == "linux":
        # Two sockets may be bound to one port when both say SO_REUSEADDR and neither listens yet.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind((HOST, wanted))
    except OSError:
        reserved.close()
        raise
    port: int = reserved.getsockname()[1]
    if sys.platform == "linux":
        return reserved, port
    reserved.close()
    return None, port


def _child_environment(further_prefixes: tuple[str, ...]) -> dict[str, str]:
    """What a model server needs to run, and none of the gateway's secrets."""
    prefixes = (*_INHERITED_PREFIXES, *further_prefixes)
    return {name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(prefixes)}


async def _is_healthy(port: int) -> bool:
    writer = None
    try:
        async with asyncio.timeout(_HEALTH_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()


def _signal(process: Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)  # a session of its own: the group's id is the process's
    except ProcessLookupError:
        pass


async def _end(process: Process, ended: asyncio.Task[int], grace_s: float) -> None:
    if not ended.done():
        _signal(process, signal.SIGTERM)
        await asyncio.wait([ended], timeout=grace_s)
    if not ended.done():
        _signal(process, signal.SIGKILL)
        await asyncio.wait([ended])
    if process.stdin is not None:
        process.stdin.close()
