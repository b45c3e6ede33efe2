"""One service job at work: its text, its prompts, and its calls of models with their checkpoints.

A strategy asks a `Work` for everything. Each call is a step of the job: an attempt after a crash finds the answers that
were there. A call that fails for a reason that passes is made again here, with growing waits; then the flavor's
fallbacks are tried; then the job's own retry rule decides.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from passerelle.domain.errors import ContextTooLong, PasserelleError, QuotaExhausted, RateLimited
from passerelle.jobs.context import JobFailed
from passerelle.services.caller import Answer, ModelCaller, Options
from passerelle.services.chunks import Chunk, Coverage, coverage
from passerelle.services.cutter import split_turns
from passerelle.services.manifest import Flavor, ServiceManifest
from passerelle.services.prompts import INPUT, PREVIOUS, PromptTemplate
from passerelle.services.turn import MIN_TURN_TOKENS, Turns

T = TypeVar("T")
DEFAULT_CONTEXT_TOKENS = 4096
"""For a model whose window neither its server nor its configuration tells."""
_BREATH_S = 0.002
"""After each batch of turns the loop is others' for so long: a request takes many steps, a large text many batches."""
_SLACK_TOKENS = 16
"""Servers may put some marks around a prompt that counting does not show."""
_WHOLE_CHARS = 131_072
"""Longer texts are counted in parts: a server answers with the number of every token."""


class Steps(Protocol):
    """What of a `passerelle.jobs.context.JobContext` is needed here."""

    async def checkpoint(self, step: str, given: object, compute: Callable[[], Awaitable[T]], form: type[T]) -> T:
        """Returns the output of a finished step, or computes and keeps it."""

    def progress(self, current: int, total: int = 0, phase: str = "") -> None:
        """Notes how far it is."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """How often one call is made again, and how long the waits between are at most."""

    max_retries: int = 6
    max_delay_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Room:
    """How the context of one call is divided, in tokens. ``prompt`` is the template with nothing in it."""

    context: int
    prompt: int
    generation: int
    input: int


@dataclass(slots=True)
class Tally:
    """What a job has taken so far, steps of earlier attempts included."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0
    cut: int = 0
    models: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, answer: Answer) -> None:
        """Adds one answer."""
        self.calls += 1
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost_nano += answer.cost_nano
        self.cut += answer.cut
        self.models[answer.model] += 1


