"""Albert's two ways to write models: ``llm_routing_table.json`` and the variable ``LLM_TABLE``.

The file is an object of service name → ``{hf_repo_id, model_host, model_port, driver, …}``. A service becomes a model
of that name, its ``hf_repo_id`` an alias (of the first service that has it), ``http://model_host:model_port/v1`` its
target. What Albert's deployment scripts read (``env``, ``api_port``, ``gpu_mem_use`` …) is left to them.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from passerelle.catalog.node import Entry, Node, Scalar, Series, Table
from passerelle.catalog.problem import Mark, Problem
from passerelle.catalog.schema import ModelName
from passerelle.catalog.shape import Section, Shaper

DRIVERS = ("vllm",)
"""Drivers whose server speaks OpenAI's format."""
_MARKS_OF_A_ROUTE = frozenset({"hf_repo_id", "model_host", "model_port"})
_MAX_TABLE_CHARACTERS = 1_000_000


class Route(Section, frozen=True, kw_only=True):
    """What of an entry of the routing table is read."""

    hf_repo_id: Annotated[ModelName, Meta(description="Repository of the model; the name vLLM serves it by.")]
    model_host: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z0-9]([A-Za-z0-9._\-]{0,252})|\[?[0-9A-Fa-f:]{2,45}\]?)\Z",
            description="Host of the model server.",
            extra={"accepted": "a host name or address"},
        ),
    ]
    model_port: Annotated[int, Meta(ge=1, le=65_535, description="Port of the model server.")]
    driver: Annotated[str, Meta(description="How Albert started the server.")] = "vllm"


def is_routing_table(path: Path, root: Table) -> bool:
    """Whether a file given as the configuration is a routing table: JSON whose entries look like routes."""
    values = [entry.value for entry in root.entries.values()]
    return path.suffix.lower() == ".json" and any(
        isinstance(value, Table) and value.entries.keys() & _MARKS_OF_A_ROUTE for value in values
    )


def routed_models(table: Table, problems: list[Problem]) -> Series:
    """Returns the models of a routing table, as if they were written in YAML; what is wrong goes to ``problems``."""
    shaper = Shaper()
    models = Series(table.mark)
    seen: set[str] = set(table.entries)
    for name, entry in table.entries.items():
        route = _route(shaper, name, entry.value)
        if route is None:
            continue
        alias = None if route.hf_repo_id in seen else route.hf_repo_id
        seen.add(route.hf_repo_id)
        host = f"[{route.model_host}]" if ":" in route.model_host.strip("[]") else route.model_host
        url = f"http://{host.replace('[[', '[').replace(']]', ']')}:{route.model_port}/v1"
        models.items.append(_model(entry.mark, name, url, route.hf_repo_id, alias))
    problems.extend(shaper.problems)
    return models


def _route(shaper: Shaper, name: str, node: Node) -> Route | None:
    if isinstance(node, Table):
        known = {key: entry for key, entry in node.entries.items() if key in Route.__struct_fields__}
        node = Table(node.mark, known)
    route = shaper.section(Route, node, name)
    if route is not None and route.driver not in DRIVERS:
        assert isinstance(node, Table)
        shaper.report(
            node.entries["driver"].value.mark,
            f"{name}.driver",
            "servers of this driver do not speak OpenAI's format and cannot be a target yet",
            ", ".join(DRIVERS),
        )
        return None
    return route


def llm_table(text: str, problems: list[Problem]) -> Series:
    """Returns the models of ``LLM_TABLE``: a Python literal list of (name, url); ``/v1`` is added to a bare url."""
    mark = Mark("LLM_TABLE")
    models = Series(mark)
    accepted = '[("albert-light", "http://host:8082")]'
    try:
        if len(text) > _MAX_TABLE_CHARACTERS:
            raise ValueError
        table = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        problems.append(Problem(mark, "models", "the variable's value is not a list of (name, url)", accepted))
        return models
    for index, pair in enumerate(table if isinstance(table, list | tuple) else [table]):
        match pair:
            case (str(name), str(url)) | [str(name), str(url)]:
                base = url.rstrip("/")
                bare = base.count("/") <= 2
                models.items.append(_model(mark, name, f"{base}/v1" if bare else base, name, None))
            case _:
                problems.append(Problem(mark, f"models[{index}]", "expected (name, url)", accepted))
    return models


def _model(mark: Mark, name: str, url: str, upstream: str, alias: str | None) -> Table:
    def text(value: str) -> Scalar:
        return Scalar(mark, value, quoted=True)

    def table(**entries: Node) -> Table:
        return Table(mark, {key: Entry(mark, value) for key, value in entries.items()})

    target = table(engine=text("openai"), url=text(url), model=text(upstream))
    aliases = Series(mark, [text(alias)] if alias is not None else [])
    return table(name=text(name), aliases=aliases, targets=Series(mark, [target]))
