"""Chunks: nothing dropped, nothing over the budget, and they say what they hold."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.services.counters import COUNTERS, WORDS
from tests.unit.services.test_turns import TEXT

from passerelle.services.chunks import chunk, coverage, next_chunk
from passerelle.services.cutter import split_turns
from passerelle.services.turn import render_turns


@given(
    text=TEXT,
    counter=st.sampled_from(sorted(COUNTERS)),
    budget=st.integers(16, 120),
    most=st.one_of(st.none(), st.integers(1, 4)),
)
@settings(max_examples=300, deadline=None)
def test_chunks_are_the_input_and_within_budget(text: str, counter: str, budget: int, most: int | None) -> None:
    """Ranges one after another are the text, counts are those of the texts, each turn is in one chunk; it ends."""

    async def run() -> None:
        count = COUNTERS[counter]
        turns = await split_turns(text, count)
        chunks = await chunk(turns, budget, count, max_turns=most)
        if not text.strip():
            assert chunks == []
            return
        assert "".join(text[each.start : each.end] for each in chunks) == text
        assert [each.tokens for each in chunks] == await count([each.text for each in chunks])
        assert all(each.tokens <= budget for each in chunks)
        assert all(len(each.turns) <= (most or len(each.turns)) for each in chunks)
        held = [turn for each in chunks for turn in each.turns]
        assert [turn.index for turn in held] == list(range(len(held)))
        read = coverage(held, chunks)
        assert read.complete
        assert (read.turns_read, read.characters_read) == (len(held), len(text))

    asyncio.run(run())


@given(text=TEXT, budgets=st.lists(st.integers(40, 90), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_one_chunk_after_another_goes_through_the_input(text: str, budgets: list[int]) -> None:
    """With a budget that changes each time, every turn is taken once."""

    async def run() -> None:
        count = COUNTERS["quarters"]
        turns = await split_turns(text, count, max_tokens=min(budgets))
        at, taken = 0, 0
        while at < len(turns):
            budget = budgets[taken % len(budgets)]
            each = await next_chunk(turns, at, budget, count)
            assert [*each.turns] == [*turns][at : at + len(each.turns)]
            assert each.tokens <= budget
            at, taken = at + len(each.turns), taken + 1

    asyncio.run(run())


async def test_chunks_are_filled() -> None:
    """A thousand short turns take about as many chunks as their tokens need."""
    text = "\n".join(f"Alice: word number {number} is said here" for number in range(1000))
    turns = await split_turns(text, WORDS)
    chunks = await chunk(turns, 500, WORDS)
    needed = sum(turn.tokens for turn in turns) / 500
    assert len(chunks) <= needed * 1.2 + 1


async def test_what_was_not_read_is_told() -> None:
    """Coverage names the missing characters and counts the turns that were read whole."""
    text = "Alice: one\nBob: two\nAlice: three\nBob: four\n"
    turns = await split_turns(text, WORDS)
    chunks = await chunk(turns, 100, WORDS, max_turns=1)
    read = coverage(turns, [chunks[0], chunks[3]])
    assert not read.complete
    assert (read.turns, read.turns_read) == (4, 2)
    assert [text[low:high] for low, high in read.missing] == ["Bob: two\nAlice: three\n"]
    assert read.characters_read == len("Alice: one\n") + len("Bob: four\n")


async def test_paragraphs_stay_paragraphs() -> None:
    """A chunk's text has the blank lines of the input."""
    text = "# Title\n\nOne.\n\n\nTwo.\nThree."
    turns = await split_turns(text, WORDS)
    (only,) = await chunk(turns, 100, WORDS)
    assert only.text == text == render_turns(turns)


async def test_a_budget_that_holds_nothing_is_refused() -> None:
    """It says so instead of looping."""
    with pytest.raises(ValueError, match="16 tokens"):
        await chunk(await split_turns("a b c", WORDS), 3, WORDS)
