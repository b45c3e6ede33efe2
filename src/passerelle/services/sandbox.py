"""The part of Jinja that a prompt may use, and the limits it runs under.

What is allowed is listed; everything else is refused when the template is compiled, before a line of it runs: calls,
attributes, arithmetic (``'a' * 10**9``), ``~``, macros, imports, includes, inheritance, recursive loops, names that
begin with an underscore. Filters that make text longer count it against a budget before they make it. What passes is
rendered by Jinja's immutable sandbox all the same, without its globals, under a limit of time, loop turns and size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jinja2 import StrictUndefined, nodes
from jinja2.environment import Template
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.exceptions import UndefinedError
from jinja2.filters import do_truncate
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateError(Exception):
    """A template that is refused; ``line`` is where in it, from 1, as far as that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What a template may cost.

    ``max_made_characters`` counts what filters make on the way, too; ``max_render_s`` is processor time, so that a busy
    machine refuses nothing that an idle one renders.
    """

    max_characters: int = 64_000
    max_nodes: int = 2_000
    max_depth: int = 40
    max_loop_depth: int = 3
    max_loop_turns: int = 100_000
    max_made_characters: int = 64_000_000
    max_render_s: float = 0.15


_STRUCTURE = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign)
_EXPRESSIONS = (
    nodes.Name,
    nodes.Const,
    nodes.List,
    nodes.Tuple,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Neg,
    nodes.Filter,
    nodes.Test,
    nodes.Getitem,
)
_SPECIAL_NAMES = frozenset({"self", "super", "loop", "caller", "varargs", "kwargs", "context", "environment"})
_TESTS = frozenset(
    {"boolean", "defined", "even", "false", "float", "in", "integer", "iterable", "mapping", "none", "number", "odd"}
    | {"sequence", "string", "true", "undefined"}
    | {"eq", "ge", "gt", "le", "lt", "ne", "==", "!=", "<", "<=", ">", ">="}
)
_COUNTED = "counted by the sandbox"
_MAX_CONSTANT_CHARACTERS = 10_000
_WORDS = {
    nodes.Call: "calls",
    nodes.Getattr: "attributes; write name['key']",
    nodes.Mul: "arithmetic",
    nodes.Pow: "arithmetic",
    nodes.Add: "arithmetic",
    nodes.Concat: "'~'",
    nodes.Macro: "macros",
    nodes.Include: "includes",
    nodes.Import: "imports",
    nodes.FromImport: "imports",
    nodes.Extends: "inheritance",
    nodes.Block: "blocks",
    nodes.AssignBlock: "'set' with a block",
    nodes.FilterBlock: "filter blocks",
    nodes.CallBlock: "call blocks",
    nodes.Slice: "slices",
    nodes.Dict: "mappings",
}


class _Meter:
    """What one rendering has used up."""

    def __init__(self, limits: TemplateLimits) -> None:
        self._limits = limits
        self._turns = 0
        self._made = 0
        self._end = time.thread_time() + limits.max_render_s

    def make(self, characters: int) -> None:
        """Counts text that is about to be made."""
        self._made += characters
        if self._made > self._limits.max_made_characters:
            raise TemplateError(f"it makes more than {self._limits.max_made_characters:,} characters")
        self.look()

    def look(self) -> None:
        """Refuses to go on past the time limit."""
        if time.thread_time() > self._end:
            raise TemplateError(f"it takes longer than {self._limits.max_render_s:g} s")

    def count(self, items: object) -> Iterator[object]:
        """Yields the items of a loop, counting its turns."""
        if isinstance(items, StrictUndefined):
            str(items)  # raises, and names the variable
        if not isinstance(items, str | list | tuple | Mapping):
            raise TemplateError("a loop goes over a list, a mapping or a text")
        for item in items:
            self._turns += 1
            if self._turns > self._limits.max_loop_turns:
                raise TemplateError(f"its loops take more than {self._limits.max_loop_turns:,} turns")
            if self._turns % 256 == 0:
                self.look()
            yield item


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without globals, and whose subscripts never fall back to attributes."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str | list | tuple | dict | Mapping):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                pass
        return self.undefined(obj=obj, name=argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.unsafe_undefined(obj, attribute)

    def is_safe_callable(self, obj: Any) -> bool:
        return False


class JinjaTemplate:
    """A template that was checked and compiled. ``variables`` are the names it asks for."""

    def __init__(self, tree: nodes.Template, variables: frozenset[str], limits: TemplateLimits) -> None:
        self.variables = variables
        self._limits = limits
        self._code = _environment(_Meter(limits)).compile(tree)

    def render(self, values: Mapping[str, object]) -> str:
        """Returns the text. Raises TemplateError: an undefined variable is named, and so is a limit that was passed."""
        meter = _Meter(self._limits)
        environment = _environment(meter)
        template = Template.from_code(environment, self._code, {})
        parts: list[str] = []
        try:
            for part in template.root_render_func(template.new_context(dict(values))):
                meter.make(len(part))
                parts.append(part)
        except UndefinedError as error:
            raise TemplateError(f"{error.message or 'a variable is undefined'}") from None
        except (JinjaError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise TemplateError(f"it cannot be rendered: {_short(error)}") from None
        return "".join(parts)


def compile_template(text: str, limits: TemplateLimits) -> JinjaTemplate:
    """Checks and compiles a template. Raises TemplateError with the line of what is not allowed."""
    if len(text) > limits.max_characters:
        raise TemplateError(f"it is longer than {limits.max_characters:,} characters, too long for a Jinja template")
    if text.count("{{") + text.count("{%") > limits.max_nodes:  # before it is parsed
        raise TemplateError(f"it has more than {limits.max_nodes:,} parts")
    environment = _environment(_Meter(limits))
    try:
        tree = environment.parse(text)
        _check(tree, limits)
        variables = frozenset(find_undeclared_variables(tree))
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
            loop.set_environment(environment)
        return JinjaTemplate(tree, variables, limits)
    except JinjaError as error:
        raise TemplateError(_short(error), getattr(error, "lineno", None)) from None
    except (RecursionError, MemoryError):
        raise TemplateError("it is nested too deeply") from None
    except (ValueError, OverflowError, SyntaxError) as error:
        raise TemplateError(f"it cannot be compiled: {_short(error)}") from None


def _check(tree: nodes.Template, limits: TemplateLimits) -> None:
    """Walks over every node without recursion; what is not on the list is refused."""
    waiting: list[tuple[nodes.Node, int, int]] = [(tree, 0, 0)]
    seen = 0
    while waiting:
        node, depth, loops = waiting.pop()
        seen += 1
        if seen > limits.max_nodes:
            raise TemplateError(f"it has more than {limits.max_nodes:,} parts", node.lineno)
        if depth > limits.max_depth:
            raise TemplateError("it is nested too deeply", node.lineno)
        _check_node(node)
        if isinstance(node, nodes.For):
            loops += 1
            if loops > limits.max_loop_depth:
                raise TemplateError(f"loops are nested more than {limits.max_loop_depth} deep", node.lineno)
        waiting.extend((child, depth + 1, loops) for child in node.iter_child_nodes())


def _check_node(node: nodes.Node) -> None:
    if not isinstance(node, _STRUCTURE + _EXPRESSIONS):
        what = _WORDS.get(type(node), f"'{type(node).__name__.lower()}'")
        raise TemplateError(f"a prompt may not use {what}", node.lineno)
    if isinstance(node, nodes.Name) and (node.name.startswith("_") or node.name in _SPECIAL_NAMES):
        raise TemplateError(f"the name '{_short(node.name)}' cannot be used", node.lineno)
    if isinstance(node, nodes.Const) and isinstance(node.value, str) and len(node.value) > _MAX_CONSTANT_CHARACTERS:
        raise TemplateError(f"a constant is longer than {_MAX_CONSTANT_CHARACTERS:,} characters", node.lineno)
    if isinstance(node, nodes.For) and node.recursive:
        raise TemplateError("a loop may not be recursive", node.lineno)
    if isinstance(node, nodes.Assign) and not isinstance(node.target, nodes.Name):
        raise TemplateError("'set' takes one name", node.lineno)
    if isinstance(node, nodes.Getitem):
        _check_key(node)
    if isinstance(node, nodes.Test) and node.name not in _TESTS:
        raise TemplateError(f"there is no test '{_short(node.name)}' for prompts", node.lineno)
    if isinstance(node, nodes.Filter):
        _check_filter(node)


def _check_key(node: nodes.Getitem) -> None:
    key = node.arg
    if not isinstance(key, nodes.Const) or not isinstance(key.value, str | int):
        raise TemplateError("what stands in [] is a constant text or number", node.lineno)
    if isinstance(key.value, str) and key.value.startswith("_"):
        raise TemplateError(f"the key '{_short(key.value)}' cannot be used", node.lineno)


def _check_filter(node: nodes.Filter) -> None:
    if node.node is None or node.name not in FILTERS:
        known = ", ".join(sorted(FILTERS))
        raise TemplateError(f"there is no filter '{_short(node.name)}' for prompts (there are: {known})", node.lineno)
    arguments = [*node.args, *(pair.value for pair in node.kwargs)]
    if node.dyn_args or node.dyn_kwargs or node.kwargs or not all(isinstance(each, nodes.Const) for each in arguments):
        raise TemplateError(f"the filter '{node.name}' takes constants without names", node.lineno)


def _environment(meter: _Meter) -> _Environment:
    environment = _Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, cache_size=0)
    environment.globals.clear()
    environment.filters.clear()
    environment.filters |= {name: _measured(make, meter) for name, make in FILTERS.items()}
    environment.filters[_COUNTED] = meter.count
    for name in set(environment.tests) - _TESTS:
        del environment.tests[name]
    return environment


Make = Callable[..., object]


def _measured(make: Make, meter: _Meter) -> Make:
    def filtered(value: object, *arguments: object) -> object:
        if isinstance(value, StrictUndefined) and make is not _default:
            str(value)  # raises, and names the variable
        return make(meter, value, *arguments)

    return filtered


def _text_of(meter: _Meter, value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    meter.make(len(text))
    return text


def _default(meter: _Meter, value: object, other: object = "", falsy: object = False) -> object:
    return other if isinstance(value, StrictUndefined) or (falsy and not value) else value


def _join(meter: _Meter, value: object, between: object = "") -> str:
    if not isinstance(value, list | tuple):
        raise TemplateError("the filter 'join' takes a list")
    separator = str(between)
    parts: list[str] = []
    for item in value:
        parts.append(_text_of(meter, item))
        meter.make(len(separator))
    return separator.join(parts)


def _replace(meter: _Meter, value: object, old: object, new: object) -> str:
    text, before, after = _text_of(meter, value), str(old), str(new)
    meter.make(text.count(before) * len(after))
    return text.replace(before, after)


def _truncate(meter: _Meter, value: object, length: object = 255) -> str:
    if not isinstance(length, int) or length < 3:
        raise TemplateError("the filter 'truncate' takes a number of characters, 3 or more")
    return do_truncate(_environment(meter), _text_of(meter, value), length, False, "...", 0)


def _indent(meter: _Meter, value: object, width: object = 4) -> str:
    if not isinstance(width, int) or not 0 <= width <= 64:
        raise TemplateError("the filter 'indent' takes a number of spaces, 0 to 64")
    text = _text_of(meter, value)
    meter.make(text.count("\n") * width)
    return text.replace("\n", "\n" + " " * width)


def _tojson(meter: _Meter, value: object) -> str:
    parts: list[str] = []
    for part in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
        meter.make(len(part))
        parts.append(part)
    return "".join(parts)


def _sized(value: object) -> Any:
    if not isinstance(value, str | list | tuple | Mapping):
        raise TemplateError("this filter takes a text, a list or a mapping")
    return value


def _last(meter: _Meter, value: object) -> object:
    return next(iter(list(_sized(value))[-1:]), "")


FILTERS: Mapping[str, Make] = {
    "capitalize": lambda meter, value: _text_of(meter, value).capitalize(),
    "count": lambda meter, value: len(_sized(value)),
    "default": _default,
    "first": lambda meter, value: next(islice(iter(_sized(value)), 1), ""),
    "indent": _indent,
    "join": _join,
    "last": _last,
    "length": lambda meter, value: len(_sized(value)),
    "lower": lambda meter, value: _text_of(meter, value).lower(),
    "replace": _replace,
    "title": lambda meter, value: _text_of(meter, value).title(),
    "tojson": _tojson,
    "trim": lambda meter, value: _text_of(meter, value).strip(),
    "truncate": _truncate,
    "upper": lambda meter, value: _text_of(meter, value).upper(),
    "wordcount": lambda meter, value: len(_text_of(meter, value).split()),
}
"""What a template may filter with: each takes the meter, the value and constants."""


def _short(what: object) -> str:
    text = str(getattr(what, "message", None) or what)
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"
