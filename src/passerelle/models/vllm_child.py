"""A child process that keeps one vLLM server: ``python -m passerelle.models.vllm_child``.

vLLM lives in an environment of its own, so this is not vLLM but its guardian: it starts ``vllm serve`` on the assigned
port of loopback, and lives as long as it. Where vLLM is on several GPUs it is many processes:

    supervisor ──▶ guardian ──▶ vllm serve ──▶ engine, workers …      all in one session, whose leader is the guardian

* SIGTERM goes to the whole group: vLLM ends its requests, the guardian waits for it.
* When the supervisor dies, the guardian kills the group; when the guardian is killed, vLLM's first process is (Linux),
  and the supervisor kills what is left of the group.
* The key goes by environment (``VLLM_API_KEY``), which other users cannot read, not by argument, which they can.
  `vllm_guard` asks for it on every route, where vLLM itself asks on some.
* What vLLM says passes through the guardian to its own standard error, where the supervisor listens: a process of
  vLLM's that outlived the others would hold that open, and the supervisor would not learn that they ended.
* A command line that vLLM refuses is status 2: such a child has failed for good.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from passerelle.domain.vllm import first_of_ours
from passerelle.models.child import HOST, refuse, take_assignment
from passerelle.models.fetched import DriverMissing
from passerelle.models.supervisor import ChildSpec

READY_TIMEOUT_S = 1800.0
"""Large models take many minutes to fetch and load."""
STOP_GRACE_S = 10.0
INHERITED_PREFIXES = ("VLLM_", "HF_", "HUGGING_FACE_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "NCCL_", "NVIDIA_", "RAY_")
"""What of our environment vLLM needs beside what every child gets."""
_LAST_WORDS_S = 0.5
GUARD = Path(__file__).parent / "vllm_guard"


class VllmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``command`` is all of vLLM's command line but where it listens."""

    command: tuple[str, ...]
    alias: str


def vllm_spec(
    model: str,
    *,
    command: str = "vllm",
    gpu_memory: float | None = None,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    window: int | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    arguments: Sequence[str] = (),
    start_timeout_s: float | None = None,
) -> ChildSpec:
    """Returns the spec of a vLLM that serves ``model``: a Hugging Face name, or the folder of a model.

    ``command`` is vLLM's executable, looked for on the path and beside our own interpreter. ``gpu_memory`` is the part
    of each GPU's memory that it takes, ``window`` in tokens. ``arguments`` are passed on. Raises DriverMissing when
    there is no such executable, ValueError for an argument that is ours to give.
    """
    options: dict[str, object] = {
        "--gpu-memory-utilization": gpu_memory,
        "--tensor-parallel-size": tensor_parallel,
        "--pipeline-parallel-size": pipeline_parallel,
        "--max-model-len": window,
        "--dtype": dtype,
        "--quantization": quantization,
    }
    if (ours := first_of_ours(arguments)) is not None:
        raise ValueError(f"{ours} is for Passerelle to decide, and cannot be given to vLLM")
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    line = [find_command(command), "serve", model, "--served-model-name", model, *given, *arguments]
    return ChildSpec(
        name=model,
        module="passerelle.models.vllm_child",
        settings=msgspec.to_builtins(VllmSettings(tuple(line), model)),
        context_window=window,
        ready_timeout_s=start_timeout_s or READY_TIMEOUT_S,
        stop_grace_s=STOP_GRACE_S,
        inherited_prefixes=INHERITED_PREFIXES,
        has_descendants=True,
    )


def find_command(command: str) -> str:
    """Returns the absolute path of an executable. Raises DriverMissing."""
    beside = Path(sys.executable).parent / command
    found = shutil.which(command) or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise DriverMissing(
            f"vLLM's command '{command}' is not found: install vLLM in an environment of its own, and name its "
            "executable (--command, or the target's `command`)"
        )
    return str(Path(found).absolute())


def main() -> None:
    """Starts vLLM, and ends as it ends."""
    assignment = take_assignment(end=_kill_group, death_signal=signal.SIGHUP)
    signal.signal(signal.SIGHUP, lambda *_: _kill_group())
    signal.signal(signal.SIGTERM, lambda *_: None)  # the group has it too: vLLM ends, then we do
    try:
        settings = msgspec.json.decode(assignment.settings, type=VllmSettings)
    except msgspec.MsgspecError as error:
        refuse(str(error))
    middleware = ("--middleware", "passerelle_vllm_guard.RequireKey")
    environment = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"VLLM_API_KEY": assignment.api_key, "PYTHONPATH": str(GUARD)}
    try:
        server = subprocess.Popen(
            [*settings.command, "--host", HOST, "--port", str(assignment.port), *middleware],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=_die_with_parent,  # our one other thread waits in a read: it holds no lock
        )
    except OSError as error:
        refuse(f"{settings.command[0]} cannot be started: {error.strerror}")
    assert server.stdout is not None
    relay = threading.Thread(target=_pass_on, args=(server.stdout.fileno(),), name="relay", daemon=True)
    relay.start()
    status = server.wait()
    relay.join(_LAST_WORDS_S)
    if status < 0:
        print(f"vLLM was killed by {signal.Signals(-status).name}", file=sys.stderr, flush=True)
    os._exit(1 if status < 0 else status)


def _pass_on(pipe: int) -> None:
    while piece := os.read(pipe, 65536):
        os.write(sys.stderr.fileno(), piece)


def _die_with_parent() -> None:
    """Runs in the new process before vLLM does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _kill_group() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
