"""Strategies, with a model that can be looked into: it counts words as tokens and answers by a rule."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from passerelle.catalog.problem import Mark
from passerelle.domain.errors import Overloaded, PasserelleError, Unavailable
from passerelle.jobs.context import JobFailed
from passerelle.services import strategies
from passerelle.services.caller import Answer, Options
from passerelle.services.manifest import Flavor, OutputSpec, ServiceLimits, ServiceManifest, Strategy
from passerelle.services.prompts import PromptSyntax, PromptTemplate, parse_prompt
from passerelle.services.strategies.consolidate import consolidate
from passerelle.services.strategies.extract import merge, parse
from passerelle.services.turns import is_spoken
from passerelle.services.work import CallRules, Work

Rule = Callable[[str], str]


def words(text: str) -> int:
    return len(text.split())


def echo(prompt: str) -> str:
    """Answers with what is to be processed: the text after the last mark."""
    return prompt.rsplit("TEXT", 1)[1].strip()


class Model:
    """A scripted model. ``places`` is how many calls it bears; ``most`` is how many it had at once."""

    def __init__(self, rule: Rule = echo, window: int | None = 60, places: int = 4) -> None:
        self.rule = rule
        self.prompts: list[str] = []
        self.options: list[Options] = []
        self.models: list[str] = []
        self.errors: list[PasserelleError] = []
        self.running = 0
        self.most = 0
        self._window = window
        self._places = places

    async def ask(self, model: str, prompt: str, options: Options) -> Answer:
        self.prompts.append(prompt)
        self.options.append(options)
        self.models.append(model)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if self.errors:
                raise self.errors.pop(0)
            text = self.rule(prompt)
        finally:
            self.running -= 1
        said = " ".join(text.split(" ")[: options.max_tokens])
        return Answer(
            text=said,
            model=model,
            prompt_tokens=words(prompt),
            cached_tokens=0,
            completion_tokens=words(said),
            cost_nano=7,
            cut=said != text,
            seconds=0.0,
        )

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        return [words(text) for text in texts]

    async def count_prompt(self, model: str, prompt: str) -> int:
        return words(prompt)

    def window(self, model: str) -> int | None:
        return self._window

    def parallel(self, model: str) -> int:
        return self._places


class Steps:
    """Checkpoints in memory, and everything that was told about progress."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, bytes], bytes] = {}
        self.told: list[tuple[int, int, str]] = []

    async def checkpoint(self, step: str, given: object, compute: Callable[[], Awaitable[Any]], form: type[Any]) -> Any:
        key = (step, msgspec.json.encode(given))
        if key not in self.kept:
            self.kept[key] = msgspec.json.encode(await compute())
        return msgspec.json.decode(self.kept[key], type=form)

    def progress(self, current: int, total: int = 0, phase: str = "") -> None:
        self.told.append((current, total, phase))


def prompt_of(text: str) -> PromptTemplate:
    return parse_prompt(text, "p", PromptSyntax.SLOTS)


def work(
    text: str,
    model: Model,
    *,
    strategy: Strategy = Strategy.AUTO,
    prompt: str = "Do TEXT {}",
    steps: Steps | None = None,
    output: OutputSpec | None = None,
    limits: ServiceLimits | None = None,
    rules: CallRules | None = None,
    **flavor: Any,
) -> Work:
    template = prompt_of(prompt)
    made = Flavor("f", "m", **{"max_generation_tokens": 20, "create_new_turn_after": 20, **flavor})
    manifest = ServiceManifest(
        id="s",
        name="s",
        route="s",
        type="summary",
        fields=template.slots,
        strategy=strategy,
        flavors=(made,),
        prompt=template,
        document={},
        mark=Mark("s.yaml"),
        output=output or OutputSpec(),
        limits=limits or ServiceLimits(),
    )
    return Work(manifest, made, text, model, steps or Steps(), rules or CallRules(max_delay_s=0.001))