class Work:
    """See above. ``text`` is the whole input."""

    def __init__(
        self,
        manifest: ServiceManifest,
        flavor: Flavor,
        text: str,
        caller: ModelCaller,
        steps: Steps,
        rules: CallRules | None = None,
    ) -> None:
        self.manifest = manifest
        self.flavor = flavor
        self.text = text
        self.tally = Tally()
        self.warnings: list[str] = []
        self.turns = Turns(text)
        self.read: list[Chunk] = []
        self._caller = caller
        self._steps = steps
        self._rules = rules or CallRules()
        self._done = 0
        self._total = 0
        self._phase = ""

    # What there is to read.

    async def room(self, prompt: PromptTemplate) -> Room:
        """Returns how much input fits beside ``prompt``. Raises JobFailed when next to nothing does.

        The answer gets what the flavor grants, and at most half of what the prompt leaves: a window smaller than the
        manifest hoped for still reads and writes.
        """
        known = [size for size in (self.flavor.context_tokens, self._caller.window(self.flavor.model)) if size]
        context = min(known, default=DEFAULT_CONTEXT_TOKENS)
        fixed = await self._caller.count_prompt(self.flavor.model, self.fill(prompt, "")) + _SLACK_TOKENS
        generation = max(1, min(self.flavor.max_generation_tokens, (context - fixed) // 2))
        left = context - fixed - generation
        if left < MIN_TURN_TOKENS:
            raise JobFailed(
                f"The prompt '{prompt.name}' takes {fixed} of the {context} tokens that '{self.flavor.model}' reads at "
                "once: shorten it, or take a model with a larger window.",
                code="context_too_small",
            )
        if generation < self.flavor.max_generation_tokens:
            self.warn(f"Answers have at most {generation} tokens: more do not fit the window of {context}.")
        return Room(context, fixed, generation, left)

    async def split(self, room: Room) -> Turns:
        """Returns the turns of the text, long ones cut; they are what coverage is told in."""
        longest = max(MIN_TURN_TOKENS, min(self.flavor.create_new_turn_after, room.input))
        self.turns = await split_turns(self.text, self.count, max_tokens=longest, language=self.manifest.language)
        return self.turns

    async def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the tokens of each text. Others get a turn meanwhile, also where nobody has to be asked."""
        await asyncio.sleep(_BREATH_S)
        return await self._caller.count(self.flavor.model, texts)

    async def measure(self, text: str, enough: int | None = None) -> int:
        """Returns the tokens of a text of any length; once there are more than ``enough``, some number above it.

        A very long one is counted in parts that end with a line or a word: that is exact but for a token or so a part.
        """
        tokens = at = 0
        while at < len(text) and (enough is None or tokens <= enough):
            end = _part_end(text, at)
            tokens += (await self.count([text[at:end]]))[0]
            at = end
        return tokens

    def coverage(self) -> Coverage:
        """Returns how much of the input was read."""
        return coverage(self.turns, self.read)

    # Calls.

    def fill(self, prompt: PromptTemplate, text: str, previous: str = "", part: int = 1, parts: int = 1) -> str:
        """Returns a prompt filled with what a service gives."""
        schema = self.manifest.output.schema
        return prompt.render(
            {
                INPUT: text,
                PREVIOUS: previous,
                "language": self.manifest.language or "",
                "metadata": dict(self.manifest.metadata),
                "output_schema": "" if schema is None else msgspec.json.encode(dict(schema)).decode(),
                "part": part,
                "parts": parts,
            }
        )

    async def ask(self, step: str, prompt: str, room: Room, *, json: bool = False) -> Answer:
        """Returns the answer to a filled prompt, as the step of that name. Raises JobFailed or PasserelleError."""
        most = self.manifest.limits.max_calls
        if most is not None and self.tally.calls >= most:
            raise JobFailed(f"This service makes at most {most} calls for one job.", code="too_many_calls")
        options = Options(
            max_tokens=room.generation,
            temperature=self.flavor.temperature,
            top_p=self.flavor.top_p,
            json=json,
            schema=dict(self.manifest.output.schema) if json and self.manifest.output.schema is not None else None,
        )
        models = (self.flavor.model, *self.flavor.fallbacks)
        given = {"models": models, "prompt": prompt, "options": options}
        answer = await self._steps.checkpoint(step, given, lambda: self._ask(models, prompt, options), Answer)
        self.tally.add(answer)
        return answer

    async def gather(self, count: int, ask: Callable[[int], Awaitable[T]]) -> list[T]:
        """Makes ``count`` calls, as many together as the model's servers bear; ``ask`` is given the number of each.

        Returns the answers in order.
        """
        places = self._caller.parallel(self.flavor.model)
        if self.manifest.limits.max_parallel is not None:
            places = min(places, self.manifest.limits.max_parallel)
        waiting = iter(range(count))
        found: dict[int, T] = {}

        async def worker() -> None:
            for index in waiting:
                found[index] = await ask(index)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(places, count)):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [found[index] for index in range(count)]

    # What is told.

    def warn(self, sentence: str) -> None:
        """Adds a sentence for the user to the result, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    @contextmanager
    def phase(self, name: str, units: int = 0) -> Iterator[None]:
        """Counts time to a phase, and adds its units to what there is to do."""
        began, before = time.monotonic(), self._phase
        self._phase = name
        self._total += units
        self._tell()
        try:
            yield
        finally:
            self.tally.seconds[name] += time.monotonic() - began
            self._phase = before

    def done(self, units: int) -> None:
        """Tells that so many units are finished."""
        self._done = min(self._total, self._done + units)
        self._tell()

    def _tell(self) -> None:
        self._steps.progress(self._done, self._total, self._phase)

    def details(self) -> dict[str, Any]:
        """Returns the facts that go beside the result."""
        tally, covered = self.tally, self.coverage()
        return {
            "service": self.manifest.name,
            "flavor": self.flavor.name,
            "models": dict(tally.models),
            "calls": tally.calls,
            "usage": {
                "prompt_tokens": tally.prompt_tokens,
                "cached_tokens": tally.cached_tokens,
                "completion_tokens": tally.completion_tokens,
                "cost_nano": tally.cost_nano,
            },
            "coverage": {
                "turns": covered.turns,
                "turns_read": covered.turns_read,
                "characters": covered.characters,
                "characters_read": covered.characters_read,
                "missing": [list(span) for span in covered.missing],
                "complete": covered.complete,
            },
            "seconds": {name: round(seconds, 3) for name, seconds in tally.seconds.items()},
            "warnings": self.warnings,
        }

    async def _ask(self, models: Sequence[str], prompt: str, options: Options) -> Answer:
        for index, model in enumerate(models):
            try:
                return await self._ask_one(model, prompt, options)
            except PasserelleError as error:
                if index + 1 == len(models) or not (_passes(error) or isinstance(error, ContextTooLong)):
                    raise
                self.warn(f"'{model}' could not answer; '{models[index + 1]}' did.")
        raise AssertionError("a flavor names a model")

    async def _ask_one(self, model: str, prompt: str, options: Options) -> Answer:
        empty = 0
        for attempt in range(self._rules.max_retries + 1):
            try:
                answer = await self._caller.ask(model, prompt, options)
            except PasserelleError as error:
                if not _passes(error) or attempt == self._rules.max_retries:
                    raise
                most = min(self._rules.max_delay_s, 2.0**attempt)
                await asyncio.sleep(max(error.retry_after_s or 0.0, random.uniform(most / 2, most)))  # noqa: S311
                continue
            if answer.text.strip():
                return answer
            empty += 1
            if empty == 2:
                break
        raise JobFailed(
            f"The model '{model}' answered nothing, twice: look at the prompt, or take another model.",
            code="empty_answer",
        )


def _part_end(text: str, at: int) -> int:
    """Returns where the part that begins at ``at`` ends, for counting."""
    end = at + _WHOLE_CHARS
    if end >= len(text):
        return len(text)
    line, word = text.rfind("\n", at + 1, end), text.rfind(" ", at + 1, end)
    return line + 1 if line > 0 else word if word > 0 else end


def _passes(error: PasserelleError) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, QuotaExhausted):
        return False
    return isinstance(error, RateLimited) or error.status in (502, 503, 504)
