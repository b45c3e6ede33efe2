"""What a service would do with a text, without doing it: tokens, calls, cost, and whether it can work at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import ceil
from typing import TypeVar

import msgspec

from passerelle.jobs.context import JobFailed
from passerelle.services import strategies
from passerelle.services.chunks import chunk
from passerelle.services.manifest import Strategy
from passerelle.services.work import Room, Work

T = TypeVar("T")

Cost = Callable[[str, int, int], int]
"""(model, prompt tokens, completion tokens) -> billionths of the currency."""


class Estimate(msgspec.Struct, kw_only=True):
    """``calls`` is exact for one pass and for parts read together, the most otherwise; tokens of answers are the most
    that can be. ``cost_nano`` is of all of it, in billionths of the currency. Lengths are tokens."""

    valid: bool
    service: str
    flavor: str
    model: str
    strategy: str
    fits: bool
    input_tokens: int
    context_length: int
    prompt_tokens: int
    max_generation: int
    turns: int
    calls: int
    total_prompt_tokens: int
    total_completion_tokens: int
    cost_nano: int
    warnings: list[str]
    problem: str | None = None


class Dry:
    """The steps of a job that is not run."""

    async def checkpoint(self, step: str, given: object, compute: Callable[[], Awaitable[T]], form: type[T]) -> T:
        """Nothing is asked of a model here."""
        raise JobFailed("An estimate asks no model.")

    def progress(self, current: int, total: int = 0, phase: str = "") -> None:
        """Nobody is told."""


async def estimate(work: Work, cost: Cost) -> Estimate:
    """Returns what `passerelle.services.job.make` would do. ``work`` has `Dry` steps. Raises PasserelleError."""
    made = Estimate(
        valid=False,
        service=work.manifest.name,
        flavor=work.flavor.name,
        model=work.flavor.model,
        strategy=work.manifest.strategy.value,
        fits=False,
        input_tokens=0,
        context_length=0,
        prompt_tokens=0,
        max_generation=0,
        turns=0,
        calls=0,
        total_prompt_tokens=0,
        total_completion_tokens=0,
        cost_nano=0,
        warnings=work.warnings,
    )
    try:
        await _measure(work, made)
    except JobFailed as failure:
        made.problem = failure.message
        return made
    made.cost_nano = cost(made.model, made.total_prompt_tokens, made.total_completion_tokens)
    made.valid = True
    return made


async def _measure(work: Work, made: Estimate) -> None:
    if not work.text.strip():
        raise JobFailed("The text is empty: there is nothing to work on.", code="empty_input")
    made.input_tokens = await work.measure(work.text.strip())
    room = await work.room(work.manifest.prompt)
    made.context_length, made.prompt_tokens, made.max_generation = room.context, room.prompt, room.generation
    made.fits = made.input_tokens <= room.input
    strategy = await strategies.choose(work)
    made.strategy = strategy.value
    await _count_calls(work, made, strategy, room)
    _check_limits(work, made)


async def _count_calls(work: Work, made: Estimate, strategy: Strategy, room: Room) -> None:
    if strategy is Strategy.SINGLE or (strategy is Strategy.EXTRACT and made.fits):
        if not made.fits:
            raise JobFailed(
                f"The text has {made.input_tokens} tokens and one pass reads {room.input}: take a strategy that reads "
                "it in parts.",
                code="context_length_exceeded",
            )
        made.turns = made.calls = 1
        made.total_prompt_tokens = room.prompt + made.input_tokens
        made.total_completion_tokens = room.generation
        return
    rolls = strategy is Strategy.ROLLING
    share = Room(room.context, room.prompt, room.generation, room.input // 2) if rolls else room
    turns = await work.split(share)
    parts = await chunk(
        turns, share.input, work.count, max_turns=work.flavor.max_new_turns, language=work.manifest.language
    )
    made.turns, made.calls = len(turns), len(parts)
    read = sum(part.tokens for part in parts)
    shown = (made.calls - 1) * (room.input // 2) if rolls else 0
    made.total_prompt_tokens = made.calls * room.prompt + read + shown
    made.total_completion_tokens = made.calls * room.generation
    if work.flavor.reduce:
        _add_reduce(made, room)


def _add_reduce(made: Estimate, room: Room) -> None:
    """Adds the levels of reducing, each as long as it can be."""
    left = made.total_completion_tokens
    while left > room.input:
        level = ceil(left / room.input)
        made.calls += level
        made.total_prompt_tokens += level * room.prompt + left
        if level * room.generation >= left:
            break
        left = level * room.generation
        made.total_completion_tokens += left
    made.calls += 1
    made.total_prompt_tokens += room.prompt + min(left, room.input)
    made.total_completion_tokens += room.generation


def _check_limits(work: Work, made: Estimate) -> None:
    limits = work.manifest.limits
    if limits.max_input_tokens is not None and made.input_tokens > limits.max_input_tokens:
        raise JobFailed(
            f"The text has {made.input_tokens} tokens; this service takes {limits.max_input_tokens}.",
            code="input_too_long",
        )
    if limits.max_calls is not None and made.calls > limits.max_calls:
        raise JobFailed(
            f"This text takes about {made.calls} calls; this service makes {limits.max_calls} for one job.",
            code="too_many_calls",
        )
