"""Kept answers age: after a day a key is free again, and one whose process died is never done twice."""

from __future__ import annotations

import pytest

from passerelle.domain.errors import Conflict, IdempotencyKeyReused
from passerelle.identity.idempotency import KEPT_S, IdempotentAnswers, KeptAnswer
from passerelle.storage.engine import Database

KEY, REQUEST = b"k" * 32, b"r" * 32
ANSWER = KeptAnswer(201, [(b"etag", b'"1"')], b"{}")


async def test_an_answer_is_kept_for_a_day(database: Database) -> None:
    """Within it the answer comes back, and another request is refused; after it the key is free."""
    now_s = 1_000_000.0
    answers = IdempotentAnswers(database, clock=lambda: now_s)
    assert await answers.claim(KEY, REQUEST) is None
    await answers.keep(KEY, ANSWER)
    now_s += KEPT_S - 1
    assert await answers.claim(KEY, REQUEST) == ANSWER
    with pytest.raises(IdempotencyKeyReused):
        await answers.claim(KEY, b"o" * 32)
    now_s += 2
    assert await answers.claim(KEY, b"o" * 32) is None


async def test_a_claim_whose_process_died_is_not_done_again(database: Database) -> None:
    """First it is at work; a minute later nobody knows what became of it."""
    now_s = 1_000_000.0
    answers = IdempotentAnswers(database, clock=lambda: now_s)
    assert await answers.claim(KEY, REQUEST) is None
    for after_s, code in ((1, "request_in_progress"), (120, "outcome_unknown")):
        now_s += after_s
        with pytest.raises(Conflict) as refused:
            await answers.claim(KEY, REQUEST)
        assert refused.value.error_code == code


async def test_a_released_claim_is_free(database: Database) -> None:
    """A request that failed may come again; a kept answer is not released."""
    answers = IdempotentAnswers(database)
    assert await answers.claim(KEY, REQUEST) is None
    await answers.release(KEY)
    assert await answers.claim(KEY, REQUEST) is None
    await answers.keep(KEY, ANSWER)
    await answers.release(KEY)
    assert await answers.claim(KEY, REQUEST) == ANSWER
