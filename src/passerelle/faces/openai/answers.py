"""The answers of the OpenAI face as typed structures, for its documentation and for tests.

A model server's own JSON passes through untouched, so nothing here is decoded on a request's way; optional fields are
those that not every server sends.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from passerelle.faces.openai.bodies import ToolCall


class PromptTokensDetails(Struct):
    cached_tokens: int | None = None


class CallUsage(Struct):
    """Tokens, as the engine counted them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | UnsetType | None = UNSET


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Struct):
    token: str
    logprob: float
    top_logprobs: list[TopLogprob]
    bytes: list[int] | None = None


class ChatLogprobs(Struct):
    content: list[TokenLogprob] | None


class AnswerMessage(Struct):
    role: Literal["assistant"]
    content: str | None = None
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCall] | UnsetType | None = UNSET


class ChatChoice(Struct):
    """``stop_reason``: the stop text or token id that ended the answer, where the server says so."""

    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | UnsetType | None = UNSET
    stop_reason: int | str | UnsetType | None = UNSET


class ChatCompletion(Struct):
    """The answer to POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CallUsage


class CalledFunctionDelta(Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct):
    index: int
    id: str | None = None
    type: str | None = None
    function: CalledFunctionDelta | None = None


class Delta(Struct):
    role: str | UnsetType | None = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType | None = UNSET


class ChunkChoice(Struct):
    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | UnsetType | None = UNSET
    stop_reason: int | str | UnsetType | None = UNSET


class ChatCompletionChunk(Struct):
    """One event of a streamed chat. The last before ``[DONE]`` has ``usage`` and no choices, if it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CallUsage | UnsetType | None = UNSET


class TextChoice(Struct):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: dict[str, Any] | UnsetType | None = UNSET
    stop_reason: int | str | UnsetType | None = UNSET


class Completion(Struct):
    """The answer to POST /v1/completions; with ``stream`` each event is one, too."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CallUsage | UnsetType | None = UNSET


class Embedding(Struct):
    """``embedding``: numbers, or the same as 32-bit little-endian floats in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Struct):
    """The answer to POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: CallUsage


class Tokens(Struct):
    """The answer to POST /tokenize. ``max_model_len`` is the context window, where the server knows it."""

    tokens: list[int]
    count: int
    max_model_len: int | None = None
    token_strs: list[str] | None = None


class Text(Struct):
    """The answer to POST /detokenize."""

    prompt: str


class ModelPermission(Struct):
    id: str
    object: Literal["model_permission"]
    created: int
    allow_create_engine: bool
    allow_sampling: bool
    allow_logprobs: bool
    allow_search_indices: bool
    allow_view: bool
    allow_fine_tuning: bool
    organization: str
    group: str | None
    is_blocking: bool


class ModelEntry(Struct):
    """``root`` is the model's own name, of which ``id`` may be an alias; ``max_model_len`` is in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int | None
    permission: list[ModelPermission]


class ModelList(Struct):
    """The answer to GET /v1/models."""

    object: Literal["list"]
    data: list[ModelEntry]


class ErrorDetail(Struct):
    """``code`` is stable; ``param`` names the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str


class ErrorAnswer(Struct):
    """What went wrong; a stream that breaks ends with one event of this instead of ``[DONE]``."""

    error: ErrorDetail
