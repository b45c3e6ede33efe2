"""The routes of jobs for the OpenAPI document; the websocket, which it cannot describe, is in docs/jobs.md."""

from __future__ import annotations

from typing import Any

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.admin.resource import Listed
from passerelle.faces.described import AFTER, LIMIT, Described, Parameter
from passerelle.faces.jobs.answers import JobAnswer, ResultAnswer, TicketAnswer
from passerelle.faces.jobs.endpoints import FORMATS, ResultBody


class ResultList(msgspec.Struct):
    """All versions of a result, oldest first."""

    data: list[ResultAnswer]
    object: str = "list"


_STATUS = Parameter("status", "One or several states, with commas between them.")
_SERVICE = Parameter("service", "The name of a service.")
_KIND = Parameter("kind", "The kind of job: `service`, `webhook` (left out unless asked for) …")
_VERSION = Parameter("version", "A version; the newest without it.", {"type": "integer", "minimum": 1})
_FORMAT = Parameter("format", "Of the document.", {"type": "string", "enum": list(FORMATS), "default": "docx"})
_SINCE = Parameter("since", "The number of the last event seen.", {"type": "integer", "minimum": 0, "default": 0})
_LAST = Parameter("Last-Event-ID", "The same, as browsers send it.", place="header")


def _job(method: str, path: str, name: str, summary: str, answer: Any, **rest: Any) -> Described:
    return Described(method, f"/v1/jobs{path}", "Jobs", name, summary, Scope.SERVICES, answer, **rest)


_LIST = (LIMIT, AFTER, _STATUS, _SERVICE, _KIND)

JOBS = (
    _job(
        "GET",
        "",
        "listJobs",
        "Jobs, newest first",
        Listed[JobAnswer],
        parameters=_LIST,
    ),
    _job("GET", "/{id}", "showJob", "One job", JobAnswer),
    _job(
        "DELETE",
        "/{id}",
        "deleteJob",
        "Delete a job that has ended",
        None,
        status=204,
        errors={409: "It runs."},
    ),
    _job("POST", "/{id}/cancel", "cancelJob", "Stop a job", JobAnswer, errors={409: "It has ended otherwise."}),
    _job(
        "POST",
        "/{id}/replay",
        "replayJob",
        "Run a job that failed once more, as a new one that finds the finished steps",
        JobAnswer,
        status=202,
        errors={409: "It has not ended, or succeeded."},
    ),
    _job("GET", "/{id}/result", "showResult", "The result", ResultAnswer, parameters=(_VERSION,)),
    _job(
        "PATCH",
        "/{id}/result",
        "editResult",
        "A new version of the result",
        ResultAnswer,
        body=ResultBody,
        errors={409: "It has no result yet."},
    ),
    _job(
        "GET",
        "/{id}/export",
        "exportResult",
        "The result as a document",
        None,
        content_type="application/octet-stream",
        parameters=(_FORMAT, _VERSION),
        errors={409: "PDF is not available here.", 413: "The result is too long for a PDF."},
    ),
    _job("GET", "/{id}/results", "listResults", "All versions of the result", ResultList),
    _job(
        "POST",
        "/{id}/results/{version}/restore",
        "restoreResult",
        "Make an older version the newest",
        ResultAnswer,
    ),
    _job(
        "GET",
        "/{id}/events",
        "followJob",
        "The job's events, as server-sent events, to its end",
        None,
        content_type="text/event-stream",
        parameters=(_SINCE, _LAST),
    ),
    _job("POST", "/{id}/ticket", "jobTicket", "A one-time ticket for the job's websocket", TicketAnswer, status=201),
)
