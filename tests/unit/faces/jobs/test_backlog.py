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


async def notes(count: int) -> AsyncIterator[JobEvent]:
    """Yields events that may not be dropped."""
    for seq in range(1, count + 1):
        yield event(seq, "note")


async def test_what_does_not_fit_waits_for_room() -> None:
    """However many events may not be dropped, at most the bound waits here, and all arrive in order."""
    backlog = Backlog(most=4)
    filling = asyncio.create_task(backlog.fill(notes(50)))
    seen: list[int] = []
    while taken := await backlog.take():
        assert len(taken) <= 4
        seen += [each.seq for each in taken]
        await asyncio.sleep(0)
    await filling
    assert seen == list(range(1, 51))


async def test_a_reader_that_takes_nothing_is_sent_away() -> None:
    """After the time that a full backlog waits, the reader gets no more."""
    backlog = Backlog(most=4, stall_s=0.01)
    await backlog.fill(notes(50))
    with pytest.raises(TooSlow):
        await backlog.take()


async def test_a_reader_waits_for_news() -> None:
    """Taking waits while there is nothing, and gets what comes at once."""
    backlog = Backlog()
    taking = asyncio.create_task(backlog.take())
    await asyncio.sleep(0)
    assert not taking.done()
    await backlog.fill(notes(1))
    assert [each.seq for each in await taking] == [1]
