"""How a service is written in YAML: its keys, their rules and units."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta
from msgspec import field as key

from passerelle.catalog.schema import SECONDS, TOKENS, ModelName
from passerelle.catalog.shape import Section
from passerelle.services.manifest import Strategy

FileStem = Annotated[
    str,
    Meta(
        pattern=r"^[^\W_][\w.\- ]{0,99}\Z",
        extra={"accepted": "1 to 100 letters, digits, spaces and . _ -, starting with a letter or digit"},
    ),
]
Route = Annotated[
    str,
    Meta(
        pattern=r"^/?[A-Za-z0-9][A-Za-z0-9._\-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._\-]{0,99}){0,7}/?\Z",
        extra={"accepted": "1 to 8 words of letters, digits and . _ -, with / between them"},
    ),
]
Text = Annotated[str, Meta(min_length=1, max_length=1000)]


class FlavorSection(Section, frozen=True, kw_only=True):
    """One way to run a service: a model and its parameters."""

    name: Annotated[Text, Meta(description="What clients put in `flavor`.")]
    model_name: Annotated[ModelName, Meta(description="The model; `model` means the same.")] | None = key(
        default=None, name="modelName"
    )
    fallbacks: Annotated[
        tuple[ModelName, ...], Meta(description="Models to use, in order, when it cannot answer.")
    ] = ()
    context: (
        Annotated[int, Meta(ge=64, le=100_000_000, description="Prompt, input and answer together.", extra=TOKENS)]
        | None
    ) = key(default=None, name="totalContextLength")
    max_generation: Annotated[int, Meta(ge=1, le=10_000_000, description="The longest answer.", extra=TOKENS)] = key(
        default=2048, name="maxGenerationLength"
    )
    new_turn_after: Annotated[
        int, Meta(ge=16, le=10_000_000, description="Longer turns are cut into virtual turns.", extra=TOKENS)
    ] = key(default=250, name="createNewTurnAfter")
    summary_turns: Annotated[int, Meta(ge=0, le=10_000, description="Rolling: lines so far that are shown again.")] = (
        key(default=3, name="summaryTurns")
    )
    max_new_turns: Annotated[int, Meta(ge=1, le=100_000, description="Turns of one call at most.")] = key(
        default=9, name="maxNewTurns"
    )
    temperature: Annotated[float, Meta(ge=0, le=2, description="Of sampling.")] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1, description="Of sampling; 0 leaves it to the model.")] | None = None
    reduce: Annotated[bool, Meta(description="Read the results of all parts once more, together.")] = key(
        default=False, name="reduceSummary"
    )
    consolidate: Annotated[bool, Meta(description="Join consecutive lines of one speaker.")] = key(
        default=False, name="consolidateSummary"
    )
    reduce_prompt: Annotated[FileStem, Meta(description="The prompt file of the reduce step.")] | None = None
    type: Annotated[str, Meta(max_length=100, description="Shown to clients: abstractive, extractive, markdown.")] = (
        "abstractive"
    )
    tokenizer_class: Annotated[str, Meta(description="Not used: tokens are counted by the model itself.")] | None = key(
        default=None, name="tokenizerClass"
    )


class LimitsSection(Section, frozen=True, kw_only=True):
    """What one job may cost."""

    max_input_bytes: (
        Annotated[int, Meta(ge=1, le=4_294_967_296, description="Larger files are refused.", extra={"unit": "bytes"})]
        | None
    ) = None
    max_input_tokens: (
        Annotated[int, Meta(ge=1, le=1_000_000_000, description="Longer texts are refused.", extra=TOKENS)] | None
    ) = None
    max_calls: Annotated[int, Meta(ge=1, le=1_000_000, description="Calls of models for one job.")] | None = None
    max_parallel: Annotated[int, Meta(ge=1, le=10_000, description="Calls of one job at one time.")] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=2_592_000, description="For one whole job.", extra=SECONDS)] | None = None


class OutputSection(Section, frozen=True, kw_only=True):
    """What the result is."""

    type: Annotated[Literal["text", "markdown", "json"], Meta(description="Its form.")] = "text"
    schema: Annotated[dict[str, str], Meta(description="`json`: the JSON schema it follows.")] | None = None


class ServiceSection(Section, frozen=True, kw_only=True):
    """A service."""

    type: Annotated[Text, Meta(description="A word for clients.")] = "summary"
    fields: Annotated[int, Meta(ge=1, le=2, description="Slots of the prompt: 1 for map, 2 for rolling.")] | None = None
    name: Annotated[FileStem, Meta(description="Its name; that of its prompt file, too.")] | None = None
    route: Annotated[
        Route, Meta(description="Where it is called: `/services/{route}/generate`; the id by default.")
    ] | (None) = None
    description: Annotated[dict[str, str], Meta(description="By language, or one text.")] = key(default_factory=dict)
    backend: Annotated[str, Meta(description="Not used.")] | None = None
    flavor: Annotated[tuple[FlavorSection, ...], Meta(description="Ways to run it; the first is the default.")] = ()
    strategy: Annotated[Strategy, Meta(description="How long texts are worked on.")] | None = None
    model: Annotated[ModelName, Meta(description="The model of flavors that name none.")] | None = None
    fallbacks: Annotated[tuple[ModelName, ...], Meta(description="Of flavors that name none.")] = ()
    prompt: Annotated[FileStem, Meta(description="The prompt file, if it is not called like the service.")] | None = (
        None
    )
    limits: Annotated[LimitsSection, Meta(description="What one job may cost.")] = LimitsSection()
    output: Annotated[OutputSection, Meta(description="What the result is.")] = OutputSection()
    language: Annotated[str, Meta(pattern=r"^[A-Za-z]{2,3}([_\-][A-Za-z0-9]{1,8})*\Z", description="Of inputs.")] | (
        None
    ) = None
    metadata: Annotated[dict[str, str], Meta(description="Anything; prompts and clients see it.")] = key(
        default_factory=dict
    )
