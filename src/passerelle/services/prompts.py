"""Prompt templates: text with slots, or a small and safe part of Jinja.

Slots (``*.txt``, ``*.md``). Each ``{}`` is filled in order. A file that Python's ``str.format`` could fill and that has
no other fields is read as that would read it, so ``{{`` is a brace; in every other file all braces stand for themselves
and only ``{}`` is a slot (``{{}}`` writes one literally). So no prompt has to double its braces, and those that do mean
what they meant.

Jinja (``*.j2``, ``*.jinja``). Names, constants, ``if``, ``for``, ``set``, comparisons, a dozen filters and tests. No
call, no attribute, no arithmetic, no macro, no import: see `passerelle.services.sandbox`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

from passerelle.domain.errors import BadRequest
from passerelle.services.sandbox import JinjaTemplate, TemplateError, TemplateLimits, compile_template

MAX_PROMPT_CHARACTERS = 1_000_000
MAX_FILLED_CHARACTERS = 64_000_000
SLOT_SUFFIXES = (".txt", ".md")
JINJA_SUFFIXES = (".j2", ".jinja")
SUFFIXES = SLOT_SUFFIXES + JINJA_SUFFIXES
"""How the names of prompt files end, in the order they are looked for."""

INPUT, PREVIOUS = "input", "previous"
SERVICE_VARIABLES = frozenset({INPUT, PREVIOUS, "language", "metadata", "output_schema", "part", "parts"})
"""What a service fills a Jinja prompt with: the text to work on, the result so far, the service's language (or ""), its
metadata (``metadata['title']``), its JSON schema as text (or ""), the number of this part from 1 and of all parts."""

_FREE_SLOT = re.compile(r"(?<!\{)\{\}(?!\})")


class PromptSyntax(StrEnum):
    """How a prompt is written."""

    SLOTS = "slots"
    JINJA = "jinja"


class PromptError(BadRequest):
    """A prompt that cannot be used. ``line`` is where in its text, from 1, as far as that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message, param="prompt", code="invalid_prompt")
        self.line = line


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt ready to be filled.

    ``slots`` counts the ``{}``; for Jinja it is 2 when ``previous`` is used, else 1. ``variables`` are the names a
    Jinja prompt asks for. ``text`` is the source as it was read.
    """

    name: str
    syntax: PromptSyntax
    text: str
    slots: int
    variables: frozenset[str]
    pieces: tuple[str, ...] = ()
    compiled: JinjaTemplate | None = None

    @property
    def fixed_text(self) -> str:
        """The prompt with nothing in it: what each call costs before its input."""
        return "".join(self.pieces) if self.compiled is None else self.text

    @property
    def prefix(self) -> str:
        """What comes before the first slot: equal for all calls, so an engine's prefix cache holds it."""
        return self.pieces[0] if self.compiled is None else ""

    def fill(self, *values: str) -> str:
        """Returns the prompt with its slots filled in order. Raises PromptError when there are not as many values."""
        if self.compiled is not None:
            names = (INPUT,) if len(values) == 1 else (PREVIOUS, INPUT)
            return self.render(dict(zip(names, values, strict=True)))
        if len(values) != self.slots:
            raise PromptError(f"the prompt '{self.name}' has {self.slots} slots {{}}; {len(values)} are filled")
        parts = [self.pieces[0]]
        for value, piece in zip(values, self.pieces[1:], strict=True):
            parts += (value, piece)
        return _bounded("".join(parts))

    def render(self, values: Mapping[str, object]) -> str:
        """Returns the prompt filled with named values; those of `SERVICE_VARIABLES` that a service gives.

        Slots take ``input``, or ``previous`` and ``input``. Values are text, numbers, booleans, None, and lists and
        mappings of these. Raises PromptError: an undefined variable is named, and so is a limit that was passed.
        """
        if self.compiled is None:
            names = (INPUT,) if self.slots == 1 else (PREVIOUS, INPUT)
            missing = [name for name in names[: self.slots] if name not in values]
            if missing:
                raise PromptError(f"the prompt '{self.name}' needs a value for '{missing[0]}'")
            return self.fill(*(str(values[name]) for name in names[: self.slots]))
        try:
            return self.compiled.render(values)
        except TemplateError as error:
            raise PromptError(f"the prompt '{self.name}': {error}", error.line) from None


def parse_prompt(text: str, name: str, syntax: PromptSyntax, limits: TemplateLimits | None = None) -> PromptTemplate:
    """Returns the template of ``text``. Raises PromptError with the line when it is not one."""
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise PromptError(f"the prompt '{name}' is longer than {MAX_PROMPT_CHARACTERS:,} characters")
    if syntax is PromptSyntax.JINJA:
        try:
            compiled = compile_template(text, limits or TemplateLimits())
        except TemplateError as error:
            raise PromptError(f"the prompt '{name}': {error}", error.line) from None
        slots = 2 if PREVIOUS in compiled.variables else 1 if INPUT in compiled.variables else 0
        return PromptTemplate(name, syntax, text, slots, compiled.variables, compiled=compiled)
    pieces = _formatted(text) or _free(text)
    return PromptTemplate(name, syntax, text, len(pieces) - 1, frozenset(), tuple(pieces))


def syntax_of(path: PurePath) -> PromptSyntax:
    """Returns the syntax that the name of a prompt file says."""
    return PromptSyntax.JINJA if path.suffix.lower() in JINJA_SUFFIXES else PromptSyntax.SLOTS


def _formatted(text: str) -> list[str] | None:
    """Returns what stands around the slots as ``str.format`` reads it; None when it would not fill the text."""
    pieces = [""]
    numbered: list[str] = []
    try:
        for literal, field, spec, conversion in string.Formatter().parse(text):
            pieces[-1] += literal
            if field is None:
                continue
            if spec or conversion or (field and field not in "01"):
                return None
            numbered.append(field)
            pieces.append("")
    except ValueError:
        return None
    # {0} and {1} fill in their own order only; mixed with {} they are an error to str.format.
    plain = [""] * len(numbered)
    return pieces if numbered in (plain, [str(index) for index in range(len(numbered))]) else None


def _free(text: str) -> list[str]:
    return [piece.replace("{{}}", "{}") for piece in _FREE_SLOT.split(text)]


def _bounded(text: str) -> str:
    if len(text) > MAX_FILLED_CHARACTERS:
        raise PromptError(f"the filled prompt is longer than {MAX_FILLED_CHARACTERS:,} characters")
    return text


def slot_line(template: PromptTemplate, lines: Sequence[str]) -> int:
    """Returns the line, from 1, of the last slot of a template among the lines of its text; 1 without any."""
    return next((index for index in range(len(lines), 0, -1) if "{}" in lines[index - 1]), 1)
