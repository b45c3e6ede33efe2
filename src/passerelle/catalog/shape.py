"""Fits a tree into msgspec structs, strictly, and says everything that does not fit.

The structs' annotations are the rules: ``Annotated[int, Meta(ge=1, description="…")]``. ``extra={"secret": True}`` in a
``Meta`` keeps a value out of messages and reprs; ``extra={"unit": "seconds"}`` names its unit where it is shown.
"""

from __future__ import annotations

import enum
import math
import re
from typing import Final, NoReturn, TypeVar

import msgspec
from msgspec import inspect

from passerelle.catalog.node import Broken, Node, Scalar, Series, Table, is_null
from passerelle.catalog.problem import MAX_HINTS, Mark, Problem, nearest, one_line

T = TypeVar("T", bound="Section")

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?\Z")
_YES = {"plain": frozenset({"true", "True", "TRUE"}), "loose": frozenset({"true", "1", "yes", "on"})}
_NO = {"plain": frozenset({"false", "False", "FALSE"}), "loose": frozenset({"false", "0", "no", "off"})}
_SHOWN_CHARACTERS: Final = 60


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that is configured: immutable, and its ``repr`` leaves secrets out."""

    def __repr__(self) -> str:
        shown = (f"{name}={self._shown(name)}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({', '.join(shown)})"

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        return "'***'" if value is not None and name in secrets(type(self)) else repr(value)


def secrets(section: type[Section]) -> frozenset[str]:
    """Returns the names of the fields that hold secrets."""
    return frozenset(field.name for field in fields(section) if described(field.type)[1].get("secret"))


def fields(section: type[Section]) -> tuple[inspect.Field, ...]:
    """Returns the fields of a section with their rules."""
    shape = inspect.type_info(section)
    assert isinstance(shape, inspect.StructType)
    return shape.fields


def described(shape: inspect.Type) -> tuple[inspect.Type, dict[str, object], str]:
    """Takes a field's type apart: the bare type, without None; what ``Meta(extra=…)`` said; the description."""
    extra: dict[str, object] = {}
    description = ""
    while isinstance(shape, inspect.Metadata | inspect.UnionType):
        if isinstance(shape, inspect.UnionType):
            shape = next(kind for kind in shape.types if not isinstance(kind, inspect.NoneType))
        else:
            extra = dict(shape.extra or {}) | extra
            description = description or str((shape.extra_json_schema or {}).get("description", ""))
            shape = shape.type
    return shape, extra, description


class Misfit(Exception):  # never leaves this module
    """A value does not fit; the problem was recorded."""


