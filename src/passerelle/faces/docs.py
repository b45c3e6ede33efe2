"""``/docs``: the API described by OpenAPI, with a page to try it; everything is served from this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec

from passerelle import __version__
from passerelle.domain.errors import NotFound
from passerelle.edge.dispatch import Context
from passerelle.faces.description import control_paths, control_schemas
from passerelle.faces.openai.schemas import openapi_components, openapi_paths

_TYPES = {".js": b"text/javascript; charset=utf-8", ".css": b"text/css; charset=utf-8", ".png": b"image/png"}
_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
_POLICY = b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"

_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Passerelle API</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<style>.swagger-ui .responses-table td { overflow-wrap: anywhere }</style>
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

_START = b"""SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, persistAuthorization: false, validatorUrl: null,
  defaultModelsExpandDepth: 0
});
"""

_DESCRIPTION = """\
One front door for an organisation's own language models. Send your key as a bearer token
(`Authorization: Bearer sk-pas-…`), or as `x-api-key`.

Each of OpenAI's routes is there with `/v1` and without it. An `x-request-id` is taken from the request, or made, and
is echoed. Every error has OpenAI's envelope; on the routes of another dialect, that dialect's.
"""
_TAGS = [
    {"name": "OpenAI", "description": "What OpenAI's clients call. Needs a key with the scope `inference`."},
    {"name": "Responses", "description": "OpenAI's Responses, over any engine. Needs the scope `inference`."},
    {"name": "Prompts", "description": "Templates that are kept, in versions; and the studio's `/prompt`."},
    {"name": "Batches", "description": "Files of requests, answered within a day. Needs the scope `inference`."},
    {"name": "Files", "description": "Files for batches and for whoever uploads them. Needs the scope `inference`."},
    {"name": "Anthropic", "description": "What Anthropic's clients call."},
    {"name": "Media", "description": "Sound and pictures, for models that list them."},
    {"name": "OPEA", "description": "What OPEA's clients call beside `/v1/chat/completions` with `query`."},
    {"name": "Rerank", "description": "Ranking documents and scoring pairs of texts."},
    {"name": "TGI", "description": "What Text Generation Inference's clients call."},
    {"name": "Triton", "description": "What Triton's HTTP clients call, for models that write text."},
    {"name": "Services", "description": "Long documents: from a text to a result, as jobs."},
    {"name": "Jobs", "description": "Work that outlives its request: follow, stop and repeat it, take its result."},
    {"name": "LinTO", "description": "What clients of LinTO's LLM Gateway call. Needs the scope `services`."},
    {"name": "Health", "description": "For supervisors and monitoring."},
    {"name": "Organisations", "description": "The tenants."},
    {"name": "Audit", "description": "Who did what."},
    {"name": "Sign-on", "description": "How people sign on and off, and get new passwords."},
    {"name": "Projects", "description": "What usage and limits are counted for."},
    {"name": "Users", "description": "People and service accounts, and their roles."},
    {"name": "Keys", "description": "Who may call, and what."},
    {"name": "Limits", "description": "Limits, budgets and prices."},
    {"name": "Usage", "description": "What was used, and what it cost."},
    {"name": "Router", "description": "Targets and queues, for operators."},
]


class DocsFace:
    """The page, its files and the description. ``name`` is what the API calls itself."""

    def __init__(self, name: str = "Passerelle") -> None:
        self._name = name
        self._described: bytes | None = None

    async def page(self, context: Context) -> None:
        """The page."""
        await self._respond(context, b"text/html; charset=utf-8", _PAGE)

    async def moved(self, context: Context) -> None:
        """A further address of the page (``server.docs_path``)."""
        await context.exchange.client.respond(308, [(b"location", b"/docs")], b"")

    async def file(self, context: Context) -> None:
        """A file of the page. Raises NotFound for any other name."""
        name = context.parameters["file"]
        if name == "start.js":
            await self._respond(context, _TYPES[".js"], _START)
            return
        if name not in _FILES:
            raise NotFound("There is no such file.")
        path = _assets() / name
        await self._respond(context, _TYPES[path.suffix], path.read_bytes())

    async def openapi(self, context: Context) -> None:
        """The description, OpenAPI 3.1."""
        if self._described is None:
            self._described = msgspec.json.encode(describe(self._name))
        await self._respond(context, b"application/json", self._described)

    @staticmethod
    async def _respond(context: Context, content_type: bytes, body: bytes) -> None:
        headers = [
            (b"content-type", content_type),
            (b"content-security-policy", _POLICY),
            (b"x-content-type-options", b"nosniff"),
        ]
        await context.exchange.client.respond(200, headers, body)


def _assets() -> Path:
    """Returns the folder of Swagger UI's files, which the ``fastapi-offline`` wheel carries; it is not imported."""
    spec = importlib.util.find_spec("fastapi_offline")
    assert spec is not None and spec.origin is not None, "fastapi-offline is a dependency"
    return Path(spec.origin).parent / "static"


def describe(name: str = "Passerelle") -> dict[str, object]:
    """Returns the OpenAPI document of all routes but this page's own."""
    components = openapi_components()
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": __version__, "description": _DESCRIPTION},
        "tags": _TAGS,
        "security": [{"key": []}],
        "paths": openapi_paths() | control_paths(),
        "components": {
            "schemas": components["schemas"] | control_schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "sk-pas-…"}},
        },
    }
