"""The routes of services for the OpenAPI document; websockets, which it cannot describe, are in docs/services.md."""

from __future__ import annotations

from typing import Any

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.described import IDEMPOTENCY_KEY, Described
from passerelle.faces.jobs.answers import JobAnswer
from passerelle.faces.services.endpoints import EstimateAnswer, ServiceAnswer, ServiceJobBody


class LintoError(msgspec.Struct):
    """LinTO's envelope of an error."""

    detail: str


class GenerateForm(msgspec.Struct):
    """A document and how to run the service. ``top_p`` counts when it is above 0 and at most 1."""

    file: str
    flavor: str
    temperature: float | None = None
    top_p: float | None = None


class Queued(msgspec.Struct):
    """The job that was made."""

    message: str
    job_id: str = msgspec.field(name="jobId")


class TaskState(msgspec.Struct):
    """``status`` is queued, started, processing, complete or error; ``progress`` a percentage as a string."""

    status: str
    message: str
    progress: str | msgspec.UnsetType = msgspec.UNSET
    summarization: str | msgspec.UnsetType = msgspec.UNSET
    details: str | msgspec.UnsetType = msgspec.UNSET


class ServiceList(msgspec.Struct):
    """``problems`` is what is wrong with the files of services now."""

    data: list[ServiceAnswer]
    problems: list[str]
    object: str = "list"


def _linto(method: str, path: str, name: str, summary: str, answer: Any, **rest: Any) -> Described:
    scope = rest.pop("scope", Scope.SERVICES)
    return Described(method, path, "LinTO", name, summary, scope, answer, error_answer=LintoError, **rest)


SERVICES = (
    _linto("GET", "/healthcheck", "lintoHealthcheck", 'The process answers: `"1"`', str, scope=None),
    _linto("GET", "/services", "lintoServices", "The services, as they are written in YAML", list[dict[str, Any]]),
    _linto(
        "POST",
        "/services/{route}/generate",
        "lintoGenerate",
        "Send a document to a service",
        Queued,
        body=GenerateForm,
        body_type="multipart/form-data",
        errors={413: "The document is too large.", 415: "Not a kind of file that holds text.", 422: "No `flavor`."},
    ),
    _linto(
        "GET",
        "/results/{id}",
        "lintoResult",
        "The state of a job; 202 until it has ended",
        TaskState,
        errors={202: "It waits, or is at work: the same form.", 500: "It ended without a result: the same form."},
    ),
    Described("GET", "/v1/services", "Services", "listServices", "The services", Scope.SERVICES, ServiceList),
    Described(
        "POST",
        "/v1/services/{name}/jobs",
        "Services",
        "submitServiceJob",
        "Run a service on a text, or on a document in a form",
        Scope.SERVICES,
        JobAnswer,
        body=ServiceJobBody,
        status=202,
        parameters=(IDEMPOTENCY_KEY,),
        errors={413: "The document is too large.", 415: "Not a kind of file that holds text."},
    ),
    Described(
        "POST",
        "/v1/services/{name}/validate",
        "Services",
        "validateServiceJob",
        "Tokens, calls and cost of a job, without running it",
        Scope.SERVICES,
        EstimateAnswer,
        body=ServiceJobBody,
        errors={413: "The document is too large.", 415: "Not a kind of file that holds text."},
    ),
)
