"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import json

import pytest

from passerelle.domain import errors
from passerelle.faces.openai.errors import render, stream_event


def test_an_error_has_the_envelope_the_sdks_read() -> None:
    """Message, type, param and code under ``error``, with the request's id in the body and in a header."""
    error = errors.BadRequest("Field `n`: expected `int` <= 16.", param="n")
    status, headers, body = render(error, "req_1")
    assert status == 400
    assert (b"content-type", b"application/json") in headers
    assert (b"x-request-id", b"req_1") in headers
    assert json.loads(body) == {
        "error": {
            "message": "Field `n`: expected `int` <= 16.",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request",
            "request_id": "req_1",
        }
    }


def every_error(base: type[errors.PasserelleError] = errors.PasserelleError) -> list[type[errors.PasserelleError]]:
    """The tree, flat; other modules may have loaded branches of their own, with other constructors."""
    children = [child for child in base.__subclasses__() if child.__module__ == errors.__name__]
    return [base, *(error for child in children for error in every_error(child))]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_renders(kind: type[errors.PasserelleError]) -> None:
    """Status and code are the class's own, and header names are lower case."""
    status, headers, body = render(kind("It did not work.", code="special"), "req_1")
    assert status == kind.status
    assert json.loads(body)["error"]["code"] == "special"
    assert json.loads(render(kind("It did not work."), "req_1")[2])["error"]["code"] == kind.code
    assert all(name == name.lower() for name, _ in headers)


@pytest.mark.parametrize(("seconds", "written"), [(0, b"1"), (0.2, b"1"), (1, b"1"), (1.01, b"2"), (59.5, b"60")])
def test_retry_after_is_in_whole_seconds_rounded_up(seconds: float, written: bytes) -> None:
    """A client that waits as told does not come too early."""
    headers = dict(render(errors.Overloaded("Retry later.", retry_after_s=seconds), "req_1")[1])
    assert headers[b"retry-after"] == written
    assert b"retry-after" not in dict(render(errors.Overloaded("Retry later."), "req_1")[1])


def test_headers_by_kind() -> None:
    """401 says how to identify, an exhausted quota says not to retry, and an error's own headers are kept."""
    assert dict(render(errors.Unauthenticated("Send a key."), "r")[1])[b"www-authenticate"] == b"Bearer"
    own = errors.Unauthenticated("Send a key.", headers=((b"www-authenticate", b'Bearer realm="x"'),))
    assert [value for name, value in render(own, "r")[1] if name == b"www-authenticate"] == [b'Bearer realm="x"']
    assert dict(render(errors.QuotaExhausted("No budget."), "r")[1])[b"x-should-retry"] == b"false"
    assert b"x-should-retry" not in dict(render(errors.RateLimited("Slow down."), "r")[1])
    allow = errors.MethodNotAllowed("This address takes POST.", headers=((b"allow", b"POST"),))
    assert dict(render(allow, "r")[1])[b"allow"] == b"POST"


def test_an_error_in_a_stream_is_one_event() -> None:
    """Line breaks in a message do not break the framing."""
    event = stream_event(errors.UpstreamFailed("The model server\nbroke."), "req_1")
    assert event.startswith(b"data: {") and event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
