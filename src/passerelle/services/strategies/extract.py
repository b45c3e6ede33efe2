"""JSON from every part, merged into one object.

Merging follows the values: objects are merged key by key, lists are joined and lose exact duplicates, of other values
the first that says something stays. Each answer is held to the service's schema by the model's server where it can;
here it must be JSON, or the part is asked once more.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from passerelle.jobs.context import JobFailed
from passerelle.services.chunks import Chunk, chunk
from passerelle.services.strategies.single import fits, whole
from passerelle.services.work import Room, Work

_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_ASKS = 2


async def extract(work: Work) -> str:
    """Returns the merged object as JSON, indented for people. Raises JobFailed when a part gives no JSON."""
    prompt = work.manifest.prompt
    room = await work.room(prompt)
    with work.phase("splitting"):
        if await fits(work):
            await whole(work, room)
            parts = work.read
        else:
            turns = await work.split(room)
            most = work.flavor.max_new_turns
            parts = await chunk(turns, room.input, work.count, max_turns=most, language=work.manifest.language)

    async def ask(number: int) -> Any:
        part = parts[number]
        value = await _value(work, part, len(parts), room)
        work.done(len(part.turns))
        return value

    with work.phase("processing", sum(len(part.turns) for part in parts)):
        values = await work.gather(len(parts), ask)
    work.read = list(parts)
    merged: Any = None
    for value in values:
        merged = merge(merged, value)
    return msgspec.json.format(msgspec.json.encode(merged), indent=2).decode()


async def _value(work: Work, part: Chunk, parts: int, room: Room) -> Any:
    filled = work.fill(work.manifest.prompt, part.text, part=part.index + 1, parts=parts)
    for number in range(_ASKS):
        step = f"part-{part.index}" if number == 0 else f"part-{part.index}-again"
        answer = await work.ask(step, filled, room, json=True)
        try:
            return parse(answer.text)
        except ValueError:
            continue
    why = "its answer was cut off at its longest length" if answer.cut else "its answer is not JSON"
    raise JobFailed(
        f"Part {part.index + 1} of {parts} gave no JSON ({why}): raise maxGenerationLength, make parts smaller with "
        "maxNewTurns, or take another model.",
        code="invalid_output",
    )


def parse(text: str) -> Any:
    """Returns the JSON of an answer, out of a fence of Markdown too. Raises ValueError when there is none."""
    fenced = _FENCED.search(text)
    candidates = [text, fenced[1]] if fenced else [text]
    opening = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=-1)
    closing = max(text.rfind("}"), text.rfind("]"))
    if 0 <= opening < closing:
        candidates.append(text[opening : closing + 1])
    for candidate in candidates:
        try:
            return msgspec.json.decode(candidate.strip())
        except msgspec.DecodeError:
            continue
    raise ValueError("no JSON")


def merge(one: Any, other: Any) -> Any:
    """Returns both values as one; see above."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: merge(one.get(key), other.get(key)) for key in (*one, *(key for key in other if key not in one))}
    if isinstance(one, list) and isinstance(other, list):
        return one + [value for value in other if value not in one]
    return other if one in (None, "", [], {}) else one
