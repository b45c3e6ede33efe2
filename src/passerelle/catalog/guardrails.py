"""How guardrails are written in YAML, and the rules that come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from msgspec import Meta

from passerelle.catalog.document import MAX_FILE_BYTES, Document
from passerelle.catalog.node import Scalar, place
from passerelle.catalog.problem import Mark, Problem, nearest, one_line
from passerelle.catalog.schema import ModelName, Word
from passerelle.catalog.shape import Section
from passerelle.domain.guardrail import Action, Check, Guardrail, GuardrailRule, RuleError, Selection, Stage
from passerelle.domain.model import Model

Entity = Literal["email", "phone", "iban", "card", "nir", "ip"]
WhitelistRule = Literal["check_url", "check_mail", "check_number"]
_KEYS: Mapping[Check, frozenset[str]] = MappingProxyType(
    {
        Check.PATTERN: frozenset({"pattern", "ignore_case", "replacement"}),
        Check.WORDS: frozenset({"words", "words_file", "replacement"}),
        Check.PII: frozenset({"entities", "replacement"}),
        Check.WHITELIST: frozenset({"whitelist", "rules"}),
    }
)
_OWN = frozenset[str]().union(*_KEYS.values())
_FILES = ("words_file", "whitelist")


class SelectionSection(Section, frozen=True, kw_only=True):
    """Whose calls are looked at: those that every given list names; all when none is given."""

    models: Annotated[tuple[ModelName, ...], Meta(description="Names or aliases of models.")] = ()
    keys: Annotated[tuple[Word, ...], Meta(description="Ids or names of keys.")] = ()
    services: Annotated[tuple[Word, ...], Meta(description="Names of services.")] = ()
    projects: Annotated[tuple[Word, ...], Meta(description="Ids of projects.")] = ()
    organisations: Annotated[tuple[Word, ...], Meta(description="Ids of organisations.")] = ()


class GuardrailSection(Section, frozen=True, kw_only=True):
    """A check that a call's texts pass before and after the model."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,63}\Z",
            description="What callers, metrics and the audit log call it.",
            extra={"accepted": "1 to 64 letters, digits and . _ -, starting with a letter or digit"},
        ),
    ]
    check: Annotated[Check, Meta(description="What it looks for.")]
    action: Annotated[Action, Meta(description="What a find leads to.")] = Action.MASK
    when: Annotated[
        Literal["before", "after", "both"], Meta(description="Whether requests are looked at, answers, or both.")
    ] = "both"
    pattern: (
        Annotated[str, Meta(min_length=1, max_length=1024, description="`pattern`: a regular expression.")] | None
    ) = None
    ignore_case: Annotated[bool, Meta(description="`pattern`: upper and lower case are one.")] = False
    words: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        Meta(description="`words`: words and phrases; case and accents do not matter."),
    ] = ()
    words_file: (
        Annotated[Word, Meta(description="`words`: a file of further ones, one a line; `#` begins a comment.")] | None
    ) = None
    entities: Annotated[
        tuple[Entity, ...], Meta(description="`pii`: `email`, `phone`, `iban`, `card`, `nir`, `ip`; all when left out.")
    ] = ()
    whitelist: Annotated[Word, Meta(description="`whitelist`: Albert's `whitelist.json`.")] | None = None
    rules: Annotated[
        tuple[WhitelistRule, ...],
        Meta(description="`whitelist`: `check_url`, `check_mail`, `check_number`; all when left out."),
    ] = ()
    replacement: (
        Annotated[
            str,
            Meta(
                max_length=100,
                pattern=r'^[^"\\\x00-\x1f]*\Z',
                description="What `mask` puts in the place of a find.",
                extra={"accepted": 'up to 100 characters without " and \\'},
            ),
        ]
        | None
    ) = None
    applies_to: Annotated[SelectionSection, Meta(description="Whose calls it looks at.")] = SelectionSection()