def transcript(turns: int) -> str:
    return "\n".join(f"{'AB'[n % 2]} : word{n}a word{n}b word{n}c" for n in range(turns))


async def test_a_text_that_fits_is_read_in_one_pass() -> None:
    """One call sees all of it, blank lines included, and coverage is whole."""
    made = work("A : one\n\nB : two", model := Model())
    strategy, result = await strategies.run(made)
    assert strategy is Strategy.SINGLE
    assert result == "A : one\n\nB : two"
    assert len(model.prompts) == 1
    assert made.details()["coverage"]["complete"] is True
    assert made.details()["usage"]["cost_nano"] == 7


async def test_map_reads_every_turn_once_and_keeps_the_order() -> None:
    """Parts run together, as many as the model bears, and their answers stand in the order of the text."""
    text = transcript(40)
    made = work(text, model := Model(places=3), max_generation_tokens=60)
    strategy, result = await strategies.run(made)
    assert strategy is Strategy.MAP_REDUCE
    assert result == text
    assert model.most == 3
    assert made.details()["coverage"] == {
        "turns": 40,
        "turns_read": 40,
        "characters": len(text),
        "characters_read": len(text),
        "missing": [],
        "complete": True,
    }
    assert all(words(prompt) + model.options[0].max_tokens <= 60 for prompt in model.prompts)


async def test_no_more_turns_a_call_than_the_manifest_says() -> None:
    """``maxNewTurns`` bounds a part, also when more would fit."""
    await strategies.run(work(transcript(40), model := Model(window=10_000), strategy=Strategy.MAP_REDUCE))
    assert max(prompt.count("\n") + 1 for prompt in model.prompts) == 9


async def test_rolling_shows_the_last_lines_of_the_result() -> None:
    """Each call sees at most ``summaryTurns`` lines of what was made, and the next turns."""
    model = Model()
    model.rule = lambda prompt: f"line{len(model.prompts)}"
    made = work(transcript(40), model, prompt="So far {} then TEXT {}", summary_turns=2)
    strategy, result = await strategies.run(made)
    assert strategy is Strategy.ROLLING
    assert model.prompts[0].startswith("So far  then")
    assert model.prompts[3].startswith("So far line2\nline3 then")
    assert result.splitlines() == [f"line{n + 1}" for n in range(len(model.prompts))]
    assert made.details()["coverage"]["complete"] is True


async def test_a_result_so_far_that_is_too_long_is_shown_in_part() -> None:
    """Lines that would take the room of the text are left out, oldest first, and the job still ends."""
    model = Model(rule=lambda prompt: "long " * 18 + "end")
    made = work(transcript(12), model, prompt="So far {} then TEXT {}", summary_turns=50)
    await strategies.run(made)
    assert made.details()["coverage"]["complete"] is True


async def test_reduce_goes_in_levels_until_one_call_holds_it() -> None:
    """A result larger than the window is reduced part by part, and then once more as a whole."""

    def rule(prompt: str) -> str:
        return " ".join(echo(prompt).split()[:4]) if prompt.startswith("Reduce") else echo(prompt)

    made = work(transcript(60), model := Model(rule), reduce=True, reduce_prompt=prompt_of("Reduce TEXT {}"))
    _, result = await strategies.run(made)
    assert words(result) <= 4
    assert sum(prompt.startswith("Reduce") for prompt in model.prompts) > 2


async def test_reduce_that_does_not_shorten_ends() -> None:
    """A model that only repeats cannot make the job run for ever."""
    made = work(transcript(60), Model(), reduce=True, reduce_prompt=prompt_of("Reduce TEXT {}"))
    await strategies.run(made)
    assert "do not get shorter" in made.warnings[-1]


def test_consolidate() -> None:
    """Consecutive lines of a speaker are joined; what nobody said stays as it is."""
    assert consolidate("A : one\nA : two\nB : three\nA : four") == "A : one two\nB : three\nA : four"
    assert consolidate("just\ntext") == "just\ntext"


