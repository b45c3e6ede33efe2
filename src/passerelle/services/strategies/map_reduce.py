"""Parts read together: every part of the text in a call of its own, as many at once as the servers bear."""

from __future__ import annotations

from passerelle.services.chunks import chunk
from passerelle.services.work import Work


async def map_parts(work: Work) -> list[str]:
    """Returns the answers to all parts, in the order of the text."""
    prompt = work.manifest.prompt
    room = await work.room(prompt)
    with work.phase("splitting"):
        turns = await work.split(room)
        parts = await chunk(
            turns, room.input, work.count, max_turns=work.flavor.max_new_turns, language=work.manifest.language
        )

    async def ask(number: int) -> str:
        part = parts[number]
        filled = work.fill(prompt, part.text, part=number + 1, parts=len(parts))
        answer = await work.ask(f"part-{number}", filled, room)
        if answer.cut:
            work.warn(f"The answer to part {number + 1} came to its longest length and may be cut off.")
        work.done(len(part.turns))
        return answer.text.strip()

    with work.phase("processing", sum(len(part.turns) for part in parts)):
        answers = await work.gather(len(parts), ask)
    work.read = parts
    return answers
