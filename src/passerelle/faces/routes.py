"""Every route there is, and the right it asks for. A route that is not here does not exist; None means public."""

from __future__ import annotations

from dataclasses import dataclass, replace

from passerelle.domain.principal import Scope
from passerelle.edge.dispatch import ANY_KEY, Route, RouteTable
from passerelle.edge.socket import WEBSOCKET
from passerelle.faces.admin.audit import AuditFace
from passerelle.faces.admin.keys import KeysFace
from passerelle.faces.admin.limits import LimitsFace
from passerelle.faces.admin.me import MeFace
from passerelle.faces.admin.organisations import OrganisationsFace
from passerelle.faces.admin.prices import PricesFace
from passerelle.faces.admin.projects import ProjectsFace
from passerelle.faces.admin.router import RouterFace
from passerelle.faces.admin.usage import UsageFace
from passerelle.faces.admin.users import UsersFace
from passerelle.faces.anthropic import errors as anthropic_errors
from passerelle.faces.anthropic.endpoints import AnthropicFace
from passerelle.faces.auth import AuthFace
from passerelle.faces.docs import DocsFace
from passerelle.faces.health import HealthFace
from passerelle.faces.jobs.endpoints import JobsFace
from passerelle.faces.jobs.following import FollowingFace
from passerelle.faces.media.endpoints import MediaFace
from passerelle.faces.opea.endpoints import OpeaFace
from passerelle.faces.openai.batches import BatchesFace
from passerelle.faces.openai.endpoints import OpenAIFace
from passerelle.faces.openai.files import FilesFace
from passerelle.faces.prompts.endpoints import PromptsFace
from passerelle.faces.prompts.studio import StudioFace
from passerelle.faces.rerank.endpoints import RerankFace
from passerelle.faces.responses.endpoints import ResponsesFace
from passerelle.faces.services import linto
from passerelle.faces.services.endpoints import ServicesFace
from passerelle.faces.services.linto import LintoFace
from passerelle.faces.services.sockets import LintoSockets
from passerelle.faces.tgi import answers as tgi_answers
from passerelle.faces.tgi.endpoints import TgiFace
from passerelle.faces.triton import answers as triton_answers
from passerelle.faces.triton.endpoints import TritonFace

