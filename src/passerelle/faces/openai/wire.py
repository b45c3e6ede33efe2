"""OpenAI wire JSON in, a checked `Request` out: the hot path's first room.

A body is decoded twice by msgspec: its top level into encoded values, to forward; and whole into a typed structure
(``bodies``), to check. What is forwarded is re-encoded from the first, fields of the forward list only (``fields``), so
white space around top-level values is gone and of a key given twice the last stays, here and at every target.

Raises BadRequest (400) that names the field in ``param``, or PayloadTooLarge (413) for media past their bound.
"""

from __future__ import annotations

import re
from typing import NoReturn, TypeVar

import msgspec
import msgspec.inspect

from passerelle.domain.errors import BadRequest
from passerelle.domain.request import Operation, Request
from passerelle.faces.openai import bodies, fields
from passerelle.faces.openai.media import check_part, picture_param
from passerelle.faces.openai.nested import leave_out_unknown
from passerelle.faces.openai.tools import check_response_format, check_tools

Body = TypeVar("Body")
Encoded = dict[str, msgspec.Raw]

_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CHAT = msgspec.json.Decoder(bodies.ChatBody)
_COMPLETION = msgspec.json.Decoder(bodies.CompletionBody)
_EMBEDDING = msgspec.json.Decoder(bodies.EmbeddingBody)
_TOKENIZE = msgspec.json.Decoder(bodies.TokenizeBody)
_DETOKENIZE = msgspec.json.Decoder(bodies.DetokenizeBody)

