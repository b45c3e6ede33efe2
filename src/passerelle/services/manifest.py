"""Service manifests: how a service is written in YAML, and what it means.

A file holds one service at its top (``name:``, ``flavor:`` …), or several by their ids (``summarize-en: {…}``), or
groups of them (``summarize: {en: {…}, fr: {…}}``, whose ids are ``summarize/en`` and ``summarize/fr``). The keys of
LinTO's LLM Gateway are read as it reads them, and these are added: ``strategy``, ``model`` and ``fallbacks``,
``prompt``, ``limits``, ``output``, ``language``, ``metadata``. Every mistake is told with file, line and key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Literal

from msgspec import Meta
from msgspec import field as key

from passerelle.catalog.document import Document
from passerelle.catalog.node import Entry, Node, Scalar, Series, Table, is_null, place
from passerelle.catalog.problem import Mark, one_line
from passerelle.catalog.schema import SECONDS, TOKENS, ModelName
from passerelle.catalog.shape import Section, Shaper
from passerelle.services.plain import plain
from passerelle.services.prompts import PromptTemplate

DEFAULT_FLAVOR = "default"
_MAX_GROUPS = 5

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


class Strategy(StrEnum):
    """How a text becomes a result. ``auto`` reads it in one pass when it fits, else as its prompt's slots say."""

    AUTO = "auto"
    SINGLE = "single"
    ROLLING = "rolling"
    MAP_REDUCE = "map_reduce"
    EXTRACT = "extract"


SLOTS: Mapping[Strategy, frozenset[int]] = MappingProxyType(
    {
        Strategy.AUTO: frozenset({1, 2}),
        Strategy.SINGLE: frozenset({1, 2}),
        Strategy.ROLLING: frozenset({2}),
        Strategy.MAP_REDUCE: frozenset({1}),
        Strategy.EXTRACT: frozenset({1}),
    }
)
"""How many slots a prompt may have for each strategy: the text, or what was made so far and the text."""


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
    top_p: Annotated[float, Meta(gt=0, le=1, description="Of sampling.")] | None = None
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


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the result is: ``type`` is text, markdown or json; ``schema`` the JSON schema of the latter, or None."""

    type: str = "text"
    schema: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What one job may cost; None is no limit of the service's own."""

    max_input_bytes: int | None = None
    max_input_tokens: int | None = None
    max_calls: int | None = None
    max_parallel: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Flavor:
    """One way to run a service. All lengths are tokens; ``context_tokens`` is None for the model's own window."""

    name: str
    model: str
    fallbacks: tuple[str, ...] = ()
    context_tokens: int | None = None
    max_generation_tokens: int = 2048
    create_new_turn_after: int = 250
    summary_turns: int = 3
    max_new_turns: int = 9
    temperature: float | None = None
    top_p: float | None = None
    reduce: bool = False
    consolidate: bool = False
    reduce_prompt: PromptTemplate | None = None
    type: str = "abstractive"


