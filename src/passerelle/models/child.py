"""What a child process does first: take its assignment, and make sure that it does not outlive its parent.

The supervisor starts ``python -m passerelle.models.<engine>_child`` and writes one line of JSON, an `Assignment`, to
its standard input, which it then holds open. Nothing is passed in arguments or environment, where other users of the
machine could read the key. A child dies with its parent in two ways: its standard input ends (everywhere), and on
Linux the kernel kills it, even while native code holds the interpreter.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

HOST = "127.0.0.1"
"""Children listen on loopback only."""
EXIT_BAD_ASSIGNMENT = 2
"""Exit status of a child that can never start as it is configured: restarting is useless."""
EXIT_PORT_TAKEN = 3
"""Exit status of a child that could not bind its port."""

REFUSAL = "cannot start: "
"""What the line begins with that says why a child ends."""

_PR_SET_PDEATHSIG = 1
_LONGEST_ASSIGNMENT_BYTES = 1 << 20


class Assignment(msgspec.Struct, frozen=True):
    """What one child is to serve. ``settings`` are the engine's own, still encoded."""

    name: str
    port: int
    api_key: str
    parent_pid: int
    settings: msgspec.Raw

    def __repr__(self) -> str:
        return f"Assignment(name={self.name!r}, port={self.port})"


def _exit() -> NoReturn:
    os._exit(0)


def take_assignment(
    *, end: Callable[[], NoReturn] = _exit, death_signal: signal.Signals = signal.SIGKILL
) -> Assignment:
    """Reads the assignment from standard input and ties this process to its parent.

    ``end`` is called, on any thread, when the parent closed our standard input; ``death_signal`` is what the kernel
    sends when it died. Ends the process with one line on standard error when there is no valid assignment.
    """
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _LONGEST_ASSIGNMENT_BYTES:
        piece = os.read(0, 65536)
        if not piece:
            refuse("no assignment on standard input: the supervisor starts this program, not a person")
        line += piece
    try:
        assignment = msgspec.json.decode(bytes(line), type=Assignment)
    except msgspec.MsgspecError as error:
        refuse(f"the assignment cannot be read: {error}")
    _tie_to_parent(assignment.parent_pid, end, death_signal)
    return assignment


def refuse(why: str, status: int = EXIT_BAD_ASSIGNMENT) -> NoReturn:
    """Ends this process; ``why``, a line on standard error behind `REFUSAL`, is what the supervisor reports."""
    print(f"{REFUSAL}{why}", file=sys.stderr, flush=True)
    sys.exit(status)  # an ordinary end, in which the engine's logging thread writes what it still has


def usable_processors() -> int:
    """Returns how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_asleep() -> None:
    """Makes the engine's OpenMP threads sleep while they wait for each other; call it before the engine is imported.

    By default they spin. Where anything else runs on the same processors (the gateway does) a thread then spins while
    the one it waits for has no processor. Measured on two processors at a load of 8: 1 token/s spinning, 40 asleep.
    OMP_WAIT_POLICY in the environment wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _tie_to_parent(parent_pid: int, end: Callable[[], NoReturn], death_signal: signal.Signals) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains first
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
        try:
            # When memory runs out the kernel should take the model server, not the gateway.
            Path("/proc/self/oom_score_adj").write_text("500")
        except OSError:
            pass
    if os.getppid() != parent_pid:
        end()
    threading.Thread(target=_end_with_input, args=(end,), name="parent-watch", daemon=True).start()


def _end_with_input(end: Callable[[], NoReturn]) -> None:
    while os.read(0, 4096):
        pass
    end()