def read_guardrails(
    document: Document,
    sections: Iterable[GuardrailSection],
    models: Iterable[Model],
    compile_rule: Callable[[GuardrailRule], Guardrail],
) -> tuple[list[Guardrail], list[Problem]]:
    """Returns the guardrails of ``sections``, and what is wrong with them. Files they name are added to the document.

    ``compile_rule`` raises RuleError.
    """
    reader = _Reader(document, models, compile_rule)
    guardrails = [reader.read(index, section) for index, section in enumerate(sections)]
    return [one for one in guardrails if one is not None], reader.problems


class _Reader:
    def __init__(
        self, document: Document, models: Iterable[Model], compile_rule: Callable[[GuardrailRule], Guardrail]
    ) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._models = {name: model.name for model in models for name in (model.name, *model.aliases)}
        self._compile = compile_rule
        self._names: dict[str, Mark] = {}

    def read(self, index: int, section: GuardrailSection) -> Guardrail | None:
        before = len(self.problems)
        mark = self._mark(index, "name")
        if section.name in self._names:
            self._report(index, ("name",), f"the name '{section.name}' is taken, at {self._names[section.name]}")
        self._names.setdefault(section.name, mark)
        for key in sorted(self._given(index) & (_OWN - _KEYS[section.check])):
            accepted = ", ".join(sorted(_KEYS[section.check]))
            self._report(index, (key,), f"the check '{section.check}' has no such key", accepted)
        rule = GuardrailRule(
            name=section.name,
            check=section.check,
            action=section.action,
            stages=frozenset(Stage) if section.when == "both" else frozenset({Stage(section.when)}),
            selection=self._selection(index, section.applies_to),
            pattern=section.pattern,
            ignore_case=section.ignore_case,
            words=section.words,
            entities=section.entities,
            rules=section.rules,
            replacement=section.replacement,
            files=MappingProxyType(self._files(index, section)),
        )
        if len(self.problems) > before:
            return None
        try:
            return self._compile(rule)
        except RuleError as error:
            self._report(index, (error.key,), error.message)
            return None

    def _given(self, index: int) -> set[str]:
        """Returns the keys that were written."""
        node = self._document.root.get("guardrails")
        items = getattr(node, "items", [])
        return set(getattr(items[index], "entries", {})) if index < len(items) else set()

    def _selection(self, index: int, section: SelectionSection) -> Selection:
        models = set()
        for number, name in enumerate(section.models):
            if name in self._models:
                models.add(self._models[name])
            else:
                path = ("applies_to", "models", number)
                self._report(index, path, f"there is no model '{name}'{nearest(name, self._models)}")
        return Selection(
            models=frozenset(models),
            keys=frozenset(section.keys),
            services=frozenset(section.services),
            projects=frozenset(section.projects),
            organisations=frozenset(section.organisations),
        )

    def _files(self, index: int, section: GuardrailSection) -> dict[str, bytes]:
        found = {}
        for key in _FILES:
            name = getattr(section, key)
            if name is None:
                continue
            path = self._document.directory / name
            self._document.files = (*self._document.files, path)
            data = self._read(index, key, path)
            if data is not None:
                found[key] = data
        return found

    def _read(self, index: int, key: str, path: Path) -> bytes | None:
        try:
            if not path.is_file():
                self._report(index, (key,), f"there is no file '{one_line(str(path))}'")
                return None
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            self._report(index, (key,), f"the file '{one_line(str(path))}' cannot be read: {error.strerror}")
            return None
        if len(data) > MAX_FILE_BYTES:
            self._report(index, (key,), f"the file is larger than {MAX_FILE_BYTES:,} bytes")
            return None
        return data

    def _mark(self, index: int, *path: str | int) -> Mark:
        node = self._document.root.get("guardrails")
        return place(node if node is not None else Scalar(self._document.root.mark, ""), (index, *path))

    def _report(self, index: int, path: tuple[str | int, ...], message: str, accepted: str | None = None) -> None:
        key = f"guardrails[{index}]" + "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path)
        self.problems.append(Problem(self._mark(index, *path), key, message, accepted))
