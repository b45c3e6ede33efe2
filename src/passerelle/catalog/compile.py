"""Compiles a document into a snapshot, or says everything that is wrong with it.

``prepare`` may fail; what it returns can be swapped in without failing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from passerelle.catalog.document import Document
from passerelle.catalog.node import Node, Scalar, Series, Table, place
from passerelle.catalog.problem import MAX_HINTS, ConfigurationError, Mark, Problem, nearest, one_line
from passerelle.catalog.schema import DEFAULT_MODELS, ENGINES, OPTIONS, ModelSection, TargetSection
from passerelle.catalog.shape import Shaper
from passerelle.catalog.snapshot import Snapshot
from passerelle.domain.model import Fallbacks, Model, ModelKind, Target, Timeouts
from passerelle.domain.vllm import first_of_ours

CATALOG_KEYS = frozenset({"models", "models_file"})
_REASONS = ("context", "overload", "error")


@dataclass(frozen=True, slots=True)
class Written:
    """A model as it was written, and where. ``key`` is its path in the file (``models[0]``)."""

    section: ModelSection
    node: Node
    key: str

    def mark(self, *path: str | int) -> Mark:
        """Returns where a part of it was written."""
        return place(self.node, path)


def prepare(document: Document) -> Snapshot:
    """Returns the models of ``document``, those of the embedded engines when it names none.

    Every problem found while reading it counts too. Raises ConfigurationError with all problems.
    """
    models, problems = examine(document)
    if problems:
        raise ConfigurationError(problems, document.files)
    return Snapshot.of(models)


def examine(document: Document) -> tuple[list[Model], list[Problem]]:
    """Returns the sound models of ``document``, and all problems of it and of the rest."""
    compiler = _Compiler(document)
    models = compiler.models()
    return models, [*document.problems, *compiler.shaper.problems]


class _Compiler:
    def __init__(self, document: Document) -> None:
        self.shaper = Shaper()
        self._document = document
        self._declared: dict[str, str] = {}
        """Name or alias → the model's own name, of every model that has a readable one, sound or not."""
        self._places: dict[str, Mark] = {}
        self._kinds: dict[str, ModelKind] = {}

    def models(self) -> list[Model]:
        written = self._written()
        for each in written:
            self._claim(each)
        models = [self._model(each) for each in written]
        self._refuse_cycles(written)
        return [model for model in models if model is not None]

    def _written(self) -> list[Written]:
        node = self._document.root.get("models")
        if node is None:
            anchor = Table(self._document.root.mark)
            return [Written(section, anchor, f"models[{i}]") for i, section in enumerate(DEFAULT_MODELS)]
        if not isinstance(node, Series):
            self.shaper.report(node.mark, "models", "expected a list of models", "- name: …, targets: [{url: …}]")
            return []
        written = []
        for index, item in enumerate(node.items):
            key = f"models[{index}]"
            section = self.shaper.section(ModelSection, item, key)
            if section is not None:
                written.append(Written(section, item, key))
            else:
                self._claim_unsound(item)
        return written

    def _claim_unsound(self, node: Node) -> None:
        """Notes the names of a model that has problems of its own, so that references to it raise no others."""
        name = node.get("name") if isinstance(node, Table) else None
        if not isinstance(name, Scalar):
            return
        self._declared.setdefault(name.text, name.text)
        aliases = node.get("aliases") if isinstance(node, Table) else None
        for alias in aliases.items if isinstance(aliases, Series) else ():
            if isinstance(alias, Scalar):
                self._declared.setdefault(alias.text, name.text)

    def _claim(self, each: Written) -> None:
        """Takes the model's names; a name has one owner."""
        section = each.section
        self._kinds.setdefault(section.name, section.kind)
        claims: list[tuple[str, tuple[str | int, ...]]] = [(section.name, ("name",))]
        own = {section.name}
        for index, alias in enumerate(section.aliases):
            if alias in own:
                key = f"{each.key}.aliases[{index}]"
                self.shaper.report(each.mark("aliases", index), key, f"the name '{alias}' is already this model's")
                continue
            own.add(alias)
            claims.append((alias, ("aliases", index)))
        for name, path in claims:
            mark = each.mark(*path)
            if name in self._places:
                owner = self._declared[name]
                what = "another model" if owner == name else f"an alias of '{owner}'"
                key = each.key + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
                self.shaper.report(mark, key, f"the name '{name}' is taken by {what}, at {self._places[name]}")
                continue
            self._places[name] = mark
            self._declared[name] = section.name

    def _model(self, each: Written) -> Model | None:
        section = each.section
        if section.kind is ModelKind.MEDIA and not section.media:
            message = "a model of kind 'media' lists in `media` what it offers"
            accepted = "transcription, translation, speech, image"
            self.shaper.report(each.mark("kind"), f"{each.key}.media", message, accepted)
        targets = self._targets(each)
        fallbacks = self._fallbacks(each)
        if targets is None or fallbacks is None:
            return None
        return Model(
            name=section.name,
            targets=targets,
            aliases=section.aliases,
            kind=section.kind,
            policy=section.policy,
            max_concurrent=section.max_concurrent,
            context_window=section.context_window,
            trim_max_tokens=section.trim_max_tokens,
            images=section.images,
            media=frozenset(section.media),
            fallbacks=fallbacks,
            owned_by=section.owned_by,
            created=self._document.created,
        )

    def _targets(self, each: Written) -> tuple[Target, ...] | None:
        sections = each.section.targets
        key = f"{each.key}.targets"
        if not sections:
            self.shaper.report(each.mark("targets"), key, "a model needs at least one target", "- url: http://host/v1")
            return None
        targets: dict[str, Target] = {}
        for index, section in enumerate(sections):
            target = self._target(each, index, section)
            if target is not None and target.id in targets:
                self.shaper.report(
                    each.mark("targets", index),
                    f"{key}[{index}]",
                    "the same target is given twice; raise its weight instead",
                )
            elif target is not None:
                targets[target.id] = target
        if not any(section.weight and not section.shadow for section in sections):
            message = "no target takes requests: each is a shadow or has weight 0"
            self.shaper.report(each.mark("targets"), key, message)
        return tuple(targets.values())

    def _target(self, each: Written, index: int, section: TargetSection) -> Target | None:
        key = f"{each.key}.targets[{index}]"
        before = len(self.shaper.problems)
        rule = ENGINES[section.engine]
        if each.section.kind not in rule.kinds:
            message = f"the engine '{section.engine}' cannot serve models of kind '{each.section.kind}'"
            kinds = ", ".join(kind.value for kind in rule.kinds)
            self.shaper.report(each.mark("targets", index, "engine"), f"{key}.engine", message, kinds)
        if each.section.media and section.engine != "openai":
            message = f"the engine '{section.engine}' knows neither sound nor pictures, and the model lists `media`"
            self.shaper.report(each.mark("targets", index, "engine"), f"{key}.engine", message, "openai")
        if each.section.images and section.engine != "openai":
            message = f"the engine '{section.engine}' takes no pictures, and the model says `images: true`"
            self.shaper.report(each.mark("targets", index, "engine"), f"{key}.engine", message, "openai")
        options = self._options(each, index, section)
        url = self._url(each.mark("targets", index, "url"), f"{key}.url", section)
        if url is None or len(self.shaper.problems) > before:
            return None
        upstream = section.model or each.section.name
        timeouts = section.timeouts
        return Target(
            id=target_id(each.section.name, section.engine, url, upstream),
            url=url,
            engine=section.engine,
            model=upstream,
            weight=section.weight,
            priority=section.priority,
            max_concurrent=section.max_concurrent or section.slots or rule.at_once,
            labels=MappingProxyType(dict(section.labels)),
            timeouts=Timeouts(timeouts.connect_s, timeouts.first_byte_s, timeouts.idle_s),
            shadow=section.shadow,
            api_key=section.api_key,
            options=MappingProxyType(options),
        )

    def _options(self, each: Written, index: int, section: TargetSection) -> dict[str, object]:
        """Returns what only the engine understands; a key of another engine is a problem."""
        key = f"{each.key}.targets[{index}]"
        rule = ENGINES[section.engine]
        given = {name: value for name in sorted(OPTIONS) if (value := getattr(section, name)) is not None}
        for name in given.keys() - rule.options:
            message = f"the engine '{section.engine}' has no such key"
            accepted = ", ".join(sorted(rule.options)) or None
            self.shaper.report(each.mark("targets", index, name), f"{key}.{name}", message, accepted)
        if section.ca_file is not None and "ca_file" in rule.options:
            given["ca_file"] = self._ca_file(each.mark("targets", index, "ca_file"), f"{key}.ca_file", section.ca_file)
        if (ours := first_of_ours(section.arguments or ())) is not None:
            message = f"{ours} is for Passerelle to decide, and cannot be given to vLLM"
            self.shaper.report(each.mark("targets", index, "arguments"), f"{key}.arguments", message)
        return given

    def _ca_file(self, mark: Mark, key: str, written: str) -> str:
        path = self._document.directory / written
        if not path.is_file():
            self.shaper.report(mark, key, f"there is no file '{one_line(str(path))}'", "a PEM file")
        return str(path)

    def _url(self, mark: Mark, key: str, section: TargetSection) -> str | None:
        schemes = ENGINES[section.engine].schemes
        if not schemes:
            if section.url is not None:
                message = f"the engine '{section.engine}' runs on this machine and takes no url"
                self.shaper.report(mark, key, message)
                return None
            return ""
        accepted = " or ".join(f"{scheme}://host:port/path" for scheme in schemes)
        why = "this key is required" if section.url is None else _url_problem(section.url, schemes)
        if why is not None:
            self.shaper.report(mark, key, why, accepted)
            return None
        assert section.url is not None
        return section.url.rstrip("/")

    def _fallbacks(self, each: Written) -> Fallbacks | None:
        before = len(self.shaper.problems)
        resolved = {reason: self._fallback(each, reason) for reason in _REASONS}
        return Fallbacks(**resolved) if len(self.shaper.problems) == before else None

    def _fallback(self, each: Written, reason: str) -> tuple[str, ...]:
        found = []
        for index, name in enumerate(getattr(each.section.fallbacks, reason)):
            mark = each.mark("fallbacks", reason, index)
            key = f"{each.key}.fallbacks.{reason}[{index}]"
            model = self._declared.get(name)
            if model is None:
                hint = nearest(name, self._declared) if len(self.shaper.problems) < MAX_HINTS else ""
                accepted = _few(self._declared.values()) if len(self.shaper.problems) < MAX_HINTS else None
                self.shaper.report(mark, key, f"there is no model '{name}'{hint}", accepted)
            elif self._kinds.get(model, each.section.kind) is not each.section.kind:
                message = f"the model '{name}' is of kind '{self._kinds[model]}', this one of '{each.section.kind}'"
                self.shaper.report(mark, key, message)
            elif model in found:
                self.shaper.report(mark, key, f"the model '{model}' is given twice")
            else:
                found.append(model)
        return tuple(found)

    def _refuse_cycles(self, written: list[Written]) -> None:
        """A chain of fallbacks for one reason must end: a request never comes back to a model that failed it."""
        by_name: dict[str, Written] = {}
        for each in written:
            by_name.setdefault(each.section.name, each)
        for reason in _REASONS:
            edges = {
                name: [self._declared.get(other, other) for other in getattr(each.section.fallbacks, reason)]
                for name, each in by_name.items()
            }
            cycle = _cycle(edges)
            if cycle:
                each = by_name[cycle[0]]
                chain = " → ".join([*cycle[:10], "…"] if len(cycle) > 10 else [*cycle, cycle[0]])
                key = f"{each.key}.fallbacks.{reason}"
                self.shaper.report(
                    each.mark("fallbacks", reason), key, f"these fallbacks go round in a circle: {chain}"
                )


