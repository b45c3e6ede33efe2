"""Gathers one document from where a configuration may be written: a file, the environment, options.

The later wins: file, then ``PASSERELLE_SECTION__KEY`` variables, then options of the command line. Models come from
``models``, and further ones from an Albert routing table (``models_file``) and from ``LLM_TABLE``; or the file is
OPEA's ``config.ini``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from passerelle.catalog.document import Document, read_document
from passerelle.catalog.node import Entry, Node, Scalar, Series, Table, merged, node_of
from passerelle.catalog.opea import is_opea, opea_document
from passerelle.catalog.problem import ConfigurationError, Mark, Problem
from passerelle.catalog.routing import is_routing_table, llm_table, routed_models

PREFIX = "PASSERELLE_"
# Kubernetes sets PASSERELLE_PORT and the like for a service of that name: a single underscore is believed only here.
_SINGLE = {
    "PASSERELLE_DATABASE": ("database",),
    "PASSERELLE_MODELS": ("models",),
    "PASSERELLE_MODELS_FILE": ("models_file",),
    "PASSERELLE_API_KEY": ("auth", "api_key"),
    "PASSERELLE_FAILPOINT": ("jobs", "failpoint"),
}


def gather(config: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Document:
    """Returns the document of ``config`` (None: no file) with overrides laid on it.

    ``flags`` maps key paths (``server.port``) to values; None means that the option was not given.
    Raises ConfigurationError when the file cannot be read as a whole.
    """
    if config is not None:
        document = opea_document(config, environ) if is_opea(config) else read_document(config, environ)
    else:
        document = Document(Table(Mark("configuration")), created=int(time.time()))
    if config is not None and is_routing_table(config, document.root):
        models = routed_models(document.root, document.problems)
        document.root = Table(document.root.mark, {"models": Entry(document.root.mark, models)})
    for mark, path, node in [*_from_environ(environ, document.problems), *_from_flags(flags)]:
        document.root = merged(document.root, _nested(mark, path, node))
    _add_models_file(document, environ)
    _add_llm_table(document, environ)
    return document


def _nested(mark: Mark, path: tuple[str, ...], node: Node) -> Table:
    for key in reversed(path):
        node = Table(mark, {key: Entry(mark, node)})
    assert isinstance(node, Table)
    return node


def _from_environ(environ: Mapping[str, str], problems: list[Problem]) -> list[tuple[Mark, tuple[str, ...], Node]]:
    found: list[tuple[Mark, tuple[str, ...], Node]] = []
    for name in sorted(environ):
        path = _SINGLE.get(name)
        if path is None:
            if not name.startswith(PREFIX) or "__" not in name:
                continue
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        mark = Mark(name)
        text = environ[name]
        if not text.isprintable():
            problems.append(Problem(mark, ".".join(path), "the variable's value is not printable text"))
            continue
        try:
            value = json.loads(text) if text.lstrip()[:1] in ("{", "[") and text.strip() else text
            node = node_of(value, mark)
        except (ValueError, RecursionError):
            problems.append(Problem(mark, ".".join(path), "the variable's value is not JSON", '["a", "b"] or {"a": 1}'))
            continue
        found.append((mark, path, node))
    return found


def _from_flags(flags: Mapping[str, object]) -> list[tuple[Mark, tuple[str, ...], Node]]:
    found: list[tuple[Mark, tuple[str, ...], Node]] = []
    for key, value in flags.items():
        if value is not None:
            path = tuple(key.split("."))
            mark = Mark("--" + path[-1].replace("_", "-"))
            found.append((mark, path, node_of(value, mark)))
    return found


def _add_models_file(document: Document, environ: Mapping[str, str]) -> None:
    node = document.root.get("models_file")
    if node is None:
        return
    if not isinstance(node, Scalar) or not node.text:
        document.problems.append(Problem(node.mark, "models_file", "expected the path of a file"))
        return
    path = document.directory / node.text
    document.files = (*document.files, path)
    try:
        table = read_document(path, environ)
    except ConfigurationError as error:
        document.problems.extend(error.problems)
        return
    document.problems.extend(table.problems)
    document.created = max(document.created, table.created)
    _append_models(document, routed_models(table.root, document.problems))


def _add_llm_table(document: Document, environ: Mapping[str, str]) -> None:
    text = environ.get("LLM_TABLE", "").strip()
    if text:
        models = llm_table(text, document.problems)
        if models.items:
            _append_models(document, models)


def _append_models(document: Document, more: Series) -> None:
    models = document.root.get("models")
    if models is None:
        models = Series(more.mark)
    if isinstance(models, Series):
        models = Series(models.mark, [*models.items, *more.items])
        entries = document.root.entries | {"models": Entry(models.mark, models)}
        document.root = Table(document.root.mark, entries)
