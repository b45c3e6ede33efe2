"""Reads one YAML or JSON file into a tree whose every key and value knows its line.

YAML is read event by event and never becomes Python objects. Scalars follow YAML 1.2: ``no`` and ``on`` are text,
``1e3`` is a number. Refused, each with file and line: duplicate keys, tags, byte order marks, anything but UTF-8, files
past ten megabytes, nesting past 64 levels, more than 500,000 values once aliases are expanded, control characters.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from passerelle.catalog.interpolate import InterpolationError, interpolate
from passerelle.catalog.node import Broken, Entry, Node, Scalar, Series, Table, is_null
from passerelle.catalog.problem import ConfigurationError, Mark, Problem, one_line

if TYPE_CHECKING:
    import yaml

MAX_FILE_BYTES = 10_000_000
MAX_DEPTH = 64
MAX_VALUES = 500_000

_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_NOT_IN_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(slots=True)
class Document:
    """A configuration as it was written, before anyone asked what it means.

    ``files`` are the files it was read from, to be watched; ``directory`` is what relative paths in it start from;
    ``created`` is the newest file's modification time in seconds since the epoch. ``problems`` were
    met while reading and do not stop the rest from being checked.
    """

    root: Table
    files: tuple[Path, ...] = ()
    directory: Path = field(default_factory=Path)
    created: int = 0
    problems: list[Problem] = field(default_factory=list)


def read_document(path: Path, environ: Mapping[str, str]) -> Document:
    """Reads ``path`` and resolves its interpolations against ``environ``.

    Raises ConfigurationError when there is no tree to speak of; a variable that is not set only adds to ``problems``.
    """
    data, modified = _read(path)
    composer = _Composer(str(path), environ)
    root = composer.compose(data, tabs_are_space=path.suffix.lower() == ".json")
    if is_null(root):
        root = Table(root.mark)
    if not isinstance(root, Table):
        found = "a list" if isinstance(root, Series) else "a single value"
        raise ConfigurationError([Problem(root.mark, "", f"the file holds {found}", "keys and values at the top")])
    return Document(root, (path,), path.parent, modified, composer.problems)


def read_text(path: Path) -> tuple[str, int]:
    """Returns a file's text and the time it was modified, in seconds since the epoch. Raises ConfigurationError."""
    data, modified = _read(path)
    try:
        return data.decode("utf-8-sig"), modified
    except UnicodeDecodeError:
        raise ConfigurationError([Problem(Mark(str(path)), "", "the file is not UTF-8 text")], (path,)) from None


