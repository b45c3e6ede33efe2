"""Takes from this process what it does not need to read a file: memory, time, files, network, other processes.

Limits hold everywhere. On Linux (x86-64, arm64) a seccomp filter then refuses, with EPERM, every system call but those
that compute, read and write what is open, and end: no socket, no file, no program, no signal to others. Modules must be
imported before, for afterwards nothing can be opened.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import resource
import struct
import sys

MEMORY_BYTES = 512 << 20
CPU_S = 20
_NO_NEW_PRIVS, _SET_PDEATHSIG, _SET_SECCOMP, _SET_DUMPABLE = 38, 1, 22, 4
_MODE_FILTER = 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_SIGKILL = 9

# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn ioctl sched_yield
# mremap madvise getpid exit fcntl getrusage sysinfo sigaltstack gettid futex sched_getaffinity restart_syscall
# clock_gettime clock_nanosleep exit_group tgkill newfstatat getrandom membarrier rseq
_X86_64 = (
    """0 1 3 5 8 9 10 11 12 13 14 15 16 24 25 28 39 60 72 98 99 131 186 202 204 219 228 230 231 234 262 318 324 334"""
)
_ARM64 = """63 64 57 80 62 222 226 215 214 134 135 139 29 124 216 233 172 93 25 165 179 132 178 98 123 128 113 115 94
131 79 278 283 293"""
_CALLS = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _ARM64)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def limit(memory_bytes: int = MEMORY_BYTES, cpu_s: int = CPU_S) -> None:
    """Limits memory (address space), processor time, files and cores of this process, and ties it to its parent."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def lock() -> bool:
    """Refuses this process all system calls it does not need from now on. Returns whether the kernel did so."""
    calls = _CALLS.get(platform.machine())
    if sys.platform != "linux" or calls is None:
        return False
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    code = _filter(*calls)
    program = _Program(len(code) // 8, code)
    if prctl(_NO_NEW_PRIVS, 1, None, 0, 0) != 0:
        return False
    return bool(prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program), 0, 0) == 0)


def _filter(architecture: int, calls: str) -> bytes:
    """Returns the filter as Linux's classic BPF: eight bytes an instruction."""
    allowed = [int(number) for number in calls.split()]
    lines = [(_LOAD_WORD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD_WORD, 0, 0, 0)]
    for left, number in zip(range(len(allowed), 0, -1), allowed, strict=True):
        lines.append((_JUMP_EQUAL, left, 0, number))
    lines += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
