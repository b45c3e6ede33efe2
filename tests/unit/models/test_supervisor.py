"""Children are started, watched, restarted, limited and ended, with real model servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.harness.models import gguf_bytes

from passerelle.models.embedding_child import embedding_spec
from passerelle.models.gguf import NotGguf
from passerelle.models.llamacpp_child import llamacpp_spec
from passerelle.models.supervisor import (
    ChildFailed,
    ChildPhase,
    ChildSpec,
    ChildState,
    Supervisor,
    private_memory_bytes,
)


@asynccontextmanager
async def running(*specs: ChildSpec) -> AsyncIterator[tuple[Supervisor, list[ChildState]]]:
    """A started supervisor and the states it goes through."""
    states: list[ChildState] = []
    supervisor = Supervisor(specs, on_change=states.append)
    await supervisor.start()
    try:
        yield supervisor, states
    finally:
        await supervisor.stop(5)


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Polls until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def call(address: str, path: str, key: str | None, body: object = None) -> tuple[int, dict[str, object]]:
    """Sends one request and returns the status and the JSON answer."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0}


@pytest.mark.slow
async def test_a_real_model_becomes_ready_and_answers_its_key_only(default_gguf: Path) -> None:
    """llama.cpp in a child completes a chat for the supervisor's key, and refuses everybody else."""
    async with running(llamacpp_spec("smol", default_gguf, slots=1)) as (supervisor, states):
        assert [state.phase for state in supervisor.states()] == [ChildPhase.STARTING]
        async with asyncio.timeout(60):
            await supervisor.wait_ready("smol")
        address, key = supervisor.address("smol"), supervisor.api_key("smol")
        status, answer = await asyncio.to_thread(call, address, "/v1/chat/completions", key, CHAT)
        assert status == 200
        assert answer["model"] == "smol"
        assert answer["usage"]["completion_tokens"] > 0  # type: ignore[index]
        for wrong in (None, "wrong"):
            status, _ = await asyncio.to_thread(call, address, "/v1/chat/completions", wrong, CHAT)
            assert status == 401
        command_line = Path(f"/proc/{states[-1].pid}/cmdline").read_text()
        environment = Path(f"/proc/{states[-1].pid}/environ").read_text()
        assert key not in command_line + environment + repr(states)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_a_crashed_engine_is_back_within_seconds(default_gguf: Path, number: signal.Signals) -> None:
    """A segmentation fault or a kill costs a restart on the same address with the same key."""
    async with running(llamacpp_spec("smol", default_gguf, slots=1)) as (supervisor, states):
        async with asyncio.timeout(60):
            await supervisor.wait_ready("smol")
        address, key, first = supervisor.address("smol"), supervisor.api_key("smol"), states[-1].pid
        assert first is not None
        os.kill(first, number)
        killed_at = time.monotonic()
        await until(lambda: states[-1].phase is ChildPhase.READY and states[-1].pid != first)
        assert time.monotonic() - killed_at < 60
        assert states[-1].restarts == 1
        assert any(state.phase is ChildPhase.BACKOFF and number.name in state.why for state in states)
        assert (supervisor.address("smol"), supervisor.api_key("smol")) == (address, key)
        assert (await asyncio.to_thread(call, address, "/v1/chat/completions", key, CHAT))[0] == 200


async def test_a_child_over_its_memory_limit_is_killed_and_restarted() -> None:
    """The limit is on what the process allocates; the reason names both figures."""
    async with running(embedding_spec("e5", memory_limit_bytes=8 << 20)) as (_, states):
        await until(lambda: any(state.phase is ChildPhase.BACKOFF for state in states))
        (why, *_) = [state.why for state in states if state.phase is ChildPhase.BACKOFF]
        assert "MiB of memory, its limit is 8 MiB" in why
        await until(lambda: states[-1].restarts >= 1)


async def test_pauses_grow_with_every_crash() -> None:
    """A child that keeps dying is tried less and less often."""
    async with running(embedding_spec("e5", memory_limit_bytes=1)) as (_, states):
        await until(lambda: sum(state.phase is ChildPhase.BACKOFF for state in states) >= 4)
        backoffs = [state for state in states if state.phase is ChildPhase.BACKOFF]
        pauses = [float(state.why.rsplit("in ", 1)[1].split()[0]) for state in backoffs[:4]]
        assert pauses[0] <= 0.2
        assert 0.7 <= pauses[3] <= 1.6


_PARENT = """
import asyncio, sys
from passerelle.models.embedding_child import embedding_spec
from passerelle.models.supervisor import Supervisor
async def main():
    supervisor = Supervisor([embedding_spec("e5")])
    await supervisor.start()
    if sys.argv[1] == "ready":
        await supervisor.wait_ready("e5")
    print(supervisor.states()[0].pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["starting", "ready"])
async def test_children_die_with_their_parent(moment: str) -> None:
    """A parent killed without warning leaves no model server behind, loaded or still loading."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, moment], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        assert alive(child)
        parent.kill()
        await until(lambda: not alive(child), 10)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()  # type: ignore[union-attr]