_DATA_PLANE = ("chat/completions", "completions", "embeddings", "tokenize", "detokenize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faces:
    """Whose endpoints the routes lead to."""

    openai: OpenAIFace
    anthropic: AnthropicFace
    opea: OpeaFace
    tgi: TgiFace
    triton: TritonFace
    rerank: RerankFace
    media: MediaFace
    health: HealthFace
    router: RouterFace
    usage: UsageFace
    me: MeFace
    organisations: OrganisationsFace
    projects: ProjectsFace
    users: UsersFace
    keys: KeysFace
    limits: LimitsFace
    prices: PricesFace
    docs: DocsFace
    auth: AuthFace
    audit: AuditFace
    linto: LintoFace
    linto_sockets: LintoSockets
    services: ServicesFace
    jobs: JobsFace
    following: FollowingFace
    files: FilesFace
    responses: ResponsesFace
    batches: BatchesFace
    prompts: PromptsFace
    studio: StudioFace


def routes(faces: Faces, docs_path: str = "/docs") -> list[Route]:
    """Returns the table; ``docs_path`` is a further address of the description."""
    openai, health, router, docs = faces.openai, faces.health, faces.router, faces.docs
    table = [
        Route("POST", "/v2/rerank", Scope.INFERENCE, faces.rerank.rerank),
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
        *_identity(faces),
        *_limits(faces),
        *_linto(faces),
        *_jobs(faces),
        *_kept(faces),
        *_prompts(faces),
        *_triton(faces),
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
            Route("POST", f"{prefix}/rerank", Scope.INFERENCE, faces.rerank.rerank),
            Route("POST", f"{prefix}/score", Scope.INFERENCE, faces.rerank.score),
        ]
    media = faces.media
    table += [
        Route("POST", "/v1/audio/transcriptions", Scope.INFERENCE, media.transcribe),
        Route("POST", "/v1/audio/translations", Scope.INFERENCE, media.translate),
        Route("POST", "/v1/audio/speech", Scope.INFERENCE, media.speak),
        Route("POST", "/v1/images/generations", Scope.INFERENCE, media.picture),
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
    if all(route.path != docs_path for route in table):
        table.append(Route("GET", docs_path, None, docs.moved))
    auth = faces.auth
    table += [
        Route("GET", "/admin/audit", Scope.AUDIT_READ, faces.audit.show),
        Route("GET", "/auth/methods", None, auth.methods),
        Route("POST", "/auth/sign-in", None, auth.sign_in),
        Route("POST", "/auth/token", None, auth.token),
        Route("POST", "/auth/sign-out", ANY_KEY, auth.sign_out),
        Route("GET", "/auth/session", ANY_KEY, auth.session),
        Route("POST", "/auth/register", None, auth.register),
        Route("POST", "/auth/password/forgot", None, auth.forgot),
        Route("POST", "/auth/password/reset", None, auth.reset),
        Route("GET", "/auth/password/reset", None, auth.reset_page),
        Route("POST", "/auth/password/change", ANY_KEY, auth.change),
        Route("GET", "/auth/oidc/login", None, auth.oidc_login),
        Route("GET", "/auth/oidc/callback", None, auth.oidc_callback),
    ]
    # A session's cookie counts for administration and sign-on, and nowhere else.
    return [replace(route, cookie=route.path.startswith(("/admin/", "/auth/"))) for route in table]


def _identity(faces: Faces) -> list[Route]:
    """Organisations, projects, users and keys."""
    organisations, projects, users, keys = faces.organisations, faces.projects, faces.users, faces.keys
    see, change = Scope.ORGANISATION_READ, Scope.ORGANISATION_WRITE
    return [
        Route("GET", "/admin/me", ANY_KEY, faces.me.show),
        Route("GET", "/admin/organisations", see, organisations.list_all),
        Route("POST", "/admin/organisations", Scope.ADMIN, organisations.create),
        Route("GET", "/admin/organisations/{organisation}", see, organisations.show),
        Route("PATCH", "/admin/organisations/{organisation}", Scope.ADMIN, organisations.update),
        Route("POST", "/admin/organisations/{organisation}/archive", Scope.ADMIN, organisations.archive),
        Route("POST", "/admin/organisations/{organisation}/restore", Scope.ADMIN, organisations.restore),
        Route("GET", "/admin/projects", see, projects.list_all),
        Route("POST", "/admin/projects", change, projects.create),
        Route("GET", "/admin/projects/{project}", see, projects.show),
        Route("PATCH", "/admin/projects/{project}", change, projects.update),
        Route("POST", "/admin/projects/{project}/archive", change, projects.archive),
        Route("POST", "/admin/projects/{project}/restore", change, projects.restore),
        Route("GET", "/admin/users", see, users.list_all),
        Route("POST", "/admin/users", change, users.create),
        Route("GET", "/admin/users/{user}", see, users.show),
        Route("PATCH", "/admin/users/{user}", change, users.update),
        Route("GET", "/admin/keys", Scope.KEYS_READ, keys.list_all),
        Route("POST", "/admin/keys", Scope.KEYS_WRITE, keys.create),
        Route("GET", "/admin/keys/{key}", Scope.KEYS_READ, keys.show),
        Route("PATCH", "/admin/keys/{key}", Scope.KEYS_WRITE, keys.update),
        Route("POST", "/admin/keys/{key}/rotate", Scope.KEYS_WRITE, keys.rotate),
        Route("POST", "/admin/keys/{key}/revoke", Scope.KEYS_WRITE, keys.revoke),
    ]


def _limits(faces: Faces) -> list[Route]:
    limits, prices = faces.limits, faces.prices
    see, do = Scope.LIMITS_READ, Scope.LIMITS_WRITE
    return [
        Route("GET", "/admin/limits", see, limits.list),
        Route("POST", "/admin/limits", do, limits.create),
        Route("GET", "/admin/limits/{limit}", see, limits.show),
        Route("PATCH", "/admin/limits/{limit}", do, limits.update),
        Route("DELETE", "/admin/limits/{limit}", do, limits.remove),
        Route("GET", "/admin/me/limits", ANY_KEY, limits.own),
        Route("GET", "/admin/prices", see, prices.list),
        Route("POST", "/admin/prices", Scope.ADMIN, prices.create),
        Route("DELETE", "/admin/prices/{price}", Scope.ADMIN, prices.remove),
    ]


def _linto(faces: Faces) -> list[Route]:
    """The routes of LinTO's LLM Gateway, with its envelope of errors."""
    face, sockets, do, render = faces.linto, faces.linto_sockets, Scope.SERVICES, linto.render_error
    return [
        Route("GET", "/healthcheck", None, face.healthcheck, render),
        Route("GET", "/services", do, face.services, render),
        Route("POST", "/services/{route:path}/generate", do, face.generate, render),
        Route("GET", "/results/{id}", do, face.results, render),
        Route(WEBSOCKET, "/ws/results", do, sockets.many, render),
        Route(WEBSOCKET, "/ws/results/{id}", do, sockets.one, render),
    ]


def _kept(faces: Faces) -> list[Route]:
    """What clients of OpenAI's API leave here."""
    files, batches, responses, do = faces.files, faces.batches, faces.responses, Scope.INFERENCE
    table = []
    for prefix in ("/v1", ""):
        table += [
            Route("POST", f"{prefix}/files", do, files.create),
            Route("GET", f"{prefix}/files", do, files.list),
            Route("GET", prefix + "/files/{file_id}", do, files.show),
            Route("GET", prefix + "/files/{file_id}/content", do, files.content),
            Route("DELETE", prefix + "/files/{file_id}", do, files.delete),
            Route("POST", f"{prefix}/batches", do, batches.create),
            Route("GET", f"{prefix}/batches", do, batches.list),
            Route("GET", prefix + "/batches/{batch_id}", do, batches.show),
            Route("POST", prefix + "/batches/{batch_id}/cancel", do, batches.cancel),
            Route("POST", f"{prefix}/responses", do, responses.create),
            Route("GET", prefix + "/responses/{response_id}", do, responses.show),
            Route("DELETE", prefix + "/responses/{response_id}", do, responses.delete),
            Route("POST", prefix + "/responses/{response_id}/cancel", do, responses.cancel),
            Route("GET", prefix + "/responses/{response_id}/input_items", do, responses.input_items),
        ]
    return table


def _prompts(faces: Faces) -> list[Route]:
    """Prompts: who calls models may read and use them; changing them takes the scope of services."""
    prompts, use, do, one = faces.prompts, Scope.INFERENCE, Scope.SERVICES, "/v1/prompts/{prompt_id}"
    return [
        Route("POST", "/prompt", use, faces.studio.prompt),
        Route("GET", "/v1/prompts", use, prompts.list),
        Route("POST", "/v1/prompts", do, prompts.create),
        Route("GET", one, use, prompts.show),
        Route("GET", f"{one}/versions", use, prompts.versions),
        Route("POST", f"{one}/versions", do, prompts.add),
        Route("GET", f"{one}/versions/{{version}}", use, prompts.version),
        Route("PUT", f"{one}/labels/{{label}}", do, prompts.label),
        Route("DELETE", f"{one}/labels/{{label}}", do, prompts.unlabel),
        Route("POST", f"{one}/archive", do, prompts.archive),
        Route("POST", f"{one}/restore", do, prompts.restore),
        Route("POST", f"{one}/render", use, prompts.render),
    ]


def _triton(faces: Faces) -> list[Route]:
    """The KServe v2 protocol and Triton's generate extension, with their envelope of errors."""
    triton, do, render = faces.triton, Scope.INFERENCE, triton_answers.render_error
    table = [
        Route("GET", "/v2", do, triton.server, render),
        Route("GET", "/v2/health/live", None, faces.health.health),
        Route("GET", "/v2/health/ready", None, faces.health.ready),
        Route("POST", "/v2/repository/index", do, triton.index, render),
    ]
    # A model's name may hold slashes, so the longer patterns come first.
    for model in ("/v2/models/{model:path}/versions/{version}", "/v2/models/{model:path}"):
        table += [
            Route("POST", f"{model}/infer", do, triton.infer, render),
            Route("POST", f"{model}/generate", do, triton.generate, render),
            Route("POST", f"{model}/generate_stream", do, triton.generate_stream, render),
            Route("GET", f"{model}/ready", do, triton.model_ready, render),
            Route("GET", model, do, triton.model, render),
        ]
    return table


def _jobs(faces: Faces) -> list[Route]:
    """Services as jobs, and jobs. The websocket is opened by a ticket in place of a key."""
    services, jobs, following, do = faces.services, faces.jobs, faces.following, Scope.SERVICES
    return [
        Route("GET", "/v1/services", do, services.list),
        Route("POST", "/v1/services/{name:path}/jobs", do, services.submit),
        Route("POST", "/v1/services/{name:path}/validate", do, services.validate),
        Route("GET", "/v1/jobs", do, jobs.list),
        Route("GET", "/v1/jobs/{id}", do, jobs.show),
        Route("DELETE", "/v1/jobs/{id}", do, jobs.delete),
        Route("POST", "/v1/jobs/{id}/cancel", do, jobs.cancel),
        Route("POST", "/v1/jobs/{id}/replay", do, jobs.replay),
        Route("GET", "/v1/jobs/{id}/result", do, jobs.result),
        Route("PATCH", "/v1/jobs/{id}/result", do, jobs.edit),
        Route("GET", "/v1/jobs/{id}/export", do, jobs.export),
        Route("GET", "/v1/jobs/{id}/results", do, jobs.results),
        Route("POST", "/v1/jobs/{id}/results/{version}/restore", do, jobs.restore),
        Route("GET", "/v1/jobs/{id}/events", do, following.stream),
        Route("POST", "/v1/jobs/{id}/ticket", do, jobs.ticket),
        Route(WEBSOCKET, "/v1/jobs/{id}/ws", None, following.socket),
    ]


def direct_paths(table: RouteTable) -> frozenset[str]:
    """Returns the data plane's paths, whose requests take the short way through the edge."""
    return frozenset(route.path for route in table.routes if route.path.removeprefix("/v1").lstrip("/") in _DATA_PLANE)
