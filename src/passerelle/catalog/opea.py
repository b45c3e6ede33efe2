"""OPEA's ``config.ini`` as a configuration: one model, one model server, and where to listen.

    [Logging]            log_level  LOG_LEVEL, LLM_LOG_LEVEL      log_path  LOG_PATH, LLM_LOG_PATH
    [OPEA_Microservice]  name  USVC_NAME     host  USVC_HOST      port  USVC_PORT
    [Model]              model_name  LLM_NAME                     model_server  MODEL_SERVER
                         framework  FRAMEWORK                     model_server_endpoint  LLM_MODEL_SERVER_ENDPOINT

A variable wins over the file. Double quotes around a value are taken off, as the original does. Its callers send no
key, so requests without one are let in. ``framework`` chose a client library there and has no effect.
"""

from __future__ import annotations

import configparser
import time
from collections.abc import Mapping
from pathlib import Path

from passerelle.catalog.document import Document, read_text
from passerelle.catalog.node import Entry, Node, Scalar, Series, Table, node_of
from passerelle.catalog.problem import ConfigurationError, Mark, Problem

_SERVERS = {"tgi": ("tgi", ""), "vllm": ("openai", "/v1"), "ray": ("openai", "/v1")}
"""model_server -> our engine, and what its endpoint lacks."""
_LEVELS = {"DEBUG": "debug", "INFO": "info", "WARNING": "warning", "ERROR": "error", "CRITICAL": "error"}
_KEYS: Mapping[str, tuple[tuple[str, str], tuple[str, ...], str]] = {
    "log_level": (("Logging", "log_level"), ("LOG_LEVEL", "LLM_LOG_LEVEL"), "INFO"),
    "log_path": (("Logging", "log_path"), ("LOG_PATH", "LLM_LOG_PATH"), ""),
    "name": (("OPEA_Microservice", "name"), ("USVC_NAME",), "opea_service@llm"),
    "host": (("OPEA_Microservice", "host"), ("USVC_HOST",), "0.0.0.0"),
    "port": (("OPEA_Microservice", "port"), ("USVC_PORT",), "9000"),
    "model_name": (("Model", "model_name"), ("LLM_NAME",), ""),
    "model_server": (("Model", "model_server"), ("MODEL_SERVER",), "tgi"),
    "endpoint": (("Model", "model_server_endpoint"), ("LLM_MODEL_SERVER_ENDPOINT",), ""),
}


def is_opea(path: Path) -> bool:
    """Whether a file given as the configuration is OPEA's."""
    return path.suffix.lower() == ".ini"


def opea_document(path: Path, environ: Mapping[str, str]) -> Document:
    """Returns the document that ``path`` and the variables stand for. Raises ConfigurationError."""
    text, modified = read_text(path)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        line = getattr(error, "lineno", None)
        mark = Mark(str(path), line, 1 if line else None)
        raise ConfigurationError(
            [Problem(mark, "", "this is not an ini file", "[Section] and key=value")], (path,)
        ) from None
    values = _Values(path, text, parser, environ)
    problems: list[Problem] = []
    server, level = values.text("model_server").lower(), values.text("log_level").upper()
    if server not in _SERVERS:
        problems.append(values.problem("model_server", "Invalid model server", ", ".join(_SERVERS)))
    if level not in _LEVELS:
        problems.append(values.problem("log_level", "this is not a level", ", ".join(_LEVELS)))
    problems += [
        values.problem(key, "a value is required") for key in ("model_name", "endpoint") if not values.text(key)
    ]
    if problems:
        raise ConfigurationError(problems, (path,))
    engine, rest = _SERVERS[server]
    endpoint = values.text("endpoint").rstrip("/")
    url = endpoint if endpoint.endswith(rest) else endpoint + rest
    target = values.table("endpoint", engine=values.node("model_server", engine), url=values.node("endpoint", url))
    model = values.table("model_name", name=values.node("model_name"), targets=Series(target.mark, [target]))
    logging = {"level": values.node("log_level", _LEVELS[level])}
    if values.text("log_path"):
        logging["file"] = values.node("log_path")
    root = values.table(
        "name",
        server=values.table("host", host=values.node("host"), port=values.node("port", quoted=False)),
        auth=values.table("name", required=node_of(False, Mark(str(path)))),
        opea=values.table("name", name=values.node("name")),
        logging=values.table("log_level", **logging),
        models=Series(model.mark, [model]),
    )
    return Document(root, (path,), path.parent, modified or int(time.time()))


class _Values:
    """What was written, and where."""

    def __init__(self, path: Path, text: str, parser: configparser.ConfigParser, environ: Mapping[str, str]) -> None:
        self._path = path
        self._lines = text.splitlines()
        self._parser = parser
        self._environ = environ

    def text(self, key: str) -> str:
        """Returns the value of ``key``, its quotes taken off."""
        (section, option), names, default = _KEYS[key]
        for name in names:
            if self._environ.get(name):
                return self._environ[name]
        return self._parser.get(section, option, fallback=default).strip().strip('"').strip() or default

    def node(self, key: str, value: str | None = None, *, quoted: bool = True) -> Scalar:
        """Returns the value as if it were written in YAML."""
        return Scalar(self.mark(key), self.text(key) if value is None else value, quoted=quoted)

    def table(self, key: str, **entries: Node) -> Table:
        """Returns keys and values that stand where ``key`` does."""
        mark = self.mark(key)
        return Table(mark, {name: Entry(mark, value) for name, value in entries.items()})

    def problem(self, key: str, message: str, accepted: str | None = None) -> Problem:
        """Returns a problem with the value of ``key``."""
        (section, option), _, _ = _KEYS[key]
        return Problem(self.mark(key), f"{section}.{option}", message, accepted)

    def mark(self, key: str) -> Mark:
        """Returns where ``key`` was given: a variable, a line of the file, or the file that leaves it out."""
        (_, option), names, _ = _KEYS[key]
        for name in names:
            if self._environ.get(name):
                return Mark(name)
        for number, line in enumerate(self._lines, 1):
            if line.split("=", 1)[0].strip().lower() == option and "=" in line:
                return Mark(str(self._path), number, line.index("=") + 2)
        return Mark(str(self._path))