def _read(path: Path) -> tuple[bytes, int]:
    mark = Mark(str(path))
    try:
        # A pipe with no writer would block the open for ever: look before.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigurationError([Problem(mark, "", "this is not a file")])
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            data = file.read(MAX_FILE_BYTES + 1) if info.st_size <= MAX_FILE_BYTES else b""
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "the path is not one"
        raise ConfigurationError([Problem(mark, "", f"the file cannot be read: {why}")]) from None
    if info.st_size > MAX_FILE_BYTES or len(data) > MAX_FILE_BYTES:
        message = f"the file is larger than {MAX_FILE_BYTES:,} bytes, too large for a configuration"
        raise ConfigurationError([Problem(mark, "", message)])
    return data, int(info.st_mtime)


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end was not seen yet. ``values`` counts what it holds, aliases expanded."""

    node: Table | Series
    anchor: str | None
    key: Scalar | None = None
    merged: list[Table] = field(default_factory=list)
    values: int = 1


class _Composer:
    """Turns bytes into one tree."""

    def __init__(self, source: str, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._environ = environ
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._stack: list[_Open] = []
        self._values = 0
        self._root: Node | None = None

    def compose(self, data: bytes, *, tabs_are_space: bool) -> Node:
        import yaml

        text = self._decode(data)
        if tabs_are_space:
            # JSON strings hold no raw tabs, so nothing but indentation changes.
            text = text.replace("\t", " ")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            self._consume(yaml.parse(text, Loader=loader))
        except yaml.YAMLError as error:
            self._syntax(error, text)
        except RecursionError:
            self._fail(None, f"values are nested more than {MAX_DEPTH} levels deep")
        return self._root if self._root is not None else Scalar(Mark(self._source, 1, 1), "")

    def _decode(self, data: bytes) -> str:
        if data.startswith(_BYTE_ORDER_MARKS):
            self._fail(Mark(self._source, 1, 1), "the file starts with a byte order mark; save it as plain UTF-8")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
            self._fail(Mark(self._source, line, column), "the file is not UTF-8 text here; save it as UTF-8")
        found = _NOT_IN_YAML.search(text)
        if found:
            start = found.start()
            mark = Mark(self._source, text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start))
            self._fail(mark, f"character U+{ord(found[0]):04X} is not allowed; is the file UTF-8 text?")
        return text

    def _consume(self, events: Iterable[yaml.Event]) -> None:
        import yaml

        for event in events:
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.MappingStartEvent):
                self._begin(Table(self._mark(event)), event)
            elif isinstance(event, yaml.SequenceStartEvent):
                self._begin(Series(self._mark(event)), event)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self._end()
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
                self._fail(self._mark(event), "a second document starts here; one file is one document")

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        mark = self._mark(event)
        if event.tag not in (None, "tag:yaml.org,2002:str"):
            self._fail(mark, "tags (!…) are not supported; write the value without")
        text: str = event.value
        node: Node = Scalar(mark, text, quoted=bool(event.style) or event.tag is not None)
        if _CONTROL.search(text):
            self._report(mark, "the value holds a control character")
            node = Broken(mark)
        self._add(node, event.anchor, 1)

    def _begin(self, node: Table | Series, event: yaml.CollectionStartEvent) -> None:
        if event.tag is not None:
            self._fail(node.mark, "tags (!…) are not supported; write the value without")
        if len(self._stack) >= MAX_DEPTH:
            self._fail(node.mark, f"values are nested more than {MAX_DEPTH} levels deep")
        if self._stack and self._awaits_key():
            self._fail(node.mark, "a key must be text, not a list or a mapping; is a value with braces not quoted?")
        self._stack.append(_Open(node, event.anchor))
        if event.anchor is not None:
            self._anchors.pop(event.anchor, None)

    def _end(self) -> None:
        done = self._stack.pop()
        if isinstance(done.node, Table):
            for base in done.merged:
                for key, entry in base.entries.items():
                    done.node.entries.setdefault(key, entry)
        self._add(done.node, done.anchor, done.values, counted=True)

    def _alias(self, event: yaml.AliasEvent) -> None:
        mark = self._mark(event)
        if event.anchor not in self._anchors:
            self._fail(mark, f"the alias *{one_line(str(event.anchor))} has no complete anchor before it")
        node, values = self._anchors[event.anchor]
        self._add(node, None, values)

    def _add(self, node: Node, anchor: str | None, values: int, *, counted: bool = False) -> None:
        """Puts a complete value where it belongs. ``counted``: what is inside was counted as it came."""
        self._values += 1 if counted else values
        if self._values > MAX_VALUES:
            self._fail(node.mark, f"the file holds more than {MAX_VALUES:,} values, with its aliases expanded")
        if not self._stack:
            self._root = self._settled(node)
        elif self._awaits_key():
            self._key(node)
        else:
            self._value(self._settled(node))
        if self._stack:
            self._stack[-1].values += values
        if anchor is not None:
            self._anchors[anchor] = (node, values)

    def _awaits_key(self) -> bool:
        top = self._stack[-1]
        return isinstance(top.node, Table) and top.key is None

    def _key(self, node: Node) -> None:
        if isinstance(node, Broken):
            raise ConfigurationError(self.problems)
        if not isinstance(node, Scalar):
            self._fail(node.mark, "a key must be plain text")
        self._stack[-1].key = node

    def _value(self, node: Node) -> None:
        top = self._stack[-1]
        if isinstance(top.node, Series):
            top.node.items.append(node)
            return
        key = top.key
        assert key is not None
        if key.text == "<<" and not key.quoted:
            self._merge_key(top, node)
        elif key.text in top.node.entries:
            before = top.node.entries[key.text].mark
            self._report(key.mark, f"the key '{one_line(key.text)}' is given twice, first on line {before.line}")
        else:
            top.node.entries[key.text] = Entry(key.mark, node)
        top.key = None

    def _merge_key(self, top: _Open, node: Node) -> None:
        bases = node.items if isinstance(node, Series) else [node]
        for base in bases:
            if isinstance(base, Table):
                top.merged.append(base)
            else:
                self._fail(base.mark, "'<<' merges mappings; this is not one")

    def _settled(self, node: Node) -> Node:
        """Returns the value with its interpolations resolved."""
        if not isinstance(node, Scalar) or node.loose or "$" not in node.text:
            return node
        try:
            result = interpolate(node.text, self._environ)
        except InterpolationError as error:
            self._report(node.mark, str(error))
            return Broken(node.mark)
        if _CONTROL.search(result.text):
            self._report(node.mark, "the value holds a control character after its variables are filled in")
            return Broken(node.mark)
        outside = result.whole or not node.quoted
        return Scalar(node.mark, result.text, quoted=not outside, loose=outside)

    def _mark(self, event: yaml.Event) -> Mark:
        start = event.start_mark
        assert start is not None
        return Mark(self._source, start.line + 1, start.column + 1)

    def _syntax(self, error: yaml.YAMLError, text: str) -> NoReturn:
        """Says where the parser gave up, and where what it was reading began."""
        self._stack.clear()
        place = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        context = getattr(error, "context", None)
        if place is None:
            self._fail(None, f"not valid YAML: {one_line(str(what))}")
        lines = text.split("\n")
        line = lines[place.line] if place.line < len(lines) else ""
        mark = Mark(self._source, place.line + 1, place.column + 1)
        if "\t" in line[: len(line) - len(line.lstrip())]:
            self._fail(mark, "a tab is used for indentation; YAML wants spaces")
        began = getattr(error, "context_mark", None)
        since = f" ({context} from line {began.line + 1})" if context and began is not None else ""
        self._fail(mark, one_line(f"not valid YAML: {what}{since}"))

    def _report(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(mark, self._path(), message))

    def _path(self) -> str:
        path = ""
        for level in self._stack:
            if isinstance(level.node, Series):
                path += f"[{len(level.node.items)}]"
            elif level.key is not None:
                path += ("." if path else "") + level.key.text
        return path

    def _fail(self, mark: Mark | None, message: str) -> NoReturn:
        path = self._path()
        raise ConfigurationError([*self.problems, Problem(mark or Mark(self._source), path, message)])
