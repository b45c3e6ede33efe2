"""``prompt`` in a chat or a response: looked up, filled, and put before what the caller sent, ahead of everything else.

What the gateway then sees is a plain request: guardrails, limits and accounting know nothing of prompts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from passerelle.domain.errors import BadRequest, NotFound
from passerelle.domain.principal import Principal
from passerelle.faces.body import decode
from passerelle.faces.prompts.bodies import PromptReference
from passerelle.prompts.library import PromptLibrary, Ready, rendered
from passerelle.prompts.store import PRODUCTION

_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REFERENCE = msgspec.json.Decoder(PromptReference)
_RESPONSE_CONFIG = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_output_tokens"}
"""What of a prompt's sampling a response can say, and how."""


class PromptReferences:
    """Puts prompts into requests."""

    def __init__(self, library: PromptLibrary) -> None:
        self._library = library

    async def into_chat(self, caller: Principal, body: bytes) -> bytes:
        """Returns a chat's body with its prompt in ``messages``. Raises BadRequest that names what is wrong."""
        fields = _fields(body)
        ready, text = await self._filled(caller, fields)
        if ready is None:
            return body
        content = ready.version.content
        message = msgspec.Raw(msgspec.json.encode({"role": content.role, "content": text}))
        fields["messages"] = _before(message, fields.get("messages"), "messages")
        for name, value in content.config.items():
            if name != "max_tokens" or "max_completion_tokens" not in fields:
                _set(fields, name, value)
        _set(fields, "model", content.model)
        return msgspec.json.encode(fields)

    async def into_response(self, caller: Principal, body: bytes) -> bytes:
        """Returns the body of a response with its prompt in ``input``. Raises as `into_chat` does."""
        fields = _fields(body)
        ready, text = await self._filled(caller, fields)
        if ready is None:
            return body
        content = ready.version.content
        item = msgspec.Raw(msgspec.json.encode({"type": "message", "role": content.role, "content": text}))
        given = fields.get("input")
        if given is not None and bytes(given).startswith(b'"'):
            said = {"type": "message", "role": "user", "content": given}
            given = msgspec.Raw(msgspec.json.encode([said]))
        fields["input"] = _before(item, given, "input")
        for theirs, ours in _RESPONSE_CONFIG.items():
            _set(fields, ours, content.config.get(theirs))
        _set(fields, "model", content.model)
        return msgspec.json.encode(fields)

    async def _filled(self, caller: Principal, fields: dict[str, msgspec.Raw]) -> tuple[Ready | None, str]:
        """Takes ``prompt`` out of the fields; returns what it names and its text, None without one."""
        given = fields.get("prompt")
        if given is None or bytes(given) == b"null":
            fields.pop("prompt", None)
            return None, ""
        if not bytes(given).startswith(b"{"):
            return None, ""  # a completion's text: the parser of the route says where it belongs
        del fields["prompt"]
        try:
            asked = decode(bytes(given), _REFERENCE)
            version = PRODUCTION if asked.version is None else str(asked.version)
            ready = await self._library.find(caller, asked.id, version)
            text = await rendered(ready.filler, values_of(asked.variables or {}))
        except NotFound as error:
            where = "prompt.version" if error.param == "version" else "prompt.id"
            raise BadRequest(error.message, param=where, code="invalid_prompt") from None
        except BadRequest as error:
            if error.error_code == "invalid_variable":
                raise BadRequest(
                    error.message, param=f"prompt.variables.{error.param}", code=error.error_code
                ) from None
            raise BadRequest(error.message, param=_below_prompt(error.param), code=error.error_code) from None
        return ready, text


def values_of(variables: dict[str, Any]) -> dict[str, Any]:
    """Returns variables as plain values: OpenAI's ``{"type": "input_text", "text": …}`` is its text."""
    return {name: _plain(value) for name, value in variables.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "input_text" and isinstance(value.get("text"), str):
        return value["text"]
    return value


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    """Returns the fields of a body, still encoded; none of what is no JSON object, which the parser will say."""
    try:
        if not body.isascii():
            body.decode()
        return _TOP_LEVEL.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _before(first: msgspec.Raw, given: msgspec.Raw | None, field: str) -> msgspec.Raw:
    """Returns a list that begins with ``first``."""
    if given is None or bytes(given) == b"null":
        return msgspec.Raw(msgspec.json.encode([first]))
    try:
        rest = msgspec.json.decode(given, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        raise BadRequest(f"Field `{field}`: expected an array.", param=field) from None
    return msgspec.Raw(msgspec.json.encode([first, *rest]))


def _set(fields: dict[str, msgspec.Raw], name: str, value: Any) -> None:
    """Sets a field that the request does not say."""
    if value is not None and (name not in fields or bytes(fields[name]) == b"null"):
        fields[name] = msgspec.Raw(msgspec.json.encode(value))


def _below_prompt(param: str | None) -> str:
    return f"prompt.{param}" if param and param != "prompt" else "prompt"
