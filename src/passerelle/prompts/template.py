"""A prompt's template and how it is filled: text with ``{name}``, or the safe part of Jinja.

Text: ``{name}`` stands for a value. Every value is put in once, and what stands in a value is never looked at again, so
no value can bring a placeholder of its own. Braces around anything else stand for themselves: ``{"a": 1}``, ``{}``.

Jinja: see `passerelle.services.sandbox` for what of it there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, Final, Literal

import msgspec

from passerelle.domain.errors import BadRequest
from passerelle.services.prompts import MAX_FILLED_CHARACTERS, PromptError, PromptSyntax, PromptTemplate, parse_prompt

MAX_TEMPLATE_CHARACTERS: Final = 200_000
MAX_VARIABLES: Final = 200
_BRACED = re.compile(r"\{([^{}\n]{1,200})\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")

Syntax = Literal["text", "jinja"]
Role = Literal["user", "system", "developer"]
NUMBERS: Final = frozenset(
    {"frequency_penalty", "min_p", "presence_penalty", "repetition_penalty", "temperature", "top_p"}
)
COUNTS: Final = frozenset({"max_tokens", "min_tokens", "seed", "top_k"})
FLAGS: Final = frozenset({"ignore_eos", "skip_special_tokens"})
OTHERS: Final = frozenset({"stop", "stop_token_ids"})
SAMPLING: Final = NUMBERS | COUNTS | FLAGS | OTHERS
"""The fields of ``config``."""


class Content(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a version is. ``defaults`` are values for variables that a caller leaves out, ``config`` sampling fields
    for requests that do not say them, ``model`` the model for requests that name none."""

    template: str
    syntax: Syntax = "text"
    role: Role = "user"
    defaults: dict[str, Any] = {}
    config: dict[str, Any] = {}
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None


@dataclass(frozen=True, slots=True)
class Filler:
    """A content that was checked, ready to be filled. ``variables`` are the names its template asks for."""

    content: Content
    variables: frozenset[str]
    jinja: PromptTemplate | None

    def render(self, given: Mapping[str, Any]) -> str:
        """Returns the text. Raises BadRequest that names a variable that is missing, unknown or no text."""
        for name in given:
            if name not in self.variables:
                there = ", ".join(sorted(self.variables)[:20]) or "none"
                raise _wrong(name, f"The prompt has no variable '{name[:100]}'; it has: {there}.")
        values = {**self.content.defaults, **given}
        if self.jinja is None:
            return fill(self.content.template, values)
        try:
            return self.jinja.render(values)
        except PromptError as error:
            for name in self.variables - values.keys():
                if f"'{name}' is undefined" in error.message:
                    raise _missing(name) from None
            raise


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Returns a text template with its values. Raises BadRequest that names a placeholder without a value."""

    def value_of(found: re.Match[str]) -> str:
        name = found[1]
        if name in values:
            return text_of(name, values[name])
        if _NAME.fullmatch(name):
            raise _missing(name)
        return found[0]

    size = len(template) + sum(
        len(text_of(found[1], values[found[1]])) for found in _BRACED.finditer(template) if found[1] in values
    )
    if size > MAX_FILLED_CHARACTERS:
        raise BadRequest(f"The filled prompt is longer than {MAX_FILLED_CHARACTERS:,} characters.", param="template")
    return _BRACED.sub(value_of, template)


def text_of(name: str, value: Any) -> str:
    """Returns a value as it stands in a text: true and false as JSON has them. Raises BadRequest."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise _wrong(name, f"The value of '{name[:100]}' is a text, a number, true or false.")


def prepare(content: Content) -> Filler:
    """Checks a content, which may take tens of milliseconds for Jinja. Raises BadRequest that names the field."""
    if len(content.template) > MAX_TEMPLATE_CHARACTERS:
        raise BadRequest(f"A template has at most {MAX_TEMPLATE_CHARACTERS:,} characters.", param="template")
    if not content.template.strip():
        raise BadRequest("The template is empty.", param="template")
    jinja = None
    if content.syntax == "jinja":
        jinja = parse_prompt(content.template, "template", PromptSyntax.JINJA)
        variables = jinja.variables
    else:
        names = {found[1] for found in _BRACED.finditer(content.template)}
        variables = frozenset(name for name in names if _NAME.fullmatch(name) or name in content.defaults)
    if len(variables) > MAX_VARIABLES:
        raise BadRequest(f"A template has at most {MAX_VARIABLES} variables.", param="template")
    for name, value in content.defaults.items():
        if name not in variables:
            raise BadRequest(f"`defaults` has '{name[:100]}', which the template does not use.", param="defaults")
        if jinja is None:
            text_of(name, value)
    sampling(content.config)
    return Filler(content, variables, jinja)


def sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns sampling fields as numbers, which may come as texts. Raises BadRequest that names a wrong one."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name not in SAMPLING:
            known = ", ".join(sorted(SAMPLING))
            raise BadRequest(f"`config` has no field '{name[:64]}'; it has: {known}.", param=f"config.{name[:64]}")
        if value is not None:
            found[name] = _sampled(name, value)
    return found


def _sampled(name: str, value: Any) -> Any:
    if name in OTHERS:
        return value
    wanted: type[bool] | type[int] | type[float] = bool if name in FLAGS else int if name in COUNTS else float
    if isinstance(value, str):
        value = value.strip().lower() if wanted is bool else value.strip()
    try:
        if isinstance(value, bool) and wanted is not bool:
            raise msgspec.ValidationError
        number = msgspec.convert(value, wanted, strict=False)
        if not isfinite(number):
            raise msgspec.ValidationError
        return number
    except msgspec.ValidationError:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[wanted]
        raise BadRequest(f"`config.{name}` is {kind}, or a text that reads so.", param=f"config.{name}") from None


def _missing(name: str) -> BadRequest:
    return _wrong(name, f"The prompt needs a value for '{name[:100]}', and none was sent.")


def _wrong(name: str, message: str) -> BadRequest:
    return BadRequest(message, param=name[:100], code="invalid_variable")
