"""Every route there is, and the right it asks for. A route that is not here does not exist; None means public."""

from __future__ import annotations

from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import Route, RouteTable
from passerelle.faces.admin import AdminFace
from passerelle.faces.docs import DocsFace
from passerelle.faces.health import HealthFace
from passerelle.faces.openai.endpoints import OpenAIFace

_DATA_PLANE = ("chat/completions", "completions", "embeddings", "tokenize", "detokenize")


def routes(openai: OpenAIFace, health: HealthFace, admin: AdminFace, docs: DocsFace) -> list[Route]:
    """Returns the table."""
    table = [
        Route("GET", "/health", None, health.health),
        Route("GET", "/ready", None, health.ready),
        Route("GET", "/version", None, health.version),
        Route("GET", "/metrics", Scope.METRICS_READ, health.metrics),
        Route("GET", "/docs", None, docs.page),
        Route("GET", "/docs/{file}", None, docs.file),
        Route("GET", "/openapi.json", None, docs.openapi),
        Route("GET", "/admin/router", Scope.ROUTER_READ, admin.router),
        Route("POST", "/admin/router/{target}/drain", Scope.ROUTER_WRITE, admin.drain),
        Route("POST", "/admin/router/{target}/undrain", Scope.ROUTER_WRITE, admin.undrain),
    ]
    for prefix in ("/v1", ""):
        table += [
            Route("GET", f"{prefix}/models", Scope.INFERENCE, openai.list_models),
            Route("GET", prefix + "/models/{id:path}", Scope.INFERENCE, openai.show_model),
            Route("POST", f"{prefix}/chat/completions", Scope.INFERENCE, openai.chat),
            Route("POST", f"{prefix}/completions", Scope.INFERENCE, openai.completion),
            Route("POST", f"{prefix}/embeddings", Scope.INFERENCE, openai.embedding),
            Route("POST", f"{prefix}/tokenize", Scope.INFERENCE, openai.tokenize),
            Route("POST", f"{prefix}/detokenize", Scope.INFERENCE, openai.detokenize),
        ]
    return table


def direct_paths(table: RouteTable) -> frozenset[str]:
    """Returns the data plane's paths, whose requests take the short way through the edge."""
    return frozenset(route.path for route in table.routes if route.path.removeprefix("/v1").lstrip("/") in _DATA_PLANE)
