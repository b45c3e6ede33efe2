"""What every client dialect asks of every kind of model server, and how its answer is read: the table of the matrix.

A *face* is one route in one form (whole, or as a stream); a *row* is a model with what its server can do. `expected`
says for each pair whether it is an answer or a refusal that names its reason. ``test_matrix.py`` fills the table from
scripted servers and from the embedded models, ``tests/triton/test_matrix.py`` from a real Triton.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

WORDS = ("Bonjour", ",", " monde", " é", "!")
QUESTION = "Please say hello to the world"
PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TOOL = {"name": "look_up", "description": "Looks a word up.", "parameters": {"type": "object", "properties": {}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LIMIT = 16
TEXT_ONLY = frozenset({"text"})
OPENAI = frozenset(
    {"text", "tools", "history", "logprobs", "schema", "choices", "echo", "prompts", "ids", "bias", "min_p"}
    | {"tokenizer", "detokenizer"}
)


@dataclass(frozen=True)
class Row:
    """A model. ``can`` is what its server is able to do; ``counts`` says that it tells tokens, ``tells_length`` that
    it tells an answer that was cut from one that ended. ``words`` is its answer, None for a real model's; ``ends`` says
    that the answer is shorter than `LIMIT`."""

    name: str
    can: frozenset[str] = TEXT_ONLY
    counts: bool = True
    tells_length: bool = True
    words: tuple[str, ...] | None = WORDS
    ends: bool = True

    @property
    def says(self) -> str | None:
        """The whole answer."""
        return None if self.words is None else "".join(self.words)


@dataclass(frozen=True)
class Told:
    """What a client read. ``finish`` in OpenAI's words, ``usage`` as (prompt, answer); None where it was not told."""

    text: str
    finish: str | None = None
    usage: tuple[int, int] | None = None


@dataclass(frozen=True)
class Face:
    """One way to ask. ``needs`` is what the server must be able to do, ``param`` what a refusal then names.

    ``says`` overrides the text that is expected; ``refused`` is the status of a refusal in this dialect.
    """

    name: str
    path: str
    body: Mapping[str, Any] | None
    read: Callable[[bytes], Told]
    operation: str
    needs: frozenset[str] = TEXT_ONLY
    param: str = ""
    stream: bool = False
    refused: int = 400
    cut: bool = False
    text: Callable[[Row], str | None] = field(default=lambda row: row.says)

    def request(self, model: str) -> tuple[str, dict[str, Any] | None]:
        """Returns path and body for a model."""
        path = self.path.format(model=model)
        return path, None if self.body is None else json.loads(json.dumps(self.body).replace("MODEL", model))


def reason(face: Face, row: Row) -> str | None:
    """Returns what the refusal of a cell has to name, None when the cell is an answer."""
    if face.needs <= row.can:
        return None
    if ("text" in face.needs and "text" not in row.can) or (face.name == "embeddings" and "rank" in row.can):
        return "name another model"
    return face.param


def wanted(face: Face, row: Row) -> Told:
    """Returns what an answer has to tell, its usage apart."""
    text = face.text(row)
    if face.cut and row.words is not None:
        text = "".join(row.words[:2])
    called = text == "look_up({})"
    length = (face.cut or not row.ends) and row.tells_length
    finish = "tool_calls" if called else "length" if length else "stop"
    return Told(text or "", finish)


# How answers are read.

_ANTHROPIC = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls", "stop_sequence": "stop"}
_TGI = {"eos_token": "stop", "length": "length", "stop_sequence": "stop"}


def events(body: bytes) -> list[Any]:
    """Returns the data of a stream's events, decoded; the text of those that are not JSON."""
    found: list[Any] = []
    for line in body.decode().splitlines():
        if line.startswith("data:"):
            data = line[5:].strip()
            found.append(json.loads(data) if data.startswith("{") else data)
    return found


def _usage(usage: Mapping[str, Any] | None, prompt: str = "prompt_tokens", answer: str = "completion_tokens") -> Any:
    if not usage or not usage.get(prompt):
        return None
    return usage[prompt] + usage.get("cache_read_input_tokens", 0), usage.get(answer) or 0