@dataclass(frozen=True, slots=True)
class ServiceManifest:
    """A service that is ready to be used.

    ``document`` is the service as in YAML, for clients; ``mark`` is where it was written. ``fields`` are the slots of
    its prompt: 1 or 2.
    """

    id: str
    name: str
    route: str
    type: str
    fields: int
    strategy: Strategy
    flavors: tuple[Flavor, ...]
    prompt: PromptTemplate
    document: Mapping[str, object]
    mark: Mark
    description: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    language: str | None = None
    output: OutputSpec = OutputSpec()
    limits: ServiceLimits = ServiceLimits()
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    def flavor(self, name: str | None = None) -> Flavor | None:
        """Returns the flavor of that name, the first without one; None when there is none of that name."""
        if name is None:
            return self.flavors[0]
        return next((flavor for flavor in self.flavors if flavor.name == name), None)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model it names, once."""
        named = (name for flavor in self.flavors for name in (flavor.model, *flavor.fallbacks))
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True, slots=True)
class WrittenService:
    """A service as its file has it, sound in itself; its prompts are not looked at yet.

    ``output`` and ``description`` are settled; ``marks`` of keys come from ``node``.
    """

    id: str
    name: str
    route: str
    section: ServiceSection
    flavors: tuple[FlavorSection, ...]
    node: Table
    description: Mapping[str, str]
    output: OutputSpec
    metadata: Mapping[str, object]
    document: Mapping[str, object]

    def mark(self, *path: str | int) -> Mark:
        """Returns where a part of it was written."""
        return place(self.node, path)


_APART = frozenset({"flavor", "description", "metadata", "output"})
_ALONE = ("flavor", "name", "model", "prompt", "fields", "strategy")
_SERVICE_KEYS = frozenset(ServiceSection.__struct_fields__)
_YES, _NO = frozenset({"yes", "Yes", "YES", "on", "On", "ON"}), frozenset({"no", "No", "NO", "off", "Off", "OFF"})
_SWITCHES = ("reduceSummary", "consolidateSummary")


def read_services(
    document: Document, shaper: Shaper, defaults: Table | None = None
) -> tuple[list[WrittenService], frozenset[str]]:
    """Returns the sound services of a file, and the ids of all; what is wrong with some goes to ``shaper.problems``.

    ``defaults`` gives flavors the keys they leave out.
    """
    written: list[WrittenService] = []
    ids: set[str] = set()
    for name, node in _services(document.root, shaper):
        ids.add(name)
        service = _read_service(name, node, shaper, defaults)
        if service is not None:
            written.append(service)
    return written, frozenset(ids)


def _services(root: Table, shaper: Shaper) -> Iterator[tuple[str, Table]]:
    if any(isinstance(root.get(name), Scalar) for name in _ALONE) or isinstance(root.get("flavor"), Series):
        name = root.get("name")
        yield (name.text if isinstance(name, Scalar) else ""), root
        return
    waiting: list[tuple[str, Node, int]] = [("", root, 0)]
    while waiting:
        path, node, depth = waiting.pop()
        if not isinstance(node, Table):
            shaper.report(node.mark, one_line(path), "expected a service: keys and values")
        elif path and not _is_group(node):
            yield path, node
        elif depth > _MAX_GROUPS:
            shaper.report(node.mark, one_line(path), f"services are grouped more than {_MAX_GROUPS} levels deep")
        else:
            inside = [
                (f"{path}/{name.strip('/')}" if path else name.strip("/"), entry.value, depth + 1)
                for name, entry in node.entries.items()
                if path or name != "defaults"
            ]
            waiting.extend(reversed(inside))


def _is_group(node: Table) -> bool:
    return (
        bool(node.entries)
        and all(isinstance(entry.value, Table) for entry in node.entries.values())
        and not node.entries.keys() & _SERVICE_KEYS
    )


def _read_service(name: str, node: Table, shaper: Shaper, defaults: Table | None) -> WrittenService | None:
    before = len(shaper.problems)
    at = one_line(name)
    section = shaper.section(ServiceSection, node, at, apart=_APART)
    output = _output(node, shaper, at)
    description = _description(node, shaper, at)
    metadata = _mapping(node, "metadata", shaper, at)
    flavors = _flavors(node, shaper, at, section, defaults)
    route = section.route.strip("/") if section is not None and section.route else name
    if section is not None and section.route is None:
        _check_id(name, node, shaper, at)
    if section is None or len(shaper.problems) > before:
        return None
    own = section.name or name.replace("/", "-")
    document = plain(node)
    assert isinstance(document, dict)
    return WrittenService(
        name, own, route, section, tuple(flavors), node, description, output, metadata, MappingProxyType(document)
    )


class _Id(Section, frozen=True, kw_only=True):
    id: Route


def _check_id(name: str, node: Table, shaper: Shaper, at: str) -> None:
    """The id is the route of a service that names none."""
    if not name:
        shaper.report(node.mark, "name", "this key is required: a file of one service says what it is called")
        return
    shaper.section(_Id, Table(node.mark, {"id": Entry(node.mark, Scalar(node.mark, name, quoted=True))}), at)


def _output(node: Table, shaper: Shaper, at: str) -> OutputSpec:
    written = node.get("output")
    if isinstance(written, Scalar):
        written = Table(written.mark, {"type": Entry(written.mark, written)})
    if written is None:
        return OutputSpec()
    section = shaper.section(OutputSection, written, f"{at}.output", apart=frozenset({"schema"}))
    schema = written.get("schema") if isinstance(written, Table) else None
    if section is None:
        return OutputSpec()
    if schema is None:
        return OutputSpec(section.type)
    if not isinstance(schema, Table) or section.type != "json":
        message = "a schema is keys and values" if section.type == "json" else "a schema belongs to output of type json"
        shaper.report(schema.mark, f"{at}.output.schema", message)
        return OutputSpec(section.type)
    found = plain(schema)
    assert isinstance(found, dict)
    for problem, place_of in _schema_problems(schema):
        shaper.report(place_of, f"{at}.output.schema", problem)
    return OutputSpec(section.type, MappingProxyType(found))


_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})


def _schema_problems(schema: Table) -> Iterator[tuple[str, Mark]]:
    """Yields what is wrong with the parts of a JSON schema that the merging of results goes by."""
    kind = schema.get("type")
    for word in kind.items if isinstance(kind, Series) else [kind]:
        if word is not None and not (isinstance(word, Scalar) and word.text in _TYPES):
            yield f"'type' is one of {', '.join(sorted(_TYPES))}", word.mark
    properties = schema.get("properties")
    if properties is not None and not isinstance(properties, Table):
        yield "'properties' is keys and values", properties.mark
    inside = [entry.value for entry in properties.entries.values()] if isinstance(properties, Table) else []
    for part in [*inside, schema.get("items")]:
        if isinstance(part, Table):
            yield from _schema_problems(part)
        elif part is not None and not (isinstance(part, Scalar) and part.text in ("true", "false")):
            yield "a part of a schema is keys and values", part.mark


def _description(node: Table, shaper: Shaper, at: str) -> Mapping[str, str]:
    written = node.get("description")
    if isinstance(written, Scalar):
        return MappingProxyType({"en": written.text})
    if isinstance(written, Table) and all(isinstance(entry.value, Scalar) for entry in written.entries.values()):
        return MappingProxyType(
            {name: entry.value.text for name, entry in written.entries.items() if isinstance(entry.value, Scalar)}
        )
    if written is not None:
        shaper.report(written.mark, f"{at}.description", "expected a text, or texts by language", "{en: …, fr: …}")
    return MappingProxyType({})


def _mapping(node: Table, name: str, shaper: Shaper, at: str) -> Mapping[str, object]:
    written = node.get(name)
    if written is None:
        return MappingProxyType({})
    found = plain(written)
    if not isinstance(found, dict):
        shaper.report(written.mark, f"{at}.{name}", "expected keys and values")
        return MappingProxyType({})
    return MappingProxyType(found)


def _flavors(
    node: Table, shaper: Shaper, at: str, section: ServiceSection | None, defaults: Table | None
) -> list[FlavorSection]:
    written = node.get("flavor")
    model = section.model if section is not None else None
    if written is None:
        if model is None and section is not None:
            shaper.report(node.mark, at, "the service names no model", "model: …, or flavor: [{name: …, modelName: …}]")
        written = Series(node.mark, [Table(node.mark, {"name": Entry(node.mark, Scalar(node.mark, DEFAULT_FLAVOR))})])
    if not isinstance(written, Series) or not written.items:
        shaper.report(written.mark, f"{at}.flavor", "expected a list with one flavor or more", "- name: …")
        return []
    found: list[FlavorSection] = []
    for index, item in enumerate(written.items):
        where = f"{at}.flavor[{index}]"
        flavor = shaper.section(FlavorSection, _normal(item, defaults), where)
        if flavor is None:
            continue
        if flavor.model_name is None and model is None and node.get("flavor") is not None and section is not None:
            shaper.report(item.mark, f"{where}.modelName", "this key is required", "the name of a model")
        if flavor.name in [other.name for other in found]:
            shaper.report(item.mark, f"{where}.name", f"the flavor '{one_line(flavor.name)}' is given twice")
        if flavor.context is not None and flavor.max_generation >= flavor.context:
            message = "the answer takes the whole context: maxGenerationLength is not below totalContextLength"
            shaper.report(place(item, ("maxGenerationLength",)), f"{where}.maxGenerationLength", message)
        found.append(flavor)
    return found


def _normal(node: Node, defaults: Table | None) -> Node:
    """Returns a flavor with ``model`` called ``modelName``, YAML 1.1's yes and no as true and false, and defaults."""
    if not isinstance(node, Table):
        return node
    entries: dict[str, Entry] = {}
    for name, entry in node.entries.items():
        value = entry.value
        if name in _SWITCHES and isinstance(value, Scalar) and not value.quoted:
            text = "true" if value.text in _YES else "false" if value.text in _NO else value.text
            entry = Entry(entry.mark, Scalar(value.mark, text, value.quoted, value.loose))
        known = "modelName" if name == "model" and "modelName" not in node.entries else name
        entries[known] = entry
    for name, entry in defaults.entries.items() if defaults is not None else ():
        if not is_null(entry.value) and (name not in entries or is_null(entries[name].value)):
            entries[name] = entry
    return Table(node.mark, entries)