async def test_extract_merges_the_parts() -> None:
    """Lists are joined, the first value of other keys stays, and the result is one JSON object."""

    def rule(prompt: str) -> str:
        first = echo(prompt).split()[2]
        return f'Sure: {{"title":"{first}","items":["{first}","same"]}}'

    output = OutputSpec("json", {"type": "object"})
    made = work(transcript(40), model := Model(rule), output=output)
    strategy, result = await strategies.run(made)
    found = json.loads(result)
    assert strategy is Strategy.EXTRACT
    assert found["title"] == "word0a"
    assert found["items"].count("same") == 1
    assert len(found["items"]) == len(model.prompts) + 1
    assert model.options[0].schema == {"type": "object"}


async def test_a_schema_is_shown_to_the_prompt_and_to_the_server() -> None:
    """As a manifest holds it, which nobody can write to, it reaches the prompt's variable and the call."""
    schema: dict[str, object] = {"type": "object", "properties": {"a": {"type": "array"}}}
    output = OutputSpec("json", MappingProxyType(schema))
    model = Model(lambda prompt: "{}")
    made = work("A : one", model, strategy=Strategy.EXTRACT, output=output)
    made.manifest = replace(
        made.manifest, prompt=parse_prompt("{{ output_schema }} {{ input }}", "p", PromptSyntax.JINJA)
    )
    await strategies.run(made)
    assert json.loads(model.prompts[0].removesuffix(" A : one")) == schema
    assert model.options[0].schema == schema


async def test_extract_without_json_says_which_part() -> None:
    """A part that gives no JSON twice fails the job, in words that help."""
    made = work("A : one", Model(lambda prompt: "no"), strategy=Strategy.EXTRACT)
    with pytest.raises(JobFailed, match="Part 1 of 1 gave no JSON") as caught:
        await strategies.run(made)
    assert caught.value.code == "invalid_output"


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ({"a": 1}, {"a": 2, "b": 3}, {"a": 1, "b": 3}),
        ({"a": [1]}, {"a": [1, 2]}, {"a": [1, 2]}),
        ({"a": None}, {"a": 5}, {"a": 5}),
        ({"a": {"x": [1]}}, {"a": {"x": [2], "y": ""}}, {"a": {"x": [1, 2], "y": ""}}),
        (None, [1], [1]),
    ],
)
def test_merge(one: object, other: object, both: object) -> None:
    """Objects by key, lists joined, the first value that says something."""
    assert merge(one, other) == both


def test_json_is_found_in_an_answer() -> None:
    """Fences and words around it do no harm."""
    assert parse('Here:\n```json\n{"a": 1}\n```') == {"a": 1}
    assert parse("[1, 2] is it") == [1, 2]
    with pytest.raises(ValueError, match="no JSON"):
        parse("nothing")


async def test_a_retry_repeats_no_finished_call() -> None:
    """An attempt after a crash asks only what was not answered."""
    steps, model = Steps(), Model()
    _, first = await strategies.run(work(transcript(40), model, steps=steps))
    asked = len(model.prompts)
    again = work(transcript(40), model, steps=steps)
    _, result = await strategies.run(again)
    assert len(model.prompts) == asked
    assert result == first
    assert again.details()["calls"] == asked


async def test_a_model_that_is_away_for_a_while_is_waited_for() -> None:
    """Errors that pass are tried again; in the end the fallback answers, and the result says so."""
    model = Model()
    model.errors = [Overloaded("full"), Unavailable("away")]
    await strategies.run(work("A : one", model))
    assert len(model.prompts) == 3
    model = Model()
    model.errors = [Unavailable("away")] * 3
    made = work("A : one", model, rules=CallRules(max_retries=2, max_delay_s=0.001), fallbacks=("other",))
    await strategies.run(made)
    assert model.models[-1] == "other"
    assert made.warnings == ["'m' could not answer; 'other' did."]


