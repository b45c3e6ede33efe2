"""A window that rolls over the text: each call sees the last lines of the result so far, and the next turns."""

from __future__ import annotations

from collections.abc import Sequence

from passerelle.services.chunks import next_chunk
from passerelle.services.turn import MIN_TURN_TOKENS
from passerelle.services.work import Room, Work


async def rolling(work: Work) -> list[str]:
    """Returns the answers, in order. What of the result so far is shown takes at most half of the room."""
    prompt = work.manifest.prompt
    room = await work.room(prompt)
    half = Room(room.context, room.prompt, room.generation, max(MIN_TURN_TOKENS, room.input // 2))
    with work.phase("splitting"):
        turns = await work.split(half)
    answers: list[str] = []
    lines: list[str] = []
    at = 0
    with work.phase("processing", len(turns)):
        while at < len(turns):
            previous, taken = await _shown(work, lines, room.input // 2)
            part = await next_chunk(
                turns, at, max(MIN_TURN_TOKENS, room.input - taken), work.count, max_turns=work.flavor.max_new_turns
            )
            answer = await work.ask(f"turn-{at}", work.fill(prompt, part.text, previous), room)
            if answer.cut:
                work.warn(f"The answer that begins at turn {at + 1} came to its longest length and may be cut off.")
            text = answer.text.strip()
            answers.append(text)
            lines += [line for line in text.splitlines() if line.strip()]
            work.read.append(part)
            at += len(part.turns)
            work.done(len(part.turns))
    return answers


async def _shown(work: Work, lines: Sequence[str], most_tokens: int) -> tuple[str, int]:
    """Returns the last lines of the result that fit, and their tokens."""
    kept = list(lines[-work.flavor.summary_turns :]) if work.flavor.summary_turns else []
    while kept:
        text = "\n".join(kept)
        tokens = (await work.count([text]))[0]
        if tokens <= most_tokens:
            return text, tokens + 1
        kept = kept[1:]
    return "", 0
