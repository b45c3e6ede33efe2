"""How a route that is not OpenAI's is described: its structures, parameters and errors, made into OpenAPI.

A face lists its routes as `Described` beside its endpoints; `passerelle.faces.description` collects them, and a test
holds the whole to the route table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import AnyKey
from passerelle.faces.openai.answers import ErrorAnswer

_TEMPLATE = "#/components/schemas/{name}"
_PATH = {
    "target": "The id of a target, as `GET /admin/router` lists it.",
    "route": "The route of a service; it may hold slashes.",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of the query, or a header. ``schema`` is JSON Schema."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    place: str = "query"


LIMIT = Parameter("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50})
AFTER = Parameter("after", "The `next` of the page before.")
ORGANISATION = Parameter("organisation", "The id of an organisation; other than one's own only with the scope `admin`.")
ARCHIVED = Parameter("archived", "Also archived ones.", {"type": "boolean", "default": False})
IF_MATCH = Parameter("If-Match", "The ETag that was read: 412 when the object changed since.", place="header")
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "Sent again within a day, it gets the first answer and does nothing; a new secret is null there.",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "header",
)

Structure = Any
"""A `msgspec.Struct` class, or one of its generic forms such as ``Listed[KeyAnswer]``."""


@dataclass(frozen=True)
class Described:
    """One route as documentation. ``path`` is as in the route table; ``name`` is its operationId.

    ``scope`` None means public. ``answer`` None means text; ``body`` None that none is read. ``parameters`` are those
    of the query and headers, the path's are found in it. ``errors`` are statuses beyond 400, 401, 403 and 404.
    """

    method: str
    path: str
    tag: str
    name: str
    summary: str
    scope: Scope | AnyKey | None
    answer: Structure | None
    body: Structure | None = None
    status: int = 200
    parameters: tuple[Parameter, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)
    unavailable: str | None = None
    """What a 503 of this route says, for those whose 503 is an answer and no error."""
    content_type: str = "text/plain"
    """Of an answer that is no JSON."""
    error_answer: Structure = ErrorAnswer
    """The envelope of its errors."""
    body_type: str = "application/json"


def described_schemas(routes: Iterable[Described]) -> dict[str, Any]:
    """Returns the schemas of all structures."""
    structures = [
        each for route in routes for each in (route.answer, route.body, route.error_answer) if each is not None
    ]
    return msgspec.json.schema_components(structures, ref_template=_TEMPLATE)[1]


def described_paths(routes: Iterable[Described]) -> dict[str, Any]:
    """Returns the entries of ``paths``."""
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return paths


def _operation(route: Described) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "security": [] if route.scope is None else [{"key": []}],
        "responses": {str(route.status): _answer("The answer.", route.answer, route.content_type)},
    }
    names = re.findall(r"\{(\w+)", route.path)
    if route.scope is None:
        operation["description"] = "Public."
    elif isinstance(route.scope, AnyKey):
        operation["description"] = f"Needs a key: `{route.scope.value}`."
    else:
        operation["description"] = f"Needs a key with the scope `{route.scope.value}` (or `admin`)."
    for status, why in sorted((_usual_errors(route, names) | dict(route.errors)).items()):
        operation["responses"][str(status)] = _answer(why, route.error_answer)
    if route.unavailable is not None:
        operation["responses"]["503"] = _answer(route.unavailable, route.answer)
    parameters = [_path_parameter(name) for name in names] + [_parameter(each) for each in route.parameters]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {route.body_type: {"schema": _schema(route.body)}}}
    return operation


def _usual_errors(route: Described, names: list[str]) -> dict[int, str]:
    errors: dict[int, str] = {}
    if route.scope is not None:
        errors |= {401: "No key, or one that is not known.", 403: "The key lacks the scope, or may not do this."}
    if route.body is not None or any(each.place == "query" for each in route.parameters):
        errors[400] = "The request is wrong; `param` names the field."
    if "target" in names:
        errors[404] = "No target of that id."
    elif names:
        errors[404] = "Nothing of that id, or not yours."
    if IF_MATCH in route.parameters:
        errors[412] = "It changed since: read it again."
    if IDEMPOTENCY_KEY in route.parameters:
        errors[409] = "It contradicts what is there; or the first request with this Idempotency-Key is still at work."
        errors[422] = "This Idempotency-Key was sent with another request."
    return errors


def _path_parameter(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": _PATH.get(name, f"The {name}'s id."),
        "schema": {"type": "string"},
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": False,
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }


def _answer(description: str, structure: Structure | None, content_type: str = "text/plain") -> dict[str, Any]:
    if structure is None:
        return {"description": description, "content": {content_type: {"schema": {"type": "string"}}}}
    return {"description": description, "content": {"application/json": {"schema": _schema(structure)}}}


def _schema(structure: Structure) -> dict[str, Any]:
    (reference,), _ = msgspec.json.schema_components([structure], ref_template=_TEMPLATE)
    return reference
