"""Kept answers: read by their tenant, continued in order, ended once."""

from __future__ import annotations

from typing import Any

import pytest

from passerelle.domain.errors import BadRequest, NotFound
from passerelle.responses.store import ResponseStore
from passerelle.storage.engine import Database

WHO: dict[str, Any] = {"organisation": "acme", "project": "docs", "key_id": "key_a"}


def document(name: str, previous: str | None = None, status: str = "completed") -> dict[str, Any]:
    """An answer."""
    output = [{"type": "message", "id": f"msg_{name}", "text": f"{name} \0"}]
    return {"id": name, "status": status, "previous_response_id": previous, "output": output}


def item(text: str) -> dict[str, Any]:
    """An item of an input."""
    return {"type": "message", "id": text}


async def test_a_conversation_is_told_oldest_first(database: Database) -> None:
    """Input and output of each turn; a turn that is gone, or has not ended well, breaks it off."""
    store = ResponseStore(database, **WHO)
    await store.add(document("a"), [item("1"), item("2")])
    await store.add(document("b", "a"), [item("3")])
    await store.add(document("c", "b", "failed"), [])
    assert [each["id"] for each in await store.conversation("b")] == ["1", "2", "msg_a", "3", "msg_b"]
    with pytest.raises(BadRequest, match="is failed"):
        await store.conversation("c")
    await store.delete("a")
    with pytest.raises(BadRequest, match="to continue"):
        await store.conversation("b")


async def test_another_tenant_finds_no_answer(database: Database) -> None:
    """Not read, not continued, not deleted, not replaced."""
    await ResponseStore(database, **WHO).add(document("a", status="queued"), [item("1")])
    for other in ({"organisation": "other"}, {"project": "else"}):
        theirs = ResponseStore(database, **WHO | other)
        for attempt in (theirs.get("a"), theirs.delete("a")):
            with pytest.raises(NotFound):
                await attempt
        with pytest.raises(BadRequest):
            await theirs.conversation("a")
        assert not await theirs.finish(document("a"))
    assert (await ResponseStore(database, **WHO).get("a")).status == "queued"


async def test_an_answer_ends_once(database: Database) -> None:
    """An older attempt, and whoever comes after the end, replaces nothing."""
    store = ResponseStore(database, **WHO)
    await store.add(document("a", status="queued"), [])
    await store.begin("a", "job_1")
    assert await store.finish(document("a", status="in_progress"), attempt=2)
    assert not await store.finish(document("a", status="failed"), attempt=1)
    assert await store.finish(document("a"), attempt=2)
    assert not await store.finish(document("a", status="cancelled"), attempt=9)
    kept = await store.get("a")
    assert (kept.status, kept.job_id) == ("completed", "job_1")


async def test_what_is_due_is_not_there(database: Database) -> None:
    """An answer that was kept long enough is not found."""
    store = ResponseStore(database, **WHO, retain_s=-1)
    await store.add(document("a"), [])
    with pytest.raises(NotFound):
        await store.get("a")
