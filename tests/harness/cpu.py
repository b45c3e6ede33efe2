"""Bounds on processor time that hold on a machine that is busy with other things.

Such a bound guards against a regression of its kind (quadratic where it was linear, seconds where it was milliseconds),
not against a slow minute: garbage is not collected meanwhile, the time of this thread or process counts and not the
wall clock's, and only when every try is over the bound the test fails.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within_cpu(bound_s: float, work: Callable[[], T], *, tries: int = 5, whole_process: bool = False) -> T:
    """Calls ``work`` until one call stays below ``bound_s`` seconds of processor time, and returns what it returned.

    ``whole_process`` counts all threads, else the calling one alone counts. Raises AssertionError with the times when
    none of ``tries`` calls stayed below.
    """
    took_s: list[float] = []
    for _ in range(tries):
        cost_s, result = cpu_s(work, whole_process=whole_process)
        if cost_s < bound_s:
            return result
        took_s.append(cost_s)
    raise AssertionError(f"{min(took_s):.3g} s of processor time at best, {bound_s:g} s allowed: {took_s}")


def cpu_s(work: Callable[[], T], *, whole_process: bool = False) -> tuple[float, T]:
    """Calls ``work`` once, with the garbage collector off; returns its seconds of processor time and its result."""
    clock = time.process_time if whole_process else time.thread_time
    collects = gc.isenabled()
    gc.disable()
    try:
        began_s = clock()
        result = work()
        return clock() - began_s, result
    finally:
        if collects:
            gc.enable()
