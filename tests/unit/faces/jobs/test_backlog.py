"""Events that wait for a slow reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from passerelle.faces.jobs.backlog import COALESCED_FROM, Backlog, TooSlow
from passerelle.jobs.job import JobEvent


def event(seq: int, kind: str = "progress") -> JobEvent:
    """Returns an event."""
    return JobEvent("job_1", seq, 0, kind)


async def test_progress_is_coalesced_and_the_end_is_kept() -> None:
    """Of ten thousand steps of progress nobody reads, a bounded number waits, the newest and the end among them."""

    async def events() -> AsyncIterator[JobEvent]:
        yield event(1, "queued")
        for seq in range(2, 10_000):
            yield event(seq)
        yield event(10_000, "succeeded")

    backlog = Backlog()
    await backlog.fill(events())
    taken = await backlog.take()
    assert len(taken) == COALESCED_FROM + 1
    assert [each.seq for each in taken[-2:]] == [9_999, 10_000]
    assert taken[-1].last
    assert await backlog.take() == []


async def test_too_many_other_events_send_the_reader_away() -> None:
    """What may not be dropped is bounded by giving up, not by memory."""
    backlog = Backlog(most=4)
    for seq in range(1, 6):
        backlog.add(event(seq, "note"))
    with pytest.raises(TooSlow):
        await backlog.take()


async def test_a_reader_waits_for_news() -> None:
    """Taking waits while there is nothing, and gets what comes at once."""
    backlog = Backlog()
    taking = asyncio.create_task(backlog.take())
    await asyncio.sleep(0)
    assert not taking.done()
    backlog.add(event(1))
    assert [each.seq for each in await taking] == [1]
