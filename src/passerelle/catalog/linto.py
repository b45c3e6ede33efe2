"""The settings of LinTO's LLM Gateway, where services come from a folder of its own (``.hydra-conf/``).

Its environment variables, and below them what its ``config.yaml`` says, are defaults of ours: a key that is written in
``passerelle.yaml``, a ``PASSERELLE_…`` variable or an option goes before them. Without such a folder the variables mean
nothing: ``TIMEOUT`` and ``HTTP_PORT`` are anybody's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from passerelle.catalog.document import Document, read_document
from passerelle.catalog.node import Entry, Node, Scalar, Table, merged
from passerelle.catalog.problem import ConfigurationError, Mark

FOLDER: Final = ".hydra-conf"

Key = tuple[str, str]

SETTINGS: Final[Mapping[str, tuple[tuple[str, ...], Key]]] = {
    "OPENAI_API_BASE": (("api_params", "api_base"), ("services", "api_base")),
    "OPENAI_API_TOKEN": (("api_params", "api_key"), ("services", "api_key")),
    "MAX_RETRIES": (("api_params", "max_retries"), ("services", "max_retries")),
    "MAX_RETRY_DELAY": (("api_params", "max_retry_delay"), ("services", "max_retry_delay_s")),
    "TIMEOUT": (("api_params", "timeout"), ("services", "call_timeout_s")),
    "WS_POLLING_INTERVAL": (("api_params", "ws_polling_interval"), ("services", "ws_polling_interval_s")),
    "MAX_CONCURRENT_INFERENCES": (("semaphore", "max_concurrent_inferences"), ("services", "max_parallel_calls")),
    "HTTP_PORT": (("api_params", "service_port"), ("server", "port")),
    "CONCURRENCY": (("api_params", "workers"), ("server", "workers")),
    "SWAGGER_URL": (("swagger", "url"), ("server", "docs_path")),
    "SERVICE_NAME": (("backend_defaults", "service_name"), ("server", "name")),
    "SERVICES_BROKER": (("services_broker", "url"), ("jobs", "broker")),
    "BROKER_PASS": (("services_broker", "password"), ("jobs", "broker")),
}
"""Variable -> its key in ``config.yaml``, and ours."""
_NOTHING = "EMPTY"
"""What LinTO writes for a token or password that there is none of."""


def find_linto(document: Document, config: Path | None, home: Path) -> Path | None:
    """Returns LinTO's folder, where services come from one: beside the configuration, or named by ``services.folder``.

    As `passerelle.services.folder.folders_for` finds it.
    """
    services = document.root.get("services")
    named = services.get("folder") if isinstance(services, Table) else None
    beside = config.parent if config is not None else Path()
    roots = [beside / named.text] if isinstance(named, Scalar) else [beside] if config is not None else [beside, home]
    for root in roots:
        has_services, has_config = (root / "services").is_dir(), (root / "config.yaml").is_file()
        if has_services and not has_config:
            return None
        if (root / FOLDER).is_dir():
            return root / FOLDER
        if has_services:
            return root
    return None


def add_linto(document: Document, folder: Path, environ: Mapping[str, str]) -> None:
    """Lays the document on what LinTO's variables and ``config.yaml`` say."""
    path = folder / "config.yaml"
    try:
        written = read_document(path, environ).root if path.is_file() else Table(Mark(str(path)))
    except ConfigurationError:
        written = Table(Mark(str(path)))  # whoever reads the services says what is wrong with it
    found = {name: _value(name, where, written, environ) for name, (where, _) in SETTINGS.items()}
    broker = _broker(found.pop("SERVICES_BROKER"), found.pop("BROKER_PASS"))
    base = Table(Mark(str(path)))
    for name, value in found.items():
        if value is not None:
            _put(base, SETTINGS[name][1], value)
    if broker is not None:
        _put(base, ("jobs", "broker"), broker)
    document.root = merged(base, document.root)


def _value(name: str, where: tuple[str, ...], written: Table, environ: Mapping[str, str]) -> Scalar | None:
    text = environ.get(name, "").strip()
    if text:
        return None if text == _NOTHING else Scalar(Mark(name), text, loose=True)
    node: Node | None = written
    for key in where:
        node = node.get(key) if isinstance(node, Table) else None
    if not isinstance(node, Scalar) or node.text.strip() in ("", _NOTHING, "null", "~"):
        return None
    return Scalar(node.mark, node.text.strip(), loose=True)


def _broker(url: Scalar | None, password: Scalar | None) -> Scalar | None:
    """Returns the broker with its password in the address, as ours is written."""
    if url is None or password is None:
        return url
    try:
        parts = urlsplit(url.text)
    except ValueError:
        return url
    if parts.password is not None or not parts.hostname:
        return url
    place = parts.netloc.rpartition("@")[2]
    user = quote(parts.username or "", safe="")
    text = parts._replace(netloc=f"{user}:{quote(password.text, safe='')}@{place}").geturl()
    return Scalar(url.mark, text, loose=True)


def _put(base: Table, key: Key, value: Scalar) -> None:
    section, name = key
    entry = base.entries.get(section)
    table = entry.value if entry is not None else Table(value.mark)
    assert isinstance(table, Table)
    table.entries[name] = Entry(value.mark, value)
    base.entries[section] = Entry(value.mark, table)