def _calls(calls: Any) -> str:
    return "".join(f"{call['function']['name']}({call['function']['arguments']})" for call in calls or ())


def chat_document(body: bytes) -> Told:
    answer = json.loads(body)
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    message = choice["message"]
    text = (message.get("content") or "") + _calls(message.get("tool_calls"))
    return Told(text, choice["finish_reason"], _usage(answer.get("usage")))


def chat_stream(body: bytes) -> Told:
    found = events(body)
    assert found[-1] == "[DONE]"
    text, finish, usage = "", None, None
    for event in found[:-1]:
        assert event["object"] == "chat.completion.chunk"
        usage = _usage(event.get("usage")) or usage
        for choice in event["choices"]:
            text += (choice["delta"].get("content") or "") + _calls(choice["delta"].get("tool_calls"))
            finish = choice["finish_reason"] or finish
    return Told(text, finish, usage)


def text_document(body: bytes) -> Told:
    answer = json.loads(body)
    assert answer["object"] == "text_completion"
    choice = answer["choices"][0]
    return Told(choice["text"], choice["finish_reason"], _usage(answer.get("usage")))


def text_stream(body: bytes) -> Told:
    found = events(body)
    assert found[-1] == "[DONE]"
    choices = [choice for event in found[:-1] for choice in event["choices"]]
    finish = next(choice["finish_reason"] for choice in choices if choice["finish_reason"])
    usage = next((_usage(event["usage"]) for event in found[:-1] if event.get("usage")), None)
    return Told("".join(choice["text"] for choice in choices), finish, usage)


def response_document(body: bytes) -> Told:
    return _response(json.loads(body))


def _response(answer: Mapping[str, Any]) -> Told:
    text = ""
    for item in answer["output"]:
        if item["type"] == "function_call":
            text += f"{item['name']}({item['arguments']})"
        elif item["type"] == "message":
            text += "".join(part["text"] for part in item["content"])
    calls = any(item["type"] == "function_call" for item in answer["output"])
    finish = {"completed": "tool_calls" if calls else "stop", "incomplete": "length"}[answer["status"]]
    return Told(text, finish, _usage(answer["usage"], "input_tokens", "output_tokens"))


def response_stream(body: bytes) -> Told:
    found = events(body)
    assert found[0]["type"] == "response.created"
    told = _response(found[-1]["response"])
    pieces = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert pieces == told.text or told.finish == "tool_calls"
    return told


def message_document(body: bytes) -> Told:
    answer = json.loads(body)
    assert answer["type"] == "message"
    text = "".join(
        block["text"] if block["type"] == "text" else f"{block['name']}({json.dumps(block['input'])})"
        for block in answer["content"]
    )
    return Told(text, _ANTHROPIC[answer["stop_reason"]], _usage(answer["usage"], "input_tokens", "output_tokens"))


def message_stream(body: bytes) -> Told:
    found = events(body)
    assert [found[0]["type"], found[-1]["type"]] == ["message_start", "message_stop"]
    text = "".join(event["delta"].get("text", "") for event in found if event["type"] == "content_block_delta")
    last = found[-2]
    usage = _usage(last["usage"], "input_tokens", "output_tokens")
    return Told(text, _ANTHROPIC[last["delta"]["stop_reason"]], usage)


def opea_document(body: bytes) -> Told:
    answer = json.loads(body)
    assert answer.keys() == {"id", "text", "prompt"} and answer["prompt"] == QUESTION
    return Told(answer["text"])


def opea_stream(body: bytes) -> Told:
    found = events(body)
    assert found[-1] == "[DONE]"
    return Told(b"".join(ast.literal_eval(frame) for frame in found[:-1]).decode())


def tgi_document(body: bytes) -> Told:
    answer = json.loads(body)
    return _generated(answer)


def tgi_list(body: bytes) -> Told:
    (answer,) = json.loads(body)
    return _generated(answer)


def _generated(answer: Mapping[str, Any]) -> Told:
    return Told(answer["generated_text"], _TGI[answer["details"]["finish_reason"]])


def tgi_stream(body: bytes) -> Told:
    found = events(body)
    last = found[-1]
    assert "".join(event["token"]["text"] for event in found) == last["generated_text"]
    assert [event["index"] for event in found] == list(range(1, len(found) + 1))
    return _generated(last)