_WITH_USAGE = msgspec.Raw(b'{"include_usage":true}')
_WHERE = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$?\.?(?P<path>.*)`)?\Z", re.DOTALL)
_QUOTED = re.compile(r"`([^`]*)`\Z")
_MAX_QUOTE = 200
_LARGE_BYTES = 64 * 1024
"""A body past this is not kept twice while its request waits."""


def parse_chat(body: bytes) -> Request:
    """Parses the body of POST /v1/chat/completions."""
    encoded = _top_level(body)
    if "messages" not in encoded and "prompt" in encoded:
        raise BadRequest(
            "This is /v1/chat/completions, which takes `messages`; send a `prompt` to /v1/completions.",
            param="messages",
            code="wrong_endpoint",
        )
    if "prompt" in encoded and bytes(encoded["prompt"]).startswith(b"{"):
        raise BadRequest(
            "A kept prompt is named in requests to /v1/chat/completions and /v1/responses only; send its text.",
            param="prompt",
            code="field_refused",
        )
    dropped = _allowed_only(encoded, Operation.CHAT)
    chat, inner = _typed(_CHAT, body, encoded)
    pictures, remote = _check_messages(chat.messages)
    if chat.top_logprobs and not chat.logprobs:
        raise BadRequest("Field `top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
    if chat.tools is not None or chat.tool_choice is not None:
        check_tools(chat)
    if chat.response_format is not None:
        check_response_format(chat.response_format)
    max_tokens = chat.max_completion_tokens or chat.max_tokens
    request = _generation(Operation.CHAT, chat, encoded, dropped + inner, max_tokens=max_tokens, n=chat.n or 1)
    request.pictures, request.remote_pictures = pictures, remote
    return request


def parse_completion(body: bytes) -> Request:
    """Parses the body of POST /v1/completions. ``Request.n`` counts the choices of all prompts."""
    encoded = _top_level(body)
    if "prompt" not in encoded and "messages" in encoded:
        raise BadRequest(
            "This is /v1/completions, which takes a `prompt`; send `messages` to /v1/chat/completions.",
            param="prompt",
            code="wrong_endpoint",
        )
    dropped = _allowed_only(encoded, Operation.COMPLETION)
    completion, inner = _typed(_COMPLETION, body, encoded)
    prompts = _count(completion.prompt, "prompt", bodies.MAX_PROMPTS)
    choices = prompts * (completion.n or 1)
    if choices > bodies.MAX_PROMPTS:
        raise BadRequest(
            f"Prompts times `n` make {choices} choices; at most {bodies.MAX_PROMPTS} are served at once.", param="n"
        )
    return _generation(
        Operation.COMPLETION, completion, encoded, dropped + inner, max_tokens=completion.max_tokens, n=choices
    )


def parse_embedding(body: bytes) -> Request:
    """Parses the body of POST /v1/embeddings."""
    encoded = _top_level(body)
    if "input" not in encoded and "messages" in encoded:
        raise BadRequest("This is /v1/embeddings, which takes `input`.", param="input", code="wrong_endpoint")
    dropped = _allowed_only(encoded, Operation.EMBEDDING)
    embedding, _ = _typed(_EMBEDDING, body, encoded)
    _count(embedding.input, "input", bodies.MAX_INPUTS)
    if embedding.input == "" or (type(embedding.input) is list and "" in embedding.input):
        raise BadRequest("Field `input` holds an empty text; send at least one character.", param="input")
    return Request(
        Operation.EMBEDDING,
        embedding.model,
        msgspec.json.encode(encoded),
        encoded,
        session=embedding.prompt_cache_key or embedding.safety_identifier or embedding.user,
        dropped=dropped,
    )


def parse_tokenize(body: bytes) -> Request:
    """Parses the body of POST /tokenize; llama-server's ``content`` and ``add_special`` become vLLM's names."""
    encoded = _top_level(body)
    renamed = False
    for theirs, ours in (
        ("content", "prompt"),
        ("add_special", "add_special_tokens"),
        ("with_pieces", "return_token_strs"),
    ):
        if theirs in encoded and ours not in encoded:
            encoded[ours] = encoded.pop(theirs)
            renamed = True
    if renamed:
        body = msgspec.json.encode(encoded)
    dropped = _allowed_only(encoded, Operation.TOKENIZE)
    tokenize, inner = _typed(_TOKENIZE, body, encoded)
    if (tokenize.prompt is None) == (tokenize.messages is None):
        raise BadRequest("Send either `prompt` or `messages`, and not both.", param="prompt")
    pictures = 0
    if tokenize.messages is not None:
        pictures, remote = _check_messages(tokenize.messages)
        if remote:
            raise BadRequest(
                "Pictures are not fetched to count tokens; send them as `data:` URLs.",
                param=remote[0][0],
                code="invalid_image_url",
            )
    return Request(
        Operation.TOKENIZE,
        tokenize.model,
        msgspec.json.encode(encoded),
        encoded,
        dropped=dropped + inner,
        pictures=pictures,
    )


def parse_detokenize(body: bytes) -> Request:
    """Parses the body of POST /detokenize."""
    encoded = _top_level(body)
    dropped = _allowed_only(encoded, Operation.DETOKENIZE)
    detokenize, _ = _typed(_DETOKENIZE, body, encoded)
    return Request(Operation.DETOKENIZE, detokenize.model, msgspec.json.encode(encoded), encoded, dropped=dropped)


def _generation(
    operation: Operation,
    body: bodies.ChatBody | bodies.CompletionBody,
    encoded: Encoded,
    dropped: tuple[str, ...],
    *,
    max_tokens: int | None,
    n: int,
) -> Request:
    options = body.stream_options
    wants_usage = options is not None and options.include_usage is True
    if options is not None and not body.stream:
        raise BadRequest("Field `stream_options` is only accepted with `stream: true`.", param="stream_options")
    if wants_usage:
        encoded["stream_options"] = _WITH_USAGE
    else:
        encoded.pop("stream_options", None)
    forwarded = msgspec.json.encode(encoded)
    if len(forwarded) > _LARGE_BYTES:
        # Encoded values are views of the bytes they came from: taken from what is forwarded, the client's own can go.
        encoded = _TOP_LEVEL.decode(forwarded)
    return Request(
        operation,
        body.model,
        forwarded,
        encoded,
        stream=body.stream is True,
        wants_usage=wants_usage,
        max_tokens=max_tokens,
        n=n,
        session=body.prompt_cache_key or body.safety_identifier or body.user,
        dropped=dropped,
    )


def _top_level(body: bytes) -> Encoded:
    """Returns the fields of the body, values still encoded. Raises BadRequest when it is no JSON object in UTF-8."""
    try:
        if not body.isascii():
            body.decode()
        return _TOP_LEVEL.decode(body)
    except UnicodeDecodeError as error:
        _not_json(body, f"byte {error.start} is not UTF-8")
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request body must be a JSON object. {error}.") from None
    except msgspec.DecodeError as error:
        _not_json(body, str(error).removeprefix("JSON is malformed: "))
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None


def _not_json(body: bytes, reason: str) -> NoReturn:
    if not body.strip():
        raise BadRequest("The request body is empty; send a JSON object.") from None
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise BadRequest("The request body starts with a byte order mark; send UTF-8 without one.") from None
    if b"\x00" in body[:4]:
        raise BadRequest("The request body looks like UTF-16 or UTF-32; send UTF-8.") from None
    reason = reason.replace("Input data was truncated", "it ends too early")
    raise BadRequest(f"The request body is not valid JSON: {reason}.") from None


def _allowed_only(encoded: Encoded, operation: Operation) -> tuple[str, ...]:
    """Removes what is not forwarded from ``encoded``; returns the names to report. Raises BadRequest."""
    allowed = fields.FORWARD[operation]
    if encoded.keys() <= allowed:
        return ()
    others = encoded.keys() - allowed
    dropped = fields.leave_out(others)
    for name in others:
        del encoded[name]
    return dropped


def _typed(decoder: msgspec.json.Decoder[Body], body: bytes, encoded: Encoded) -> tuple[Body, tuple[str, ...]]:
    """Returns the checked body, and the names of inner fields that were left out of ``encoded``. Raises BadRequest."""
    try:
        return decoder.decode(body), ()
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    except msgspec.ValidationError as error:
        if not str(error).startswith("Object contains unknown field"):
            _invalid(error)
    return _typed_leniently(decoder, body, encoded)


def _typed_leniently(
    decoder: msgspec.json.Decoder[Body], body: bytes, encoded: Encoded
) -> tuple[Body, tuple[str, ...]]:
    """Leaves unknown inner fields out of ``encoded``, then checks; off the usual path, so in one slow pass."""
    struct = msgspec.inspect.type_info(decoder.type)
    assert isinstance(struct, msgspec.inspect.StructType)
    whole = _TOP_LEVEL.decode(body)
    dropped: set[str] = set()
    try:
        for field in struct.fields:
            name = field.encode_name
            if name in encoded:
                value = leave_out_unknown(msgspec.json.decode(encoded[name]), field.type, name, dropped)
                whole[name] = encoded[name] = msgspec.Raw(msgspec.json.encode(value))
        return decoder.decode(msgspec.json.encode(whole)), tuple(sorted(dropped))
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    except msgspec.ValidationError as error:
        _invalid(error)


def _invalid(error: msgspec.ValidationError) -> NoReturn:
    what, path = _split(error)
    if what.startswith("Object missing required field"):
        name = _field(what)
        path = f"{path}.{name}" if path else name
        what = "it is required"
    elif what.startswith("Object contains unknown field"):
        what = f"it has an unknown field `{_field(what)[:64]}`"
    else:
        what = what[0].lower() + what[1:_MAX_QUOTE]
    param = path.removesuffix("[...]")[:_MAX_QUOTE]
    raise BadRequest(f"Field `{param}`: {what}.", param=param or None) from None


def _split(error: msgspec.ValidationError) -> tuple[str, str]:
    """Returns what is wrong and where: "Expected `int`", "messages[0].content"."""
    found = _WHERE.match(str(error))
    assert found is not None
    return found["what"], found["path"] or ""


def _field(what: str) -> str:
    found = _QUOTED.search(what)
    return found[1] if found else "?"


def _check_messages(messages: list[bodies.Message]) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Returns how many pictures there are, and those to be fetched: (name of the field, address)."""
    pictures = 0
    remote: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        content = message.content
        if type(content) is list:
            for number, part in enumerate(content):
                where = f"messages[{index}].content[{number}]"
                url = check_part(part, where)
                pictures += isinstance(part, bodies.ImagePart)
                if url is not None:
                    remote.append((picture_param(where), url))
        elif content is None and isinstance(message, bodies.AssistantMessage) and not _says_something(message):
            raise BadRequest(
                f"Message {index} of the assistant has no `content` and no `tool_calls`.",
                param=f"messages[{index}].content",
            )
    return pictures, tuple(remote)


def _says_something(message: bodies.AssistantMessage) -> bool:
    return bool(message.tool_calls or message.refusal or message.reasoning or message.reasoning_content)


def _count(prompt: str | list[str | int | list[int]], param: str, most: int) -> int:
    """Returns how many prompts a field holds. Raises BadRequest for mixed, empty or too many ones."""
    if isinstance(prompt, str):
        return 1
    kinds = set(map(type, prompt))
    if len(kinds) != 1:
        raise BadRequest(f"Field `{param}` mixes texts, token ids and lists of them; send one kind.", param=param)
    if kinds == {int}:
        return 1
    if len(prompt) > most:
        raise BadRequest(
            f"Field `{param}` holds {len(prompt)} entries; at most {most} are served at once.", param=param
        )
    if kinds == {list} and [] in prompt:
        raise BadRequest(f"Field `{param}` holds an empty list of token ids.", param=param)
    return len(prompt)
