"""The child that reads files can do nothing else."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from tests.unit.services.extract import samples

from passerelle.services.extract.found import Answer

PROBE = """
import ctypes, errno, os, socket, sys
from passerelle.services.extract.lockdown import limit, lock
limit()
locked = lock()
def code(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    except MemoryError:
        return "MemoryError"
    return "done"
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    def made():
        if libc.syscall(number, 0, 0, 0, 0, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "")
    return made
ACTIONS = {
    "socket": lambda: socket.socket(),
    "pair": lambda: socket.socketpair(),
    "read a file": lambda: open("/etc/hostname"),
    "write a file": lambda: open("/tmp/x", "w"),
    "list a folder": lambda: os.listdir("/"),
    "fork": lambda: os.fork(),
    "run": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "unlink": lambda: os.unlink("/tmp/x"),
    "change folder": lambda: os.chdir("/"),
    "link": lambda: os.symlink("/a", "/tmp/y"),
    "memory": lambda: bytearray(600 << 20),
}
print(int(locked), *(f"{name}={code(action)}" for name, action in ACTIONS.items()), sep="\\n")
"""


@pytest.fixture(scope="module")
def probed() -> dict[str, str]:
    """What a locked process could still do."""
    ran = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True)
    locked, *lines = ran.stdout.splitlines()
    assert locked == "1", "this kernel has no seccomp filters: run the tests where Passerelle runs"
    return dict(line.split("=") for line in lines)


CONFINED = ["socket", "pair", "read a file", "write a file", "list a folder", "fork", "run", "kill", "unlink"]


@pytest.mark.parametrize("action", [*CONFINED, "change folder", "link"])
def test_nothing_outside_can_be_reached(probed: dict[str, str], action: str) -> None:
    """The kernel refuses it with EPERM: files, folders, connections, programs, other processes."""
    assert probed[action] == "EPERM"


def test_memory_has_a_limit(probed: dict[str, str]) -> None:
    """Half a gigabyte of address space."""
    assert probed["memory"] == "MemoryError"


def test_processor_time_has_a_limit() -> None:
    """The kernel ends a process that computes for longer."""
    endless = "from passerelle.services.extract.lockdown import limit, lock; limit(cpu_s=1); lock()\nwhile True: pass"
    ran = subprocess.run([sys.executable, "-c", endless], capture_output=True, timeout=60, check=False)
    assert ran.returncode in (-24, -9)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("pdf", samples.text_pdf("text")),
        ("docx", samples.docx(samples.word_xml(samples.paragraph("text")))),
        ("html", b"<p>text"),
    ],
)
def test_every_reader_is_locked_in(kind: str, data: bytes) -> None:
    """What the child says of itself: the filter was in place before the file was looked at."""
    command = [sys.executable, "-m", "passerelle.services.extract.child", kind]
    ran = subprocess.run(command, input=data, capture_output=True, timeout=60, check=True)
    head, _, text = ran.stdout.partition(b"\n")
    answer = msgspec.json.decode(head, type=Answer)
    assert answer.locked
    assert (answer.code, text) == (None, b"text")