def triton_document(body: bytes) -> Told:
    return _results(json.loads(body))


def triton_stream(body: bytes) -> Told:
    found = events(body)
    told = _results(found[-1])
    return replace(told, text="".join(event["text_output"] for event in found))


def triton_tensors(body: bytes) -> Told:
    answer = json.loads(body)
    assert [each["datatype"] for each in answer["outputs"][:2]] == ["BYTES", "BYTES"]
    return _results({each["name"]: each["data"][0] for each in answer["outputs"]})


def _results(answer: Mapping[str, Any]) -> Told:
    usage = _usage(answer, "num_input_tokens", "num_output_tokens")
    return Told(answer["text_output"], answer["finish_reason"], usage)


def studio(body: bytes) -> Told:
    answer = json.loads(body)
    assert answer["name"] == "world"
    return Told(answer["result"])


def tokens(body: bytes) -> Told:
    answer = json.loads(body)
    assert answer["count"] == len(answer["tokens"]) > 0
    return Told("counted")


def count(body: bytes) -> Told:
    assert json.loads(body)["input_tokens"] > 0
    return Told("counted")


def detokenized(body: bytes) -> Told:
    assert isinstance(json.loads(body)["prompt"], str)
    return Told("counted")


def embedded(body: bytes) -> Told:
    answer = json.loads(body)
    assert [each["index"] for each in answer["data"]] == [0, 1]
    assert all(len(each["embedding"]) > 2 for each in answer["data"])
    return Told("vectors")


def ranked(body: bytes) -> Told:
    answer = json.loads(body)
    assert len(answer["results"]) == 2
    return Told(answer["method"])


def scored(body: bytes) -> Told:
    answer = json.loads(body)
    assert len(answer["data"]) == 2
    return Told(answer["method"])


# The faces.

_MESSAGES = [{"role": "user", "content": QUESTION}]
_CHAT: dict[str, Any] = {"model": "MODEL", "messages": _MESSAGES, "max_tokens": LIMIT, "temperature": 0}
_TEXT: dict[str, Any] = {"model": "MODEL", "prompt": QUESTION, "max_tokens": LIMIT, "temperature": 0}
_RESPONSE: dict[str, Any] = {"model": "MODEL", "input": QUESTION, "max_output_tokens": LIMIT, "temperature": 0}
_MESSAGE: dict[str, Any] = {"model": "MODEL", "messages": _MESSAGES, "max_tokens": LIMIT, "temperature": 0}
_OPEA: dict[str, Any] = {"model": "MODEL", "query": QUESTION, "max_new_tokens": LIMIT}
_TGI_BODY: dict[str, Any] = {"inputs": QUESTION, "parameters": {"max_new_tokens": LIMIT, "details": True}}
_RESULTS = ("finish_reason", "num_input_tokens", "num_output_tokens")
_TRITON: dict[str, Any] = {"text_input": QUESTION, "max_tokens": LIMIT, **{f"return_{name}": True for name in _RESULTS}}
_TENSORS: dict[str, Any] = {
    "inputs": [
        {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [QUESTION]},
        {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [LIMIT]},
    ],
    "outputs": [{"name": name} for name in ("text_output", *_RESULTS)],
}
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
_CALLED = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
_HISTORY = [
    *_MESSAGES,
    {"role": "assistant", "content": None, "tool_calls": [_CALLED]},
    {"role": "tool", "tool_call_id": "c1", "content": "hello"},
]
_SEEN = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": PICTURE}}]}
]
_CHAT_TOOLS = [{"type": "function", "function": TOOL}]
_FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
_DOCUMENTS = ["about cats", "about boats"]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


def _needs(*names: str) -> frozenset[str]:
    return frozenset({"text", *names})


def _called(row: Row) -> str | None:
    return None if row.says is None else "look_up({})"


def _constant(text: str) -> Callable[[Row], str | None]:
    return lambda row: text


def _by(row: Row) -> str | None:
    return "model" if "rank" in row.can and "vectors" not in row.can else "embedding_similarity"


