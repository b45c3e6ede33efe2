"""Errors in Anthropic's envelope: ``{"type": "error", "error": {"type", "message"}, "request_id"}``."""

from __future__ import annotations

import msgspec

from passerelle.domain.client import Headers
from passerelle.domain.errors import PasserelleError
from passerelle.faces.openai import errors

_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def render(error: PasserelleError, request_id: str) -> tuple[int, Headers, bytes]:
    """Returns status, headers and body; our own ``code`` and ``param`` stand beside Anthropic's fields."""
    status, headers, _ = errors.render(error, request_id)
    body = {
        "type": "error",
        "error": {
            "type": _BY_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error"),
            "message": error.message,
            "code": error.error_code,
            "param": error.param,
        },
        "request_id": request_id,
    }
    return status, [*headers, (b"request-id", request_id.encode())], msgspec.json.encode(body)


def error_type(kind: str | None, status: int) -> str:
    """Returns Anthropic's word for the type an error event of ours has."""
    if kind in _BY_STATUS.values():
        return str(kind)
    return _BY_STATUS.get(status, "api_error")
