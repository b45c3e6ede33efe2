"""The results of all parts read once more, together; in several levels when they do not fit one call."""

from __future__ import annotations

from passerelle.services.chunks import chunk
from passerelle.services.cutter import split_turns
from passerelle.services.work import Room, Work


async def reduce(work: Work, result: str) -> str:
    """Returns ``result`` reduced to one answer by the flavor's reduce prompt, the service's own without one.

    A level that does not get shorter is the last: its answers are returned as they are, and a warning says so.
    """
    prompt = work.flavor.reduce_prompt or work.manifest.prompt
    room = await work.room(prompt)
    level = 0
    with work.phase("reducing"):
        tokens = await work.measure(result)
        while tokens > room.input:
            shorter = await _level(work, result, room, level)
            count = await work.measure(shorter)
            if count >= tokens:
                work.warn("The results of the parts could not be reduced to one: they do not get shorter.")
                return shorter
            result, tokens, level = shorter, count, level + 1
        answer = await work.ask("reduce", work.fill(prompt, result), room)
        if answer.cut:
            work.warn("The last answer came to its longest length and may be cut off.")
        return answer.text.strip()


async def _level(work: Work, result: str, room: Room, level: int) -> str:
    prompt = work.flavor.reduce_prompt or work.manifest.prompt
    turns = await split_turns(result, work.count, max_tokens=room.input, language=work.manifest.language)
    parts = await chunk(turns, room.input, work.count, language=work.manifest.language)

    async def ask(number: int) -> str:
        filled = work.fill(prompt, parts[number].text, part=number + 1, parts=len(parts))
        return (await work.ask(f"reduce-{level}-{number}", filled, room)).text.strip()

    return "\n".join(await work.gather(len(parts), ask))
