"""OpenAPI paths and components of the OpenAI face, made from the structures that check requests.

What /docs shows is therefore what is enforced: a bound changed in ``bodies`` changes there too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from passerelle.domain.request import Operation
from passerelle.faces.openai import answers, bodies, fields
from passerelle.faces.prompts.bodies import PromptReference

_TEMPLATE = "#/components/schemas/{name}"
_COMPONENTS = (
    PromptReference,
    bodies.ChatBody,
    bodies.CompletionBody,
    bodies.EmbeddingBody,
    bodies.TokenizeBody,
    bodies.DetokenizeBody,
    answers.ChatCompletion,
    answers.ChatCompletionChunk,
    answers.Completion,
    answers.EmbeddingList,
    answers.Tokens,
    answers.Text,
    answers.ModelList,
    answers.ModelEntry,
    answers.ErrorAnswer,
)

_ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No key, or one that is not known.",
    "403": "The key may not call this model, or lacks the scope `inference`.",
    "404": "No such model.",
    "408": "The request took too long to arrive.",
    "413": "The body, a picture or a sound is too large.",
    "415": "The body is compressed.",
    "429": "Too many requests or tokens; `Retry-After` says when to come back.",
    "502": "The model server broke.",
    "503": "Nothing can serve this now; `Retry-After` says when to come back.",
    "504": "The model server did not answer in time.",
}

_HEADERS = {
    "x-request-id": "Yours, or one made here; it is in the logs and was sent to the model server.",
    "server-timing": "Where the time went, in milliseconds: auth, queue, tokenise, connect, first_byte.",
    "x-passerelle-dropped-fields": "Fields of the request that went no further.",
    "x-passerelle-fallback": "`asked for -> answered by`, when another model answered.",
    "x-queue-position": "Its last place in the queue, when the request waited.",
}


@dataclass(frozen=True)
class _Post:
    """One POST route as documentation."""

    path: str
    operation: Operation
    summary: str
    body: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    example: dict[str, Any]
    event: type[msgspec.Struct] | None = None


_HELLO = [{"role": "user", "content": "Hello!"}]
_POSTS = (
    _Post(
        "/v1/chat/completions",
        Operation.CHAT,
        "Answer a conversation",
        bodies.ChatBody,
        answers.ChatCompletion,
        {"model": "smollm2", "messages": _HELLO, "max_tokens": 64, "stream": False},
        answers.ChatCompletionChunk,
    ),
    _Post(
        "/v1/completions",
        Operation.COMPLETION,
        "Continue a text",
        bodies.CompletionBody,
        answers.Completion,
        {"model": "smollm2", "prompt": "Say this is a test!", "max_tokens": 20, "temperature": 0},
        answers.Completion,
    ),
    _Post(
        "/v1/embeddings",
        Operation.EMBEDDING,
        "Turn texts into vectors",
        bodies.EmbeddingBody,
        answers.EmbeddingList,
        {"model": "multilingual-e5-small", "input": ["Le chat dort.", "The cat is asleep."]},
    ),
    _Post(
        "/tokenize",
        Operation.TOKENIZE,
        "Count and show the tokens of a text or a conversation",
        bodies.TokenizeBody,
        answers.Tokens,
        {"model": "smollm2", "prompt": "Say this is a test!"},
    ),
    _Post(
        "/detokenize",
        Operation.DETOKENIZE,
        "Turn tokens into text",
        bodies.DetokenizeBody,
        answers.Text,
        {"model": "smollm2", "tokens": [19556, 17]},
    ),
)


def openapi_components() -> dict[str, Any]:
    """Returns the value of ``components``: the schemas of all requests and answers, and the bearer key."""
    _, schemas = msgspec.json.schema_components(_COMPONENTS, ref_template=_TEMPLATE)
    for post in _POSTS:
        schema = schemas[post.body.__name__]
        known = fields.FORWARD[post.operation] | fields.CONSUME
        schema["properties"] = {name: value for name, value in schema["properties"].items() if name in known}
    schemas["ChatBody"]["properties"]["prompt"] = _reference(PromptReference)
    return {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}


def openapi_paths() -> dict[str, Any]:
    """Returns the entries of ``paths`` for the OpenAI routes."""
    paths: dict[str, Any] = {post.path: {"post": _post(post)} for post in _POSTS}
    paths["/v1/models"] = {
        "get": _operation("listModels", "List the models this key may call", answers.ModelList, ("401", "403", "429"))
    }
    one = _operation("retrieveModel", "Show one model", answers.ModelEntry, ("401", "403", "404", "429"))
    one["parameters"] = [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "A name or an alias; it may hold slashes.",
            "schema": {"type": "string"},
        }
    ]
    paths["/v1/models/{id}"] = {"get": one}
    return paths


def _post(post: _Post) -> dict[str, Any]:
    operation = _operation(f"{post.operation.value}", post.summary, post.answer, tuple(_ERRORS))
    operation["description"] = _fates(post.operation)
    operation["responses"]["200"]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
    }
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": _reference(post.body), "example": post.example}},
    }
    if post.event is not None:
        operation["responses"]["200"]["content"]["text/event-stream"] = {
            "schema": _reference(post.event),
            "example": 'data: {"id":"…","choices":[…]}\n\ndata: [DONE]\n\n',
        }
    return operation


def _operation(name: str, summary: str, answer: type[msgspec.Struct], errors: tuple[str, ...]) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {"description": "The answer.", "content": {"application/json": {"schema": _reference(answer)}}}
    }
    for status in errors:
        responses[status] = {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": _reference(answers.ErrorAnswer)}},
        }
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["OpenAI"],
        "security": [{"key": []}],
        "responses": responses,
    }


def _fates(operation: Operation) -> str:
    """Returns what becomes of the fields of a request, in words."""
    forwarded = ", ".join(f"`{name}`" for name in sorted(fields.FORWARD[operation]))
    refused = ", ".join(f"`{name}`" for name in sorted(fields.REFUSE))
    families = ", ".join(f"`{prefix}*`" for prefix in sorted(fields.REFUSE_PREFIXES))
    return (
        f"Goes to the model server: {forwarded}.\n\n"
        f"Refused with 400: {refused}, {families}.\n\n"
        "Any other field is left out and named in the header `x-passerelle-dropped-fields`."
    )


def _reference(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(name=struct.__name__)}
