"""The guardian of vLLM: its command line, its key, and that nothing of it outlives it. vLLM is stood in for."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.harness.vllmd import executable
from tests.unit.models.test_supervisor import alive, call, running, until

from passerelle.models.fetched import DriverMissing
from passerelle.models.supervisor import ChildFailed, ChildPhase, ChildSpec, Supervisor
from passerelle.models.vllm_child import vllm_spec

CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


def spec(tmp_path: Path, **options: Any) -> ChildSpec:
    return vllm_spec("org/Model", command=str(executable(tmp_path)), **options)


def started(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Returns what the stand-in said of its last start."""
    lines = [record.message for record in caplog.records if record.message.startswith("stand-in: {")]
    return dict(json.loads(lines[-1].partition(" ")[2]))


async def ready(supervisor: Supervisor) -> None:
    async with asyncio.timeout(60):
        await supervisor.wait_ready("org/Model")


def test_the_command_line(tmp_path: Path) -> None:
    """Each option becomes vLLM's; further arguments follow; the name clients use upstream is the model's."""
    made = spec(
        tmp_path,
        gpu_memory=0.5,
        tensor_parallel=4,
        pipeline_parallel=2,
        window=8192,
        dtype="bfloat16",
        quantization="awq",
        arguments=("--max-num-seqs", "16", "--enforce-eager"),
    )
    assert made.settings["command"] == (
        str(tmp_path / "vllm"),
        *("serve", "org/Model", "--served-model-name", "org/Model"),
        *("--gpu-memory-utilization", "0.5", "--tensor-parallel-size", "4", "--pipeline-parallel-size", "2"),
        *("--max-model-len", "8192", "--dtype", "bfloat16", "--quantization", "awq"),
        *("--max-num-seqs", "16", "--enforce-eager"),
    )
    assert made.context_window == 8192
    assert spec(tmp_path).settings["command"] == (
        *(str(tmp_path / "vllm"), "serve", "org/Model", "--served-model-name", "org/Model"),
    )


@pytest.mark.parametrize("argument", ["--api-key", "--api-key=x", "--host=0.0.0.0", "--served_model_name", "--uds"])
def test_arguments_that_would_open_it_are_refused(tmp_path: Path, argument: str) -> None:
    """Where it listens and who may use it is not for arguments to say."""
    with pytest.raises(ValueError, match="is for Passerelle to decide"):
        spec(tmp_path, arguments=("--enforce-eager", argument))


def test_a_missing_vllm_is_said_in_one_line() -> None:
    """The line names the command and what to do."""
    with pytest.raises(DriverMissing, match="'no-such-vllm' is not found: install vLLM"):
        vllm_spec("org/Model", command="no-such-vllm")


async def test_it_serves_its_key_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every route but health asks for the key, also those vLLM leaves open; the key is in no argument."""
    caplog.set_level(logging.DEBUG, "passerelle.models")
    async with running(spec(tmp_path, arguments=("--max-num-seqs", "4"))) as (supervisor, _):
        await ready(supervisor)
        address, key = supervisor.address("org/Model"), supervisor.api_key("org/Model")
        assert (await asyncio.to_thread(call, address, "/health", None))[0] == 200
        for path in ("/v1/chat/completions", "/invocations", "/tokenize", "/metrics"):
            for wrong in (None, "wrong"):
                assert (await asyncio.to_thread(call, address, path, wrong, CHAT))[0] == 401
            assert (await asyncio.to_thread(call, address, path, key, CHAT))[0] == 200
        said = started(caplog)
        port = address.rpartition(":")[2]
        assert said["argv"][-6:] == ["--host", "127.0.0.1", "--port", port, "--middleware", _GUARD]
        assert key not in json.dumps(said["argv"])
        assert not any(name.startswith("PASSERELLE_") for name in said["environ"])


_GUARD = "passerelle_vllm_guard.RequireKey"


async def test_environment(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets what is vLLM's and Hugging Face's of our environment, and none of our secrets."""
    caplog.set_level(logging.DEBUG, "passerelle.models")
    monkeypatch.setenv("HF_TOKEN", "t")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    async with running(spec(tmp_path)) as (supervisor, _):
        await ready(supervisor)
        assert {"HF_TOKEN", "VLLM_CPU_KVCACHE_SPACE", "VLLM_API_KEY"} <= set(started(caplog)["environ"])
        assert "DATABASE_URL" not in started(caplog)["environ"]


