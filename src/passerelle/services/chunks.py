"""Chunks of turns that fit a budget of tokens, and what of the input they hold.

Every turn is in exactly one chunk, in order; a turn longer than the budget is cut first. The count of a chunk is that
of its text as a model reads it, not a sum: a chunk whose text counts more than its turns did is cut again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from passerelle.services.cutter import split_long
from passerelle.services.turn import CountTokens, Turn, Turns, batches, render_turns


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive turns that are read together. ``tokens`` is the exact count of `text`."""

    index: int
    turns: Turns
    tokens: int

    @property
    def text(self) -> str:
        """The turns as a model reads them: one a line, blank lines kept."""
        return render_turns(self.turns)

    @property
    def start(self) -> int:
        """The first character of the input that it holds."""
        return self.turns[0].start

    @property
    def end(self) -> int:
        """The character of the input after its last."""
        return self.turns[-1].end


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the input was read. ``missing`` are the ranges of characters that were not."""

    turns: int
    turns_read: int
    characters: int
    characters_read: int
    missing: tuple[tuple[int, int], ...]

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return not self.missing and self.turns == self.turns_read


async def chunk(
    turns: Turns,
    budget_tokens: int,
    count_tokens: CountTokens,
    *,
    max_turns: int | None = None,
    language: str | None = None,
) -> list[Chunk]:
    """Returns counted ``turns`` in chunks of at most ``budget_tokens`` each, and of ``max_turns`` turns if given.

    Turns above the budget are cut, by sentences of ``language``. Raises ValueError when the budget is below
    `passerelle.services.turn.MIN_TURN_TOKENS`.
    """
    turns = await split_long(turns, count_tokens, budget_tokens, language=language)
    chunks: list[Chunk] = []
    for groups in batches(_packed(turns, budget_tokens, max_turns), _chars):
        chunks += await _sized(groups, len(chunks), budget_tokens, count_tokens)
    return chunks


async def _sized(groups: list[Turns], first: int, budget_tokens: int, count_tokens: CountTokens) -> list[Chunk]:
    """Returns counted chunks of groups of turns; those that are too long all the same are halved."""
    sized: dict[tuple[int, int], int] = {}
    while True:
        fresh = [group for group in groups if _key(group) not in sized]
        counts = await count_tokens([render_turns(group) for group in fresh]) if fresh else []
        sized |= {_key(group): count for group, count in zip(fresh, counts, strict=True)}
        fitting: list[Turns] = []
        for group in groups:
            middle = len(group) // 2
            fits = len(group) == 1 or sized[_key(group)] <= budget_tokens
            fitting += [group] if fits else [group[:middle], group[middle:]]
        if len(fitting) == len(groups):
            return [Chunk(index, group, sized[_key(group)]) for index, group in enumerate(fitting, first)]
        groups = fitting


async def next_chunk(
    turns: Turns,
    at: int,
    budget_tokens: int,
    count_tokens: CountTokens,
    *,
    max_turns: int | None = None,
) -> Chunk:
    """Returns the chunk that begins at ``turns[at]``, for a budget that differs from chunk to chunk.

    It holds one turn at least: the caller cuts turns to the least budget beforehand (`split_long`). ``index`` is
    ``at``.
    """
    group = next(_packed(turns[at:], budget_tokens, max_turns))
    while True:
        tokens = (await count_tokens([render_turns(group)]))[0]
        if tokens <= budget_tokens or len(group) == 1:
            return Chunk(at, group, tokens)
        group = group[: max(1, min(len(group) - 1, len(group) * budget_tokens // tokens))]


def coverage(turns: Sequence[Turn], read: Sequence[Chunk]) -> Coverage:
    """Returns how much of an input of ``turns`` the chunks that were ``read`` hold, by characters."""
    held = sorted((chunk.start, chunk.end) for chunk in read)
    start, end = (turns[0].start, turns[-1].end) if turns else (0, 0)
    missing: list[tuple[int, int]] = []
    at = start
    for low, high in held:
        if low > at:
            missing.append((at, low))
        at = max(at, high)
    if at < end:
        missing.append((at, end))
    lost = sum(high - low for low, high in missing)
    kept = (
        sum(not any(low < turn.end and turn.start < high for low, high in missing) for turn in turns)
        if missing
        else len(turns)
    )
    return Coverage(len(turns), kept, end - start, end - start - lost, tuple(missing))


def _key(group: Turns) -> tuple[int, int]:
    return group[0].index, group[-1].index


def _chars(group: Turns) -> int:
    return group[-1].end - group[0].start


def _packed(turns: Turns, budget_tokens: int, max_turns: int | None) -> Iterator[Turns]:
    """Returns groups that fit by the sum of turns' tokens and line breaks."""
    first, room, blank = 0, budget_tokens, 0
    for at, turn in enumerate(turns):
        breaks = 1 + blank if at > first else 0
        if at > first and (turn.tokens + breaks > room or (max_turns is not None and at - first >= max_turns)):
            yield turns[first:at]
            first, room, breaks = at, budget_tokens, 0
        room -= turn.tokens + breaks
        blank = turn.blank_after
    if first < len(turns):
        yield turns[first:]
