"""Whose jobs a caller sees.

A key sees the jobs of its project. A member sees their own, with whatever key of theirs they were submitted; so does
who calls without a key, where the configuration lets them. What a caller does not see does not exist for them.
"""

from __future__ import annotations

from collections.abc import Callable

from passerelle.domain.principal import Principal, Role
from passerelle.jobs.queue import JobQueue
from passerelle.jobs.store import JobStore

StoreOf = Callable[[Principal], JobStore]


def stores(queue: JobQueue, *, nobody: str) -> StoreOf:
    """Returns what makes the store of a caller; ``nobody`` is the key id of who calls without one."""

    def store(caller: Principal) -> JobStore:
        only_own = caller.key_id == nobody or (caller.role is Role.MEMBER and caller.user is not None)
        return queue.store(caller, own=only_own)

    return store