async def test_a_refused_command_line_fails_for_good(tmp_path: Path) -> None:
    """vLLM's own words are the reason, and it is not tried again."""
    async with running(spec(tmp_path, arguments=("--no-such-option",))) as (supervisor, _):
        with pytest.raises(ChildFailed, match="unrecognized arguments: --no-such-option"):
            await supervisor.wait_ready("org/Model")
        assert supervisor.states()[0].phase is ChildPhase.FAILED


async def test_a_crash_is_restarted_on_the_same_port_with_the_same_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And vLLM's other processes of the life before are gone."""
    caplog.set_level(logging.DEBUG, "passerelle.models")
    async with running(spec(tmp_path)) as (supervisor, states):
        await ready(supervisor)
        address, key, engine = supervisor.address("org/Model"), supervisor.api_key("org/Model"), started(caplog)
        with pytest.raises(OSError):
            await asyncio.to_thread(call, address, "/crash", key)
        await until(lambda: states[-1].restarts == 1 and states[-1].phase is ChildPhase.READY)
        assert any("told to crash" in state.why for state in states if state.phase is ChildPhase.BACKOFF)
        await until(lambda: not alive(engine["engine"]))
        assert (await asyncio.to_thread(call, address, "/v1/chat/completions", key, CHAT))[0] == 200


@pytest.mark.parametrize("victim", ["guardian", "vllm"])
async def test_a_killed_process_takes_the_others_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str
) -> None:
    """Whichever is killed, all of that life end before the next begins to serve."""
    caplog.set_level(logging.DEBUG, "passerelle.models")
    async with running(spec(tmp_path)) as (supervisor, states):
        await ready(supervisor)
        guardian, said = states[-1].pid, started(caplog)
        assert guardian is not None
        os.kill(guardian if victim == "guardian" else said["pid"], signal.SIGKILL)
        await until(lambda: not any(alive(pid) for pid in (guardian, said["pid"], said["engine"])))
        await until(lambda: states[-1].restarts == 1 and states[-1].phase is ChildPhase.READY)


async def test_stop_ends_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guardian, server and what the server started."""
    caplog.set_level(logging.DEBUG, "passerelle.models")
    async with running(spec(tmp_path)) as (supervisor, states):
        await ready(supervisor)
        pids = (states[-1].pid, started(caplog)["pid"], started(caplog)["engine"])
    assert not any(alive(pid) for pid in pids)


_PARENT = """
import asyncio, json, logging, sys
from passerelle.models.supervisor import Supervisor
from passerelle.models.vllm_child import vllm_spec
logging.basicConfig(level=logging.DEBUG, format="%(message)s", stream=sys.stdout)
async def main():
    supervisor = Supervisor([vllm_spec("org/Model", command=sys.argv[1])])
    await supervisor.start()
    await supervisor.wait_ready("org/Model")
    print(json.dumps({"guardian": supervisor.states()[0].pid}), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_all_die_with_the_parent(tmp_path: Path) -> None:
    """A parent killed without warning leaves neither guardian nor server nor engine behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(executable(tmp_path))], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    try:
        found: dict[str, int] = {}
        while "guardian" not in found:
            line = await asyncio.to_thread(parent.stdout.readline)
            assert line
            if "{" in line:
                found |= json.loads(line[line.index("{") :])
        parent.kill()
        await until(lambda: not any(alive(found[name]) for name in ("guardian", "pid", "engine")))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


async def test_a_port_of_ones_own(tmp_path: Path) -> None:
    """A port that was asked for is the one that serves; one that is taken is refused before anything starts."""
    async with running(spec(tmp_path)) as (supervisor, _):
        await ready(supervisor)
        taken = int(supervisor.address("org/Model").rpartition(":")[2])
        with pytest.raises(OSError):
            Supervisor([replace(spec(tmp_path), port=taken)])
    async with running(replace(spec(tmp_path), port=taken)) as (supervisor, _):
        await ready(supervisor)
        assert supervisor.address("org/Model") == f"http://127.0.0.1:{taken}"
