"""The routes of Responses for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.described import Described, Parameter
from passerelle.faces.openai.files import DeletedAnswer
from passerelle.faces.openai.listing import list_parameters
from passerelle.faces.responses.bodies import ResponseBody


class ResponseError(msgspec.Struct):
    """Why there is no answer."""

    code: str
    message: str


class InputDetails(msgspec.Struct):
    """Tokens that a cache had, and that were put into one."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(msgspec.Struct):
    """Tokens of thoughts."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    """Tokens, as the engine counted them."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseAnswer(msgspec.Struct):
    """A response. ``output`` are items: message, function_call, reasoning. Times are seconds since the epoch.

    With ``stream`` it comes as the events response.created, response.in_progress, … response.completed.
    """

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    completed_at: int | None
    error: ResponseError | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None
    user: str | None


class ItemListAnswer(msgspec.Struct):
    """Items of an input."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


_INCLUDE = (
    Parameter("include", "Taken and not needed: answers have all that there is."),
    Parameter("include[]", "The same."),
)
_TAG = "Responses"
RESPONSES = (
    Described(
        "POST",
        "/v1/responses",
        _TAG,
        "createResponse",
        "Answer items, at once or in the background",
        Scope.INFERENCE,
        ResponseAnswer,
        ResponseBody,
        errors={404: "There is no such model, or service."},
    ),
    Described(
        "GET",
        "/v1/responses/{response_id}",
        _TAG,
        "showResponse",
        "Show a response that is kept",
        Scope.INFERENCE,
        ResponseAnswer,
        parameters=(
            *_INCLUDE,
            Parameter("stream", "As events, until it has ended.", {"type": "boolean", "default": False}),
            Parameter("starting_after", "Only events after this number.", {"type": "integer", "minimum": 0}),
            Parameter("include_obfuscation", "Without use."),
        ),
    ),
    Described(
        "DELETE",
        "/v1/responses/{response_id}",
        _TAG,
        "deleteResponse",
        "Delete a response, and end its making",
        Scope.INFERENCE,
        DeletedAnswer,
    ),
    Described(
        "POST",
        "/v1/responses/{response_id}/cancel",
        _TAG,
        "cancelResponse",
        "End the making of a response in the background",
        Scope.INFERENCE,
        ResponseAnswer,
    ),
    Described(
        "GET",
        "/v1/responses/{response_id}/input_items",
        _TAG,
        "listInputItems",
        "List what was sent for a response",
        Scope.INFERENCE,
        ItemListAnswer,
        parameters=(*list_parameters(default=20, most=100, order=True), *_INCLUDE),
    ),
)