async def test_the_end_of_input_alone_ends_a_child() -> None:
    """Where the kernel has no parent-death signal, the closed pipe does it."""
    async with running(embedding_spec("e5")) as (supervisor, states):
        await supervisor.wait_ready("e5")
        child = supervisor._children["e5"]
        first = states[-1].pid
        assert first is not None
        assert child._stdin is not None
        child._stdin.close()
        await until(lambda: not alive(first), 10)


async def test_stop_ends_the_processes_and_frees_the_port() -> None:
    """After stop nothing runs and nothing is reserved; stopping again does nothing."""
    async with running(embedding_spec("e5")) as (supervisor, states):
        await supervisor.wait_ready("e5")
        pid, port = states[-1].pid, int(supervisor.address("e5").rpartition(":")[2])
        assert pid is not None
        await supervisor.stop(5)
        assert not alive(pid)
        assert states[-1].phase is ChildPhase.STOPPED
        with socket.create_server(("127.0.0.1", port)):
            pass
        with pytest.raises(ChildFailed):
            await supervisor.wait_ready("e5")


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_period() -> None:
    """A stopped process cannot handle SIGTERM: SIGKILL ends it when the grace period is over."""
    async with running(embedding_spec("e5")) as (supervisor, states):
        await supervisor.wait_ready("e5")
        pid = states[-1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        await supervisor.stop(0.3)
        assert time.monotonic() - began >= 0.3
        assert not alive(pid)


async def test_a_port_that_another_program_takes_is_named_and_tried_again() -> None:
    """The reason says that the port is taken; when it is free again the child starts."""
    supervisor = Supervisor([embedding_spec("e5")])
    port = int(supervisor.address("e5").rpartition(":")[2])
    thief = socket.socket()
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    thief.bind(("127.0.0.1", port))
    thief.listen()
    await supervisor.start()
    try:
        await until(lambda: "is taken by another program" in supervisor.states()[0].why)
        thief.close()
        async with asyncio.timeout(20):
            await supervisor.wait_ready("e5")
    finally:
        thief.close()
        await supervisor.stop(5)


async def test_a_child_that_can_never_start_has_failed(tmp_path: Path) -> None:
    """A model file that was damaged after the start is a reason to stop trying, and the reason is one line."""
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes())
    spec = llamacpp_spec("broken", file)
    file.write_bytes(gguf_bytes()[:-10])
    async with running(spec) as (supervisor, _):
        with pytest.raises(ChildFailed, match="truncated"):
            await supervisor.wait_ready("broken")
        assert supervisor.states()[0].phase is ChildPhase.FAILED


def test_a_spec_for_a_bad_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Missing, truncated and foreign files are found when the child is described."""
    foreign, cut = tmp_path / "foreign.gguf", tmp_path / "cut.gguf"
    foreign.write_bytes(b"hello")
    cut.write_bytes(gguf_bytes()[:-10])
    for file, why in ((tmp_path / "no.gguf", "no such"), (foreign, "not a GGUF"), (cut, "truncated")):
        with pytest.raises(NotGguf, match=why):
            llamacpp_spec("m", file)


def test_the_window_is_never_wider_than_the_model_was_trained_for(tmp_path: Path) -> None:
    """The published window is the slot's, bounded by the file's own figure."""
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes(context_length=512))
    assert llamacpp_spec("m", file).context_window == 512
    assert llamacpp_spec("m", file, window=4096).context_window == 512
    assert llamacpp_spec("m", file, window=256).context_window == 256


@pytest.mark.slow
async def test_the_engine_says_why_a_whole_but_senseless_model_does_not_load(tmp_path: Path) -> None:
    """A well-formed file that no engine can run: the engine's words reach the state, and it is tried again."""
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes())
    async with running(llamacpp_spec("m", file)) as (_, states):
        await until(lambda: any(state.phase is ChildPhase.BACKOFF for state in states))
        why = next(state.why for state in states if state.phase is ChildPhase.BACKOFF)
        assert "llama.cpp could not start" in why
        assert "llama.embedding_length" in why


def test_two_children_of_one_name_are_refused() -> None:
    """Names address children, so they differ."""
    with pytest.raises(ValueError, match="one name"):
        Supervisor([embedding_spec("a"), embedding_spec("a")])


def test_private_memory_is_known_for_living_processes_only() -> None:
    """This process has some; a number that is no process has none."""
    assert (private_memory_bytes(os.getpid()) or 0) > 1 << 20
    assert private_memory_bytes(2**22 + 1) is None


def test_a_child_started_by_hand_says_who_starts_it() -> None:
    """Without an assignment the program ends with one line, not a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "passerelle.models.embedding_child"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "supervisor" in done.stderr