async def test_a_model_that_answers_nothing() -> None:
    """It is asked twice, and the job ends in words for its user."""
    with pytest.raises(JobFailed, match="answered nothing") as caught:
        await strategies.run(work("A : one", model := Model(lambda prompt: "  ")))
    assert caught.value.code == "empty_answer"
    assert len(model.prompts) == 2


async def test_a_prompt_larger_than_the_window() -> None:
    """The job ends and says what to do; so does a text for a service that reads in one pass only."""
    with pytest.raises(JobFailed, match="shorten it") as caught:
        await strategies.run(work("A : one", Model(window=30), prompt="much " * 40 + "TEXT {}"))
    assert caught.value.code == "context_too_small"
    with pytest.raises(JobFailed, match="in parts"):
        await strategies.run(work(transcript(40), Model(), strategy=Strategy.SINGLE))


async def test_limits_of_a_service() -> None:
    """``max_calls`` ends a job, ``max_parallel`` holds its calls back."""
    with pytest.raises(JobFailed, match="at most 2 calls"):
        await strategies.run(work(transcript(40), Model(), limits=ServiceLimits(max_calls=2)))
    await strategies.run(work(transcript(40), model := Model(places=8), limits=ServiceLimits(max_parallel=2)))
    assert model.most == 2


async def test_progress_grows_to_the_whole() -> None:
    """It never goes back, never passes the total, and ends there."""
    steps = Steps()
    await strategies.run(work(transcript(40), Model(), steps=steps))
    done = [current for current, total, _ in steps.told if total]
    assert done == sorted(done)
    assert steps.told[-1][0] == steps.told[-1][1] == 40


async def test_an_answer_that_was_cut_is_told() -> None:
    """The user learns that an answer came to its longest length."""
    made = work("A : one", Model(lambda prompt: "w " * 200))
    await strategies.run(made)
    assert any("cut off" in warning for warning in made.warnings)


async def test_a_turn_longer_than_the_window() -> None:
    """It is cut at sentences, and every word is read."""
    text = "A : " + " ".join(f"Sentence {n} is here." for n in range(100))
    made = work(text, model := Model(), max_generation_tokens=60)
    _, result = await strategies.run(made)
    assert [word for word in result.split() if word not in ("A", ":")] == text.split()[2:]
    assert made.details()["coverage"]["complete"] is True
    assert len(model.prompts) > 5


class Ticking(Model):
    """A model whose counting asks nobody. ``seen`` is how often others had had their turn when it was asked to count,
    and ``most_chars`` how much it counted at one time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ticks = 0
        self.seen: list[int] = []
        self.most_chars = 0

    async def tick(self) -> None:
        """Takes others' turns, until it is cancelled."""
        while True:
            self.ticks += 1
            await asyncio.sleep(0)

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        self.seen.append(self.ticks)
        self.most_chars = max(self.most_chars, sum(map(len, texts)))
        return await super().count(model, texts)


@pytest.mark.parametrize("text", ["A : word word word word\n" * 60_000, "Some words, and more of them.\n" * 60_000])
async def test_a_large_text_leaves_others_their_turn(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done at one time does not grow with the text; a text is looked through for names beside the loop."""
    looked: list[int] = []

    def noted(given: str) -> bool:
        looked.append(threading.get_ident())
        return is_spoken(given)

    monkeypatch.setattr("passerelle.services.cutter.is_spoken", noted)
    made = work(text, model := Ticking(window=20_000), max_generation_tokens=100, max_new_turns=1000)
    ticking = asyncio.create_task(model.tick())
    await strategies.run(made)
    ticking.cancel()
    assert len(model.seen) > 50
    assert all(later > earlier for earlier, later in pairwise(model.seen))
    assert model.most_chars < 200_000
    assert looked and threading.get_ident() not in looked
