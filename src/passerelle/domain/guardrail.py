"""Guardrails: checks that a call's texts pass before and after the model. The seam between what checks and who asks.

A guardrail is chosen by who calls and what is called; it looks for something in text and masks it, blocks the call, or
only says so. What it found is told as a `Verdict`, which never holds the text itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from passerelle.domain.principal import Principal


class Check(StrEnum):
    """What a guardrail looks for."""

    PATTERN = "pattern"
    WORDS = "words"
    PII = "pii"
    WHITELIST = "whitelist"


class Action(StrEnum):
    """What a find leads to."""

    MASK = "mask"
    """Something else is put in its place."""
    BLOCK = "block"
    """The call ends with ``content_blocked``."""
    FLAG = "flag"
    """It is counted and told, and nothing else."""


class Stage(StrEnum):
    """Where a text is looked at."""

    BEFORE = "before"
    """What the caller sends, before any model sees it."""
    AFTER = "after"
    """What the model answers, before the caller sees it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Whose calls a guardrail looks at: all of them, or those that one of the names in each given list fits.

    ``models`` are catalog names, ``keys`` ids or names of keys. Empty means any.
    """

    models: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    projects: frozenset[str] = frozenset()
    organisations: frozenset[str] = frozenset()

    def fits(self, principal: Principal, model: str, service: str | None) -> bool:
        """Whether a call by ``principal`` of ``model``, made by a service or not, is looked at."""
        return (
            (not self.models or model in self.models)
            and (not self.keys or principal.key_id in self.keys or principal.key_name in self.keys)
            and (not self.services or service in self.services)
            and (not self.projects or principal.project in self.projects)
            and (not self.organisations or principal.organisation in self.organisations)
        )


@dataclass(frozen=True, slots=True)
class GuardrailRule:
    """One guardrail as it was configured. ``files`` maps ``words_file`` and ``whitelist`` to what is in them."""

    name: str
    check: Check
    action: Action = Action.MASK
    stages: frozenset[Stage] = frozenset(Stage)
    selection: Selection = Selection()
    pattern: str | None = None
    ignore_case: bool = False
    words: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    replacement: str | None = None
    files: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))


class RuleError(ValueError):
    """A rule cannot be used. ``key`` is the one to change; the message never quotes a text or an expression."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one guardrail found in one call. ``finds`` is how many; the texts are told to nobody."""

    guardrail: str
    check: Check
    action: Action
    stage: Stage
    finds: int
    request_id: str
    organisation: str
    project: str
    key_id: str
    key_name: str
    model: str


OnFind = Callable[[], None]


class TextGuard(Protocol):
    """What one guardrail does to one text that arrives in pieces."""

    def feed(self, text: str) -> str:
        """Takes the next piece and returns what may go on."""

    def flush(self) -> str:
        """Takes the end of the text and returns the rest."""


class Guardrail(Protocol):
    """One guardrail, compiled; shared by all calls."""

    @property
    def rule(self) -> GuardrailRule:
        """How it was configured."""

    def watch(self, on_find: OnFind) -> TextGuard:
        """Returns what guards one text; ``on_find`` is called at each find."""

    def review(self, text: str, on_find: OnFind) -> str:
        """Returns a whole text as it may go on."""


class Guardrails(Protocol):
    """All guardrails of one configuration."""

    def of(self, principal: Principal, model: str, service: str | None) -> tuple[Guardrail, ...]:
        """Returns those that look at a call, in the order they were written."""
