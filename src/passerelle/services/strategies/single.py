"""One pass: the whole text in one call."""

from __future__ import annotations

from passerelle.jobs.context import JobFailed
from passerelle.services.chunks import Chunk
from passerelle.services.turns import parse_turns
from passerelle.services.work import Room, Work


async def fits(work: Work) -> bool:
    """Whether prompt, whole text and answer fit one call."""
    room = await work.room(work.manifest.prompt)
    return await work.measure(work.text.strip(), enough=room.input) <= room.input


async def single(work: Work) -> str:
    """Returns the answer to the whole text. Raises JobFailed when it does not fit."""
    room = await work.room(work.manifest.prompt)
    await whole(work, room)
    with work.phase("processing", len(work.turns)):
        answer = await work.ask("single", work.fill(work.manifest.prompt, work.text.strip()), room)
        work.done(len(work.turns))
    if answer.cut:
        work.warn("The answer came to its longest length and may be cut off.")
    return answer.text.strip()


async def whole(work: Work, room: Room) -> None:
    """Takes the whole text as one part that is read."""
    tokens = await work.measure(work.text.strip())
    if tokens > room.input:
        raise JobFailed(
            f"The text has {tokens} tokens and one pass reads {room.input}: take a strategy that reads it in parts.",
            code="context_length_exceeded",
        )
    work.turns = parse_turns(work.text)
    work.read = [Chunk(0, work.turns, tokens)] if work.turns else []