def target_id(model: str, engine: str, url: str, upstream: str) -> str:
    """Returns 12 hexadecimal digits that stay the same while the four texts do."""
    return hashlib.sha256("\0".join((model, engine, url, upstream)).encode()).hexdigest()[:12]


def _url_problem(url: str, schemes: tuple[str, ...]) -> str | None:
    """Returns why ``url`` cannot be a target's base, None when it can. Never quotes it: it may hold a password."""
    if not url.isascii() or not url.isprintable() or any(character in url for character in ' \\"<>^`{|}'):
        return "this is not a URL"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "this is not a URL"
    if parts.scheme not in schemes:
        return "this is not a URL of this engine" if parts.scheme else "this is not a URL"
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        return "the URL holds a user name or password; give the key as api_key"
    if not parts.hostname or port == 0 or parts.netloc.endswith(":"):
        return "the URL names no host" if not parts.hostname else "the URL has no valid port"
    if "?" in url or "#" in url:
        return "the URL has a query or fragment; a target's base has none"
    return None


def _cycle(edges: dict[str, list[str]]) -> list[str]:
    """Returns the names along one cycle, empty when there is none."""
    done: set[str] = set()
    for start in edges:
        trail: list[str] = []
        on_trail: set[str] = set()
        pending = [(start, False)]
        while pending:
            name, leaving = pending.pop()
            if leaving:
                on_trail.discard(trail.pop())
                done.add(name)
            elif name in on_trail:
                return trail[trail.index(name) :]
            elif name not in done:
                trail.append(name)
                on_trail.add(name)
                pending.append((name, True))
                pending.extend((other, False) for other in edges.get(name, ()))
    return []


def _few(names: Iterable[str]) -> str:
    unique = sorted(set(names))
    return ", ".join(unique[:10]) + (", …" if len(unique) > 10 else "")
