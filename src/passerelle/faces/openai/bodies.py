"""The request bodies of the OpenAI face as typed structures: every forwarded field with its bounds.

They are decoded to check a request, never to forward it: what goes on is the client's own JSON of the allowed fields.
Structures below the top level refuse unknown fields, so a part cannot carry something its type does not announce (a
text with an ``image_url`` beside it); ``wire`` leaves such fields out and reports them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct, field

MAX_TOKENS = 2**20
"""Upper bound of ``max_tokens``; no window in use is larger."""
MAX_CHOICES = 16
"""Upper bound of ``n``: each choice takes its own slot of a model server."""
MAX_PROMPTS = 128
"""Upper bound of prompts in one completion request, and of prompts times ``n``."""
MAX_INPUTS = 2048
"""Upper bound of texts in one embedding request, as at OpenAI."""
MAX_INPUT_TOKENS = 2**17
"""Upper bound of token ids in one prompt or input."""
MAX_MESSAGES = 10_000
MAX_TOOLS = 128

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(max_length=512)]
ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.\-]{1,64}\Z")]
Limit = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
LogitBias = Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_INPUT_TOKENS)]


def _no_schema() -> Raw:
    """A schema that was not given. (In a union with None msgspec would not take a Raw.)"""
    return Raw(b"null")


class Inner(Struct, forbid_unknown_fields=True, gc=False):
    """A structure below the top level."""


class TextPart(Inner, tag_field="type", tag="text"):
    text: str


class RefusalPart(Inner, tag_field="type", tag="refusal"):
    refusal: str


class ImageUrl(Inner):
    url: Annotated[str, Meta(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Inner, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class InputAudio(Inner):
    data: Annotated[str, Meta(min_length=1)]
    format: Literal["wav", "mp3"]


class AudioPart(Inner, tag_field="type", tag="input_audio"):
    input_audio: InputAudio


_MANY = Meta(min_length=1, max_length=1024)
Texts = str | Annotated[list[TextPart], _MANY]
AssistantContent = str | Annotated[list[TextPart | RefusalPart], _MANY] | None
UserContent = str | Annotated[list[TextPart | ImagePart | AudioPart], _MANY]


class CalledFunction(Inner):
    name: ToolName
    arguments: str


class ToolCall(Inner):
    id: Annotated[str, Meta(min_length=1, max_length=128)]
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class SystemMessage(Inner, tag_field="role", tag="system"):
    content: Texts
    name: Label | None = None


class DeveloperMessage(Inner, tag_field="role", tag="developer"):
    content: Texts
    name: Label | None = None


class UserMessage(Inner, tag_field="role", tag="user"):
    content: UserContent
    name: Label | None = None


class AssistantMessage(Inner, tag_field="role", tag="assistant"):
    """``content`` may be missing only beside tool calls, a refusal or reasoning."""

    content: AssistantContent = None
    name: Label | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ToolMessage(Inner, tag_field="role", tag="tool"):
    content: Texts
    tool_call_id: Annotated[str, Meta(min_length=1, max_length=128)]
    name: Label | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage
Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]


class Function(Inner):
    name: ToolName
    description: Annotated[str, Meta(max_length=65_536)] | None = None
    parameters: Raw = field(default_factory=_no_schema)
    strict: bool | None = None


class Tool(Inner):
    function: Function
    type: Literal["function"]


class NamedFunction(Inner):
    name: ToolName


class NamedTool(Inner):
    function: NamedFunction
    type: Literal["function"]


class TextFormat(Inner, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Inner, tag_field="type", tag="json_object"):
    pass


class JsonSchema(Inner):
    name: ToolName
    schema: Raw = field(default_factory=_no_schema)
    description: Annotated[str, Meta(max_length=65_536)] | None = None
    strict: bool | None = None


class JsonSchemaFormat(Inner, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StreamOptions(Inner):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampling(Struct, gc=False, kw_only=True):
    """What chat and text completion share. Extensions of the engines stand after the empty line."""

    model: Name
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    max_tokens: Limit | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None
    user: Label | None = None

    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    min_p: Probability | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None


class ChatBody(Sampling, kw_only=True, gc=False):
    """POST /v1/chat/completions."""

    messages: Messages
    logprobs: bool | None = None
    max_completion_tokens: Limit | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    add_generation_prompt: bool = True
    continue_final_message: bool = False


class CompletionBody(Sampling, kw_only=True, gc=False):
    """POST /v1/completions. A list of ``prompt`` holds texts, or token ids, or lists of token ids."""

    prompt: str | Annotated[list[str | TokenId | TokenIds], Meta(min_length=1, max_length=MAX_INPUT_TOKENS)]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None


class EmbeddingBody(Struct, gc=False, kw_only=True):
    """POST /v1/embeddings. A list of ``input`` holds texts, or token ids, or lists of token ids."""

    model: Name
    input: str | Annotated[list[str | TokenId | TokenIds], Meta(min_length=1, max_length=MAX_INPUT_TOKENS)]
    dimensions: Annotated[int, Meta(ge=1, le=16_384)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None
    user: Label | None = None

    input_type: Annotated[str, Meta(max_length=32)] | None = None


class TokenizeBody(Struct, gc=False, kw_only=True):
    """POST /tokenize: ``prompt`` or ``messages``; llama-server's ``content`` is taken for ``prompt``."""

    model: Name
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class DetokenizeBody(Struct, gc=False, kw_only=True):
    """POST /detokenize."""

    model: Name
    tokens: TokenIds