class Shaper:
    """Fits nodes into types and gathers ``problems``."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        # Taking annotations apart costs a millisecond; a file may hold a thousand models.
        self._shapes: dict[type[Section], inspect.StructType] = {}

    def section(self, kind: type[T], node: Node, key: str, *, apart: frozenset[str] = frozenset()) -> T | None:
        """Returns ``node`` as a ``kind``, or None after recording why not. Keys in ``apart`` are left to others."""
        shape = self._shapes.get(kind)
        if shape is None:
            found = inspect.type_info(kind)
            assert isinstance(found, inspect.StructType)
            shape = self._shapes[kind] = found
        try:
            made = self._struct(shape, node, key, apart)
        except Misfit:
            return None
        assert isinstance(made, kind)
        return made

    def report(self, mark: Mark, key: str, message: str, accepted: str | None = None) -> None:
        """Records one problem."""
        self.problems.append(Problem(mark, key, message, accepted))

    def _struct(self, shape: inspect.StructType, node: Node, key: str, apart: frozenset[str]) -> object:
        table = self._table(node, key)
        known = {field.encode_name: field for field in sorted(shape.fields, key=lambda field: field.encode_name)}
        sound = True
        for name, entry in table.entries.items():
            if name not in known:
                hint = nearest(name, known) if len(self.problems) < MAX_HINTS else ""
                message = f"unknown key '{one_line(name)}'{hint}"
                self.report(entry.mark, _join(key, name), message, ", ".join(known))
                sound = False
        values: dict[str, object] = {}
        for name, field in known.items():
            value = table.get(name)
            if name in apart or (value is None and not field.required):
                continue
            if value is None:
                mark = table.entries[name].value.mark if name in table.entries else table.mark
                self.report(mark, _join(key, name), "this key is required", accepted(field.type))
                sound = False
                continue
            try:
                values[field.name] = self._value(field.type, value, _join(key, name))
            except Misfit:
                sound = False
        if not sound:
            raise Misfit
        return shape.cls(**values)

    def _table(self, node: Node, key: str) -> Table:
        if not isinstance(node, Table):
            self._misfit(node, key, "keys and values", None)
        return node

    def _value(self, shape: inspect.Type, node: Node, key: str) -> object:
        bare, extra, _ = described(shape)
        if isinstance(node, Broken):
            raise Misfit
        if isinstance(bare, inspect.StructType):
            return self._struct(bare, node, key, frozenset())
        if isinstance(bare, inspect.VarTupleType):
            return self._series(bare.item_type, node, key)
        if isinstance(bare, inspect.DictType):
            return self._dict(bare, node, key)
        return self._scalar(bare, extra, node, key)

    def _series(self, item: inspect.Type, node: Node, key: str) -> tuple[object, ...]:
        if isinstance(node, Scalar) and node.loose and not node.text:
            return ()
        if not isinstance(node, Series):
            self._misfit(node, key, "a list", accepted_items(item))
        values: list[object] = []
        sound = True
        for index, each in enumerate(node.items):
            try:
                values.append(self._value(item, each, f"{key}[{index}]"))
            except Misfit:
                sound = False
        if not sound:
            raise Misfit
        return tuple(values)

    def _dict(self, shape: inspect.DictType, node: Node, key: str) -> dict[str, object]:
        table = self._table(node, key)
        return {
            name: self._value(shape.value_type, entry.value, _join(key, name)) for name, entry in table.entries.items()
        }

    def _scalar(self, shape: inspect.Type, extra: dict[str, object], node: Node, key: str) -> object:
        wanted = accepted(shape, extra)
        if not isinstance(node, Scalar) or (is_null(node) and not node.loose):
            self._misfit(node, key, _noun(shape), wanted)
        value = _read_scalar(shape, node)
        secret = bool(extra.get("secret"))
        if value is None:
            wanted = "text; write it in quotes" if isinstance(shape, inspect.StrType) else wanted
            self._misfit(node, key, _noun(shape), wanted, secret=secret)
        if not _fits(shape, value):
            shown = "the value" if node.loose or secret else _text(node)
            self.report(node.mark, key, f"{shown} is not accepted", wanted)
            raise Misfit
        return shape.cls(value) if isinstance(shape, inspect.EnumType) else value

    def _misfit(self, node: Node, key: str, noun: str, wanted: str | None, *, secret: bool = False) -> NoReturn:
        if not isinstance(node, Broken):
            self.report(node.mark, key, f"expected {noun}, found {_found(node, secret=secret)}", wanted)
        raise Misfit


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _read_scalar(shape: inspect.Type, node: Scalar) -> object | None:
    """Returns the text as the type wanted, None when it is not one."""
    text = node.text
    if isinstance(shape, inspect.StrType | inspect.EnumType | inspect.LiteralType):
        # Unquoted true or 80 where text is wanted is more often a slip than a name.
        typed = not (node.quoted or node.loose) and (text in _YES["plain"] | _NO["plain"] or _FLOAT.match(text))
        return None if typed and isinstance(shape, inspect.StrType) else text
    if node.quoted:
        return None
    if isinstance(shape, inspect.BoolType):
        style, word = ("loose", text.lower()) if node.loose else ("plain", text)
        return True if word in _YES[style] else False if word in _NO[style] else None
    if isinstance(shape, inspect.IntType):
        return int(text) if _INTEGER.match(text) else None
    if isinstance(shape, inspect.FloatType):
        return float(text) if _FLOAT.match(text) else None
    raise TypeError(f"no rule for {shape}")


def _fits(shape: inspect.Type, value: object) -> bool:
    if isinstance(shape, inspect.IntType | inspect.FloatType):
        assert isinstance(value, int | float)
        return math.isfinite(value) and all(
            (
                shape.ge is None or value >= shape.ge,
                shape.gt is None or value > shape.gt,
                shape.le is None or value <= shape.le,
                shape.lt is None or value < shape.lt,
            )
        )
    if isinstance(shape, inspect.StrType):
        assert isinstance(value, str)
        return all(
            (
                shape.min_length is None or len(value) >= shape.min_length,
                shape.max_length is None or len(value) <= shape.max_length,
                shape.pattern is None or re.search(shape.pattern, value) is not None,
            )
        )
    if isinstance(shape, inspect.EnumType):
        return value in [member.value for member in shape.cls]
    if isinstance(shape, inspect.LiteralType):
        return value in shape.values
    return True


def _noun(shape: inspect.Type) -> str:
    if isinstance(shape, inspect.IntType):
        return "a whole number"
    if isinstance(shape, inspect.FloatType):
        return "a number"
    if isinstance(shape, inspect.BoolType):
        return "true or false"
    if isinstance(shape, inspect.EnumType | inspect.LiteralType):
        return "one of the accepted words"
    return "text"


def accepted(shape: inspect.Type, extra: dict[str, object] | None = None) -> str:
    """Returns what a field accepts, for a message or a table: ``1 to 65535``, ``text | json``."""
    bare, own, _ = described(shape)
    extra = own | (extra or {})
    if "accepted" in extra:
        return str(extra["accepted"])
    if isinstance(bare, inspect.IntType | inspect.FloatType):
        return " ".join((_range(bare), str(extra.get("unit", "")))).strip()
    if isinstance(bare, inspect.BoolType):
        return "true, false"
    if isinstance(bare, inspect.EnumType):
        return ", ".join(str(member.value) for member in bare.cls if isinstance(member, enum.Enum))
    if isinstance(bare, inspect.LiteralType):
        return ", ".join(str(value) for value in bare.values)
    if isinstance(bare, inspect.VarTupleType):
        return accepted_items(bare.item_type)
    if isinstance(bare, inspect.DictType | inspect.StructType):
        return "keys and values"
    return "text"


def accepted_items(item: inspect.Type) -> str:
    """Returns what a list of such items accepts."""
    holds_tables = isinstance(described(item)[0], inspect.StructType | inspect.DictType)
    return "a list of keys and values" if holds_tables else 'a list, as ["a", "b"]'


def _range(shape: inspect.IntType | inspect.FloatType) -> str:
    kind = "a whole number" if isinstance(shape, inspect.IntType) else "a number"
    low = _number(shape.ge) if shape.ge is not None else f"more than {_number(shape.gt or 0)}"
    if shape.le is not None:
        return f"{kind}, {low} to {_number(shape.le)}"
    return f"{kind}, {low}" + (" or more" if shape.ge is not None else "")


def _number(value: float) -> str:
    return f"{value:,}" if value >= 100_000 else f"{value:g}"


def _found(node: Node, *, secret: bool) -> str:
    """Describes a wrong value without showing one that may be a secret."""
    if isinstance(node, Table):
        return "keys and values"
    if isinstance(node, Series):
        return "a list"
    if isinstance(node, Broken) or node.loose or secret:
        return "a value that is not"
    if is_null(node):
        return "nothing"
    return f"the text {_text(node)}" if node.quoted else _text(node)


def _text(node: Scalar) -> str:
    text = node.text if len(node.text) <= _SHOWN_CHARACTERS else node.text[: _SHOWN_CHARACTERS - 1] + "…"
    return f"'{one_line(text)}'"
