"""Service manifests: how a service is written in YAML, and what it means.

A file holds one service at its top (``name:``, ``flavor:`` …), or several by their ids (``summarize-en: {…}``), or
groups of them (``summarize: {en: {…}, fr: {…}}``, whose ids are ``summarize/en`` and ``summarize/fr``); ``services:``
around all of them is no group. The keys of LinTO's LLM Gateway are read as it reads them, and these are added:
``strategy``, ``model`` and ``fallbacks``, ``prompt``, ``limits``, ``output``, ``language``, ``metadata``. Every mistake
is told with file, line and key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from passerelle.catalog.document import Document
from passerelle.catalog.node import Entry, Node, Scalar, Series, Table, is_null, place
from passerelle.catalog.problem import Mark, one_line
from passerelle.catalog.shape import Section, Shaper
from passerelle.services.manifest import OutputSpec
from passerelle.services.plain import plain
from passerelle.services.schema import FlavorSection, OutputSection, Route, ServiceSection

DEFAULT_FLAVOR = "default"
_MAX_GROUPS = 5


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
    inner = root.get("services")
    if isinstance(inner, Table) and _is_group(inner) and root.entries.keys() <= {"services", "defaults"}:
        root = inner
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
