"""Environment variables in configuration values.

    ${VAR}                       its value; a problem when it is not set
    ${VAR:-default}              the default when it is not set, or empty
    ${oc.env:VAR}                as ${VAR}, in OmegaConf's words
    ${oc.env:VAR,default}        the default when it is not set
    $$                           a dollar sign

A default may hold further interpolations. Values of variables are never read for interpolations again, and never shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

FORMS = "${VAR}, ${VAR:-default}, ${oc.env:VAR}, ${oc.env:VAR,default}, and $$ for a dollar sign"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MAX_DEPTH = 8
_MAX_CHARACTERS = 1_000_000


class InterpolationError(ValueError):
    """An interpolation that cannot be resolved; its text names variables, never their values."""


@dataclass(frozen=True, slots=True)
class Interpolated:
    """``text`` after substitution; ``whole`` when the value was one interpolation and nothing else."""

    text: str
    whole: bool


def interpolate(text: str, environ: Mapping[str, str]) -> Interpolated:
    """Replaces the interpolations of ``text``. Raises InterpolationError."""
    result = _expand(text, environ, 0)
    whole = text.startswith("${") and _closing(text, 2) == len(text) - 1
    return Interpolated(result, whole)


def _expand(text: str, environ: Mapping[str, str], depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise InterpolationError(f"interpolations are nested more than {_MAX_DEPTH} deep")
    parts: list[str] = []
    at = length = 0
    while True:
        dollar = text.find("$", at)
        if dollar < 0:
            parts.append(text[at:])
            break
        parts.append(text[at:dollar])
        follows = text[dollar + 1 : dollar + 2]
        if follows == "{":
            end = _closing(text, dollar + 2)
            if end < 0:
                raise InterpolationError("an interpolation '${' has no closing '}'")
            parts.append(_resolve(text[dollar + 2 : end], environ, depth))
            length += len(parts[-1])
            if length > _MAX_CHARACTERS:
                raise InterpolationError(f"interpolations add more than {_MAX_CHARACTERS:,} characters")
            at = end + 1
        else:
            parts.append("$")
            at = dollar + (2 if follows == "$" else 1)
    return "".join(parts)


def _closing(text: str, start: int) -> int:
    """Returns the index of the brace that closes the interpolation whose inside begins at ``start``, or -1."""
    depth = 1
    at = start
    while at < len(text):
        if text.startswith("${", at):
            depth += 1
            at += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return -1


def _resolve(inside: str, environ: Mapping[str, str], depth: int) -> str:
    default: str | None
    if inside.startswith("oc.env:"):
        name, comma, rest = inside.removeprefix("oc.env:").partition(",")
        default = _unquote(rest.strip()) if comma else None
        empty_counts = True
    else:
        name, dash, rest = inside.partition(":-")
        default = rest if dash else None
        empty_counts = False
    name = name.strip()
    if not _NAME.match(name):
        raise InterpolationError(f"this is not an interpolation of an environment variable; write {FORMS}")
    value = environ.get(name)
    if value is not None and (value or empty_counts or default is None):
        return _checked(name, value)
    if default is None:
        raise InterpolationError(f"the environment variable {name} is not set and has no default")
    return _expand(default, environ, depth + 1)


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _checked(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InterpolationError(f"the environment variable {name} is not UTF-8 text") from None
    return value
