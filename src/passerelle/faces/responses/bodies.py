"""The body of a Responses request, as far as it is checked here; the chat request made of it is checked once more."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from passerelle.faces.openai.bodies import MAX_TOKENS, Label, Name, Probability
from passerelle.faces.prompts.bodies import PromptReference

MAX_ITEMS = 10_000
Item = dict[str, Any]


class TextOptions(Struct):
    """How the text is to be. ``format`` is text, json_object, or json_schema with name, schema and strict."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(Struct):
    """How long the model may think, for models that do."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None


class ResponseBody(Struct, kw_only=True):
    """``POST /v1/responses``. ``model`` may be ``service/NAME`` with ``background``: the input is its text then."""

    model: Name
    input: str | Annotated[list[Item], Meta(max_length=MAX_ITEMS)]
    background: bool | None = None
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    prompt: PromptReference | None = None
    prompt_cache_key: Label | None = None
    reasoning: Reasoning | None = None
    safety_identifier: Label | None = None
    store: bool | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    text: TextOptions | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Probability | None = None
    truncation: Literal["disabled"] | None = None
    user: Label | None = None


KNOWN = frozenset(ResponseBody.__struct_fields__)
REFUSED = {
    "conversation": "send `previous_response_id`, or the items of the conversation in `input`",
}
"""What would change the answer so much that leaving it out would be a lie."""
DECODER = msgspec.json.Decoder(ResponseBody)
