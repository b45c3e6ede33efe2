"""Every failure a caller can see, drawn as one tree.

    PasserelleError
      BadRequest                  400  the request itself is wrong
        ContextTooLong            400  the prompt does not fit the model's window
        ContentBlocked            400  a guardrail does not let the text pass
      Unauthenticated             401  no key, or one we do not know
      Forbidden                   403  a known key without the right
      NotFound                    404  no such route or object
        ModelNotFound             404  no such model for this key
      MethodNotAllowed            405
      RequestTimeout              408  the request took too long to arrive
      Conflict                    409
      PreconditionFailed          412  the object changed since it was read
      PayloadTooLarge             413
      UriTooLong                  414
      UnsupportedMedia            415
      IdempotencyKeyReused        422  one Idempotency-Key, two different requests
      RateLimited                 429  slow down and retry
        LimitReached              429  a limit of the caller's own is reached
        QuotaExhausted            429  a budget is used up; retrying will not help
      HeadersTooLarge             431
      Internal                    500  a defect of ours
      UpstreamFailed              502  a model server broke
      Unavailable                 503  nothing can serve this now; retry later
        Overloaded                503  the queue is full
      UpstreamTimeout             504  a model server did not answer in time

Each has a stable ``code``, an HTTP ``status`` and one sentence that says what to do. A face renders it in its own
envelope; nothing else turns an exception into an answer.
"""

from __future__ import annotations

from typing import ClassVar


class PasserelleError(Exception):
    """Base of all errors a caller can see.

    ``message`` is one sentence for a person; ``param`` names the offending request field; ``retry_after_s`` becomes
    ``Retry-After``; ``headers`` are added to the answer.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or self.code
        self.retry_after_s = retry_after_s
        self.headers = headers


class BadRequest(PasserelleError):
    status, code, type = 400, "invalid_request", "invalid_request_error"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class ContentBlocked(BadRequest):
    code = "content_blocked"


class Unauthenticated(PasserelleError):
    status, code, type = 401, "invalid_api_key", "authentication_error"


class Forbidden(PasserelleError):
    status, code, type = 403, "permission_denied", "permission_error"


class NotFound(PasserelleError):
    status, code, type = 404, "not_found", "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(PasserelleError):
    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class RequestTimeout(PasserelleError):
    status, code, type = 408, "request_timeout", "invalid_request_error"


class Conflict(PasserelleError):
    status, code, type = 409, "conflict", "invalid_request_error"


class PreconditionFailed(PasserelleError):
    status, code, type = 412, "stale_version", "invalid_request_error"


class PayloadTooLarge(PasserelleError):
    status, code, type = 413, "request_too_large", "invalid_request_error"


class UriTooLong(PasserelleError):
    status, code, type = 414, "uri_too_long", "invalid_request_error"


class UnsupportedMedia(PasserelleError):
    status, code, type = 415, "unsupported_media_type", "invalid_request_error"


class IdempotencyKeyReused(PasserelleError):
    status, code, type = 422, "idempotency_key_reused", "invalid_request_error"


class RateLimited(PasserelleError):
    status, code, type = 429, "rate_limit_exceeded", "rate_limit_error"


class LimitReached(RateLimited):
    pass


class QuotaExhausted(RateLimited):
    code = "insufficient_quota"


class HeadersTooLarge(PasserelleError):
    status, code, type = 431, "headers_too_large", "invalid_request_error"


class Internal(PasserelleError):
    pass


class UpstreamFailed(PasserelleError):
    status, code, type = 502, "upstream_failed", "upstream_error"


class Unavailable(PasserelleError):
    status, code, type = 503, "service_unavailable", "overloaded_error"


class Overloaded(Unavailable):
    code = "overloaded"


class UpstreamTimeout(PasserelleError):
    status, code, type = 504, "upstream_timeout", "upstream_error"
