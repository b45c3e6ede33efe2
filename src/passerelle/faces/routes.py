"""Every route there is, and the right it asks for. A route that is not here does not exist; None means public."""

from __future__ import annotations

from dataclasses import dataclass

from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import Route, RouteTable
from passerelle.faces.admin.router import RouterFace
from passerelle.faces.admin.usage import UsageFace
from passerelle.faces.anthropic import errors as anthropic_errors
from passerelle.faces.anthropic.endpoints import AnthropicFace
from passerelle.faces.docs import DocsFace
from passerelle.faces.health import HealthFace
from passerelle.faces.opea.endpoints import OpeaFace
from passerelle.faces.openai.endpoints import OpenAIFace
from passerelle.faces.tgi import answers as tgi_answers
from passerelle.faces.tgi.endpoints import TgiFace

_DATA_PLANE = ("chat/completions", "completions", "embeddings", "tokenize", "detokenize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faces:
    """Whose endpoints the routes lead to."""

    openai: OpenAIFace
    anthropic: AnthropicFace
    opea: OpeaFace
    tgi: TgiFace
    health: HealthFace
    router: RouterFace
    usage: UsageFace
    docs: DocsFace


def routes(faces: Faces) -> list[Route]:
    """Returns the table."""
    openai, health, router, docs = faces.openai, faces.health, faces.router, faces.docs
    table = [
        Route("GET", "/health", None, health.health),
        Route("GET", "/ready", None, health.ready),
        Route("GET", "/version", None, health.version),
        Route("GET", "/metrics", Scope.METRICS_READ, health.metrics),
        Route("GET", "/docs", None, docs.page),
        Route("GET", "/docs/{file}", None, docs.file),
        Route("GET", "/openapi.json", None, docs.openapi),
        Route("GET", "/admin/router", Scope.ROUTER_READ, router.show),
        Route("POST", "/admin/router/{target}/drain", Scope.ROUTER_WRITE, router.drain),
        Route("POST", "/admin/router/{target}/undrain", Scope.ROUTER_WRITE, router.undrain),
        Route("GET", "/admin/usage", Scope.USAGE_READ, faces.usage.show),
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
    anthropic, render = faces.anthropic, anthropic_errors.render
    table += [
        Route("POST", "/v1/messages", Scope.INFERENCE, anthropic.message, render),
        Route("POST", "/v1/messages/count_tokens", Scope.INFERENCE, anthropic.count, render),
    ]
    table += [
        Route("GET", "/v1/health_check", None, faces.opea.health),
        Route("GET", "/v1/statistics", Scope.INFERENCE, faces.opea.statistics),
    ]
    tgi, render = faces.tgi, tgi_answers.render_error
    for prefix in ("", "/tgi/{model}"):
        table += [
            Route("POST", prefix or "/", Scope.INFERENCE, tgi.root, render),
            Route("POST", f"{prefix}/generate", Scope.INFERENCE, tgi.generate, render),
            Route("POST", f"{prefix}/generate_stream", Scope.INFERENCE, tgi.generate_stream, render),
            Route("GET", f"{prefix}/info", Scope.INFERENCE, tgi.info, render),
        ]
    return table


def direct_paths(table: RouteTable) -> frozenset[str]:
    """Returns the data plane's paths, whose requests take the short way through the edge."""
    return frozenset(route.path for route in table.routes if route.path.removeprefix("/v1").lstrip("/") in _DATA_PLANE)