TEXT_FACES = (
    Face("chat", CHAT, _CHAT, chat_document, "chat"),
    Face("chat-stream", CHAT, _CHAT | _STREAM, chat_stream, "chat", stream=True),
    Face(
        "chat-system",
        CHAT,
        _CHAT | {"messages": [{"role": "developer", "content": "Be brief."}, *_MESSAGES]},
        chat_document,
        "chat",
    ),
    Face("completion", TEXT, _TEXT, text_document, "completion"),
    Face("completion-stream", TEXT, _TEXT | _STREAM, text_stream, "completion", stream=True),
    Face("response", RESPONSES, _RESPONSE, response_document, "chat"),
    Face("response-stream", RESPONSES, _RESPONSE | {"stream": True}, response_stream, "chat", stream=True),
    Face("response-background", RESPONSES, _RESPONSE | {"background": True}, response_document, "chat"),
    Face("message", MESSAGES, _MESSAGE, message_document, "chat"),
    Face("message-stream", MESSAGES, _MESSAGE | {"stream": True}, message_stream, "chat", stream=True),
    Face("opea", CHAT, _OPEA | {"streaming": False}, opea_document, "completion"),
    Face("opea-stream", CHAT, _OPEA, opea_stream, "completion", stream=True),
    Face("generate", "/tgi/{model}/generate", _TGI_BODY, tgi_document, "completion", refused=422),
    Face(
        "generate-stream", "/tgi/{model}/generate_stream", _TGI_BODY, tgi_stream, "completion", stream=True, refused=422
    ),
    Face("tgi-root", "/tgi/{model}", _TGI_BODY, tgi_list, "completion", refused=422),
    Face(
        "tgi-root-stream",
        "/tgi/{model}",
        _TGI_BODY | {"stream": True},
        tgi_stream,
        "completion",
        stream=True,
        refused=422,
    ),
    Face("triton", "/v2/models/{model}/generate", _TRITON, triton_document, "completion"),
    Face("triton-stream", "/v2/models/{model}/generate_stream", _TRITON, triton_stream, "completion", stream=True),
    Face("triton-tensors", "/v2/models/{model}/infer", _TENSORS, triton_tensors, "completion"),
    Face(
        "prompt",
        "/prompt",
        {
            "model": "MODEL",
            "template": "Say hello to the {{name}} again",
            "name": "world",
            "config": {"max_tokens": LIMIT},
        },
        studio,
        "completion",
    ),
)
CUT_FACES = (
    Face("chat-cut", CHAT, _CHAT | {"max_tokens": 2}, chat_document, "chat", cut=True),
    Face(
        "completion-cut-stream",
        TEXT,
        _TEXT | _STREAM | {"max_tokens": 2},
        text_stream,
        "completion",
        stream=True,
        cut=True,
    ),
    Face("response-cut", RESPONSES, _RESPONSE | {"max_output_tokens": 2}, response_document, "chat", cut=True),
    Face(
        "message-cut-stream",
        MESSAGES,
        _MESSAGE | {"stream": True, "max_tokens": 2},
        message_stream,
        "chat",
        stream=True,
        cut=True,
    ),
    Face(
        "generate-cut",
        "/tgi/{model}/generate",
        {"inputs": QUESTION, "parameters": {"max_new_tokens": 2, "details": True}},
        tgi_document,
        "completion",
        refused=422,
        cut=True,
    ),
)
FEATURE_FACES = (
    Face(
        "tools",
        CHAT,
        _CHAT | {"tools": _CHAT_TOOLS, "tool_choice": "required"},
        chat_document,
        "chat",
        _needs("tools"),
        "tools",
        text=_called,
    ),
    Face(
        "tools-stream",
        CHAT,
        _CHAT | _STREAM | {"tools": _CHAT_TOOLS, "tool_choice": "required"},
        chat_stream,
        "chat",
        _needs("tools"),
        "tools",
        stream=True,
        text=_called,
    ),
    Face(
        "tools-response",
        RESPONSES,
        _RESPONSE | {"tools": [{"type": "function", **TOOL}], "tool_choice": "required"},
        response_document,
        "chat",
        _needs("tools"),
        "tools",
        text=_called,
    ),
    Face(
        "tools-message",
        MESSAGES,
        _MESSAGE | {"tools": [{"name": "look_up", "input_schema": TOOL["parameters"]}], "tool_choice": {"type": "any"}},
        message_document,
        "chat",
        _needs("tools"),
        "tools",
        text=_called,
    ),
    Face("tool-history", CHAT, _CHAT | {"messages": _HISTORY}, chat_document, "chat", _needs("history"), "messages[1]"),
    Face("pictures", CHAT, _CHAT | {"messages": _SEEN}, chat_document, "chat", _needs("pictures"), "pictures"),
    Face(
        "pictures-message",
        MESSAGES,
        _MESSAGE
        | {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": PICTURE.partition(",")[2]},
                        }
                    ],
                }
            ]
        },
        message_document,
        "chat",
        _needs("pictures"),
        "pictures",
    ),
    Face("min-p", CHAT, _CHAT | {"min_p": 0.1}, chat_document, "chat", _needs("min_p"), "min_p"),
    Face(
        "logprobs",
        CHAT,
        _CHAT | {"logprobs": True, "top_logprobs": 1},
        chat_document,
        "chat",
        _needs("logprobs"),
        "logprobs",
    ),
    Face("logprobs-text", TEXT, _TEXT | {"logprobs": 1}, text_document, "completion", _needs("logprobs"), "logprobs"),
    Face(
        "schema", CHAT, _CHAT | {"response_format": _FORMAT}, chat_document, "chat", _needs("schema"), "response_format"
    ),
    Face("two-choices", CHAT, _CHAT | {"n": 2}, chat_document, "chat", _needs("choices"), "n"),
    Face("logit-bias", CHAT, _CHAT | {"logit_bias": {"5": -100}}, chat_document, "chat", _needs("bias"), "logit_bias"),
    Face("echo", TEXT, _TEXT | {"echo": True}, text_document, "completion", _needs("echo"), "echo"),
    Face("two-prompts", TEXT, _TEXT | {"prompt": ["a", "b"]}, text_document, "completion", _needs("prompts"), "prompt"),
    Face("token-ids", TEXT, _TEXT | {"prompt": [1, 2, 3]}, text_document, "completion", _needs("ids"), "prompt"),
)
OTHER_FACES = (
    Face(
        "tokenize",
        "/tokenize",
        {"model": "MODEL", "messages": _MESSAGES},
        tokens,
        "tokenize",
        frozenset({"tokenizer"}),
        "offer",
        text=_constant("counted"),
    ),
    Face(
        "count-tokens",
        "/v1/messages/count_tokens",
        {"model": "MODEL", "messages": _MESSAGES},
        count,
        "tokenize",
        frozenset({"tokenizer"}),
        "offer",
        text=_constant("counted"),
    ),
    Face(
        "detokenize",
        "/detokenize",
        {"model": "MODEL", "tokens": [1, 2]},
        detokenized,
        "detokenize",
        frozenset({"detokenizer"}),
        "offer",
        text=_constant("counted"),
    ),
    Face(
        "embeddings",
        "/v1/embeddings",
        {"model": "MODEL", "input": ["a", "b"]},
        embedded,
        "embedding",
        frozenset({"vectors"}),
        "offer",
        text=_constant("vectors"),
    ),
    Face(
        "rerank",
        "/v1/rerank",
        {"model": "MODEL", "query": "cats", "documents": _DOCUMENTS},
        ranked,
        "",
        frozenset({"rank"}),
        "model",
        text=_by,
    ),
    Face(
        "score",
        "/v1/score",
        {"model": "MODEL", "text_1": "cats", "text_2": _DOCUMENTS},
        scored,
        "",
        frozenset({"rank"}),
        "model",
        text=_by,
    ),
)
BREAK = "Please BREAK off now"
"""A question that the scripted servers break at: whole answers fail, streams after two words."""
BROKEN_FACES = tuple(
    replace(face, name=f"{face.name}-broken", body=json.loads(json.dumps(face.body).replace(QUESTION, BREAK)))
    for face in TEXT_FACES
    if face.name not in ("chat-system", "prompt", "response-background")
)
FACES = (*TEXT_FACES, *CUT_FACES, *FEATURE_FACES, *OTHER_FACES)
